"""What a template drops or refuses is a bad row by name; masks of templates of one's own, with and without generation."""

from __future__ import annotations

import pytest

from dumbo.errors import UserError
from dumbo.formatter.chat import Chat
from dumbo.formatter.jinja import Jinja
from dumbo.interfaces import BadRow, Example, Message, Row, Source

CALL = {"type": "function", "id": "call00001", "function": {"name": "get_time", "arguments": {"zone": "CET"}}}
TOOL = {"type": "function", "function": {"name": "get_time", "description": "the time", "parameters": {}}}


def row_of(*messages, tools=None):
    return Row(Source("made.jsonl", 7), list(messages), tools=tools)


def user(text):
    return Message(role="user", content=text)


def says(text, **more):
    return Message(role="assistant", content=text, **more)


TALK = row_of(user("1?"), says("uno"), user("2?"), says("due"))


class TestDropped:
    """SmolLM2's template renders role and content and no more."""

    @pytest.mark.parametrize(
        ("row", "what"),
        [
            (
                row_of(user("t?"), says("", tool_calls=[CALL]), Message(role="tool", content="12"), says("noon")),
                "tool calls",
            ),
            (row_of(user("t?"), says("noon"), tools=[TOOL]), "the list of tools"),
            (row_of(user("t?"), says("noon", reasoning_content="the sun")), "reasoning"),
        ],
    )
    @pytest.mark.parametrize("name", ["smollm", "llama3", "gemma3"])
    def test_is_a_bad_row_with_a_remedy_that_helps(self, name, row, what, known, spans):
        known = known(name)
        (bad,) = Chat().format([row], known.tokenizer)
        assert isinstance(bad, BadRow)
        assert f"the chat template leaves out {what}" in bad.problem
        assert bad.remedy == "Write formatter.tool_calls=as_text"
        assert str(bad.source) == "made.jsonl, line 7"
        (good,) = Chat(tool_calls="as_text").format([row], known.tokenizer)
        assert isinstance(good, Example), str(good)
        text = known.tokenizer.decode(good.input_ids, clean_up_tokenization_spaces=False)
        assert {
            "tool calls": '{"name": "get_time", "arguments": {"zone": "CET"}}',
            "reasoning": "<think>\nthe sun\n</think>",
        }.get(what, '"get_time"') in text

    def test_one_bad_row_does_not_touch_its_neighbours(self, known):
        bad = row_of(user("t?"), says("noon", reasoning_content="the sun"))
        done = Chat().format([TALK, bad, TALK], known("smollm").tokenizer)
        assert [type(item) for item in done] == [Example, BadRow, Example]


def test_gemma_refuses_an_order_of_roles_and_that_is_a_bad_row(known):
    (bad,) = Chat().format([row_of(user("a"), user("b"), says("c"))], known("gemma3").tokenizer)
    assert isinstance(bad, BadRow)
    assert "the chat template refuses it: Conversation roles must alternate" in bad.problem


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (row_of(user("only a question")), "there is no assistant turn to train on"),
        (Row(Source("made.jsonl", 1), text="just text"), "there is no conversation in this row, only text"),
        (row_of(user("a \U000f0005 b"), says("c")), "private-use characters"),
    ],
)
def test_rows_without_anything_to_train(row, problem, known):
    (bad,) = Chat().format([row], known("smollm").tokenizer)
    assert isinstance(bad, BadRow)
    assert problem in bad.problem


def test_no_chat_template_is_an_error_with_two_remedies(known):
    import copy

    tokenizer = copy.deepcopy(known("smollm").tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template\.\n.*chat_template=chatml.*formatter=completion"):
        Chat().format([TALK], tokenizer)


CHATML = """{% for m in messages %}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' %}GENERATE{{ m.content }}<|im_end|>ENDGENERATE
{% else %}{{ m.content }}<|im_end|>
{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


class TestGeneration:
    """The mask of a template does not depend on `{% generation %}`, and agrees with it where it is there."""

    MARKED = CHATML.replace("ENDGENERATE", "{%- endgeneration %}").replace("GENERATE", "{%- generation -%}")
    PLAIN = CHATML.replace("ENDGENERATE", "").replace("GENERATE", "")

    def test_chat(self, known):
        import copy

        tokenizer = copy.deepcopy(known("smollm").tokenizer)
        tokenizer.chat_template = self.MARKED
        theirs = tokenizer.apply_chat_template(
            TALK.messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        (marked,) = Chat().format([TALK], tokenizer)
        assert list(marked.input_ids) == theirs["input_ids"]
        assert [label != -100 for label in marked.labels] == [bool(on) for on in theirs["assistant_masks"]]
        assert sum(theirs["assistant_masks"]) > 3

    def test_jinja(self, known, spans):
        tokenizer = known("smollm").tokenizer
        (marked,) = Jinja(template=self.MARKED).format([TALK], tokenizer)
        assert spans(tokenizer, marked) == ["uno<|im_end|>", "due<|im_end|>"]

    def test_with_and_without(self, known):
        tokenizer = known("smollm").tokenizer
        loose = CHATML.replace("ENDGENERATE", "{% endgeneration +%}").replace("GENERATE", "{% generation %}")
        (marked,) = Jinja(template=loose).format([TALK], tokenizer)
        (plain,) = Jinja(template=self.PLAIN).format([TALK], tokenizer)
        assert list(marked.input_ids) == list(plain.input_ids)
        assert list(marked.labels) == list(plain.labels)


OWN = {
    "headings": (
        "{% for m in messages %}### {{ 'Question' if m.role == 'user' else 'Answer' }}:\n{{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}### Answer:\n{% endif %}",
        ["uno", "due{eos}"],
    ),
    "no generation prompt, no end": (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
        ["uno", "due{eos}"],
    ),
    "eos after each answer": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A:{% else %}"
        " {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        [" uno{eos}", " due{eos}"],
    ),
    "nothing but line breaks": (  # after a question the model has to break the line itself
        "{% for m in messages %}{{ m.content | trim }}{{ '\n' if not loop.last }}{% endfor %}",
        ["\nuno", "\ndue{eos}"],
    ),
    "thinking in the generation prompt": (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n{{ m.content }}<|im_end|>\n{% else %}"
        "<|im_start|>assistant\n<think>\n</think>\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
        ["</think>\nuno<|im_end|>", "</think>\ndue<|im_end|>"],
    ),
}


@pytest.mark.parametrize("style", OWN)
def test_templates_of_other_styles(style, known, spans):
    tokenizer = known("smollm").tokenizer
    template, said = OWN[style]
    (example,) = Jinja(template=template).format([TALK], tokenizer)
    assert isinstance(example, Example), str(example)
    assert [text.strip(" ") for text in spans(tokenizer, example)] == [
        text.format(eos=tokenizer.eos_token).strip(" ") for text in said
    ]


REFUSED = {
    "repeats": (
        "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
        "renders an assistant's answer 2 times",
    ),
    "drops": (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "answer 0 times",
    ),
    "upper": ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "answer 0 times"),
    "divides by zero": ("{{ 1 / 0 }}{% for m in messages %}{{ m.content }}{% endfor %}", "division by zero"),
    "endless range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_templates_that_cannot_be_masked_are_refused_at_once(fault, known):
    template, why = REFUSED[fault]
    with pytest.raises(UserError, match=f"(?s)formatter.template cannot be used for training: .*{why}"):
        Jinja(template=template).format([TALK], known("smollm").tokenizer)


def test_a_template_that_loses_a_middle_answer_is_a_bad_row(known):
    template = (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    (bad,) = Jinja(template=template).format([TALK], known("smollm").tokenizer)
    assert isinstance(bad, BadRow)
    assert "leaves out" in bad.problem


def calling(template):
    """A template of chatml's form whose assistant turns with calls are written by `template`."""
    return (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls is defined %}" + template
        + "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )  # fmt: skip


PAIRS = "{% for k, v in c.function.arguments.items() %}<{{ k }}={{ v }}>{% endfor %}"
WHOLE = calling("{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}")


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        (WHOLE, None),
        (calling("{{ m.tool_calls }}"), None),
        (calling("{% for c in m.tool_calls %}{{ c.function.name }}" + PAIRS + "{% endfor %}"), None),
        (calling("{{ m.tool_calls[0].function | tojson }}"), "leaves out tool calls"),
        (calling("{% for c in m.tool_calls %}{{ c.function.name }} zq_value7{% endfor %}"), "leaves out arguments of tool calls"),
    ],
)  # fmt: skip
def test_every_call_is_rendered_with_all_it_passes(template, problem, known):
    """Two calls of one tool: a template that writes the first alone, or names alone, trains on less than the row says."""
    tokenizer = known("smollm").tokenizer
    passed = ({"city": "Paris"}, {"city": 'Rio "de" Jänner\n', "days": [1, 'it\'s "two"']})
    calls = [
        {"type": "function", "id": f"call{n:05d}", "function": {"name": "get", "arguments": arguments}}
        for n, arguments in enumerate(passed)
    ]
    row = row_of(user("Weather?"), says("", tool_calls=calls))
    (done,) = Jinja(template=template).format([row], tokenizer)
    if problem is None:
        assert isinstance(done, Example), done
    else:
        assert isinstance(done, BadRow), tokenizer.decode(done.input_ids)
        assert problem in done.problem


@pytest.mark.parametrize("name", ["smollm", "qwen3", "llama3", "gemma3"])
def test_plain_messages_render_as_transformers_renders_them(name, known):
    """Those of a role and a text go to the compiled template at once; so do the errors that it raises."""
    from dumbo.formatter.chat import template_of

    tokenizer = known(name).tokenizer
    render, _ = template_of(tokenizer)
    said = [
        {"role": "user", "content": " two \n{{ braces }} <|x|> é\U0001f600"},
        {"role": "assistant", "content": "<think>\n7\n</think>\n\nfour"},
        {"role": "user", "content": ""},
        {"role": "assistant", "content": "done "},
    ]
    talks = [said[:1], said[:2], said, [{"role": "system", "content": "Be terse."}, *said], said[1:]]
    talks += [[{**said[0], "name": "a"}, {**said[1], "train": True}], [said[0], {**said[1], "reasoning_content": "7"}]]
    for talk in talks:
        for asks in (False, True):
            try:
                wanted = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=asks)
            except Exception as error:
                with pytest.raises(type(error)):
                    render(talk, tools=None, add_generation_prompt=asks)
            else:
                assert render(talk, tools=None, add_generation_prompt=asks) == wanted


def test_another_special_token_is_rendered(known):
    import copy

    tokenizer = copy.deepcopy(known("smollm").tokenizer)
    tokenizer.chat_template = (
        "{{ eos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    )
    row = Row(Source("a", 1), messages=[Message(role="user", content="x"), Message(role="assistant", content="y")])
    found = []
    for eos in ("<|im_end|>", "<|endoftext|>"):
        tokenizer.eos_token = eos
        [example] = Chat().format([row], tokenizer)
        found.append(tokenizer.decode([int(example.input_ids[0])]))
    assert found == ["<|im_end|>", "<|endoftext|>"]
