"""What the config holds besides the plugins: where a run lives, and each verb's own options.

The fields are the keys of conf/config.yaml, checked from these types as plugins are from theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

Format = Literal["text", "json"]
FASTER = ("chunked_loss", "compile")
"""The patches that `performance` may add."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Proofs at the start of a run, and `dumbo verify`.

    Args:
        mode: "quick": proofs before step one, in seconds (mask, pack leak, tokens and loss of the first batch, gradient
            flow, accumulation); "off": none.
        num_examples: `dumbo verify` looks at so many rows, the first of each split.
        only: names of proofs, or their first words; []: all.
        format: of `dumbo verify`: "text" or "json".
    """

    mode: Literal["quick", "off"] = "quick"
    num_examples: int = 64
    only: list[str] = field(default_factory=list)
    format: Format = "text"

    def __post_init__(self) -> None:
        _at_least("num_examples", self.num_examples, 2)


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """`dumbo preview`.

    Args:
        num_examples: examples shown token by token.
        format: "text", or "json": an object a line and example, then one with the audit.
        fail_on: thresholds by audit name; over one of them the exit code is 3. A whole number counts rows,
            a fraction below 1 is a share of them.
    """

    num_examples: int = 3
    format: Format = "text"
    fail_on: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _at_least("num_examples", self.num_examples, 0)
        for name, most in self.fail_on.items():
            _at_least(f"fail_on.{name}", most, 0)


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """`dumbo chat run=last chat.prompt="…"`.

    Args:
        prompt: what to ask, once.
        system: a system message before it; null: none.
        max_new_tokens: longest answer, in tokens.
        temperature: 0: the likeliest token each time; above 0: sampled.
        seed: of the sampling.
        trust_remote_code: run code that comes with the run's model, or with its base.
        format: "text" or "json".
    """

    prompt: str | None = None
    system: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    trust_remote_code: bool = False
    format: Format = "text"

    def __post_init__(self) -> None:
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        _at_least("temperature", self.temperature, 0)
        _at_least("seed", self.seed, 0)


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise UserError(f"{name} must be at least {least}, got {value:g}.")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """`dumbo doctor`.

    Args:
        format: "text" or "json".
    """

    format: Format = "text"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The top level of the config.

    Args:
        run_dir: the run's folder; null: outputs/DATE/TIME-NAME-ID.
        sweep_dir: the folder of a sweep (`-m`); null: multirun_outputs/DATE/TIME.
        resume: "auto" or a run's folder; null: a new run.
        repeat: a run's folder to do again, with what is typed besides on top.
        run: the run that `chat` reads: a folder, or "last".
        performance: "auto": on a GPU, patches that make a step faster are added where they are proven right (see FASTER);
            a list of some of them: only these; "off": none. Patches that were chosen stay as they are.
    """

    run_dir: str | None = None
    sweep_dir: str | None = None
    resume: str | None = None
    repeat: str | None = None
    run: str | None = None
    performance: str | list[str] = "off"

    def __post_init__(self) -> None:
        named = self.performance
        unknown = [name for name in named if name not in FASTER] if isinstance(named, list) else []
        if unknown or (isinstance(named, str) and named not in ("auto", "off")):
            wrong = unknown[0] if unknown else named
            raise UserError(
                f"performance has no choice '{wrong}'.{did_you_mean(str(wrong), ('auto', 'off', *FASTER))}\n"
                f"  Write performance=auto, performance=off, or some of [{','.join(FASTER)}]"
            )


SECTIONS = {"verify": VerifyOptions, "preview": PreviewOptions, "chat": ChatOptions, "doctor": DoctorOptions}
