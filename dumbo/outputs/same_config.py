"""Whether a resumed run may go on with the config it is given: what the checkpoint fixes must be as it was."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from dumbo.errors import UserError
from dumbo.outputs.config_hash import differences
from dumbo.outputs.places import typed

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir


TAKES_EFFECT = (
    "trainer.max_steps", "trainer.num_epochs", "trainer.eval_every", "trainer.eval_at_start", "trainer.load_best_at_end",
    "trainer.num_samples", "trainer.num_answers", "trainer.max_new_tokens", "dataset.path", "dataset.eval_path", "model.path",
    "trainer.micro_batch_size", "patch.gradient_checkpointing", "performance",
)  # fmt: skip
"""Keys whose change is taken up on resuming: how long, what is measured, where the same files lie now, and how a step is
spread over ranks and passes, what is computed twice for want of memory, or in a faster way (which changes no more than the
last digits)."""


def _takes_effect(key: str) -> bool:
    """`patch` alone stands for no patch at all: whichever there is instead has lines of its own."""
    return key == "patch" or any(key == name or key.startswith(f"{name}.") for name in TAKES_EFFECT)


def require_same(run: RunDir, config: Mapping[str, Any]) -> list[str]:
    """With resume=auto the config must be the run's; with resume=RUN what can change was typed on purpose, and is shown.

    Raises:
        UserError: another config, or a change that the checkpoint (optimizer, schedule, order of the data) would ignore.
    """
    before = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    changed = differences(before, config)
    if not changed:
        return []
    if config.get("resume") == "auto":
        listed = "\n  ".join(changed)
        raise UserError(
            f"resume=auto: the run in {run.path} was started with another config:\n  {listed}\n"
            f"  Write another run_dir=FOLDER; to go on for longer: resume={run.path} trainer.max_steps=…"
        )
    if stuck := [line for line in changed if not _takes_effect(line.partition(":")[0])]:
        listed = "\n  ".join(stuck)
        raise UserError(
            f"resume: the checkpoint fixes these, a change of them would not take effect:\n  {listed}\n"
            f"  Leave them out, or start a run of its own with them: {typed('repeat', run.path)}"
        )
    run.console.row("changed", "\n".join(changed))
    return changed


def require_ahead(run: RunDir, config: Mapping[str, Any]) -> None:
    """Raises UserError when a resumed run would have to end before where it is."""
    wanted = (config.get("trainer") or {}).get("max_steps")
    done = newest_step(run)
    if isinstance(wanted, int) and done > wanted:
        raise UserError(past(done, f"trainer.max_steps={wanted}", run))


def past(done: int, end: str, run: RunDir) -> str:
    """What is said of a run that is further than it is to go."""
    return (
        f"resume: the run is at step {done:,}, past {end}.\n"
        f"  Write a larger number, or leave it out; for a shorter run of its own: {typed('repeat', run.path)}"
    )


def newest_step(run: RunDir) -> int:
    """Of the checkpoints that are there; 0: none."""
    names = [path.name.removeprefix("step-") for path in (run.path / "checkpoints").glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)
