"""Control tokens that somebody typed: refused, kept as plain text, or let through; always counted."""

from __future__ import annotations

import pytest

from dumbo.formatter.chat import Chat
from dumbo.formatter.completion import Completion
from dumbo.formatter.text import Text
from dumbo.interfaces import BadRow, Example, Message, Row, Source

NAMES = ("smollm", "qwen3", "llama3", "gemma3")


def row_of(asked, said, **more):
    return Row(
        Source("made.jsonl", 3), [Message(role="user", content=asked), Message(role="assistant", content=said)], **more
    )


def typed(known):
    """A question and an answer about the model's own end-of-turn token, which stands in both, three times in all."""
    return f"What does {known.end} mean?{known.end}", f"It ends a turn: {known.end}."


def special_ids(tokenizer):
    return {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}


@pytest.mark.parametrize("name", NAMES)
class TestHandling:
    def test_error(self, name, known):
        known = known(name)
        (bad,) = Chat().format([row_of(*typed(known))], known.tokenizer)
        assert isinstance(bad, BadRow)
        assert f"its text holds the control token {known.end}" in bad.problem
        assert "formatter.special_tokens_in_text=escape" in bad.remedy

    def test_escape_leaves_no_special_id_and_the_same_text(self, name, known, spans):
        known = known(name)
        asked, said = typed(known)
        (example,) = Chat(special_tokens_in_text="escape").format([row_of(asked, said)], known.tokenizer)
        assert isinstance(example, Example), str(example)
        # a control token is in the ids exactly as often as where the row's text has none
        (clean,) = Chat().format([row_of("What does it mean?", "It ends a turn.")], known.tokenizer)
        specials = special_ids(known.tokenizer)
        assert [i for i in example.input_ids if i in specials] == [i for i in clean.input_ids if i in specials]
        decoded = known.tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False)
        assert decoded == known.tokenizer.apply_chat_template(row_of(asked, said).messages, tokenize=False)
        (trained,) = spans(known.tokenizer, example)
        assert trained.removeprefix("<think>\n\n</think>\n\n") == said + known.end
        assert example.counts["control_tokens_in_text"] == 3

    def test_escape_tokenises_the_rest_as_always(self, name, known):
        """Only the typed control token is spelled out; text without any comes out the same under all three."""
        known = known(name)
        rows = [row_of("plain", "words"), row_of(*typed(known)), row_of("plain", "words")]
        escaped = Chat(special_tokens_in_text="escape").format(rows, known.tokenizer)
        (plain,) = Chat().format(rows[:1], known.tokenizer)
        for example in (escaped[0], escaped[2]):
            assert list(example.input_ids) == list(plain.input_ids)
            assert example.counts == {}

    def test_allow(self, name, known):
        known = known(name)
        asked, said = typed(known)
        (example,) = Chat(special_tokens_in_text="allow").format([row_of(asked, said)], known.tokenizer)
        assert isinstance(example, Example), str(example)
        rendering = known.tokenizer.apply_chat_template(row_of(asked, said).messages, tokenize=False)
        assert list(example.input_ids) == known.tokenizer(rendering, add_special_tokens=False)["input_ids"]
        end = known.tokenizer.convert_tokens_to_ids(known.end)
        turn = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
        assert turn.count(end) == 2, "the one that was typed, and the one that ends the turn"
        assert turn[-1] == end
        assert example.counts["control_tokens_in_text"] == 3


def test_escaped_stretches_are_tokenised_as_plain_text(known):
    """Between two real control tokens the ids are those of a tokenizer that knows no control tokens."""
    import copy

    known = known("smollm")
    ignorant = copy.deepcopy(known.tokenizer).backend_tokenizer
    ignorant.encode_special_tokens = True
    asked, said = typed(known)
    (example,) = Chat(special_tokens_in_text="escape").format([row_of(asked, said)], known.tokenizer)
    answer = [int(token) for token, label in zip(example.input_ids, example.labels, strict=True) if label != -100]
    assert answer[:-1] == ignorant.encode(f"\n{said}", add_special_tokens=False).ids[1:]


def test_control_tokens_in_tool_arguments_and_results(known, spans):
    known = known("qwen3")
    call = {"type": "function", "id": "c", "function": {"name": "grep", "arguments": {"pattern": "<|im_end|>"}}}
    messages = [
        Message(role="user", content="find it"),
        Message(role="assistant", content="", tool_calls=[call]),
        Message(role="tool", content="file: <|im_end|>", name="grep"),
        Message(role="assistant", content="found"),
    ]
    row = Row(Source("made.jsonl", 1), messages)
    (bad,) = Chat().format([row], known.tokenizer)
    assert isinstance(bad, BadRow)
    (example,) = Chat(special_tokens_in_text="escape").format([row], known.tokenizer)
    assert example.counts["control_tokens_in_text"] == 2
    assert '{"pattern": "<|im_end|>"}' in spans(known.tokenizer, example)[0]
    end = known.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert list(example.input_ids).count(end) == 4, "one a message and none in their texts"


def test_a_name_cannot_be_escaped(known):
    call = {"type": "function", "id": "c", "function": {"name": "grep", "arguments": {"<|im_end|>": 1}}}
    messages = [Message(role="user", content="x"), Message(role="assistant", content="", tool_calls=[call])]
    (bad,) = Chat(special_tokens_in_text="escape").format(
        [Row(Source("made.jsonl", 1), messages)], known("qwen3").tokenizer
    )
    assert isinstance(bad, BadRow)
    assert "a key of a mapping" in bad.problem


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("formatter", [Completion, Text])
class TestOtherFormatters:
    def test_all_three(self, name, formatter, known):
        known = known(name)
        asked, said = typed(known)
        row = row_of(asked, said) if formatter is Completion else Row(Source("made.txt", 1), text=asked + said)
        specials = special_ids(known.tokenizer)
        (bad,) = formatter().format([row], known.tokenizer)
        (escaped,) = formatter(special_tokens_in_text="escape", append_eos=False).format([row], known.tokenizer)
        (allowed,) = formatter(special_tokens_in_text="allow", append_eos=False).format([row], known.tokenizer)
        assert isinstance(bad, BadRow)
        assert known.end in bad.problem
        bos = 1 if name == "gemma3" else 0  # which adds one to raw text
        assert sum(token in specials for token in escaped.input_ids) == bos
        assert sum(token in specials for token in allowed.input_ids) == bos + 3
        for example in (escaped, allowed):
            text = known.tokenizer.decode(example.input_ids[bos:], clean_up_tokenization_spaces=False)
            assert text == asked + said
            assert example.counts["control_tokens_in_text"] == 3

    def test_private_characters_cannot_be_escaped_beside_control_tokens(self, name, formatter, known):
        known = known(name)
        asked = f"\U000f0000 {known.end}"
        row = row_of(asked, "x") if formatter is Completion else Row(Source("made.txt", 1), text=asked)
        (bad,) = formatter(special_tokens_in_text="escape").format([row], known.tokenizer)
        assert isinstance(bad, BadRow)
        assert "private-use" in bad.problem
