"""The micro batch that a run has settled on after its memory ran out: decided, said, and kept in run.json.

    "memory_halvings": [{"step": 12, "from": 4, "to": 2, "asked": 4}]

`asked` is the config's `trainer.micro_batch_size`: a resumed run keeps the smaller one until another is asked for.
CUDA graphs that nobody asked for are given up before that, and stay so as long:

    "graphs_given_up": {"step": 12, "text": "CUDA out of memory", "asked": 4}
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dumbo.batch import Batch
from dumbo.errors import MemoryFull, RunFailed
from dumbo.outputs.places import short, typed

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir

T = TypeVar("T")
KEY = "memory_halvings"
GRAPHS = "graphs_given_up"
ALLOCATOR, PIECES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"), "expandable_segments"
"""What torch reads. With it a document of 1B may be an eighth longer (benchmarks/NOTES.md)."""
MOST = 3
"""So often a run's micro batch is halved."""


def settled(run: RunDir, batch: Batch, asked: int | str) -> Batch:
    """The arithmetic that a run goes on with. The same on every rank, all of which call this.

    Args:
        batch: as the config has it.
        asked: the config's `trainer.micro_batch_size`.
    """
    made = run.world.share(_made(run, asked))
    return batch.cut(made[-1]["to"]) if made and made[-1]["to"] < batch.micro else batch


def fitting(run: RunDir, examples: Sequence[T], trainer: Any) -> Sequence[T]:
    """Of the config's first micro batch, what a micro batch holds now; the proofs before training take no more.

    Args:
        trainer: the plugin.
    """
    made = _made(run, getattr(trainer, "micro_batch_size", None))
    return examples[: made[-1]["to"]] if made else examples


def reminder(run: RunDir, batch: Batch, asked: int | str) -> str | None:
    """Why a run goes on with another micro batch than its config's; None where it does not."""
    made = _made(run, asked)
    if not made or made[-1]["to"] < batch.micro:
        return None
    return (
        f"not {asked} in a micro batch: the memory ran out at step {made[-1]['step']}; "
        "trainer.micro_batch_size=NUMBER asks for another size"
    )


def halve(run: RunDir, full: MemoryFull) -> Batch:
    """Decides on a smaller micro batch, and records it.

    Raises:
        RunFailed: there is none, or it has been halved often enough.
    """
    made = _made(run, full.asked)
    smaller = full.batch.halved()
    if smaller is None:
        raise RunFailed(
            f"{happened(full)}, with a single {'pack' if packed(run) else 'example'} in a micro batch.\n{_remedy(run, full)}"
        )
    if len(made) >= MOST:
        sizes = " -> ".join(str(size) for size in [made[0]["from"], *(one["to"] for one in made)])
        raise RunFailed(
            f"{happened(full)}, after the micro batch was halved {MOST} times ({sizes}).\n"
            f"  Go on with a smaller one: {typed('resume', run.path)} trainer.micro_batch_size=1\n{_remedy(run, full)}"
        )
    one = {"step": full.step, "from": full.batch.micro, "to": smaller.micro, "asked": full.asked}
    run.update(**{KEY: [*run.facts.get(KEY, []), one]}, batch=facts_of(smaller))
    return smaller


def give_up_graphs(run: RunDir, full: MemoryFull) -> None:
    """Records that this run is to go on without CUDA graphs, with the micro batch that it has."""
    run.update(**{GRAPHS: {"step": full.step, "text": full.text, "asked": full.asked}})


def graphs_given_up(run: RunDir, asked: int | str) -> str | None:
    """Why a run goes on without CUDA graphs; None: it need not."""
    told = run.facts.get(GRAPHS)
    if told is None or told["asked"] != asked:
        return None
    return f"the memory ran out with them at step {told['step']} ({told['text']})"


def facts_of(batch: Batch) -> dict[str, int]:
    """As it stands in run.json."""
    return {"global": batch.global_, "micro": batch.micro, "ranks": batch.ranks, "accumulation": batch.accumulation}


def happened(full: MemoryFull) -> str:
    """`the memory ran out at step 12 with micro batch 4 (CUDA out of memory. Tried to allocate 2.00 GiB)`."""
    return f"The memory ran out at step {full.step} with micro batch {full.batch.micro} ({full.text})"


def by_hand(run: RunDir, full: MemoryFull) -> str:
    """What to write where nobody here can start the ranks again.

    Args:
        run: of the rank that it happened to.
    """
    if full.graphs:
        again = f"{typed('resume', run.path)} trainer.cuda_graphs=false"
        return f"{happened(full)}, some of it held by CUDA graphs.\n  Start all processes again with {again}"
    smaller = full.batch.halved()
    if smaller is None:
        return f"{happened(full)}.\n{_remedy(run, full)}"
    return (
        f"{happened(full)}.\n"
        f"  Start all processes again with {typed('resume', run.path)} trainer.micro_batch_size={smaller.micro}"
        f" (accumulation {smaller.accumulation}: the same global batch)"
    )


def packed(run: RunDir) -> bool:
    return run.facts.get("packing", {}).get("packs") is not None


def _made(run: RunDir, asked: int | str | None) -> list[dict[str, Any]]:
    return [one for one in run.facts.get(KEY, []) if one["asked"] == asked]


def _chosen(run: RunDir) -> list[str]:
    """The patches of the config that are applied; what `performance` adds or leaves out is not to be typed."""
    added = run.facts.get("performance")
    noted = run.facts.get("patches", {})
    own = [name for name, said in noted.items() if said.startswith("applied")]
    return [name for name in own if not isinstance(added, list) or name not in added]


def _remedy(run: RunDir, full: MemoryFull) -> str:
    """What takes less memory, as it can be typed."""
    patches, again = _chosen(run), typed("resume", run.path)
    lines = []
    if "gradient_checkpointing" not in patches:
        words = shlex.quote(f"patch=[{','.join([*patches, 'gradient_checkpointing'])}]")
        lines.append(f"Go on with gradient checkpointing: {again} {words}")
    else:
        said = re.match(r"applied: (\d+) of (\d+) layers", run.facts["patches"]["gradient_checkpointing"])
        if said is not None and said[1] != said[2]:
            lines.append(f"Go on with checkpointing of all layers: {again} patch.gradient_checkpointing.layers=null")
    alone = full.batch.ranks == 1  # between ranks it has not been tried
    if (
        alone
        and "CUDA out of memory" in full.text
        and not any(PIECES in os.environ.get(name, "") for name in ALLOCATOR)
    ):
        before = f"{ALLOCATOR[0]}={PIECES}:True before the command"
        lines.append(f"{'or' if lines else 'Go on'} with its memory in fewer pieces: {again}, and {before}")
    shorter = f"a smaller trainer.max_seq_len, from the start: {typed('repeat', run.path)} trainer.max_seq_len=…"
    lines.append(f"{'or write' if lines else 'Write'} {shorter}")
    return "\n".join(f"  {line}" for line in [*lines, f"The whole traceback is in {short(run.path / 'dumbo.log')}"])
