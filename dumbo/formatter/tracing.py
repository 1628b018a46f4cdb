"""What a template does with what is said, found out by rendering once with texts that cannot be read.

Most templates only put fixed texts around messages. To show that for one of them, it renders messages whose contents are
`Said`: these may be put out, joined to other text, stripped of white space, and tested for being there; whatever else
would depend on the text itself is refused (`Untraceable`), wherever it happens. What comes out is then a form, right for
every conversation of the same roles. A question like `'</think>' in content` is answered with no, and remembered: the
form is right where the answer is no.

Filters, tests and calls are refused unless they are known; so is syntax in which a content is not asked (`traceable.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dumbo.formatter.template_check import without_generation
from dumbo.formatter.traceable import Untraceable, require_seen

FIRST_MARK = 0x100000
"""Code points that stand for contents in a form (the second private-use plane)."""

FILTERS = ("trim", "length", "count", "first", "last", "list", "string", "default", "d", "selectattr", "rejectattr")
TESTS = ("defined", "undefined", "none", "string", "mapping", "number", "integer", "boolean", "true", "false", "iterable",
         "equalto", "eq", "==", "ne", "!=", "odd", "even", "divisibleby")  # fmt: skip
CALLS = ("namespace", "range", "raise_exception")


@dataclass(frozen=True, slots=True)
class Place:
    """A content in a form: of which message, and what is stripped of it, in order: (side, characters or None)."""

    message: int
    strips: tuple[tuple[str, str | None], ...] = ()

    def value(self, text: str) -> str:
        """What stands there for a content."""
        for side, chars in self.strips:
            text = getattr(text, side)(chars)
        return text


@dataclass
class Trace:
    """What several renderings of one conversation have in common.

    Attributes:
        places: by their marks, in order.
        answered_no: (place, method, argument) of each question about a text.
    """

    places: list[Place] = field(default_factory=list)
    answered_no: list[tuple[Place, str, str]] = field(default_factory=list)

    def said(self, place: Place) -> Said:
        if place not in self.places:
            self.places.append(place)
        return Said(chr(FIRST_MARK + self.places.index(place)), self)


class Said(str):
    """A content that cannot be read; its characters are marks of places, and fixed text joined to them."""

    trace: Trace

    def __new__(cls, marked: str, trace: Trace) -> Said:
        made = str.__new__(cls, marked)
        made.trace = trace
        return made

    def __add__(self, other: str) -> Said:
        return Said(str(self) + _text(other), self.trace)

    def __radd__(self, other: str) -> Said:
        return Said(_text(other) + str(self), self.trace)

    def __bool__(self) -> bool:
        return True  # forms are for contents that are not blank

    def __iter__(self) -> Iterator[str]:  # "is iterable" asks for one, and takes nothing from it
        return _refused_items()

    def __eq__(self, other: object) -> bool:
        if other is None or (type(other) is str and not other.strip()):
            return False
        raise Untraceable("compared")

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __contains__(self, part: object) -> bool:
        return self._no("__contains__", part)

    def startswith(self, *arguments: object) -> bool:
        return self._no("startswith", *arguments)

    def endswith(self, *arguments: object) -> bool:
        return self._no("endswith", *arguments)

    def strip(self, chars: str | None = None) -> Said:
        return self._stripped("strip", chars)

    def lstrip(self, chars: str | None = None) -> Said:
        return self._stripped("lstrip", chars)

    def rstrip(self, chars: str | None = None) -> Said:
        return self._stripped("rstrip", chars)

    def _place(self) -> Place:
        if str.__len__(self) != 1:
            raise Untraceable("more than one text is looked at")
        return self.trace.places[ord(str(self)) - FIRST_MARK]

    def _stripped(self, side: str, chars: str | None) -> Said:
        if chars is not None and (type(chars) is not str or chars.strip()):
            raise Untraceable("more than white space is stripped")
        place = self._place()
        return self.trace.said(Place(place.message, (*place.strips, (side, chars))))

    def _no(self, method: str, *arguments: object) -> bool:
        if len(arguments) != 1 or type(arguments[0]) is not str or not arguments[0]:
            raise Untraceable(method)
        self.trace.answered_no.append((self._place(), method, arguments[0]))
        return False


def _text(other: object) -> str:
    if not isinstance(other, str):
        raise Untraceable("joined to what is no text")
    return str(other)


def _refused_items() -> Iterator[str]:
    raise Untraceable("taken apart")
    yield ""


def _refuses(name: str) -> Callable[..., NoReturn]:
    def refuse(*arguments: Any, **named: Any) -> NoReturn:
        raise Untraceable(name)

    return refuse


_PLAIN = {"__new__", "__init__", "__class__", "__doc__", "__getattribute__", "__setattr__", "__delattr__", "__dir__", "__str__",
          "__init_subclass__", "__subclasshook__", "__reduce__", "__reduce_ex__", "__getstate__", "__dict__"}  # fmt: skip
for _name in {*dir(str), "__rmod__", "__rmul__"} - _PLAIN - set(vars(Said)):
    setattr(Said, _name, _refuses(_name))
Said.__hash__ = _refuses("__hash__")  # type: ignore[method-assign]


class _Tracing(ImmutableSandboxedEnvironment):
    """The environment of a template, in which nothing may look at a content."""

    intercepted_binops = frozenset({"%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str):
            raise Untraceable("a format")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *(value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars"))]
        if any(isinstance(value, Said | list | tuple | dict) for value in given):
            raise Untraceable("a call")
        return super().call(__context, __obj, *args, **kwargs)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise Untraceable(attribute)


class Tracer:
    """Renders forms with one template.

    Args:
        text: the template.
        environment: the one that it renders with.
        values: what it is given besides messages and add_generation_prompt.

    Raises:
        Untraceable: its syntax alone shows that it has none.
    """

    def __init__(self, text: str, environment: jinja2.Environment, values: dict[str, Any]) -> None:
        text = without_generation(text)
        if any(ord(char) >= FIRST_MARK for char in f"{text}{values}"):
            raise Untraceable("it holds marks itself")
        tracing = _Tracing(
            trim_blocks=environment.trim_blocks,
            lstrip_blocks=environment.lstrip_blocks,
            keep_trailing_newline=environment.keep_trailing_newline,
            undefined=environment.undefined,
            extensions=["jinja2.ext.loopcontrols"],
        )
        require_seen(tracing.parse(text))
        parts: tuple[tuple[dict[str, Any], Mapping[str, Any], tuple[str, ...]], ...] = (
            (tracing.filters, environment.filters, FILTERS),
            (tracing.tests, environment.tests, TESTS),
            (tracing.globals, environment.globals, CALLS),
        )
        for names, known, kept in parts:
            names.update({name: what if name in kept else _refuses(name) for name, what in known.items()})
        self._template = tracing.from_string(text)
        self._values = values

    def form(self, trace: Trace, roles: Sequence[str], *, add_generation_prompt: bool) -> str:
        """A rendering with a mark for each content. Raises Untraceable."""
        messages = [{"role": role, "content": trace.said(Place(number))} for number, role in enumerate(roles)]
        values = {**self._values, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(**values)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise Untraceable(str(error)) from error
