"""Exact match: held-out questions are answered, and a named extractor looks for the answer in what was said."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from dumbo.generate import answers, own_ends, stop_ids
from dumbo.outputs import samples
from dumbo.outputs.extractors import NAMED, Extractor, extractor_for

if TYPE_CHECKING:
    from dumbo.evaluate.subject import Subject
    from dumbo.options import EvaluateOptions
    from dumbo.outputs.console import Console
    from dumbo.prepare.store import Split

SHOWN = 20
"""Answers that stand in evaluation.json, the first ones."""


def exam(
    subject: Subject, split: Split, pattern: str | None, chosen: EvaluateOptions, console: Console
) -> dict[str, Any]:
    """exact_match, questions, extractor, …, `sources` (the first two of each source) and `answers`, the first few.

    Empty where the data has no answers (`dataset.answer_pattern`) and no extractor was named.

    Args:
        pattern: the data set's own.
    """
    extractor = _extractor(pattern, chosen)
    if extractor is None:
        return {}
    model: Any = subject.model
    asked = samples.questions(split, subject.tokenizer, chosen.num_answers or len(split))
    asked = [question for question in asked if extractor.find(question.reference) is not None]
    cut = samples.left_out(split)
    left_out = {"questions_left_out": cut} if cut else {}
    if not asked:
        return {"extractor": extractor.name, "questions": 0, **left_out}
    how = samples.how_to_answer(split, subject.tokenizer, asked, chosen.max_new_tokens)
    how = how.but(
        stop_ids=stop_ids(subject.tokenizer, [*how.stop_ids, *own_ends(model)]),
        temperature=chosen.temperature,
        seed=chosen.seed,
        at_once=chosen.batch_size,
        bf16=subject.bf16,
    )
    rows: list[dict[str, Any]] = []
    unfinished = 0
    with console.counter("answering") as bar:
        ids = answers(
            model, subject.tokenizer, [q.prompt_ids for q in asked], how, lambda done: bar.update("questions", done)
        )
    for question, new in zip(asked, ids, strict=True):
        unfinished += len(new) >= how.max_new_tokens
        said = samples.text_of(subject.tokenizer, new).strip()
        found, wanted = extractor.find(said), extractor.find(question.reference)
        rows.append(
            {
                "source": question.source,
                "question": question.asked,
                "answer": said,
                "found": found,
                "wanted": wanted,
                "right": found == wanted,
            }
        )
    return {
        "exact_match": sum(row["right"] for row in rows) / len(rows),
        "questions": len(rows),
        "extractor": extractor.name,
        "max_new_tokens": how.max_new_tokens,
        "temperature": how.temperature,
        "answers_unfinished": unfinished,
        **left_out,
        "answers": rows[:SHOWN],
        "sources": _by_source(rows),
    }


def _extractor(pattern: str | None, chosen: EvaluateOptions) -> Extractor | None:
    if chosen.extractor is not None:
        return NAMED[chosen.extractor]
    return extractor_for(pattern) if pattern is not None else None


def _by_source(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right[row["source"].rpartition(", ")[0]].append(row["right"])
    return {name: {"exact_match": sum(marks) / len(marks), "questions": len(marks)} for name, marks in right.items()}
