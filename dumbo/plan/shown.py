"""A plan on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dumbo
from dumbo.outputs.numbers import millions

if TYPE_CHECKING:
    from dumbo.outputs.console import Console
    from dumbo.plan.measured import Measured
    from dumbo.plan.plan import Plan


def size(count: float) -> str:
    """Bytes as one would say them: 640 KiB, 12 MiB, 3.1 GiB."""
    if count >= 10 * 2**30:
        return f"{count / 2**30:,.0f} GiB"
    if count >= 2**30:
        return f"{count / 2**30:.1f} GiB"
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def duration(seconds: float) -> str:
    """h:mm:ss, m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show(plan: Plan, console: Console) -> None:
    """Row by row, as the start panel of a run has them."""
    console.heading(f"dumbo {dumbo.__version__}  plan")
    model, of = plan.model, plan.arithmetic
    total, trainable = model["parameters"], model["trainable"]
    share = (
        "all trainable" if total == trainable else f"{millions(trainable)} trainable ({100 * trainable / total:.1f}%)"
    )
    console.row("model", f"{model['name']}   {millions(total)} parameters, {share}   {model['dtype']}")
    for number, (name, text) in enumerate(plan.patches.items()):
        console.row("patches" if number == 0 else "", f"{name}  {text}")
    data = plan.data
    console.row("data", f"{data.name}  {len(data.train):,} documents, {data.train.tokens:,} tokens in an epoch")
    epochs = f"{of.epochs:.2f}".rstrip("0").rstrip(".")
    console.row(
        "batch", f"{of.batch}   {of.steps:,} step{'s' * (of.steps != 1)}, {epochs} epoch{'s' * (epochs != '1')}"
    )
    packs = f", in packs {100 * of.filled:.1f}% full" if of.filled is not None else ""
    console.row("", f"{of.documents:,.1f} documents a step{packs}")
    if plan.chosen is not None and plan.chosen.how == "predicted":  # what was measured stands beside the memory
        console.row("", plan.chosen.said())
    console.row("tokens", f"{of.tokens:,}, {of.trained_tokens:,} of them trained")
    _memory(plan, console)
    _disk(plan, console)
    if plan.seconds is None or plan.speed is None:
        console.row(
            "time",
            "unknown: run some steps (trainer.max_steps=20) and plan again, or write plan.tokens_per_s=NUMBER",
        )
    else:
        console.row(
            "time", f"{duration(plan.seconds)} at {plan.speed.tokens_per_s:,.0f} tokens/s ({plan.speed.source})"
        )


def _memory(plan: Plan, console: Console) -> None:
    memory = plan.memory
    where, over = ("of a GPU", "") if memory.device == "cuda" else ("of the CPU", ", over what imports take")
    free = f"{',' if over else ''} of {size(memory.available)} free" if memory.available is not None else ""
    rank = " a rank" if plan.arithmetic.batch.ranks > 1 else ""
    console.row("memory", f"{size(memory.peak)}{rank} {where} at the peak{over}{free}: the longest batch, predicted")
    for name, count in memory.parts.items():
        if count:
            console.row("", f"{name:<18}{size(count):>9}{_said(plan, name)}")
    if plan.measured is not None:
        _measured(plan.measured, memory.peak, console)


def _measured(took: Measured, predicted: int, console: Console) -> None:
    limit = f"{size(took.limit)} may be used" if took.limit is not None else "no limit is known"
    if took.peak is None:
        console.row("measured", f"micro batch {took.micro} does not fit, {limit}")
    else:
        off = (
            f"the prediction is {100 * (predicted / took.peak - 1):+.1f}% off" if took.peak else "too little to compare"
        )
        console.row("measured", f"{size(took.peak)} at the peak, by two steps on the longest batch: {off}")
    if len(took.tried) > 1:
        found = [
            f"{one}: {size(peak) if peak is not None else 'too large'}" for one, peak in sorted(took.tried.items())
        ]
        largest = f"largest micro batch that fits: {took.largest}" if took.largest else "no micro batch fits"
        console.row("", f"{largest} ({', '.join(found)}; {limit})")


def _said(plan: Plan, name: str) -> str:
    held = plan.memory.held.get(name, 0)
    if name == "optimizer" and plan.memory.assumed_optimizer:
        return "   assumed: two float32 numbers a parameter"
    return f"   ({size(held)} later in the step)" if held > plan.memory.parts[name] else ""


def _disk(plan: Plan, console: Console) -> None:
    disk = plan.disk
    free = f" of {size(disk.free)} free" if disk.free is not None else ""
    console.row(
        "disk",
        f"up to {size(disk.needed)}{free}: {disk.kept} checkpoint{'s' * (disk.kept != 1)} of {size(disk.checkpoint)}"
        f" at the end, model/ {size(disk.model)}",
    )
