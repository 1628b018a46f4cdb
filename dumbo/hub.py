"""The model hub, without waiting: what is cached, whether it is in reach, which commit a name stands for.

transformers retries an unreachable hub for most of a minute a file. Here one short request decides, and the
files then come as one folder whose name is the commit. Environment variables of huggingface_hub hold
(HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dumbo.errors import UserError

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")
"""What transformers reads: `consolidated.safetensors`, which some repositories hold besides, is the same weights again."""
PICKLED_FILES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
SECONDS_TO_ANSWER = 5


class HubUnreachable(UserError):
    """No hub in reach and nothing cached."""


@functools.cache
def in_reach() -> bool:
    """Whether the hub answers within a few seconds. One request a process; False under HF_HUB_OFFLINE=1."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    session = get_session()
    try:
        session.head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except (OSError, *_http_errors(session)):
        return False
    return True


def _http_errors(session: object) -> tuple[Any, ...]:
    """The base errors of the HTTP library that huggingface_hub uses (requests, httpx, or a successor)."""
    import importlib

    library = importlib.import_module(type(session).__module__.split(".")[0])
    return tuple(
        error
        for name in ("HTTPError", "RequestException", "TransportError")
        if isinstance(error := getattr(library, name, None), type)
    )


def commit_of(folder: Path) -> str | None:
    """The commit a folder of the hub's cache holds; None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def fetch(repo: str, revision: str | None, patterns: Sequence[str], *, instead: str) -> Path:
    """The local folder of a repository's files, downloaded unless cached.

    Args:
        repo: as `HuggingFaceTB/SmolLM2-135M`.
        revision: branch, tag or commit; None: main.
        patterns: which files are wanted.
        instead: what to write when there is no such thing, for the error.

    Raises:
        UserError: no such repository or revision, or no right to it.
        HubUnreachable: no hub in reach and not cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = not in_reach()
    try:
        folder = Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(patterns), local_files_only=offline)
        )
    except LocalEntryNotFoundError as error:
        raise HubUnreachable(f"{repo} is not cached here and the model hub is not in reach.\n{instead}") from error
    except GatedRepoError as error:
        raise UserError(f"{repo} is gated: accept its terms on its hub page, then set HF_TOKEN.\n{instead}") from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision '{revision}'.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"There is no model '{repo}': neither a folder here nor on the hub.\n{instead}") from error
    except HfHubHTTPError as error:
        raise HubUnreachable(f"The model hub refused {repo} ({str(error).splitlines()[0]}).\n{instead}") from error
    if offline and not any(folder.glob(patterns[0])):
        raise HubUnreachable(f"{repo} is only partly cached here and the model hub is not in reach.\n{instead}")
    return folder
