"""The assistant mask on real tokenizers and real rows, against two computations of our own.

1. The chat template rendered by transformers itself, searched for the known header and end token.
2. Trained tokens, decoded, compared with what the source rows say.
"""

from __future__ import annotations

import pytest

from dumbo.formatter.chat import Chat
from dumbo.interfaces import BadRow, Example, Message, Row, Source

NAMES = ("smollm", "qwen3", "llama3", "gemma3")
TALK = (("gsm8k/test.jsonl", 60), ("fastchat/dummy_conversation.json", 80), ("tools/identity.json", None))
TOOLS = (("tools/glaive_toolcall_en_demo.json", 60), ("tools/reason_tool_use_demo_50.jsonl", None))


def check(known, row, example):
    """One example against transformers' rendering and the search for the known header and end token."""
    messages = [dict(message) for message in row.messages]
    rendering = known.tokenizer.apply_chat_template(messages, tools=row.tools, tokenize=False)
    ids = known.tokenizer(rendering, add_special_tokens=False)["input_ids"]
    assert list(example.input_ids) == ids, f"{row.source}: ids are those of the rendering, nothing added"
    assert len(known.turns(rendering)) == sum(message["role"] == "assistant" for message in row.messages)
    trained = known.trained(rendering)
    assert [label != -100 for label in example.labels] == trained, str(row.source)
    assert all(label in (-100, token) for label, token in zip(example.labels, example.input_ids, strict=True))
    assert example.labels[0] == -100
    assert example.input_ids[[i for i, t in enumerate(trained) if t][-1]] == ids_of_end(known), "the end is trained"


def ids_of_end(known):
    number = known.tokenizer.convert_tokens_to_ids(known.end)
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("file", "limit"), TALK)
def test_every_turn_and_nothing_else(name, file, limit, known, rows_of, spans):
    known, rows = known(name), rows_of(file, limit)
    examples = Chat().format(rows, known.tokenizer)
    assert len(examples) == len(rows)
    for row, example in zip(rows, examples, strict=True):
        assert isinstance(example, Example), str(example)
        check(known, row, example)
        said = [m["content"].strip() for m in row.messages if m["role"] == "assistant"]
        decoded = [
            text.removesuffix(known.end).removeprefix("<think>\n\n</think>\n\n")
            for text in spans(known.tokenizer, example)
        ]
        assert [text.strip() for text in decoded] == said, str(row.source)


@pytest.mark.parametrize(("file", "limit"), TOOLS)
def test_tools_and_reasoning_on_qwen3(file, limit, known, rows_of, spans):
    known, rows = known("qwen3"), rows_of(file, limit)
    for row, example in zip(rows, Chat().format(rows, known.tokenizer), strict=True):
        assert isinstance(example, Example), str(example)
        check(known, row, example)
        decoded = spans(known.tokenizer, example)
        for text, message in zip(decoded, [m for m in row.messages if m["role"] == "assistant"], strict=True):
            assert message["content"].strip() in text
            for call in message.get("tool_calls", []):
                assert f'"name": "{call["function"]["name"]}"' in text
        assert not any("<tool_response>" in text or "<tools>" in text for text in decoded)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("file", "limit"), TOOLS)
def test_tools_and_reasoning_as_text(name, file, limit, known, rows_of, spans):
    """Whatever a template knows, `as_text` says all of it: calls, results, lists of tools, reasoning."""
    known, rows = known(name), rows_of(file, limit)
    for row, example in zip(rows, Chat(tool_calls="as_text").format(rows, known.tokenizer), strict=True):
        assert isinstance(example, Example), str(example)
        text = known.tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False)
        assert [label != -100 for label in example.labels] == known.trained(text), str(row.source)
        trained = "".join(spans(known.tokenizer, example))
        for message in row.messages:
            for call in message.get("tool_calls", []):
                assert f'{{"name": "{call["function"]["name"]}"' in trained
            if message["role"] == "tool":
                assert message["content"] in text
                assert f"<tool_response>\n{message['content']}" not in trained
        for tool in row.tools or []:
            assert tool["function"]["name"] in text


def conversation(*turns, tools=None):
    messages = [Message(role=role, content=content) for role, content in turns]
    return Row(Source("made.jsonl", 1), messages, tools=tools)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "turns",
    [
        [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "3+3?"), ("assistant", "6")],
        [("user", "  spaces around  "), ("assistant", "  and here\n\n")],
        [("user", "same"), ("assistant", "same"), ("user", "same"), ("assistant", "same")],
        [("user", "assistant"), ("assistant", "user\nassistant\nmodel")],
        [("user", "Wie spät?"), ("assistant", "Fünf nach zwölf – 12:05 🕛\u200d")],
        [("user", "line one\nline two"), ("assistant", "\tindented\n\tcode\n")],
        [("user", "q {{ x }} {% if %}"), ("assistant", "{{ messages[0] }}{# no #}")],
    ],
)
def test_awkward_conversations(name, turns, known):
    known = known(name)
    row = conversation(*turns)
    (example,) = Chat().format([row], known.tokenizer)
    assert isinstance(example, Example), str(example)
    check(known, row, example)


def test_earlier_reasoning_that_qwen3_drops_is_counted(known, spans):
    """Qwen3 renders reasoning in the last turn only: earlier turns change, which prefixes cannot follow."""
    known = known("qwen3")
    messages = [
        Message(role="user", content="one?"),
        Message(role="assistant", content="ONE", reasoning_content="because uno"),
        Message(role="user", content="two?"),
        Message(role="assistant", content="TWO", reasoning_content="because due"),
    ]
    row = Row(Source("made.jsonl", 1), messages)
    (example,) = Chat().format([row], known.tokenizer)
    check(known, row, example)
    assert spans(known.tokenizer, example) == ["ONE<|im_end|>", "<think>\nbecause due\n</think>\n\nTWO<|im_end|>"]
    assert example.counts == {"reasoning_dropped_by_template": 1}


def test_reasoning_typed_into_the_answer_is_the_same_as_given_apart(known):
    known = known("qwen3")
    typed = conversation(("user", "two?"), ("assistant", "<think>\nbecause due\n</think>\n\nTWO"))
    apart = Row(
        typed.source,
        [typed.messages[0], Message(role="assistant", content="TWO", reasoning_content="because due")],
    )
    one, other = Chat().format([typed, apart], known.tokenizer)
    assert list(one.input_ids) == list(other.input_ids)
    assert list(one.labels) == list(other.labels)


class TestLossOn:
    TURNS = (("user", "1?"), ("assistant", "uno"), ("user", "2?"), ("assistant", "due"))

    @pytest.mark.parametrize("name", NAMES)
    def test_last(self, name, known, spans):
        known = known(name)
        (example,) = Chat(loss_on="last").format([conversation(*self.TURNS)], known.tokenizer)
        (text,) = spans(known.tokenizer, example)
        assert text.removeprefix("<think>\n\n</think>\n\n") == "due" + known.end

    @pytest.mark.parametrize("name", NAMES)
    def test_all_but_the_first_token(self, name, known):
        known = known(name)
        (example,) = Chat(loss_on="all").format([conversation(*self.TURNS)], known.tokenizer)
        assert list(example.labels) == [-100, *list(example.input_ids)[1:]]

    @pytest.mark.parametrize("name", NAMES)
    def test_field(self, name, known, spans):
        known = known(name)
        row = conversation(*self.TURNS)
        row.messages[1]["train"] = True
        row.messages[3]["train"] = False
        (example,) = Chat(loss_on="field").format([row], known.tokenizer)
        assert spans(known.tokenizer, example) == ["uno" + known.end]

    def test_field_on_a_user_turn_or_on_none_is_a_bad_row(self, known):
        none, user = conversation(*self.TURNS), conversation(*self.TURNS)
        user.messages[0]["train"] = True
        first, second = Chat(loss_on="field").format([none, user], known("smollm").tokenizer)
        assert isinstance(first, BadRow)
        assert "no message says train: true" in first.problem
        assert isinstance(second, BadRow)
        assert "message 1 says train: true, but its role is user" in second.problem

    def test_reply_is_the_last_turn(self, known):
        for name in NAMES:
            tokenizer = known(name).tokenizer
            (example,) = Chat().format([conversation(*self.TURNS)], tokenizer)
            start, end = example.reply
            text = tokenizer.decode(example.input_ids[start:end], clean_up_tokenization_spaces=False)
            assert text.removeprefix("<think>\n\n</think>\n\n") == "due" + known(name).end


@pytest.mark.parametrize("name", NAMES)
def test_no_doubled_bos(name, known, rows_of):
    tokenizer = known(name).tokenizer
    for example in Chat().format(rows_of("fastchat/dummy_conversation.json", 20), tokenizer):
        ids = list(example.input_ids)
        assert ids[0] != ids[1]
        if name in ("llama3", "gemma3"):
            assert ids.count(tokenizer.bos_token_id) == 1
            assert ids[0] == tokenizer.bos_token_id
