"""Forms of templates: filled in they are what the template renders and where its turns are, or they are refused."""

from __future__ import annotations

import pytest

from dumbo.formatter import forms as forms_module
from dumbo.formatter.chat import Chat, _conversations
from dumbo.formatter.control_tokens import control_pattern
from dumbo.formatter.conversation import Conversations
from dumbo.formatter.jinja import environment
from dumbo.formatter.traceable import Untraceable
from dumbo.formatter.tracing import Trace, Tracer
from dumbo.interfaces import BadRow, Message, Row, Source

NAMES = ("smollm", "qwen3", "llama3", "gemma3")
FILES = (("gsm8k/test.jsonl", 60), ("fastchat/dummy_conversation.json", 80), ("tools/identity.json", None))


def conversations(tokenizer) -> Conversations:
    return _conversations(Chat(), tokenizer, str(tokenizer.chat_template), str(tokenizer.special_tokens_map))


def row_of(*contents, roles=("user", "assistant"), **more):
    messages = [Message(role=role, content=text) for role, text in zip(roles, contents, strict=True)]
    return Row(Source("made.jsonl", 1), messages, **more)


@pytest.mark.parametrize("name", NAMES)
class TestRealTemplates:
    @pytest.mark.parametrize(("file", "limit"), FILES)
    def test_real_rows_as_rendered(self, name, file, limit, known, rows_of):
        talk, rows = conversations(known(name).tokenizer), rows_of(file, limit)
        taken = 0
        for row in rows:
            if (filled := talk.forms.filled(row)) is not None:
                taken += 1
                _, plain, spans, _, counts = talk._rendered(row)
                assert filled == (plain, spans), str(row.source)
                assert counts == {}
        assert taken >= 0.95 * len(rows)

    @pytest.mark.parametrize(
        "row",
        [
            row_of(" \n outer space\t", "\n\n and here \n"),
            row_of("assistant", "<|im_", roles=("user", "assistant")),
            row_of("s", "u", "a", "u", "a", roles=("system", "user", "assistant", "user", "assistant")),
            row_of("{{ x }}{% if %}", "{# no #}"),
            row_of("naïve “q”", "日本語 e\u0301 🕛\u200d"),
        ],
    )
    def test_awkward_rows_as_rendered(self, name, row, known):
        talk = conversations(known(name).tokenizer)
        _, plain, spans, _, _ = talk._rendered(row)
        assert talk.forms.filled(row) == (plain, spans)

    @pytest.mark.parametrize(
        "row",
        [
            row_of("blank", "  \n"),
            row_of("a token <|im_end|><|eot_id|><end_of_turn>", "x"),
            row_of("private \U000f0001", "x"),
            row_of("tools", "x", tools=[{"type": "function", "function": {"name": "f"}}]),
            row_of("nobody answers", roles=("user",)),
            row_of("an answer first", "x", roles=("assistant", "user")),
            row_of("a", "b", "c", roles=("user", "tool", "assistant")),
            Row(Source("made.jsonl", 1), text="plain text"),
            Row(Source("made.jsonl", 1), [Message(role="user", content="a"), Message(role="assistant", content="b", train=True)]),
        ],
    )  # fmt: skip
    def test_what_has_to_be_looked_at(self, name, row, known):
        assert conversations(known(name).tokenizer).forms.filled(row) is None


def test_where_a_question_about_the_text_is_answered_with_yes(known):
    forms = conversations(known("qwen3").tokenizer).forms
    assert forms.filled(row_of("why?", "so")) is not None
    assert forms.filled(row_of("why?", "a </think> b")) is None
    assert forms.filled(row_of("<tool_response>", "so")) is None
    assert forms.filled(row_of("why?", "<think>\nhm\n</think>\n\nso")) is None


def template(inside: str) -> str:
    loop = "{% for m in messages %}<|im_start|>{{ m.role }}\n" + inside + "<|im_end|>\n{% endfor %}"
    return loop + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def form_of(text: str, **values):
    trace = Trace()
    return Tracer(text, environment(), values).form(trace, ("user", "assistant"), add_generation_prompt=False), trace


@pytest.mark.parametrize(
    "inside",
    [
        "{{ m.content|upper }}", "{{ m.content.upper() }}", "{{ m.content|tojson }}", "{{ m.content|length }}",
        "{{ m.content|replace('a', 'b') }}", "{{ m.content|first }}", "{{ m.content|last }}", "{{ m.content|list }}",
        "{{ m.content|e }}", "{{ m.content|safe|upper }}", "{{ [m.content]|join }}", "{{ ''.join([m.content]) }}",
        "{{ '%s' % m.content }}", "{{ '%s' % (m.content,) }}", "{{ '{}'.format(m.content) }}", "{{ (m.content ~ 'x')|trim }}",
        "{{ m.content[0] }}", "{{ m.content[1:] }}", "{{ m.content * 2 }}", "{{ 2 * m.content }}", "{{ m }}",
        "{{ [m.content] }}", "{{ m.content, 1 }}", "{{ {m.content: 1}[m.content] }}",
        "{% if m.content == 'x' %}y{% endif %}", "{% if 'x' != m.content %}y{% endif %}", "{% if m.content > 'a' %}y{% endif %}",
        "{% if m.content in 'abc' %}y{% endif %}", "{% if m.content not in ['a'] %}y{% endif %}",
        "{% if m.content is in 'abc' %}y{% endif %}", "{% if m.content is sequence %}y{% endif %}",
        "{% if m.content is upper %}y{% endif %}", "{% if 'abc'.startswith(m.content) %}y{% endif %}",
        "{% if m.content.startswith(('a', 'b')) %}y{% endif %}", "{% if m.content.find('a') > 0 %}y{% endif %}",
        "{{ m.content.split('x')[0] }}", "{{ m.content.strip('x') }}", "{{ m.content.strip(m.role) }}",
        "{{ (m.content + 'x').strip() }}", "{{ (m.content + 1) }}", "{% for c in m.content %}{{ c }}{% endfor %}",
        "{% set x %}{{ m.content }}{% endset %}{{ x|trim }}", "{% macro f(t) %}{{ t }}{% endmacro %}{{ f(m.content)|trim }}",
        "{% filter upper %}{{ m.content }}{% endfilter %}", "{% if loop.changed(m.content) %}y{% endif %}",
        "{{ m.content|int }}", "{% if messages|map(attribute='content')|join %}y{% endif %}",
        "{% if messages|selectattr('content', 'in', 'abc')|list %}y{% endif %}", "{{ strftime_now('%d') }}",
        "{% if m == messages[0] %}{% endif %}{% if m != {'role': m.role, 'content': 'x'} %}y{% endif %}",
        "{{ namespace(x=m.content).x|upper }}", "{{ dict(x=m.content) }}", "{{ undefined_name.x }}", "{{ raise_exception('no') }}",
        "{% set n = namespace() %}{% set n.role = m.content %}{% if n.role in 'abc' %}y{% endif %}",
        "{% if {'role': m.content}.role in 'abc' %}y{% endif %}", "{% if {'ro' + 'le': m.content}.role in 'abc' %}y{% endif %}",
        "{% for n in messages recursive %}{{ n.content }}{% endfor %}", "{{ m.content.__class__ }}", "\U00100000",
    ],
)  # fmt: skip
def test_templates_that_look_at_a_text_have_no_form(inside):
    with pytest.raises(Untraceable):
        form_of(template(inside))


ALLOWED = [
    "{{ m.content }}", "{{ m['content'] | trim }}", "{{ '<' + m.content + '>' }}", "{{ m.content.rstrip('\n').lstrip() }}",
    "{% if m.content %}{{ m.content or '' }}{% endif %}", "{{ m.content if m.content is string else m.content|tojson }}",
    "{% if m.content is defined and m.content is not none and m.content != '' %}{{ m.content }}{% endif %}",
    "{% set ns = namespace(n=0) %}{% set ns.n = m.content %}{{ ns.n }}", "{{ m.content|default('x') }}",
    "{{ m.get('content') }}", "{{ m.content }}{% if loop.index0 % 2 == 0 and messages|length > 0 %}!{% endif %}",
    "{% if m.role in ['user', 'assistant'] %}{{ m.content }}{% endif %}",
    "{% for n in [{'role': 'x', 'content': m.content}] %}{% if n.role not in 'abc' %}{{ n.content }}{% endif %}{% endfor %}",
    "{% if '/no_think' in m.content %}quick{% endif %}{{ m.content }}",
    "{% if m.content.strip().endswith('?') %}asked{% endif %}{{ m.content }}",
    "{% set first = messages|selectattr('role', 'equalto', 'user')|list|first %}{{ m.content }}",
    "{% if m.content is iterable %}{{ m.content }}{% endif %}",
]  # fmt: skip
TEXTS = ("x", " x\n", "\n\nx y\n", "say /no_think now", "why? ", "ü?\t", "<|im_", "%s {{ }}")


@pytest.mark.parametrize("inside", ALLOWED)
def test_a_form_is_what_the_template_renders(inside, tiny):
    text = template(inside)
    given = {"tools": None, "bos_token": "", "eos_token": ""}
    compiled = environment().from_string(text)

    def render(messages, *, tools, add_generation_prompt):
        return compiled.render(**given, messages=messages, add_generation_prompt=add_generation_prompt)

    talk = Conversations.of(
        render, tiny, (text, environment(), given), loss_on="assistant", special_tokens_in_text="error", tool_calls="native"
    )  # fmt: skip
    taken = 0
    for question in TEXTS:
        for answer in TEXTS:
            row = row_of(question, answer)
            if (filled := talk.forms.filled(row)) is not None:
                taken += 1
                _, plain, spans, _, _ = talk._rendered(row)
                assert filled == (plain, spans)
    assert taken >= len(TEXTS)


@pytest.fixture(scope="module")
def tiny():
    from dumbo.model.tiny import Tiny

    return Tiny().load_tokenizer()


def test_a_form_that_errs_stops_the_preparation(tiny, monkeypatch):
    right = forms_module.Form.filled

    def errs(self, contents, end):
        text, spans = right(self, contents, end)
        return text, {number: (a + 1, b) for number, (a, b) in spans.items()}

    monkeypatch.setattr(forms_module.Form, "filled", errs)
    talk = Conversations.of(*_parts(tiny), **_OPTIONS)
    with pytest.raises(AssertionError, match="a form of the chat template is wrong"):
        talk.format([row_of("a", "b")])


def test_one_conversation_in_64_is_rendered_too(tiny, monkeypatch):
    render, tokenizer, known = _parts(tiny)
    rendered = []

    def counted(messages, **options):
        rendered.append(len(messages))
        return render(messages, **options)

    talk = Conversations.of(counted, tokenizer, known, **_OPTIONS)
    rendered.clear()
    assert not any(isinstance(item, BadRow) for item in talk.format([row_of("a", str(n)) for n in range(130)]))
    assert rendered == [2, 1] * 3  # the 1st, the 65th and the 129th: the whole, and what precedes the answer


_OPTIONS = {"loss_on": "assistant", "special_tokens_in_text": "error", "tool_calls": "native"}


def _parts(tokenizer):
    from dumbo.formatter.chat import template_of

    render, known = template_of(tokenizer)
    return render, tokenizer, known


def test_orders_of_roles_are_not_kept_without_end(tiny, monkeypatch):
    monkeypatch.setattr(forms_module, "MOST_FORMS", 2)
    forms = Conversations.of(*_parts(tiny), **_OPTIONS).forms
    assert forms._control.pattern == control_pattern(tiny).pattern
    taken = [forms.filled(row_of(*["x"] * 2 * n, roles=("user", "assistant") * n)) is not None for n in (1, 2, 3, 1)]
    assert taken == [True, True, False, True]
