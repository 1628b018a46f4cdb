"""What was said so far, and how it becomes the next prompt: the oldest turns go when the model's context is full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dumbo.errors import UserError
from dumbo.interfaces import Message

UNBOUNDED = 1 << 20
"""Tokens for an answer where the model's config knows no end."""


@dataclass
class Conversation:
    """Turns of one conversation.

    Attributes:
        ids: messages -> token ids.
        context: tokens that the model has positions for; None: no such end.
        system: the system message; None: none.
        keeps: whether turns are remembered; not where the model only goes on from a text.
        turns: question and answer, the oldest first.
    """

    ids: Callable[[Sequence[Message]], list[int]]
    context: int | None
    system: str | None = None
    keeps: bool = True
    turns: list[tuple[str, str]] = field(default_factory=list)

    def messages(self, said: str) -> list[Message]:
        """All of it, `said` being the last."""
        found = [Message(role="system", content=self.system)] if self.system else []
        for question, answer in self.turns:
            found += [Message(role="user", content=question), Message(role="assistant", content=answer)]
        return [*found, Message(role="user", content=said)]

    def prompt(self, said: str, wanted: int) -> tuple[list[int], int]:
        """(token ids, how many of the oldest turns were left out for them to fit, for good).

        Args:
            wanted: tokens that the answer may have; at most half of the context is kept free for it.

        Raises:
            UserError: it does not fit alone, or the formatter refuses it.
        """
        ids = self.ids(self.messages(said))
        free = min(wanted, self.context // 2) if self.context is not None else 0
        dropped = 0
        while self.context is not None and self.turns and len(ids) + free > self.context:
            del self.turns[0]
            dropped += 1
            ids = self.ids(self.messages(said))
        room_for(len(ids), self.context)
        return ids, dropped

    def add(self, said: str, answer: str) -> None:
        """A turn is done."""
        if self.keeps:
            self.turns.append((said, answer))


def room_for(asked: int, context: int | None) -> int:
    """How many tokens are left for the answer.

    Raises:
        UserError: none.
    """
    if context is None:
        return UNBOUNDED
    if asked >= context:
        raise UserError(
            f"chat.prompt is {asked:,} tokens long; the model's context is {context:,}. Write a shorter one."
        )
    return context - asked
