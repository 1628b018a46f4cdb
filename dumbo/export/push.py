"""An exported folder to the model hub, through huggingface_hub (HF_TOKEN, HF_ENDPOINT and its other variables hold)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dumbo.errors import RunFailed, UserError


@dataclass(frozen=True)
class Push:
    """Where to.

    Attributes:
        repo: NAME or OWNER/NAME.
        private: whether a repository that is made for it is private; one that exists stays as it is.
    """

    repo: str
    private: bool

    @classmethod
    def planned(cls, repo: str, *, private: bool) -> Push:
        """Looked at before anything is loaded.

        Raises:
            UserError: no name of a repository, no token, or no hub.
        """
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise UserError(
                f"export.push: '{repo}' is no name of a repository. Write OWNER/NAME.\n  {error}"
            ) from error
        if constants.HF_HUB_OFFLINE:
            raise UserError("export.push: the hub is switched off by HF_HUB_OFFLINE.")
        if get_token() is None:
            raise UserError("export.push needs a token that may write: set HF_TOKEN, or log in with `hf auth login`.")
        return cls(repo, private)

    def upload(self, folder: Path) -> str:
        """Makes the repository if need be and puts the folder into it. Returns its address.

        Raises:
            RunFailed: the hub refused it; the folder stays.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()
        try:
            made = api.create_repo(self.repo, private=self.private, exist_ok=True)
            api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Exported with dumbo")
        except (HfHubHTTPError, OSError) as error:
            raise RunFailed(
                f"export.push: the hub did not take {self.repo} ({str(error).strip().splitlines()[0]}).\n"
                f"  The folder is written all the same: {folder}"
            ) from error
        return str(made)
