"""Every shape in which the real data comes, turned into messages; compared with the files read by json alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dumbo.dataset.files import Files
from dumbo.dataset.hub import Hub
from dumbo.errors import UserError
from dumbo.interfaces import Row


def rows_of(path, **options) -> list[Row]:
    rows = [row for batch in Files(path=str(path), **options).load().train for row in batch]
    assert all(isinstance(row, Row) for row in rows), next(row for row in rows if not isinstance(row, Row))
    return rows


def one(tmp_path, raw, **options) -> Row:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(raw))
    (row,) = rows_of(file, **options)
    return row


def talk(row: Row) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in row.messages]


def raw_rows(path: Path) -> list[dict]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


class TestRealData:
    def test_question_answer(self, data):
        file = data / "gsm8k" / "train.jsonl"
        wanted = [[("user", raw["question"]), ("assistant", raw["answer"])] for raw in raw_rows(file)]
        assert [talk(row) for row in rows_of(file)] == wanted
        assert len(wanted) == 7473

    def test_alpaca_whose_text_looks_like_a_template(self, data):
        file = data / "tools" / "identity.json"
        raws = raw_rows(file)
        wanted = [
            [
                ("user", raw["instruction"] + (f"\n\n{raw['input']}" if raw["input"] else "")),
                ("assistant", raw["output"]),
            ]
            for raw in raws
        ]
        rows = rows_of(file)
        assert [talk(row) for row in rows] == wanted
        assert sum("{{name}}" in row.messages[1]["content"] for row in rows) > 50

    def test_alpaca_with_instances(self, data):
        file = data / "self-instruct" / "seed_tasks.jsonl"
        raws = raw_rows(file)
        rows = rows_of(file)
        answers = [instance["output"] for raw in raws for instance in raw["instances"]]
        assert [row.messages[1]["content"] for row in rows] == answers
        with_input = [row for row in rows if "\n\n" in row.messages[0]["content"]]
        assert len(with_input) >= sum(bool(instance["input"].strip()) for raw in raws for instance in raw["instances"])
        assert [row.source.row for row in rows] == [n for n, raw in enumerate(raws, 1) for _ in raw["instances"]]

    def test_sharegpt(self, data):
        file = data / "fastchat" / "dummy_conversation.json"
        speakers = {"human": "user", "gpt": "assistant"}
        wanted = [[(speakers[t["from"]], t["value"]) for t in raw["conversations"]] for raw in raw_rows(file)]
        assert [talk(row) for row in rows_of(file)] == wanted

    def test_sharegpt_with_tools(self, data):
        file = data / "tools" / "glaive_toolcall_en_demo.json"
        raws, rows = raw_rows(file), rows_of(file)
        roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}
        called = 0
        for raw, row in zip(raws, rows, strict=True):
            assert [message["role"] for message in row.messages] == [roles[t["from"]] for t in raw["conversations"]]
            tools = json.loads(raw["tools"]) if raw["tools"] else []
            assert [tool["function"] for tool in row.tools or []] == tools
            calls = {}
            for turn, message in zip(raw["conversations"], row.messages, strict=True):
                if turn["from"] == "function_call":
                    call = json.loads(turn["value"])
                    (made,) = message["tool_calls"]
                    assert (made["function"]["name"], made["function"]["arguments"]) == (
                        call["name"],
                        call["arguments"],
                    )
                    assert message["content"] == ""
                    calls[made["id"]] = call["name"]
                    called += 1
                elif turn["from"] == "observation":
                    assert message["content"] == turn["value"]
                    assert message["name"] == calls.pop(message["tool_call_id"]), "a result is tied to its call"
                else:
                    assert message["content"] == turn["value"]
                    assert "tool_calls" not in message
            assert not calls, "every call has its result"
        assert called > 100

    def test_messages_with_typed_parts(self, data):
        file = data / "tools" / "reason_tool_use_demo_50.jsonl"
        raws, rows = raw_rows(file), rows_of(file)
        assert len(rows) == 50
        reasoned = called = 0
        for raw, row in zip(raws, rows, strict=True):
            assert len(row.messages) == len(raw["messages"])
            for turn, message in zip(raw["messages"], row.messages, strict=True):
                parts = {}
                for part in turn["content"]:
                    parts.setdefault(part["type"], []).append(part["value"])
                assert message["role"] == turn["role"]
                texts = parts.get("text", []) + parts.get("tool_result", []) + parts.get("tool_response", [])
                assert message["content"] == "".join(texts)
                assert message.get("reasoning_content", "") == "\n".join(parts.get("reasoning", []))
                reasoned += "reasoning" in parts
                calls = [json.loads(value) if isinstance(value, str) else value for value in parts.get("tool_call", [])]
                assert [call["function"]["name"] for call in message.get("tool_calls", [])] == [
                    c["name"] for c in calls
                ]
                called += len(calls)
        assert reasoned > 50
        assert called > 30
        assert sum(row.tools is not None for row in rows) > 20


ASKED = [("user", "ask"), ("assistant", "answer")]
SAID = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "sk"}]


class TestMadeShapes:
    @pytest.mark.parametrize(
        ("raw", "wanted"),
        [
            ({"prompt": "ask", "completion": "answer"}, ASKED),
            ({"prompt": "ask", "response": "answer"}, ASKED),
            ({"question": "ask", "answer": "answer"}, ASKED),
            ({"instruction": "ask", "output": "answer"}, ASKED),
            ({"instruction": "ask", "response": "answer", "input": ""}, ASKED),
            ({"instruction": "ask", "input": "this", "output": "answer"}, [("user", "ask\n\nthis"), ("assistant", "answer")]),
            ({"system": "brief", "question": "ask", "answer": "answer"}, [("system", "brief"), *ASKED]),
            ({"system": "", "instruction": "ask", "output": "answer"}, ASKED),
            ({"prompt": [{"role": "user", "content": "ask"}], "completion": "answer"}, ASKED),
            ({"prompt": [{"role": "user", "content": "ask"}], "completion": [{"role": "assistant", "content": "answer"}]}, ASKED),
            ({"conversations": [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]}, ASKED),
            ({"conversation": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]}, ASKED),
            ({"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]}, ASKED),
            ({"messages": json.dumps(SAID)}, ASKED),
            ({"messages": [{"role": "developer", "content": "brief"}, *SAID]}, [("system", "brief"), *ASKED]),
            ({"messages": [{"role": "user", "content": PARTS}, SAID[1]]}, ASKED),
            ({"instruction": "ask", "output": "answer", "history": [["one", "two"]]}, [("user", "one"), ("assistant", "two"), *ASKED]),
            ({"instruction": "ask", "output": "answer", "history": []}, ASKED),
            ({"question": "ask", "answer": "answer", "images": []}, ASKED),
            ({"system": "brief", "messages": [{"role": "system", "content": "brief"}, *SAID]}, [("system", "brief"), *ASKED]),
        ],
    )  # fmt: skip
    def test_messages(self, raw, wanted, tmp_path):
        assert talk(one(tmp_path, raw)) == wanted

    def test_text(self, tmp_path):
        row = one(tmp_path, {"text": "once"})
        assert (row.text, row.messages) == ("once", [])

    @pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
    def test_reasoning(self, key, tmp_path):
        raw = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "a", key: "because"}]}
        assert one(tmp_path, raw).messages[1]["reasoning_content"] == "because"

    def test_openai_tool_calls(self, tmp_path):
        call = {"id": "x1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1, null]}'}}
        raw = {
            "messages": [
                {"role": "user", "content": "ask"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "x1", "content": "42"},
                {"role": "assistant", "content": "done"},
            ],
            "tools": [{"name": "f", "parameters": {}}],
        }
        row = one(tmp_path, raw)
        made = {"id": "x1", "type": "function", "function": {"name": "f", "arguments": {"a": [1, None]}}}
        assert row.messages[1] == {"role": "assistant", "content": "", "tool_calls": [made]}
        assert row.messages[2] == {"role": "tool", "content": "42", "tool_call_id": "x1", "name": "f"}
        assert row.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]

    @pytest.mark.parametrize("key", ["arguments", "parameters", "input"])
    @pytest.mark.parametrize("kind", ["tool_use", "tool_call", "function_call"])
    def test_calls_as_parts(self, kind, key, tmp_path):
        part = {"type": kind, "id": "toolu_1", "name": "get", key: {"city": "Paris"}}
        raw = {"messages": [SAID[0], {"role": "assistant", "content": [{"type": "text", "text": "I look."}, part]}]}
        (call,) = one(tmp_path, raw).messages[1]["tool_calls"]
        assert call == {
            "type": "function",
            "id": "toolu_1",
            "function": {"name": "get", "arguments": {"city": "Paris"}},
        }

    def test_anthropic_results_are_messages_of_tools(self, tmp_path):
        """A user's turn brings the results: each becomes a tool's message tied to the call it names; then the user's words."""
        uses = [
            {"type": "tool_use", "id": f"toolu_{n}", "name": name, "input": {}} for n, name in ((1, "get"), (2, "put"))
        ]
        results = [
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": "done"},
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "15"}, {"type": "text", "text": " C"}]},
            {"type": "text", "text": "And now?"},
        ]  # fmt: skip
        raw = {
            "messages": [SAID[0], {"role": "assistant", "content": uses}, {"role": "user", "content": results}, SAID[1]]
        }
        assert one(tmp_path, raw).messages[2:] == [
            {"role": "tool", "content": "done", "tool_call_id": "toolu_2", "name": "put"},
            {"role": "tool", "content": "15 C", "tool_call_id": "toolu_1", "name": "get"},
            {"role": "user", "content": "And now?"},
            {"role": "assistant", "content": "answer"},
        ]

    def test_results_in_another_order_than_their_calls(self, tmp_path):
        calls = [{"id": f"x{n}", "function": {"name": f"f{n}", "arguments": {}}} for n in (1, 2)]
        results = [{"role": "tool", "tool_call_id": f"x{n}", "content": str(n)} for n in (2, 1)]
        row = one(tmp_path, {"messages": [SAID[0], {"role": "assistant", "tool_calls": calls}, *results, SAID[1]]})
        assert [(message["tool_call_id"], message["name"]) for message in row.messages[2:4]] == [
            ("x2", "f2"),
            ("x1", "f1"),
        ]

    def test_the_older_function_call(self, tmp_path):
        call = {"name": "f", "arguments": '{"a": 1}'}
        row = one(tmp_path, {"messages": [SAID[0], {"role": "assistant", "content": "So:", "function_call": call}]})
        assert row.messages[1]["content"] == "So:"
        assert row.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}

    def test_calls_as_text(self, tmp_path):
        calls = json.dumps([{"function": {"name": "f", "arguments": {"a": 1}}}])
        row = one(tmp_path, {"messages": [SAID[0], {"role": "assistant", "tool_calls": calls}]})
        assert row.messages[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}}

    def test_tools_beside_a_prompt(self, tmp_path):
        row = one(tmp_path, {"prompt": [SAID[0]], "completion": [SAID[1]], "tools": [{"name": "f", "parameters": {}}]})
        assert row.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]

    def test_reasoning_of_a_sharegpt_turn_and_names(self, tmp_path):
        turns = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer", "reasoning": "because"}]
        assert one(tmp_path, {"conversations": turns}).messages[1]["reasoning_content"] == "because"
        row = one(tmp_path, {"messages": [{**SAID[0], "name": "Ann"}, SAID[1]]})
        assert row.messages[0] == {"role": "user", "content": "ask", "name": "Ann"}

    @pytest.mark.parametrize(
        ("marks", "wanted"), [({"train": None, "weight": 0}, False), ({"train": True, "weight": None}, True)]
    )
    def test_a_null_hides_no_other_mark(self, marks, wanted, tmp_path):
        assert one(tmp_path, {"messages": [SAID[0], {**SAID[1], **marks}]}).messages[1]["train"] is wanted

    @pytest.mark.parametrize(("train", "wanted"), [(True, True), (False, False), (1, True), (0, False)])
    @pytest.mark.parametrize("key", ["train", "weight"])
    def test_train_field(self, key, train, wanted, tmp_path):
        raw = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: train}]}
        assert one(tmp_path, raw).messages[1]["train"] is wanted
        assert "train" not in one(tmp_path, raw).messages[0]


class TestNames:
    def test_renamed(self, tmp_path):
        row = one(tmp_path, {"frage": "ask", "antwort": "answer"}, columns={"question": "frage", "answer": "antwort"})
        assert talk(row) == ASKED

    def test_renamed_against_a_column_of_that_name(self, tmp_path):
        """A file may have a `text` that is not meant."""
        row = one(tmp_path, {"text": "no", "body": "yes"}, columns={"text": "body"})
        assert row.text == "yes"

    def test_unknown_name(self):
        with pytest.raises(
            UserError, match=r"columns\.qestion: there is no such known column\. Did you mean 'question'\?"
        ):
            Files(path="x.jsonl", columns={"qestion": "frage"})

    def test_a_shape_whose_columns_were_named_goes_first(self, tmp_path):
        raw = {"prompt": "no", "completion": "no", "frage": "ask", "antwort": "answer", "text": "no"}
        names = {"question": "frage", "answer": "antwort"}
        assert talk(one(tmp_path, raw, columns=names)) == ASKED
        assert talk(one(tmp_path, raw)) == [("user", "no"), ("assistant", "no")]
        assert one(tmp_path, raw, columns={"text": "antwort"}).text == "answer"

    @pytest.mark.parametrize(
        ("names", "options", "message"),
        [
            ({"question": "frage"}, {}, r"columns\.question=frage is not used: .* is read as prompt_completion"),
            ({"input": "frage"}, {"data_format": "prompt_completion"}, r"columns\.input=frage is not used"),
            ({"system": "sytsem"}, {}, r"columns\.system=sytsem: no row of .* has a column 'sytsem'\. Did you mean 'sistem'"),
            ({"tools": "none"}, {"limit": 1}, r"columns\.tools=none: no row of"),
        ],
    )  # fmt: skip
    def test_a_name_without_effect_is_an_error(self, names, options, message, tmp_path):
        raw = {"prompt": "ask", "completion": "answer", "frage": "x", "sistem": "y"}
        with pytest.raises(UserError, match=message):
            one(tmp_path, raw, columns=names, **options)

    def test_a_named_column_may_turn_up_late(self, tmp_path):
        rows = [{"question": "ask", "answer": "answer"}] * 1500 + [
            {"question": "ask", "answer": "answer", "sys": "brief"}
        ]
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert talk(rows_of(file, columns={"system": "sys"})[-1]) == [("system", "brief"), *ASKED]

    def test_the_named_format_wins(self, tmp_path):
        raw = {"question": "ask", "answer": "answer", "text": "plain"}
        assert one(tmp_path, raw, data_format="text").text == "plain"
        assert talk(one(tmp_path, raw)) == ASKED

    def test_a_ready_choice_reads_local_files(self, data):
        """`dataset=gsm8k dataset.path=FILE` needs no hub."""
        splits = Hub(path=str(data / "gsm8k" / "test.jsonl"), config="main", eval_split="test").load()
        assert sum(len(batch) for batch in splits.train) == 1319
        assert splits.eval is None
