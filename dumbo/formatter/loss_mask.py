"""Which characters of a rendered conversation the model must learn to say: the assistant's turns.

Works for any template and does not depend on `{% generation %}`, which most templates lack. A turn's span runs
from the end of its generation prompt to the end of its end-of-turn token, that token included.

1. Prefixes. What the template renders of the messages before a turn, with a generation prompt, is how the model
   is asked for that turn; where the whole rendering starts with it, the turn begins there.
2. Markers. Templates rewrite earlier turns (Qwen3 drops old reasoning), and then prefixes do not hold. Private
   code points around the turn's own texts survive rendering; exactly one ordered pair a turn must remain, and
   without them the rendering must be the plain one.
3. Otherwise the row is refused by name: a mask that cannot be shown to be right is not used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dumbo.formatter.control_tokens import MOST_STAND_INS, PRIVATE, map_strings
from dumbo.formatter.encode import Span
from dumbo.interfaces import Message

MARKERS = range(PRIVATE[0] + MOST_STAND_INS, PRIVATE[-1])
"""The half of the private plane that marks turns; stand-ins for control tokens use the other."""


class MaskError(ValueError):
    """The turns of a row cannot be found in its rendering."""


class Render(Protocol):
    """Messages -> text."""

    def __call__(
        self, messages: Sequence[Message], *, tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str: ...


@dataclass(frozen=True, slots=True)
class Profile:
    """What a template does, found out once by rendering a short conversation.

    Attributes:
        prompt: the generation prompt it adds (`<|im_start|>assistant\\n`); empty where the flag changes nothing.
        header: what it puts before an answer when the flag changes nothing (`### Response:\\n`).
        end: the text that ends a turn (`<|im_end|>`); None where there is none.
    """

    prompt: str
    header: str
    end: str | None


PROBE = "zqAnswer7"


def profile_of(render: Render, control: re.Pattern[str]) -> Profile:
    """Renders a question and an answer to learn where answers begin and how turns end.

    Raises:
        MaskError: the template does not render the answer of a plain conversation.
    """
    question = Message(role="user", content="zqQuestion7")
    answer = Message(role="assistant", content=PROBE)
    asked = render([question], tools=None, add_generation_prompt=False)
    prompted = render([question], tools=None, add_generation_prompt=True)
    whole = render([question, answer], tools=None, add_generation_prompt=False)
    if whole.count(PROBE) != 1:
        raise MaskError(f"the template renders an assistant's answer {whole.count(PROBE)} times")
    at = whole.index(PROBE)
    prompt = prompted[len(asked) :] if prompted.startswith(asked) else ""
    start = len(prompted) if whole.startswith(prompted) else at
    header = whole[start:at].rstrip(" ") if not prompt else ""  # vocabularies join a space to the word after it
    header = header if header.strip() else ""
    after = control.search(whole, at + len(PROBE))
    return Profile(prompt, header, after.group() if after else None)


def assistant_spans(
    render: Render, messages: Sequence[Message], tools: list[dict[str, Any]] | None, plain: str, profile: Profile
) -> dict[int, Span]:
    """Message number -> span in `plain`, for every assistant message, in order.

    Raises:
        MaskError: a span cannot be shown to be right.
    """
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    spans: dict[int, Span] = {}
    for number in turns:
        span = _by_prefix(render, messages, number, tools, plain, profile)
        if span is None:
            spans = _by_markers(render, messages, turns, tools, plain, profile)
            break
        spans[number] = span
    _prove(spans, messages, plain)
    return spans


def _by_prefix(
    render: Render,
    messages: Sequence[Message],
    number: int,
    tools: list[dict[str, Any]] | None,
    plain: str,
    profile: Profile,
) -> Span | None:
    """The span of one turn when the rendering of what precedes it is how the whole begins; else None."""
    if number == 0:
        return None
    try:
        before = render(messages[:number], tools=tools, add_generation_prompt=True)
    except MaskError:
        return None
    if not plain.startswith(before + profile.header):
        return None
    start = len(before) + len(profile.header)
    own = _own_text(messages[number])
    if profile.end is None:
        said = messages[number].get("content", "").strip()
        at = plain.find(said, start)
        return (start, at + len(said)) if said and at >= 0 and not plain[start:at].strip() else None
    if profile.end in own:  # a control token allowed in the text: the first one need not end the turn
        return None
    end = plain.find(profile.end, start)
    return (start, end + len(profile.end)) if end >= 0 else None


def _own_text(message: Message) -> str:
    return "\0".join(
        [message.get("content", ""), message.get("reasoning_content", ""), str(message.get("tool_calls", ""))]
    )


def _by_markers(
    render: Render,
    messages: Sequence[Message],
    turns: Sequence[int],
    tools: list[dict[str, Any]] | None,
    plain: str,
    profile: Profile,
) -> dict[int, Span]:
    """The spans of all turns from marked texts."""
    if 2 * len(turns) > len(MARKERS):
        raise MaskError(f"{len(turns)} assistant turns in one row")
    marked = list(messages)
    for order, number in enumerate(turns):
        marked[number] = _marked(messages[number], chr(MARKERS[2 * order]), chr(MARKERS[2 * order + 1]))
    text = render(marked, tools=tools, add_generation_prompt=False)
    edges = [(match.start(), match.group()) for match in re.finditer(f"[{chr(MARKERS[0])}-{chr(MARKERS[-1])}]", text)]
    stripped = re.sub(f"[{chr(MARKERS[0])}-{chr(MARKERS[-1])}]", "", text)
    if stripped != plain:
        raise MaskError("the chat template changes the text of a turn")
    spans: dict[int, Span] = {}
    previous_end = 0
    for order, number in enumerate(turns):
        opened, closed = chr(MARKERS[2 * order]), chr(MARKERS[2 * order + 1])
        opens = [at - index for index, (at, char) in enumerate(edges) if char == opened]
        closes = [at - index for index, (at, char) in enumerate(edges) if char == closed]
        if not opens or len(opens) != len(closes) or any(a > b for a, b in zip(opens, closes, strict=True)):
            raise MaskError(f"the chat template leaves out or repeats part of assistant turn {order + 1}")
        start, end = opens[0], closes[-1]
        if start < previous_end:
            raise MaskError("the chat template changes the order of turns")
        if profile.prompt and (at := plain.rfind(profile.prompt, previous_end, start)) >= 0:
            start = at + len(profile.prompt)
        elif not profile.prompt:
            start = previous_end + len(plain[previous_end:start].rstrip(" "))
        if profile.end is not None:
            at = plain.find(profile.end, end)
            following = opens_of(edges, order + 1)
            if at < 0 or (following is not None and at >= following):
                raise MaskError(f"assistant turn {order + 1} is not ended by {profile.end}")
            end = at + len(profile.end)
        spans[number] = (start, end)
        previous_end = end
    return spans


def opens_of(edges: Sequence[tuple[int, str]], order: int) -> int | None:
    """Where the turn of that order begins in the stripped text; None past the last."""
    opened = chr(MARKERS[2 * order])
    return next((at - index for index, (at, char) in enumerate(edges) if char == opened), None)


def _marked(message: Message, opened: str, closed: str) -> Message:
    """The message with its own texts between markers, inside their outer white space."""

    def mark(text: str) -> str:
        inner = text.strip()
        if not inner:
            return text
        at = text.index(inner)
        return text[:at] + opened + inner + closed + text[at + len(inner) :]

    changed = Message(**message)
    for key in ("content", "reasoning_content"):
        if message.get(key):
            changed[key] = mark(message[key])
    if calls := message.get("tool_calls"):
        changed["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "name": mark(call["function"]["name"]),
                    "arguments": map_strings(call["function"]["arguments"], mark),
                },
            }
            for call in calls
        ]
    return changed


def _prove(spans: dict[int, Span], messages: Sequence[Message], plain: str) -> None:
    """Each span holds what its message says, and spans are in order and apart."""
    previous_end = 0
    for number, (start, end) in spans.items():
        if start < previous_end or end <= start:
            raise MaskError("the turns found overlap")
        previous_end = end
        said = messages[number].get("content", "").strip()
        if said and said not in plain[start:end]:
            raise MaskError(f"message {number + 1} is not in the span found for it")
