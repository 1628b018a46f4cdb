"""What a line that begins with / does: /help, /reset, /system, /set, /exit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dumbo.errors import UserError
from dumbo.options import ChatOptions
from dumbo.suggest import did_you_mean
from dumbo.talk.conversation import Conversation

HELP = """\
/reset             forget what was said
/system TEXT       a system message from now on; /system alone: none
/set NAME VALUE    temperature, top_p, top_k, seed, max_new_tokens; /set alone shows them
/help              this
/exit              end (Ctrl-D too)
Ctrl-C stops an answer. A question that begins with / is typed with a space before it."""

COMMANDS = ("/reset", "/system", "/set", "/help", "/exit")
WHOLE = ("seed", "max_new_tokens", "top_k")
SETTINGS = ("temperature", "top_p", *WHOLE)
NONE = ("null", "none", "off")


class Exit(Exception):
    """/exit was typed."""


@dataclass
class Commands:
    """Obeys commands.

    Attributes:
        conversation: whose turns and system message they change.
        chosen: sampling settings, as they are now.
    """

    conversation: Conversation
    chosen: ChatOptions

    def obey(self, line: str) -> str:
        """Does what a line that begins with / says, and returns what is to be shown.

        Raises:
            UserError: no such command, a wrong value.
            Exit: /exit.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        if name == "/exit":
            raise Exit
        if name == "/help":
            return HELP
        if name == "/reset":
            many = len(self.conversation.turns)
            self.conversation.turns.clear()
            return f"{many} turn{'s' * (many != 1)} forgotten"
        if name == "/system":
            self.conversation.system = rest or None
            return "a system message from now on" if rest else "no system message"
        if name == "/set":
            return self._set(rest)
        raise UserError(
            f"There is no command {name}.{did_you_mean(name, COMMANDS)} /help lists them; a question that begins with / is "
            "typed with a space before it."
        )

    def _set(self, text: str) -> str:
        words = text.replace("=", " ").split()
        for word in words[:1]:
            if word not in SETTINGS:
                raise UserError(f"/set knows no '{word}'.{did_you_mean(word, SETTINGS)} It has {', '.join(SETTINGS)}.")
        if len(words) > 2:
            raise UserError("/set takes a name and a value: /set temperature 0.7")
        if len(words) == 2:
            changed: dict[str, Any] = {words[0]: _value(*words)}
            self.chosen = replace(self.chosen, **changed)
        return "   ".join(f"{name} {_shown(getattr(self.chosen, name))}" for name in words[:1] or SETTINGS)


def _value(name: str, text: str) -> float | int | None:
    if text.lower() in NONE and name in ("top_p", "top_k"):
        return None
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        wanted = "a whole number" if name in WHOLE else "a number"
        raise UserError(f"{name} must be {wanted}, got '{text}'.") from None


def _shown(value: float | int | None) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
