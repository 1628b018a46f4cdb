"""The embedded data: nothing held out stands in training, and for sums and comparisons no rewording does either.

Judged from the questions' texts alone (numbers and words found in them), not from what quiz.py says of itself.
"""

from __future__ import annotations

import re
from collections import Counter

import pytest

from dumbo.dataset.quiz import CAPITALS, Quiz, questions

SEEDS = range(5)


def fact_asked(text: str) -> tuple[str, frozenset[str]]:
    """What a question is about, whatever its wording and order: its kind and the set of things named."""
    numbers = frozenset(re.findall(r"\d+", text))
    lower = text.lower()
    if "larger" in lower:
        return "larger", numbers
    if "smaller" in lower:
        return "smaller", numbers
    if "+" in text or "plus" in lower or lower.startswith("add"):
        return "sum", numbers
    if "capital" in lower:
        return "capital", frozenset(country for country in CAPITALS if re.search(rf"\b{country}\b", text))
    if numbers:
        return "after", numbers
    return "spell", frozenset(re.findall(r"[a-z]+", lower)) - frozenset(
        ["how", "do", "you", "spell", "the", "word", "which", "letters", "make", "write", "letter", "by"]
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_no_held_out_question_stands_in_training(seed: int) -> None:
    train, held_out = questions(seed)
    assert len(held_out) == 100
    assert len({question.text for question in held_out}) == 100
    assert not {question.text for question in train} & {question.text for question in held_out}
    assert len({question.text for question in train}) == len(train)


@pytest.mark.parametrize("seed", SEEDS)
def test_sums_and_comparisons_have_no_rewording_in_training(seed: int) -> None:
    train, held_out = questions(seed)
    seen = {fact_asked(question.text) for question in train}
    new = [question for question in held_out if fact_asked(question.text) not in seen]
    kinds = Counter(fact_asked(question.text)[0] for question in new)
    assert kinds == {"sum": 30, "larger": 15, "smaller": 15}
    # nor is a pair that is compared one way in training compared the other way when held out
    pairs = {numbers for kind, numbers in seen if kind in ("larger", "smaller")}
    assert not [q.text for q in new if fact_asked(q.text)[0] != "sum" and fact_asked(q.text)[1] in pairs]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_rest_is_recall(seed: int) -> None:
    train, held_out = questions(seed)
    seen = {fact_asked(question.text) for question in train}
    recalled = [question for question in held_out if fact_asked(question.text) in seen]
    assert Counter(fact_asked(question.text)[0] for question in recalled) == {"capital": 20, "after": 10, "spell": 10}


def test_answers_are_right() -> None:
    """Worked out again from the text."""
    for question in [part for split in questions(0) for part in split]:
        kind, named = fact_asked(question.text)
        numbers = [int(number) for number in re.findall(r"\d+", question.text)]
        if kind == "sum":
            assert question.answer == str(sum(numbers)), question.text
        elif kind in ("larger", "smaller"):
            assert question.answer == str(max(numbers) if kind == "larger" else min(numbers)), question.text
        elif kind == "after":
            assert question.answer == str(numbers[0] + 1), question.text
        elif kind == "spell":
            assert question.answer.replace(" ", "") == next(iter(named)), question.text
        else:
            assert question.answer == CAPITALS[next(iter(named))], question.text


def test_limits_and_fingerprint() -> None:
    splits = Quiz(limit=16, eval_limit=7).load()
    assert sum(len(batch) for batch in splits.train) == 16
    assert splits.eval is not None
    assert sum(len(batch) for batch in splits.eval) == 7
    assert splits.fingerprint != Quiz().load().fingerprint
