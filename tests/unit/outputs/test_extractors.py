"""Which part of a text is its answer."""

from __future__ import annotations

import pytest

from dumbo.outputs.extractors import BY_PATTERN, NAMED, extractor_for


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so he has 5\n#### 18", "18"),
        ("#### 1,234", "1234"),
        ("#### 12,345,678", "12345678"),
        ("#### -7", "-7"),
        ("#### $-7", "-7"),
        ("#### -$1,000", "-1000"),
        ("#### $18.00", "18"),
        ("#### 18.", "18"),
        ("#### 18.50.", "18.5"),
        ("#### .5", "0.5"),
        ("#### 0.0", "0"),
        ("#### -0", "0"),
        ("#### +3", "3"),
        ("####7 apples", "7"),
        ("####    100", "100"),
        ("#### 1\nno, wait\n#### 2", "2"),
        ("#### 2\n####", "2"),
        ("18", None),
        ("the answer is 18", None),
        ("####", None),
        ("#### ", None),
        ("####\n18", None),
        ("#### none", None),
        ("#### ,", None),
        ("### 18", None),
        ("", None),
    ],
)
def test_the_number_after_the_hashes(text: str, answer: str | None) -> None:
    assert NAMED["gsm8k"].find(text) == answer


@pytest.mark.parametrize(("text", "answer"), [(" Paris \n", "Paris"), ("a b\nc", "a b\nc"), (" \n", None), ("", None)])
def test_the_text(text: str, answer: str | None) -> None:
    assert NAMED["text"].find(text) == answer


def test_the_default_is_the_data_sets_own() -> None:
    import yaml

    from dumbo.dataset.quiz import Quiz
    from dumbo.search_path import files_of

    gsm8k = yaml.safe_load(files_of("dataset")["gsm8k"].read_text())["answer_pattern"]
    assert extractor_for(gsm8k).name == "gsm8k"
    assert extractor_for(str(Quiz().load().answer_pattern)).name == "text"
    assert set(BY_PATTERN.values()) <= set(NAMED)
    own = extractor_for(r"Answer: (\S+)")
    assert (own.name, own.find("Answer: 1,000")) == ("answer_pattern", "1000")


def test_every_name_can_be_typed() -> None:
    import typing

    from dumbo.options import EvaluateOptions

    hint = typing.get_type_hints(EvaluateOptions)["extractor"]
    assert {name for part in typing.get_args(hint) for name in typing.get_args(part)} == set(NAMED)
