"""What an evaluation found, on the terminal and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.outputs.numbers import finite
from dumbo.outputs.surroundings import hardware, versions
from dumbo.preview import json_line

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.evaluate.place import Place
    from dumbo.evaluate.subject import Subject
    from dumbo.outputs.console import Console
    from dumbo.prepare.store import PreparedSplits


def facts_of(
    subject: Subject, plugins: Plugins, place: Place, data: PreparedSplits | None, started: str
) -> dict[str, Any]:
    """What was evaluated, on what, and where."""
    facts: dict[str, Any] = {
        "model": subject.facts,
        "precision": "bf16" if subject.bf16 else "fp32",
        "started": started,
        "versions": versions(),
        "hardware": hardware(),
    }
    if data is not None:
        assert data.eval is not None
        facts["data"] = {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "held_out_rows": data.eval.rows,
            "as_in_training": not place.other_data(data.fingerprint) if place.run else None,
        }
    return facts


def show(console: Console, results: dict[str, Any]) -> None:
    """The numbers, a row each."""
    sources: dict[str, Any] = results.get("sources", {})
    if "loss" in results:
        console.row("loss", _loss(results) + (f" of {next(iter(sources))}" if len(sources) == 1 else ""))
    elif sources:
        console.row("loss", f"none: no token of {results['rows']:,} held-out rows is trained")
    if len(sources) > 1:
        for name, facts in sources.items():
            console.row("", f"{name}   {_loss(facts)}{_match(facts)}")
    if "exact_match" in results:
        console.row("answers", f"{_match(results).strip()}   (extractor {results['extractor']})")
        if results["answers_unfinished"]:
            console.row(
                "",
                f"{results['answers_unfinished']:,} answers had not ended after {results['max_new_tokens']} tokens "
                "(evaluate.max_new_tokens)",
            )
    elif "extractor" in results:
        console.row("answers", f"none of the held-out rows has an answer that extractor {results['extractor']} finds")
    elif sources:
        console.row("answers", "this data has no answers to compare; evaluate.extractor=text compares whole texts")
    if cut := results.get("questions_left_out"):
        console.row("", f"{cut:,} held-out rows not asked: trainer.max_seq_len cuts their answers")
    for name, numbers in results.get("tasks", {}).items():
        console.row(
            "task", f"{name}   " + "   ".join(f"{key} {_number(numbers[key])}" for key in numbers if key != "version")
        )


def _loss(facts: dict[str, Any]) -> str:
    counted = f"{facts['trained_tokens']:,} trained tokens in {facts['rows']:,} rows"
    if "loss" not in facts:
        return counted
    return f"held-out loss {facts['loss']:.4f}   perplexity {facts['perplexity']:,.3f}   {counted}"


def _match(facts: dict[str, Any]) -> str:
    if "exact_match" not in facts:
        return ""
    return f"   exact match {100 * facts['exact_match']:.1f}% of {facts['questions']:,} questions"


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def as_json(results: dict[str, Any]) -> str:
    """All of it on one line."""
    return json_line(finite(results))
