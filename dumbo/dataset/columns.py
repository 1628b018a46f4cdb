"""Raw columns -> messages: the shapes in which instruction data is published.

    alpaca             instruction, input?, output, history?     (also instances: [{input, output}, …])
    sharegpt           conversations: [{from, value}, …], tools?
    messages           messages: [{role, content, …}, …], tools?
    prompt_completion  prompt, completion, tools?
    question_answer    question, answer
    text               text

All but text may have a `system` column. The shape is recognised from the columns, or named (`dataset.data_format`);
a file's own column names are mapped with `dataset.columns.question=frage`, and a shape named in that way goes first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dumbo.dataset.row_fault import RowFault, text_of
from dumbo.dataset.tool_calls import tools_of
from dumbo.dataset.turns import MEDIA, messages_of, sharegpt_messages
from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Message, Row, Source
from dumbo.suggest import did_you_mean

DataFormat = Literal["auto", "alpaca", "sharegpt", "messages", "prompt_completion", "question_answer", "text"]

SHAPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",), ("conversation",)),
    "alpaca": (("instruction", "output"), ("instruction", "response"), ("instruction", "instances")),
    "prompt_completion": (("prompt", "completion"), ("prompt", "response")),
    "question_answer": (("question", "answer"),),
    "text": (("text",),),
}
"""Each shape and the sets of columns that show it, in the order in which they are tried."""

MORE: dict[str, tuple[str, ...]] = {
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "alpaca": ("system", "input", "history"),
    "prompt_completion": ("system", "tools"),
    "question_answer": ("system",),
    "text": (),
}
"""The columns that a shape may have besides."""

KNOWN_COLUMNS = ("instruction", "input", "output", "response", "instances", "history", "system", "conversations",
                 "conversation", "messages", "tools", "prompt", "completion", "question", "answer", "text")  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Turns raw rows of one shape into `Row`s.

    Args:
        shape: a key of SHAPES.
        names: known column name -> the file's own.
    """

    shape: str
    names: Mapping[str, str]

    def rows(self, raw: Any, source: Source) -> list[Row | BadRow]:
        """The row, or rows (`instances`), of one raw row."""
        try:
            if not isinstance(raw, Mapping):
                raise RowFault(f"a row must be a mapping of columns to values, this is {kind_of(raw)}")
            if self.shape != "text" and (media := self._media(raw)) is not None:
                raise RowFault(f"it holds '{media}', and this trains on text alone", "Take the column out")
            return list(_CONVERT[self.shape](_Columns(raw, self.names), source))
        except RowFault as fault:
            return [BadRow(source, str(fault), start_of(raw), fault.remedy)]

    def _media(self, raw: Mapping[str, Any]) -> str | None:
        """A column of images or sounds that belongs to what is said."""
        return next((name for name in MEDIA if raw.get(name) and name not in self.names.values()), None)


def recognise(raws: Iterable[Any], data_format: DataFormat, names: Mapping[str, str], where: str) -> Columns:
    """The shape of a file from its first rows.

    Raises:
        UserError: columns of no known shape, or one in `names` that the shape has no use for.
    """
    if data_format != "auto":
        _require_used(data_format, names, where)
        return Columns(data_format, names)
    seen: set[str] = set()
    nearest: tuple[str, ...] = ("question", "answer")
    lacking = 1.0
    for raw in raws:
        if isinstance(raw, Mapping):
            present = set(raw) | {known for known, own in names.items() if own in raw}
            seen |= set(raw)
            for option in (option for options in SHAPES.values() for option in options):
                if (lacks := len(set(option) - present) / len(option)) < lacking:
                    nearest, lacking = option, lacks
            found = [shape for shape, options in SHAPES.items() if any(set(option) <= present for option in options)]
            if found:
                shape = max(found, key=lambda shape: _named(shape, present, names))
                _require_used(shape, {known: own for known, own in names.items() if own in raw}, where)
                return Columns(shape, names)
    columns = ", ".join(sorted(seen)) or "none"
    shapes = "; ".join(f"{shape} ({', '.join(options[0])})" for shape, options in SHAPES.items())
    raise UserError(
        f"{where}: the columns are not recognised: {columns}.\n  known: {shapes}\n  {_to_name(nearest, seen, names)}"
    )


def _to_name(option: Sequence[str], seen: set[str], names: Mapping[str, str]) -> str:
    """What to type for the columns of a shape: as it was typed where the file has that column, and what is still lacking."""
    own = {known: names[known] if names.get(known) in seen else "COLUMN" for known in option if known not in seen}
    if "COLUMN" not in own.values():
        return f"No row has {' and '.join(own.get(known, known) for known in option)} together."
    return "Name yours: " + " ".join(f"dataset.columns.{known}={name}" for known, name in own.items())


def _named(shape: str, present: set[str], names: Mapping[str, str]) -> int:
    """How many of the columns that show a shape were named by the user."""
    return max(len(set(option) & set(names)) for option in SHAPES[shape] if set(option) <= present)


def _require_used(shape: str, names: Mapping[str, str], where: str) -> None:
    """No column that was named may be one that the shape does not read. Raises UserError."""
    read = {column for option in SHAPES[shape] for column in option} | set(MORE[shape])
    if idle := sorted(set(names) - read):
        raise UserError(
            f"dataset.columns.{idle[0]}={names[idle[0]]} is not used: {where} is read as {shape}, which has no "
            f"{idle[0]}.\n  Write dataset.data_format=SHAPE ({', '.join(SHAPES)}), or leave it out."
        )


@dataclass
class Unseen:
    """Columns that were named and have not turned up in any row yet: a name misspelt would be silently without effect.

    Args:
        names: known column name -> the file's own.
        where: what is read, for the error.
    """

    names: Mapping[str, str]
    where: str

    def __post_init__(self) -> None:
        self._left = set(self.names.values())
        self._seen: set[str] = set()

    def look(self, raw: Any) -> None:
        """Takes note of one raw row."""
        if self._left and isinstance(raw, Mapping):
            self._left.difference_update(raw)
            self._seen.update(raw)

    def stop_if_any(self) -> None:
        """Raises UserError for a name that no row has."""
        if self._left:
            known, own = next((known, own) for known, own in self.names.items() if own in self._left)
            raise UserError(
                f"dataset.columns.{known}={own}: no row of {self.where} has a column '{own}'."
                f"{did_you_mean(own, self._seen)}\n  columns: {', '.join(sorted(map(str, self._seen))) or 'none'}"
            )


class _Columns:
    """One raw row, read by known column names."""

    def __init__(self, raw: Mapping[str, Any], names: Mapping[str, str]) -> None:
        self._raw, self._names = raw, names

    def has(self, name: str) -> bool:
        return self._raw.get(self._names.get(name, name)) is not None

    def get(self, name: str) -> Any:
        own = self._names.get(name, name)
        if own not in self._raw:
            raise RowFault(
                f"there is no column '{own}'", f"It has {', '.join(map(str, self._raw)) or 'none'}: mend the row"
            )
        return self._raw[own]

    def text(self, name: str, *, empty: bool = False) -> str:
        """A text column; an empty one is a fault unless `empty`."""
        return text_of(self.get(name), self._names.get(name, name), empty=empty)

    def first(self, *names: str) -> str:
        """The first of several names that is present; else the first one, for the error."""
        return next((name for name in names if self.has(name)), names[0])


def _with_system(row: _Columns, messages: list[Message]) -> list[Message]:
    system = row.text("system", empty=True).strip() if row.has("system") else ""
    own = messages[0].get("content", "").strip() if messages and messages[0]["role"] == "system" else None
    if system and own is None:
        return [Message(role="system", content=system), *messages]
    if system and own != system:
        raise RowFault("it has a system text both in its own column and as its first message")
    return messages


def _alpaca(row: _Columns, source: Source) -> Iterable[Row]:
    instruction = row.text("instruction")
    if row.has("instances"):
        instances = row.get("instances")
        if not isinstance(instances, list) or not instances:
            raise RowFault("'instances' must be a list of {input, output}")
        if strange := [instance for instance in instances if not isinstance(instance, Mapping)]:
            raise RowFault(f"'instances' must be a list of {{input, output}}, one of them is {kind_of(strange[0])}")
        pairs = [(_Columns(instance, {}), "output") for instance in instances]
    else:
        pairs = [(row, row.first("output", "response"))]
    for part, answer in pairs:
        given = part.text("input", empty=True) if part.has("input") else ""
        asked = f"{instruction}\n\n{given}" if given.strip() else instruction
        talk = [*_history(row), *_pair(asked, part.text(answer))]
        yield Row(source, _with_system(row, talk))


def _history(row: _Columns) -> list[Message]:
    """Earlier turns, as pairs of texts."""
    history = (row.get("history") if row.has("history") else None) or []
    pairs = [pair for pair in history if isinstance(pair, list) and len(pair) == 2] if isinstance(history, list) else []
    if not isinstance(history, list) or len(pairs) < len(history):
        raise RowFault("'history' must be a list of pairs: [[asked, answered], …]")
    return [
        message
        for asked, answered in pairs
        for message in _pair(text_of(asked, "a question in history"), text_of(answered, "an answer in history"))
    ]


def _pair(asked: str, answered: str) -> list[Message]:
    return [Message(role="user", content=asked), Message(role="assistant", content=answered)]


def _tools(row: _Columns) -> list[dict[str, Any]] | None:
    return tools_of(row.get("tools")) if row.has("tools") else None


def _sharegpt(row: _Columns, source: Source) -> Iterable[Row]:
    messages = sharegpt_messages(row.get(row.first("conversations", "conversation")))
    yield Row(source, _with_system(row, messages), tools=_tools(row))


def _messages(row: _Columns, source: Source) -> Iterable[Row]:
    messages = messages_of(row.get("messages"))
    yield Row(source, _with_system(row, messages), tools=_tools(row))


def _prompt_completion(row: _Columns, source: Source) -> Iterable[Row]:
    prompt, answer = row.get("prompt"), row.first("completion", "response")
    if isinstance(prompt, list):
        completion = row.get(answer)
        said = completion if isinstance(completion, list) else [{"role": "assistant", "content": row.text(answer)}]
        yield Row(source, _with_system(row, messages_of([*prompt, *said])), tools=_tools(row))
        return
    yield Row(source, _with_system(row, _pair(row.text("prompt"), row.text(answer))), tools=_tools(row))


def _question_answer(row: _Columns, source: Source) -> Iterable[Row]:
    yield Row(source, _with_system(row, _pair(row.text("question"), row.text("answer"))))


def _text(row: _Columns, source: Source) -> Iterable[Row]:
    yield Row(source, text=row.text("text"))


_CONVERT = {
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "question_answer": _question_answer,
    "text": _text,
}


def kind_of(value: Any) -> str:
    """The kind of a JSON value, in words."""
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def start_of(raw: Any, width: int = 120) -> str:
    """The beginning of a raw row on one line."""
    text = raw if isinstance(raw, str) else json.dumps(raw, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
