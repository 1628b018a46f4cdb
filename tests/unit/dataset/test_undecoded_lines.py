"""Batches that are decoded where they are needed hold the rows that the data set itself yields, in the same batches."""

from __future__ import annotations

import json
import pickle

import pytest

from dumbo.dataset.decoding import Lines
from dumbo.dataset.files import Files
from dumbo.errors import UserError

ODD = [
    "",
    "  ",
    "[1]",
    "nope",
    '{"a": 1, "a": 2}',
    '{"question": "\\ud800", "answer": "b"}',
    '{"question": 1, "answer": "b"}',
]
GOOD = '{"question": "a\\u00e9", "answer": "b"}'


def batches_of(path, **options):
    return Files(path=str(path), eval_fraction=0.0, **options).load().train


def both(path, **options):
    batches = batches_of(path, **options)
    parts = [pickle.loads(pickle.dumps(part)) for part in batches.in_parts()]  # as another process gets them
    assert [part.rows() if isinstance(part, Lines) else part for part in parts] == list(batches)
    return parts


@pytest.mark.parametrize(
    "lines", [[GOOD] * 3, [*ODD, GOOD] * 300, [*ODD] * 500 + [GOOD] * 1100, [GOOD, *[""] * 3000, GOOD]]
)
def test_json_lines(lines, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    assert all(isinstance(part, Lines) for part in both(file))


def test_real_files(data):
    assert all(isinstance(part, Lines) for part in both(data / "gsm8k" / "test.jsonl"))
    both(data / "self-instruct" / "seed_tasks.jsonl")
    for other in ("fastchat/dummy_conversation.json", "tinyshakespeare/input.txt"):
        assert not any(isinstance(part, Lines) for part in both(data / other))


@pytest.mark.parametrize(
    "options", [{"limit": 2}, {"columns": {"question": "frage"}}], ids=lambda options: next(iter(options))
)
def test_where_every_row_counts_they_are_decoded(options, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "\n".join(json.dumps({"frage" if "columns" in options else "question": "a", "answer": "b"}) for _ in range(5))
    )
    assert not any(isinstance(part, Lines) for part in both(file, **options))


def test_columns_of_no_shape_are_an_error_in_both(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"x": 1}\n' * 3)
    for batches in (batches_of(file), batches_of(file).in_parts()):
        with pytest.raises(UserError, match="the columns are not recognised: x"):
            list(batches)


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        ({}, "dataset.columns.question=COLUMN dataset.columns.answer=COLUMN"),
        ({"question": "frage"}, "dataset.columns.question=frage dataset.columns.answer=COLUMN"),
        ({"question": "fragge"}, "dataset.columns.question=COLUMN dataset.columns.answer=COLUMN"),
        ({"instruction": "frage"}, "dataset.columns.instruction=frage dataset.columns.output=COLUMN"),
    ],
)
def test_columns_that_are_named_in_part(columns, advice, tmp_path):
    """The file's own columns are listed, and what is still to be named is said."""
    file = tmp_path / "rows.jsonl"
    file.write_text('{"frage": "a", "antwort": "b"}\n' * 3)
    with pytest.raises(UserError) as raised:
        list(batches_of(file, columns=columns))
    assert "the columns are not recognised: antwort, frage.\n" in str(raised.value)
    assert str(raised.value).endswith(f"Name yours: {advice}")


def test_columns_of_different_rows_do_not_make_a_shape(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a"}\n{"other": "b"}\n')
    with pytest.raises(UserError, match=r"other, prompt\.\n[\s\S]*Name yours: dataset\.columns\.completion=COLUMN$"):
        list(batches_of(file))
    file.write_text('{"prompt": "a"}\n{"completion": "b"}\n')
    with pytest.raises(UserError, match=r"No row has prompt and completion together\.$"):
        list(batches_of(file))
    file.write_text('{"frage": "a"}\n{"answer": "b"}\n')
    with pytest.raises(UserError, match=r"No row has frage and answer together\.$"):
        list(batches_of(file, columns={"question": "frage"}))


def test_what_is_no_text_is_an_error_in_both(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD.encode() + b'\n{"question": "\xe9", "answer": "b"}\n')
    for batches in (batches_of(file), batches_of(file).in_parts()):
        with pytest.raises(UserError, match="line 2: this is not UTF-8"):
            list(batches)
