"""`trainer.micro_batch_size=auto`: the largest micro batch that fits, the global batch as it is.

    a GPU     measured on the longest batch, in a process of its own (`measure.py`), before any rank has a model
    FSDP2     predicted: one process cannot hold what several share
    a CPU     predicted, against the memory that is free, divided by the ranks of this machine

The choice stands in run.json (`micro_batch`), where the other ranks and a resumed run find it, with what it was made for
(`circumstances`): where that is another now, it is made again. From here on it is as if it had been typed: what refuses a
typed one refuses it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dumbo.batch import Batch
from dumbo.errors import RunFailed, UserError
from dumbo.launch.world import LONG
from dumbo.plan.circumstances import changes, circumstances

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.outputs.console import Console
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits

AUTO = "auto"
KEY = "micro_batch"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and by what.

    Attributes:
        micro: examples a rank and forward pass.
        ranks, global_: for which it was chosen.
        how: "measured" or "predicted".
        tried: size -> bytes at the peak; None: it did not fit.
        limit: bytes that it had to fit into.
        of: what it was made for, by name.
    """

    micro: int
    ranks: int
    global_: int
    how: str
    tried: Mapping[int, int | None] = field(default_factory=dict)
    limit: int | None = None
    of: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """For run.json."""
        tried = {str(size): peak for size, peak in self.tried.items()}
        return {
            "micro": self.micro,
            "ranks": self.ranks,
            "global": self.global_,
            "how": self.how,
            "tried": tried,
            "limit": self.limit,
            "of": dict(self.of),
        }

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> Choice:
        tried = {int(size): peak for size, peak in facts["tried"].items()}
        of = facts.get("of", {})
        return cls(facts["micro"], facts["ranks"], facts["global"], facts["how"], tried, facts["limit"], of)

    def said(self) -> str:
        """A line for the panel."""
        from dumbo.plan.shown import size

        found = [
            f"{micro}: {size(peak) if peak is not None else 'too large'}" for micro, peak in sorted(self.tried.items())
        ]
        limit = f", {size(self.limit)} may be used" if self.limit is not None else ""
        return f"micro batch {self.micro}, {self.how} ({', '.join(found) or 'memory is not known here'}{limit})"


def sizes(global_batch_size: int, ranks: int) -> list[int]:
    """Micro batches with which the global batch stays what it is, smallest first.

    Raises:
        UserError: it does not divide over the ranks.
    """
    share = Batch.of(global_batch_size, 1, ranks).accumulation
    return [size for size in range(1, share + 1) if share % size == 0]


def settled(plugins: Plugins, run: RunDir, tokenizer: Any, data: PreparedSplits) -> Plugins:
    """The plugins with a number where the trainer has `auto`. Called on every rank; one of them chooses.

    Raises:
        UserError: not even one example fits; the same on every rank.
    """
    trainer = plugins.trainer
    if getattr(trainer, "micro_batch_size", None) != AUTO:
        return plugins
    ranks = int(getattr(plugins.launch, "ranks", 1)) if run.world.size == 1 else run.world.size
    told: Any = None
    if run.world.main:
        told = _told(plugins, run, tokenizer, data, ranks)
    run.world.barrier(LONG)  # measuring takes a minute or more, longer than an exchange may
    told = run.world.share(told)
    if isinstance(told, str):
        raise UserError(told)
    return replace(plugins, trainer=replace(trainer, micro_batch_size=int(told)))


def _told(plugins: Plugins, run: RunDir, tokenizer: Any, data: PreparedSplits, ranks: int) -> int | str:
    """The size, or why there is none: nothing may rise while the other ranks wait."""
    global_ = int(plugins.trainer.global_batch_size)
    before = run.facts.get(KEY)
    if before is not None:
        choice = Choice.of_facts(before)
        changed = changes(choice.of, circumstances(plugins))
        if (choice.ranks, choice.global_) == (ranks, global_) and not changed:
            return choice.micro
        run.console.row("auto", f"the micro batch is chosen again: {changed or 'the ranks or the global batch differ'}")
    try:
        choice = choose(plugins, tokenizer, data, ranks, run.console)
    except (UserError, RunFailed) as error:
        return str(error)
    run.console.row("auto", choice.said())
    run.update(**{KEY: choice.facts()})
    return choice.micro


def choose(
    plugins: Plugins, tokenizer: Any, data: PreparedSplits, ranks: int, console: Console, *, measure: bool = True
) -> Choice:
    """The largest size that fits.

    Args:
        measure: on a GPU; false: it is predicted there too.

    Raises:
        UserError: none does.
    """
    import torch

    candidates = sizes(plugins.trainer.global_batch_size, ranks)
    sharded = ranks > 1 and getattr(plugins.launch, "wrapper", "none") == "FSDP2"
    if measure and torch.cuda.is_available() and not sharded:
        from dumbo.plan.measure import largest_measured

        with console.status("measuring which micro batch fits, on the longest batch"):
            micro, tried, limit = largest_measured(plugins, data, candidates, ranks)
        how = "measured"
    else:
        micro, tried, limit = _largest_predicted(plugins, tokenizer, data, ranks, candidates)
        how = "predicted"
    if micro is None:
        raise UserError(
            f"trainer.micro_batch_size=auto: the memory is not enough for a single example of the longest batch ({how})."
            f"\n{remedy(plugins)}"
        )
    return Choice(micro, ranks, plugins.trainer.global_batch_size, how, tried, limit, circumstances(plugins))


def largest_predicted(
    plugins: Plugins, tokenizer: Any, data: PreparedSplits, ranks: int, below: int | None = None
) -> int | None:
    """By prediction alone; None: not even 1 fits.

    Args:
        below: only smaller ones.
    """
    candidates = [size for size in sizes(plugins.trainer.global_batch_size, ranks) if below is None or size < below]
    return _largest_predicted(plugins, tokenizer, data, ranks, candidates)[0]


def _largest_predicted(
    plugins: Plugins, tokenizer: Any, data: PreparedSplits, ranks: int, candidates: list[int]
) -> tuple[int | None, dict[int, int | None], int | None]:
    """Largest first would rehearse what is far too large: the middle of what is left, again and again."""
    from dumbo.plan.memory import SPARE, predict

    tried: dict[int, int | None] = {}
    fits, over = -1, len(candidates)
    limit = None
    while over - fits > 1:
        place = (fits + over) // 2
        micro = candidates[place]
        memory = predict(plugins, tokenizer, data, Batch.of(plugins.trainer.global_batch_size, micro, ranks))
        if memory.available is None:
            return candidates[0], {}, None  # nothing is known of the memory here: the smallest
        limit = int((1 - SPARE[memory.device]) * memory.available)
        tried[micro] = memory.peak if memory.surely_fits else None
        fits, over = (place, over) if memory.surely_fits else (fits, place)
    return (candidates[fits] if fits >= 0 else None), tried, limit


def remedy(plugins: Plugins) -> str:
    """What to write when one example is too much."""
    words = []
    if "gradient_checkpointing" not in plugins.patches:
        words.append(f"patch=[{','.join([*plugins.patches, 'gradient_checkpointing'])}]")
    elif getattr(plugins.patches["gradient_checkpointing"], "layers", None) is not None:
        words.append("patch.gradient_checkpointing.layers=null")
    words.append(f"a trainer.max_seq_len below {plugins.trainer.max_seq_len}")
    return "  Write " + ", or ".join(words)
