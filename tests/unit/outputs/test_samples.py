"""Exact match and the page of samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dumbo.dataset.files import Files
from dumbo.formatter.chat import Chat
from dumbo.formatter.text import Text
from dumbo.outputs.extractors import answer_in, extractor_for
from dumbo.outputs.samples import Question, exact_match, left_out, questions, samples_page
from dumbo.prepare.prepare import prepare
from dumbo.prepare.store import Split

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
    assert exact_match(extractor_for(GSM8K).find, asked, ["#### 5", "it is #### 1000", "#### 3", "9"]) == (2, 3)


def test_a_page_cannot_be_broken_by_what_a_model_says() -> None:
    said = "```\n# not a heading\n````\n\x1b[31m"
    page = samples_page([question("a")], ["before"], [said])
    assert "`````text\n```\n# not a heading\n````\n\\e[31m\n`````" in page
    assert "rows.jsonl, line 7" in page


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from dumbo.model.tiny import Tiny

    return Tiny().load_tokenizer()


class TestQuestions:
    """Which held-out rows are asked: those whose answer is whole in the data the model is given."""

    ROWS = ("yes", "word " * 60, "no", "word " * 60, "maybe")

    @pytest.fixture
    def split(self, tmp_path: Path, tokenizer: Any) -> Callable[..., Split]:
        def make(
            rows: list[dict[str, str]], formatter: Any, too_long: str = "truncate_right", longest: int = 60
        ) -> Split:
            file = tmp_path / "rows.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            splits = Files(path=str(file), eval_fraction=0.0).load()
            return prepare(splits, formatter, tokenizer, max_seq_len=longest, too_long=too_long).train

        return make

    @pytest.mark.parametrize("too_long", ["truncate_right", "truncate_left", "split", "drop"])
    def test_cut_answers_are_not_asked(self, too_long: str, split: Callable[..., Split], tokenizer: Any) -> None:
        rows = [{"question": f"question {n}?", "answer": answer} for n, answer in enumerate(self.ROWS)]
        part = split(rows, Chat(), too_long)
        asked = questions(part, tokenizer, 10)
        assert [(q.asked, q.reference) for q in asked] == [(f"question {n}?", self.ROWS[n]) for n in (0, 2, 4)]
        for question in asked:
            assert question.prompt == f"<|im_start|>user\n{question.asked}<|im_end|>\n<|im_start|>assistant\n"
        assert left_out(part) == part.rows - 3 == (0 if too_long == "drop" else 2)
        assert [q.reference for q in questions(part, tokenizer, 2)] == ["yes", "no"]

    def test_all_of_them_cut(self, split: Callable[..., Split], tokenizer: Any) -> None:
        part = split([{"question": "q?", "answer": "word " * 60}] * 3, Chat())
        assert questions(part, tokenizer, 10) == []
        assert left_out(part) == 3

    def test_an_answer_whole_in_a_later_piece_lacks_its_question(
        self, split: Callable[..., Split], tokenizer: Any
    ) -> None:
        rows = [{"question": "word " * n, "answer": "yes"} for n in range(1, 80)]
        part = split(rows, Chat(), "split")
        asked = questions(part, tokenizer, 1000)
        assert all(question.prompt.startswith("<|im_start|>user\nword") for question in asked)
        assert all(question.reference == "yes" for question in asked)
        assert left_out(part) == 79 - len(asked) > 0

    def test_plain_text_goes_on_from_its_beginning(self, split: Callable[..., Split], tokenizer: Any) -> None:
        part = split([{"text": "once upon a time " * 20}], Text())
        (question,) = questions(part, tokenizer, 10)
        assert question.prompt_ids == tuple(part.store.ids(0)[:30].tolist())
        assert left_out(part) == 0


def test_the_summary_says_what_was_not_asked(tmp_path: Path) -> None:
    import dumbo
    from dumbo.outputs.summary import _result

    rows = [{"question": f"q{n}?", "answer": "yes" if n % 3 else "word " * 60} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = dumbo.run([
        "dataset=files", "dataset.path=rows.jsonl", "dataset.eval_path=rows.jsonl", "dataset.answer_pattern='(.+)'",
        "trainer.max_seq_len=48", "trainer.max_steps=1", "trainer.global_batch_size=4", "trainer.micro_batch_size=4",
        "trainer.num_samples=0", "trainer.max_new_tokens=2", "trainer.save_every=null", "trainer.eval_at_start=false",
        "verify.mode=off", "audit.mode=off", "run_dir=run",
    ])  # fmt: skip
    assert (metrics["questions"], metrics["questions_left_out"]) == (8, 4)
    recorded = json.loads((tmp_path / "run" / "run.json").read_text())["metrics"]
    assert recorded["questions_left_out"] == 4
    assert "4 held-out rows not asked: trainer.max_seq_len cuts their answers" in _result(metrics)
