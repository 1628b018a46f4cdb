"""`formatter=jinja`: a template can render messages and nothing else."""

from __future__ import annotations

import pytest

from dumbo.errors import UserError
from dumbo.formatter.chat import Chat
from dumbo.formatter.jinja import Jinja
from dumbo.interfaces import BadRow, Example, Message, Row, Source

PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
TALK = Row(Source("made.jsonl", 1), [Message(role="user", content="ask"), Message(role="assistant", content="answer")])

ESCAPES = {
    "an attribute": "{{ messages.__class__ }}",
    "a chain": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a subscript": "{{ messages['__class__'] }}",
    "a subscript put together": "{{ messages['__cla' ~ 'ss__'] }}",
    "a subscript from a variable": "{% set k = '__class' ~ '__' %}{{ messages[k] }}",
    "the attr filter": "{{ messages | attr('__class__') }}",
    "the attr filter, put together": "{{ messages | attr('__cla' ~ 'ss__') }}",
    "the attr filter, encoded": "{{ messages | attr('\\x5f\\x5fclass\\x5f\\x5f') }}",
    "map": "{{ messages | map(attribute='__class__') | list }}",
    "map, dotted": "{{ messages | map(attribute='content.__class__') | list }}",
    "sort": "{{ messages | sort(attribute='__class__') | list }}",
    "groupby": "{{ messages | groupby('__class__') | list }}",
    "selectattr": "{{ messages | selectattr('__class__') | list }}",
    "a format string": "{{ '{0.__class__}'.format(messages) }}",
    "a format string, keyed": "{{ '{m.__class__.__mro__}'.format(m=messages) }}",
    "format_map": "{{ '{m.__class__}'.format_map({'m': messages}) }}",
    "format, found through a subscript": "{{ '{0.__class__}'['format'](messages) }}",
    "a generator's frame": "{{ (messages | map('string')).gi_frame }}",
    "a macro's function": "{% macro f() %}{% endmacro %}{{ f._func }}",
    "a function's globals": "{{ raise_exception.__globals__ }}",
    "self": "{{ self._TemplateReference__context }}",
    "cycler": "{{ cycler.__init__.__globals__ }}",
    "lipsum": "{{ lipsum.__globals__['os'] }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import '/etc/passwd' as p %}",
    "append": "{{ messages.append(1) }}",
    "clear": "{{ messages.clear() }}",
    "pop": "{{ messages[0].pop('role') }}",
    "update": "{{ messages[0].update({'role': 'x'}) }}",
    "setdefault": "{{ messages[0].setdefault('x', 1) }}",
    "sort in place": "{{ messages.sort() }}",
    "an item": "{% set messages[0] = 1 %}",
    "an attribute of a message": "{% set messages[0].content = 'x' %}",
    "an undefined name": "{{ mesages }}",
    "an undefined field": "{{ messages[0].contents }}",
}


@pytest.mark.parametrize("way", ESCAPES)
def test_ways_out_are_refused(way, known):
    tokenizer = known("smollm").tokenizer

    def rendered():
        (item,) = Jinja(template=PLAIN + ESCAPES[way]).format([TALK], tokenizer)
        return tokenizer.decode(item.input_ids)

    with pytest.raises(UserError, match=r"formatter\.template") as refused:
        pytest.fail(f"it rendered: {rendered()}")
    assert "class 'list'" not in str(refused.value)
    assert TALK.messages[0] == {"role": "user", "content": "ask"}


def test_a_row_cannot_be_reached_either(known):
    """A template that is harmless on the probe and escapes on one row only: that row is bad."""
    sly = PLAIN + "{% if messages[0].content == 'ask' %}{{ messages | map(attribute='__class__') | list }}{% endif %}"
    (bad,) = Jinja(template=sly).format([TALK], known("smollm").tokenizer)
    assert isinstance(bad, BadRow)
    assert "__class__" in bad.problem


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "line one\n{% for m in messages %}\n{{ m.content }\n{% endfor %}",
            r"syntax error in line 3: unexpected '}'\n  \{\{ m\.content \}",
        ),
        ("{% for m in messages %}\n{{ m.content }}", r"syntax error in line \d.*endfor"),
        ("{{ messages | nofilter }}", r"syntax error in line 1: No filter named 'nofilter'"),
        ("a\n\n{{ messages.__class__ }}", r"reaches for '__class__' in line 3"),
    ],
)
def test_faults_name_their_line(template, message, known):
    with pytest.raises(UserError, match=message):
        Jinja(template=template).format([TALK], known("smollm").tokenizer)


def test_a_file(tmp_path, known):
    file = tmp_path / "mine.jinja"
    file.write_text(PLAIN)
    tokenizer = known("smollm").tokenizer
    (from_file,) = Jinja(template=str(file)).format([TALK], tokenizer)
    (from_text,) = Jinja(template=PLAIN).format([TALK], tokenizer)
    assert list(from_file.input_ids) == list(from_text.input_ids)
    with pytest.raises(UserError, match=r"there is no file 'nothing\.jinja'"):
        Jinja(template="nothing.jinja")


@pytest.mark.parametrize("formatter", [Jinja(template=PLAIN), Chat()])
def test_content_that_looks_like_a_template_stays_text(formatter, known, rows_of):
    tokenizer = known("smollm").tokenizer
    rows = [row for row in rows_of("tools/identity.json") if "{{name}}" in row.messages[1]["content"]]
    assert len(rows) > 50
    braces = "{{ 7 * 7 }} {% for x in y %} {# note #} {{ messages.__class__ }}"
    rows = [*rows, Row(TALK.source, [Message(role="user", content=braces), Message(role="assistant", content=braces)])]
    for row, example in zip(rows, formatter.format(rows, tokenizer), strict=True):
        assert isinstance(example, Example), str(example)
        text = tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False)
        assert row.messages[0]["content"] in text
        assert row.messages[1]["content"] in text


def test_what_a_template_sees(known):
    tokenizer = known("llama3").tokenizer
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}={{ m.content | tojson }}{{ eos_token }}{% endfor %}"
        "{% if tools %}{{ tools | tojson }}{% endif %}"
    )
    row = Row(TALK.source, [Message(role="user", content='say "é"'), Message(role="assistant", content="ok")])
    (example,) = Jinja(template=template).format([row], tokenizer)
    assert tokenizer.decode(example.input_ids) == (
        '<|begin_of_text|>user="say \\"é\\""<|end_of_text|>assistant="ok"<|end_of_text|>'
    )


def test_the_eos_is_added_and_trained_only_where_the_template_has_none(known, spans):
    tokenizer = known("smollm").tokenizer
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (added,) = Jinja(template=bare).format([TALK], tokenizer)
    (not_added,) = Jinja(template=bare, append_eos=False).format([TALK], tokenizer)
    (own,) = Jinja(template=PLAIN).format([TALK], tokenizer)
    eos = tokenizer.eos_token_id
    assert [list(example.input_ids).count(eos) for example in (added, not_added, own)] == [1, 0, 2]
    assert added.labels[-1] == eos
    assert spans(tokenizer, own) == [" answer<|im_end|>"]
