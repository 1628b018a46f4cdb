"""The conversation: lines in, answers out, from a terminal or from a pipe, one turn after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumbo.errors import UserError
from dumbo.generate import Generation, context_of, own_ends, stop_ids
from dumbo.options import ChatOptions
from dumbo.outputs.printable import printable
from dumbo.preview import json_line
from dumbo.talk.asker import Asker
from dumbo.talk.commands import Commands, Exit
from dumbo.talk.conversation import Conversation, room_for
from dumbo.talk.speaker import Answer, Speaker

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPT = "you> "
TO_END = "/exit or Ctrl-D ends"
COMPLETES = "this model completes text: each line is gone on from by itself"


@dataclass
class Talk:
    """One conversation with a model.

    Attributes:
        name: what is talked to, for the first line and for JSON.
        commands: they hold conversation and settings.
        ends: tokens that end an answer.
    """

    name: str
    speaker: Speaker
    commands: Commands
    ends: tuple[int, ...]
    completes: bool
    asked: int = 0

    @classmethod
    def with_model(cls, model: PreTrainedModel, asker: Asker, chosen: ChatOptions, name: str) -> Talk:
        """A conversation that begins."""
        talk = Conversation(asker.ids, context_of(model), chosen.system, keeps=not asker.completes)
        ends = stop_ids(asker.tokenizer, own_ends(model))
        return cls(name, Speaker(model, asker.tokenizer), Commands(talk, chosen), ends, asker.completes)

    def turn(self, said: str, show: Callable[[str], None], note: Callable[[str], None]) -> Answer:
        """Asks, and remembers what was answered.

        Raises:
            UserError: it cannot be asked; nothing of it is remembered.
        """
        talk, chosen = self.commands.conversation, self.commands.chosen
        ids, dropped = talk.prompt(said, chosen.max_new_tokens)
        if dropped:
            note(f"the context of {talk.context:,} tokens is full: {dropped} of the oldest turns left out")
        how = Generation(
            max_new_tokens=min(chosen.max_new_tokens, room_for(len(ids), talk.context)),
            stop_ids=self.ends,
            temperature=chosen.temperature,
            top_p=chosen.top_p,
            top_k=chosen.top_k,
            seed=chosen.seed + self.asked,  # not the same draws in every turn
        )
        answer = self.speaker.answer(ids, how, show, stoppable=show is _write)
        self.asked += 1
        if answer.text:
            talk.add(said, answer.text)
        return answer

    def in_terminal(self) -> int:
        """Reads lines with readline's editing and history until /exit or Ctrl-D. Returns the exit code."""
        with suppress(ImportError):  # some builds of Python lack it: lines are read all the same
            import readline  # noqa: F401
        _say(f"{printable(self.name)}: /help lists the commands, {TO_END}")
        if self.completes:
            _say(COMPLETES)
        left_out = False
        while True:
            try:
                line = input(PROMPT)
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                if left_out:
                    raise
                left_out = True
                _say(f"{TO_END}, and so does Ctrl-C once more")
                continue
            left_out = False
            try:
                answer = self._line(line, _write, _say)
            except UserError as error:
                _say(printable(str(error), keep="\n"))
            except Exit:
                return 0
            else:
                if answer is not None:
                    _say(" [stopped]" if answer.stopped else "" if answer.text else "(nothing)")

    def _line(self, line: str, show: Callable[[str], None], note: Callable[[str], None]) -> Answer | None:
        """Obeys a command, or asks; None where nothing was asked."""
        if line.startswith("/"):
            note(printable(self.commands.obey(line.rstrip()), keep="\n"))
            return None
        if not line.strip():
            return None
        return self.turn(line.strip(), show, note)

    def through_pipe(self, lines: Iterable[str], form: str) -> int:
        """A turn for each line; what is no answer goes to stderr. Returns the exit code.

        Raises:
            UserError: a line cannot be asked.
        """
        if self.completes:
            _aside(COMPLETES)
        for line in lines:
            try:
                answer = self._line(line.rstrip("\r\n"), _nowhere, _aside)
            except Exit:
                break
            if answer is None:
                continue
            if form == "json":
                print(json_line({"run": self.name, "prompt": line.strip(), "answer": answer.text}), flush=True)
            else:
                print(printable(answer.text, keep="\n"), flush=True)
                if not answer.text:
                    _aside("(the model answered nothing)")
        return 0


def _write(piece: str) -> None:
    sys.stdout.write(printable(piece, keep="\n"))
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, flush=True)


def _aside(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _nowhere(piece: str) -> None:
    """A piece of an answer that is shown when it is whole."""
