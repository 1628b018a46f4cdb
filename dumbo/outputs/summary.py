"""The end of a run on the terminal: losses, samples before and after, what to type next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dumbo.outputs.console import clock
from dumbo.outputs.places import short, typed
from dumbo.outputs.report.write import FILE as REPORT

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir

TRAIN_LOSS_OVER = 10
"""What `train_loss` is the mean of: see trainer/progress.py, which is not imported for a run that was finished already."""


def show_end(run: RunDir) -> dict[str, Any]:
    """The summary: losses, samples before and after, what to type next. Returns the metrics."""
    metrics: dict[str, Any] = run.facts.get("metrics", {})
    console = run.console
    logged = sum(row.get("loss") is not None for row in run.metrics())  # null: no loss that is finite
    console.row("result", "   ".join(_result(metrics, min(TRAIN_LOSS_OVER, logged or TRAIN_LOSS_OVER))))
    if said := run.facts.get("repeat", {}).get("losses"):
        console.row("repeat", said)
    for question, before, after in run.samples:
        console.row("asked", question.shown())
        console.row("", f"before    {_answer(before)}")
        console.row("", f"after     {_answer(after)}")
        console.row("", f"wanted    {_answer(question.reference)}")
    last = short(run.path).startswith("outputs")
    named = "run=last" if last else typed("run", run.path)
    console.row("next", f'python -m dumbo chat {named} chat.prompt="{_example(run)}"')
    console.row("", f"model in {short(run.path / 'model')}, numbers in {short(run.path / 'metrics.jsonl')}")
    if (page := run.path / REPORT).is_file():
        console.row("report", f"{short(page)} (open it in a browser)")
    if not console.fancy:
        console.plain(short(run.path))
    run.release()
    return metrics


def _result(metrics: Mapping[str, Any], over: int = TRAIN_LOSS_OVER) -> list[str]:
    """The result's parts; `over`: so many logged losses its training loss is the mean of."""
    parts = []
    if "train_loss" in metrics:
        of = f"mean of the last {over} logged" if over > 1 else "last"
        first, of = (f"{metrics['first_loss']:.3f} -> ", f"first, {of}") if "first_loss" in metrics else ("", of)
        parts.append(f"loss {first}{metrics['train_loss']:.3f} ({of})")
    if "eval_loss" in metrics:
        first = f"{metrics['eval_loss_before']:.3f} -> " if "eval_loss_before" in metrics else ""
        parts.append(f"held-out loss {first}{metrics['eval_loss']:.3f}")
    if "exact_match" in metrics:
        parts.append(f"exact match {100 * metrics['exact_match']:.0f}% of {metrics['questions']} held-out questions")
    if "questions_left_out" in metrics:
        parts.append(
            f"{metrics['questions_left_out']:,} held-out rows not asked: trainer.max_seq_len cuts their answers"
        )
    if "tokens_per_s" in metrics:
        parts.append(f"{metrics['tokens_per_s']:,.0f} tokens/s")
    if "seconds" in metrics:
        parts.append(f"{clock(metrics['seconds'])} in all")
    return parts


def _answer(text: str) -> str:
    from dumbo.outputs.printable import shortened

    return shortened(text, 200) or "(nothing)"


def _example(run: RunDir) -> str:
    """A held-out question that is short enough for a command line; one that the model answered right where there is any."""
    for question, _, _ in sorted(run.samples, key=lambda sample: sample[2].strip() != sample[0].reference.strip()):
        text = question.asked.strip()
        if 0 < len(text) <= 60 and text.isprintable() and not set(text) & set("\"'`$\\!"):
            return text
    return "…"
