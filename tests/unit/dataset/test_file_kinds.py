"""Every kind of file, packed or not, alone or several, gives the rows that stand in it, with where they stand."""

from __future__ import annotations

import csv
import gzip
import io
import json

import polars as pl
import pytest

from dumbo.dataset.files import Files
from dumbo.errors import UserError
from dumbo.interfaces import Row

ROWS = [
    {"question": "plain?", "answer": "yes"},
    {"question": 'with "quotes", commas;\tand a tab', "answer": "two\nlines\n\nand a gap"},
    {"question": "ünïcödé 🎈 \u2028 and {{name}}", "answer": "null"},
    {"question": " spaces ", "answer": "007"},
]


def rows_of(path, **options) -> list:
    return [row for batch in Files(path=path, **options).load().train for row in batch]


def pairs(rows) -> list[tuple[str, str]]:
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.messages[0]["content"], row.messages[1]["content"]) for row in rows]


WANTED = [(row["question"], row["answer"]) for row in ROWS]


def separated(delimiter: str) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["question", "answer"], delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ROWS)
    return out.getvalue().encode()


def parquet() -> bytes:
    out = io.BytesIO()
    pl.DataFrame(ROWS).write_parquet(out)
    return out.getvalue()


CONTENT = {
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "ndjson": "\n".join(json.dumps(row, ensure_ascii=False).replace("\u2028", "\\u2028") for row in ROWS).encode(),
    "json": json.dumps(ROWS, indent=2).encode(),
    "csv": separated(","),
    "tsv": separated("\t"),
    "parquet": parquet(),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_plain(kind, tmp_path):
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(CONTENT[kind])
    assert pairs(rows_of(str(file))) == WANTED


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_gzip(kind, tmp_path):
    file = tmp_path / f"rows.{kind}.gz"
    file.write_bytes(gzip.compress(CONTENT[kind]))
    assert pairs(rows_of(str(file))) == WANTED


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_zstd(kind, tmp_path):
    """Packed by Polars itself, so that no zstd program is needed."""
    file = tmp_path / f"rows.{kind}.zst"
    frame = pl.LazyFrame(ROWS)
    if kind == "csv":
        frame.sink_csv(file, compression="zstd")
    else:
        frame.sink_ndjson(file, compression="zstd")
    assert file.read_bytes()[:4] == b"\x28\xb5\x2f\xfd", "a zstd file"
    assert pairs(rows_of(str(file))) == WANTED


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt"])
def test_windows_files(kind, mark, newline, tmp_path):
    file = tmp_path / f"rows.{kind}"
    text = {"jsonl": '{"question":"q","answer":"a"}\n', "csv": "question,answer\nq,a\n", "txt": "q\na\n"}[kind]
    file.write_bytes((mark + text.replace("\n", newline)).encode())
    (row,) = rows_of(str(file))
    assert (row.text == "q\na") if kind == "txt" else (pairs([row]) == [("q", "a")])


class TestText:
    TEXT = "one\ntwo\n\n\nthree\n  \nfour\nfive"

    @pytest.mark.parametrize(
        ("rows", "wanted"),
        [
            ("paragraph", [(1, "one\ntwo"), (5, "three"), (7, "four\nfive")]),
            ("line", [(1, "one"), (2, "two"), (5, "three"), (7, "four"), (8, "five")]),
            ("document", [(1, "one\ntwo\n\n\nthree\n  \nfour\nfive")]),
        ],
    )
    @pytest.mark.parametrize("packed", [False, True])
    def test_rows(self, rows, wanted, packed, tmp_path):
        file = tmp_path / ("t.txt.gz" if packed else "t.txt")
        file.write_bytes(gzip.compress(self.TEXT.encode()) if packed else self.TEXT.encode())
        assert [(row.source.row, row.text) for row in rows_of(str(file), txt_rows=rows)] == wanted

    def test_paragraphs_of_a_real_text(self, data):
        file = data / "tinyshakespeare" / "input.txt"
        wanted = [part.strip("\n") for part in file.read_text().split("\n\n") if part.strip()]
        assert [row.text for row in rows_of(str(file))] == wanted


class TestSeveral:
    @pytest.fixture
    def folder(self, tmp_path):
        for name, start in (("a.jsonl", 0), ("b.jsonl", 2), ("c.csv", 4)):
            rows = [(f"q{number}", f"a{number}") for number in (start, start + 1)]
            if name.endswith("csv"):
                text = "question,answer\n" + "".join(f"{q},{a}\n" for q, a in rows)
            else:
                text = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows)
            (tmp_path / name).write_text(text)
        (tmp_path / "README").write_text("not data")
        return tmp_path

    @pytest.mark.parametrize(
        ("paths", "wanted"),
        [
            ("", [0, 1, 2, 3, 4, 5]),
            ("*.jsonl", [0, 1, 2, 3]),
            ("[bc].*", [2, 3, 4, 5]),
            (["c.csv", "a.jsonl"], [4, 5, 0, 1]),
            (["a.jsonl", "*.jsonl"], [0, 1, 2, 3]),
        ],
    )
    def test_globs_folders_lists(self, paths, wanted, folder):
        path = [str(folder / p) for p in paths] if isinstance(paths, list) else str(folder / paths)
        assert [int(question[1:]) for question, _ in pairs(rows_of(path))] == wanted

    def test_each_row_knows_its_file_and_line(self, folder):
        assert [str(row.source) for row in rows_of(str(folder))] == [
            f"{folder}/a.jsonl, line 1", f"{folder}/a.jsonl, line 2",
            f"{folder}/b.jsonl, line 1", f"{folder}/b.jsonl, line 2",
            f"{folder}/c.csv, line 2", f"{folder}/c.csv, line 3",
        ]  # fmt: skip

    def test_limit_goes_over_files(self, folder):
        assert len(rows_of(str(folder), limit=3)) == 3
        assert len(rows_of(str(folder), limit=100)) == 6

    def test_a_folder_that_names_its_parts(self, folder):
        (folder / "a.jsonl").rename(folder / "train-00000.jsonl")
        (folder / "b.jsonl").rename(folder / "test.jsonl")
        splits = Files(path=str(folder)).load()
        assert [question for question, _ in pairs([r for b in splits.train for r in b])] == ["q0", "q1"]
        assert [question for question, _ in pairs([r for b in splits.eval for r in b])] == ["q2", "q3"]

    def test_a_name_with_brackets_is_a_name(self, folder):
        (folder / "a.jsonl").rename(folder / "rows[1].jsonl")
        assert len(rows_of(str(folder / "rows[1].jsonl"))) == 2

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("a.jsonk", r"there is no file '.*a\.jsonk'. Did you mean 'a\.jsonl'\?"),
            ("*.parquet", r"no file matches"),
            ("nothing", r"there is no file"),
            ("README", r"the ending of 'README' says nothing of its kind.*\n.*dataset\.kind=jsonl"),
        ],
    )
    def test_what_is_not_there(self, path, message, folder):
        with pytest.raises(UserError, match=f"(?s){message}"):
            rows_of(str(folder / path))
        assert len(list(Files(path=str(folder / path)).problems())) == 1, "found before anything heavy is imported"

    def test_an_empty_file_and_an_empty_folder(self, tmp_path):
        (tmp_path / "e.jsonl").touch()
        with pytest.raises(UserError, match=r"e\.jsonl' is empty"):
            rows_of(str(tmp_path / "e.jsonl"))
        (tmp_path / "sub").mkdir()
        with pytest.raises(UserError, match="holds no data file"):
            rows_of(str(tmp_path / "sub"))

    def test_kind_overrules_the_ending(self, folder):
        (folder / "a.jsonl").rename(folder / "a.dat")
        assert len(rows_of(str(folder / "a.dat"), kind="jsonl")) == 2


def test_lines_are_numbered_through_batches(tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text(
        "".join(
            json.dumps({"question": f"q{n}", "answer": "a"}) + "\n" + ("\n" if n % 7 == 0 else "") for n in range(5000)
        )
    )
    lines = file.read_text().split("\n")
    rows = rows_of(str(file))
    assert len(rows) == 5000
    assert all(json.loads(lines[row.source.row - 1])["question"] == row.messages[0]["content"] for row in rows)


def test_a_csv_row_is_numbered_by_the_line_it_begins_on(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text('question,answer\n"two\nlines",a\n\nq2,b\n')
    assert [row.source.row for row in rows_of(str(file))] == [2, 5]
    assert pairs(rows_of(str(file))) == [("two\nlines", "a"), ("q2", "b")]


@pytest.mark.parametrize(
    "wrapped", [{"data": ROWS}, {"version": "1.0", "rows": ROWS}, ROWS], ids=["data", "beside others", "a list"]
)
def test_json_lists_inside_a_mapping(wrapped, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(wrapped))
    assert pairs(rows_of(str(file))) == WANTED


def test_json_with_one_row(tmp_path):
    file = tmp_path / "row.json"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}))
    assert pairs(rows_of(str(file))) == [("q", "a")]


def test_parquet_messages_keep_absent_keys_absent(tmp_path):
    """Parquet gives every struct all keys of its column; a tool call must not gain null arguments by that."""
    file = tmp_path / "m.parquet"
    call = {"function": {"name": "f", "arguments": {"a": "1"}}}
    other = {"function": {"name": "g", "arguments": {"b": "2"}}}
    rows = [
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}],
        [{"role": "user", "content": "y"}, {"role": "assistant", "tool_calls": [other], "content": "z"}],
    ]
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"messages": rows}), file)
    first, second = rows_of(str(file))
    assert first.messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": "1"}
    assert second.messages[1]["tool_calls"][0]["function"]["arguments"] == {"b": "2"}
    assert "tool_calls" not in first.messages[0]
