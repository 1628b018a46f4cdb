"""Exact match and the page of samples."""

from __future__ import annotations

import pytest

from dumbo.outputs.samples import Question, answer_in, exact_match, samples_page

GSM8K = r"#### *(.*\S)"


def question(reference: str) -> Question:
    return Question((1, 2), "<|im_start|>user\nQ<|im_end|>", "Q", reference, (3,), "rows.jsonl, line 7")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so\n#### 42", "42"),
        ("#### 1\nno:\n#### 1,234", "1234"),
        ("no answer", None),
        ("####   7  ", "7"),
    ],
)
def test_the_last_answer_in_a_text(text: str, answer: str | None) -> None:
    assert answer_in(GSM8K, text) == answer


def test_exact_match_counts_only_rows_that_have_an_answer() -> None:
    asked = [question("#### 5"), question("#### 1,000"), question("none here"), question("#### 9")]
    assert exact_match(GSM8K, asked, ["#### 5", "it is #### 1000", "#### 3", "9"]) == (2, 3)


def test_a_page_cannot_be_broken_by_what_a_model_says() -> None:
    said = "```\n# not a heading\n````\n\x1b[31m"
    page = samples_page([question("a")], ["before"], [said])
    assert "`````text\n```\n# not a heading\n````\n\\e[31m\n`````" in page
    assert "rows.jsonl, line 7" in page
