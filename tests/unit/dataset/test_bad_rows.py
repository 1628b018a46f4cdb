"""Rows that cannot be used: named by file and line with the row's start, one by one, never a crash."""

from __future__ import annotations

import gzip
import json

import polars as pl
import pytest

from dumbo.dataset.files import Files
from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Row

GOOD = '{"question": "q", "answer": "a"}'

BAD_LINES = {
    "a missing column": ('{"question": "q"}', "there is no column 'answer'"),
    "a number": ('{"question": "q", "answer": 42}', "'answer' is the number 42, text is wanted"),
    "a list": ('{"question": ["q"], "answer": "a"}', "'question' is a list, text is wanted"),
    "a mapping": ('{"question": "q", "answer": {"text": "a"}}', "'answer' is a mapping, text is wanted"),
    "true": ('{"question": "q", "answer": true}', "'answer' is true or false, text is wanted"),
    "null": ('{"question": "q", "answer": null}', "'answer' is null, text is wanted"),
    "empty": ('{"question": "q", "answer": ""}', "'answer' is empty"),
    "white space": ('{"question": "q", "answer": " \\n\\t "}', "'answer' is empty"),
    "an empty question": ('{"question": "", "answer": "a"}', "'question' is empty"),
    "broken": ('{"question": "q", "answer": "a"', "this line is not JSON (Expecting ',' delimiter at character 32)"),
    "cut short": ('{"question": "q", "ans', "this line is not JSON (Unterminated string"),
    "single quotes": ("{'question': 'q', 'answer': 'a'}", "this line is not JSON"),
    "two values": (GOOD + GOOD, "this line is not JSON (Extra data"),
    "no mapping": ('["q", "a"]', "a row must be a mapping of columns to values, this is a list"),
    "a bare number": ("17", "a row must be a mapping of columns to values, this is a number"),
    "a bare null": ("null", "a row must be a mapping of columns to values, this is null"),
    "nested too deep": ("[" * 200_000, "nested too deep"),
    "a number too long": ('{"question": "q", "answer": ' + "9" * 5000 + "}", "not JSON that can be read"),
    "a key twice": ('{"question": "q", "answer": "a", "answer": "b"}', "the key 'answer' stands twice"),
    "an image": (
        '{"question": "q", "image": "cat.png", "answer": "a"}',
        "it holds 'image', and this trains on text alone",
    ),
    "half a character": ('{"question": "q\\ud83d", "answer": "a"}', "half a character"),
}


def read(path, **options):
    return [row for batch in Files(path=str(path), **options).load().train for row in batch]


@pytest.mark.parametrize("fault", BAD_LINES)
@pytest.mark.parametrize("place", [1, 2, 3])
def test_json_lines(fault, place, tmp_path):
    """Wherever it stands, first line too, one bad line is one bad row, and the others are as they were."""
    line, problem = BAD_LINES[fault]
    file = tmp_path / "rows.jsonl"
    lines = [GOOD, GOOD]
    lines.insert(place - 1, line)
    file.write_text("\n".join(lines))
    rows = read(file)
    assert [isinstance(row, Row) for row in rows] == [number != place for number in (1, 2, 3)]
    bad = rows[place - 1]
    assert str(bad.source) == f"{file}, line {place}"
    assert problem in bad.problem
    assert line[:60].rstrip() in bad.start
    assert len(bad.start) <= 120
    assert "dataset.on_bad_row=skip" in str(bad)


@pytest.mark.parametrize("fault", ["broken", "no mapping", "nested too deep"])
def test_a_file_of_nothing_else(fault, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([BAD_LINES[fault][0]] * 3))
    rows = read(file)
    assert [type(row) for row in rows] == [BadRow] * 3
    assert BAD_LINES[fault][1] in rows[0].problem


def test_a_whole_character_in_two_escapes_is_fine(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "\\ud83d\\ude00", "answer": "a"}')
    assert read(file)[0].messages[0]["content"] == "😀"


class TestSeparated:
    def test_ragged_and_empty_rows(self, tmp_path):
        file = tmp_path / "rows.csv"
        file.write_text("question,answer\nq1,a1\nq2\nq3,a3,more\nq4,\nq5,a5\n")
        rows = read(file)
        assert [isinstance(row, Row) for row in rows] == [True, False, False, False, True]
        assert [str(row) for row in rows[1:4]] == [
            f"{file}, line 3: it has 1 fields, the header has 2\n  q2\n  Mend it, or skip such rows: dataset.on_bad_row=skip",
            f"{file}, line 4: it has 3 fields, the header has 2\n  q3,a3,more\n  Mend it, or skip such rows: dataset.on_bad_row=skip",
            f"{file}, line 5: 'answer' is empty\n"
            '  {"question": "q4", "answer": ""}\n  Fill it in, or skip such rows: dataset.on_bad_row=skip',
        ]

    def test_quotes_that_do_not_match(self, tmp_path):
        file = tmp_path / "rows.csv"
        file.write_text('question,answer\nq1,a1\nq2,"never closed\nq3,a3\n')
        rows = read(file)
        assert isinstance(rows[0], Row)
        assert isinstance(rows[1], BadRow)
        assert f"{file}, line 3: its quotes do not match, lines 3 to 4" in str(rows[1])

    def test_a_quote_in_the_middle_is_text(self, tmp_path):
        file = tmp_path / "rows.tsv"
        file.write_text('question\tanswer\n5" pipe?\tit is 12.7 cm\n')
        assert read(file)[0].messages[0]["content"] == '5" pipe?'

    def test_a_column_named_twice(self, tmp_path):
        file = tmp_path / "rows.csv"
        file.write_text("question,answer,answer\nq,a,b\n")
        with pytest.raises(UserError, match="names the column 'answer' twice"):
            read(file)

    def test_a_header_alone_has_no_rows(self, tmp_path):
        file = tmp_path / "rows.csv"
        file.write_text("question,answer\n")
        assert read(file) == []


class TestWholeFiles:
    def test_json_says_where(self, tmp_path):
        file = tmp_path / "rows.json"
        file.write_text('[\n  {"question": "q",\n   "answer": "a"},\n  {"question": "q" "answer": "a"}\n]')
        with pytest.raises(
            UserError, match=r"rows\.json, line 4: this is not JSON \(Expecting ',' delimiter\)\.\n.*\"answer\""
        ):
            read(file)

    def test_json_lines_in_a_json_file(self, tmp_path):
        file = tmp_path / "rows.json"
        file.write_text(f"{GOOD}\n{GOOD}\n")
        with pytest.raises(UserError, match=r"one JSON value a line\.\n  Write dataset\.kind=jsonl"):
            read(file)
        assert len(read(file, kind="jsonl")) == 2

    @pytest.mark.parametrize("text", ['"only text"', "17", "[" * 100_000])
    def test_json_without_rows(self, text, tmp_path):
        file = tmp_path / "rows.json"
        file.write_text(text)
        with pytest.raises(UserError, match=r"must hold a list of rows|not JSON that can be read"):
            read(file)

    def test_rows_of_a_json_file_are_numbered(self, tmp_path):
        file = tmp_path / "rows.json"
        file.write_text(
            json.dumps([json.loads(GOOD), {"question": "q"}, "text", {"question": "q", "answer": "\ud800"}])
        )
        bad = read(file)[1:]
        assert [str(row.source) for row in bad] == [f"{file}, row {number}" for number in (2, 3, 4)]
        assert [
            "no column 'answer'" in bad[0].problem,
            "this is text" in bad[1].problem,
            "half a character" in bad[2].problem,
        ] == [True] * 3

    @pytest.mark.parametrize("packed", [False, True])
    @pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "json"])
    def test_another_encoding_is_named_with_its_line(self, kind, packed, tmp_path):
        text = {"jsonl": GOOD + "\n" + GOOD.replace("q", "é", 1), "csv": "question,answer\né,a", "txt": "a\né"}.get(
            kind, '[\n"é"]'
        )
        file = tmp_path / (f"rows.{kind}" + (".gz" if packed else ""))
        content = text.encode("latin-1")
        file.write_bytes(gzip.compress(content) if packed else content)
        with pytest.raises(UserError, match=r"line 2: this is not UTF-8\.\n.*iconv -f latin1 -t utf-8"):
            read(file)

    @pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
    def test_a_damaged_file(self, kind, tmp_path):
        file = tmp_path / f"rows.{kind}"
        if kind == "parquet":
            pl.DataFrame({"question": ["q"], "answer": ["a"]}).write_parquet(file)
        else:
            file.write_bytes(gzip.compress(GOOD.encode() * 1000))
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(UserError, match=r"cannot be read as"):
            read(file)


CALL = {"name": "f", "arguments": {}}
SAYS, THINKS = {"type": "text", "text": "y"}, {"type": "thinking", "thinking": "z"}
ASKS = {"role": "user", "content": "x"}

CHAT = {
    "no role": ([{"content": "x"}], "message 1 has no role"),
    "an unknown role": ([{"role": "asistant", "content": "x"}], "unknown role 'asistant'. Did you mean 'assistant'?"),
    "no list": ("x", "'messages' is text and not JSON"),
    "an empty list": ([], "must be a list of messages, and not empty"),
    "an empty question": ([{"role": "user", "content": " "}], "message 1 (user) is empty"),
    "an empty answer": (
        [ASKS, {"role": "assistant", "content": ""}],
        "message 2 (assistant) is empty",
    ),
    "no content": ([ASKS, {"role": "assistant"}], "message 2 (assistant) is empty"),
    "a number": ([{"role": "user", "content": 4}], "'content of message 1' is the number 4"),
    "an unknown part": ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "a part of type 'image'"),
    "a call without a name": (
        [ASKS, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}],
        "a tool call in message 2 has no name",
    ),
    "arguments that are no JSON": (
        [
            ASKS,
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
        ],
        "the arguments of a tool call in message 2 are not JSON",
    ),
    **{
        f"a call {what}": ([ASKS, {"role": "assistant", "tool_calls": [call]}], problem)
        for what, call, problem in (
            ("that passes nothing", {"name": "f"}, "the tool call 'f' in message 2 has no arguments (arguments, parameters, input)"),
            ("that passes null", {"name": "f", "arguments": None}, "the tool call 'f' in message 2 has no arguments"),
            ("that passes two things", {"name": "f", "arguments": {}, "input": {}}, "has both 'arguments' and 'input'"),
            ("that passes a list", {"name": "f", "arguments": [1]}, "message 2 are a list, a mapping is wanted"),
            ("with NaN", {"name": "f", "arguments": {"x": float("nan")}}, "hold NaN or Infinity, which are no JSON"),
            ("with a key twice", {"name": "f", "arguments": '{"x": 1, "x": 2}'}, "the key 'x' stands twice in one mapping"),
            ("nested too deep", {"name": "f", "arguments": "[" * 200_000}, "message 2 are not JSON (nested too deep)"),
        )
    },
    **{
        f"{what}": ([ASKS, {"role": "assistant", "content": "y", **more}], problem)
        for what, more, problem in (
            ("two ways to call", {"tool_calls": [CALL], "function_call": CALL}, "has both 'tool_calls' and 'function_call'"),
            ("calls that are no list", {"tool_calls": {"name": "f"}}, "'tool_calls' of message 2 is a mapping"),
            ("marks that contradict", {"train": True, "weight": 0}, "'train' and 'weight' of message 2 contradict each other"),
            ("a weight between", {"weight": 0.5}, "'weight' of message 2 is the number 0.5; true or false is wanted"),
            ("sound", {"audio": {"id": "a1"}}, "message 2 holds 'audio', and this trains on text alone"),
        )
    },
    **{
        f"parts: {what}": ([ASKS, {"role": role, "content": parts}], problem)
        for what, role, parts, problem in (
            ("text after a call", "assistant", [{"type": "tool_use", "name": "f", "input": {}}, SAYS], "goes on with text after a tool call"),
            ("reasoning after text", "assistant", [SAYS, THINKS], "goes on with reasoning after its text"),
            ("text without text", "user", [{"type": "text", "data": "y"}], "a text part of message 2 has no text"),
            ("a refusal", "assistant", [{"type": "refusal", "refusal": "no"}], "a part of type 'refusal'"),
            ("sound", "user", [{"type": "input_audio", "input_audio": {}}], "a part of type 'input_audio'"),
            ("a user who reasons", "user", [THINKS, SAYS], "message 2 (user) holds reasoning, which only"),
            ("a result in an answer", "assistant", [{"type": "tool_result", "content": "y"}], "a part of type 'tool_result'"),
            ("an image as result", "user", [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}], "a part of type 'image'"),
            ("an empty result", "user", [{"type": "tool_result", "tool_use_id": "t"}], "a tool_result in message 2 has no content"),
            ("words before results", "user", [SAYS, {"type": "tool_result", "content": "z"}], "says something before the result of a tool"),
        )
    },
    "a user who calls": ([{"role": "user", "content": "x", "tool_calls": [CALL]}], "message 1 (user) holds tool calls, which only"),
    "a tool that says nothing": ([{"role": "tool", "tool_call_id": "x", "output": "42"}], "message 1 (tool) has no content"),
    "a system message of null": ([{"role": "system", "content": None}], "message 1 (system) has no content"),
    "a result as a mapping": ([{"role": "tool", "content": {"a": 1}}], "'content of message 1' is a mapping, text is wanted"),
    "a name as a list": ([{"role": "user", "content": "x", "name": ["a"]}], "'name of message 1' is a list, text is wanted"),
    "train as text": (
        [ASKS, {"role": "assistant", "content": "y", "train": "false"}],
        "'train' of message 2 is 'false'; true or false is wanted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", CHAT)
def test_conversations(fault, tmp_path):
    messages, problem = CHAT[fault]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages}))
    (bad,) = read(file)
    assert isinstance(bad, BadRow)
    assert problem in bad.problem


SHAREGPT = {
    "an unknown speaker": ([{"from": "humn", "value": "x"}], "turn 1 is from 'humn', which is no known speaker. Did you mean 'human'?"),
    "no value": ([{"from": "human"}], "turn 1 lacks 'from' or 'value'"),
    "an empty value": ([{"from": "human", "value": ""}], "'value of turn 1' is empty"),
    "a call that is no JSON": (
        [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f(1)"}],
        "the function_call in turn 2 is not JSON",
    ),
    "no list": ("x", "'conversations' must be a list of turns"),
}  # fmt: skip


ROWS = {
    "two system texts": ({"system": "a", "messages": [{"role": "system", "content": "b"}, ASKS]}, "a system text both in its own column"),
    "images beside a conversation": ({"messages": [ASKS], "images": ["a.png"]}, "it holds 'images'"),
    "a history that is none": ({"instruction": "x", "output": "y", "history": [["a"]]}, "'history' must be a list of pairs"),
    "tools with NaN": ({"messages": [ASKS], "tools": [{"name": "f", "limit": float("inf")}]}, "'tools' hold NaN or Infinity"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROWS)
def test_columns_beside(fault, tmp_path):
    raw, problem = ROWS[fault]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(raw))
    (bad,) = read(file)
    assert isinstance(bad, BadRow)
    assert problem in bad.problem


@pytest.mark.parametrize("fault", SHAREGPT)
def test_sharegpt(fault, tmp_path):
    turns, problem = SHAREGPT[fault]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"conversations": turns}))
    (bad,) = read(file)
    assert isinstance(bad, BadRow)
    assert problem in bad.problem


def test_unrecognised_columns_name_what_is_there_and_what_is_known(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"frage": "q", "antwort": "a"}')
    with pytest.raises(
        UserError,
        match=r"(?s)not recognised: antwort, frage\..*question_answer \(question, answer\).*dataset\.columns\.question=COLUMN",
    ):
        read(file)
