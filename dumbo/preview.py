"""`dumbo preview`: examples token by token, trained and not, then the audit of the whole data set. Loads no weights."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dumbo.check import Plugins
from dumbo.errors import GateFailed
from dumbo.outputs.console import Console
from dumbo.outputs.printable import printable
from dumbo.prepare.audit import lines_of
from dumbo.prepare.gate import told
from dumbo.prepare.gates import over_thresholds
from dumbo.verify.mask import spans_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.options import AuditOptions
    from dumbo.prepare.store import PreparedSplits, Split


def preview(plugins: Plugins, composed: Composed, command: Command) -> int:
    """Prepares the data as `train` would (and leaves it prepared), and shows it.

    Raises:
        GateFailed: a count of the audit is over its threshold in `preview.fail_on`.
    """
    tokenizer, data = prepared(plugins)
    if plugins.preview.format == "json":
        for document in _chosen(data.train, plugins.preview.num_examples):
            print(json_line(as_json(data.train, document, tokenizer)))
        over = over_thresholds(data.audit, plugins.audit.fail_on) if plugins.audit.mode == "stop" else []
        print(json_line({"audit": {**data.audit, "train_stops_on": [one.name for one in over]}}))
    else:
        show_examples(Console(), data.train, tokenizer, plugins.preview.num_examples)
        show_audit(Console(), data, plugins.audit)
    if over := over_thresholds(data.audit, plugins.preview.fail_on):
        raise GateFailed("The audit is over its thresholds (preview.fail_on):\n  " + "\n  ".join(map(str, over)))
    return 0


def prepared(plugins: Plugins) -> tuple[PreTrainedTokenizerBase, PreparedSplits]:
    """Tokenizer and data of an experiment."""
    import transformers.utils.logging as library

    from dumbo.prepare.plan import plan_length, prepare_for

    library.set_verbosity_error()
    library.disable_progress_bar()
    tokenizer = plugins.model.load_tokenizer()
    length = plan_length(plugins.trainer, tokenizer)
    console = Console() if plugins.preview.format == "text" else Console(stream=_nowhere())
    data = prepare_for(plugins.trainer, plugins.dataset.load(), plugins.formatter, tokenizer, length, console)
    return tokenizer, data


def _nowhere() -> Any:
    import io

    return io.StringIO()


def _chosen(split: Split, amount: int) -> list[int]:
    """The first documents, in the data's order."""
    return split.documents[:amount].tolist()


def as_json(split: Split, document: int, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """One example: text, ids, tokens, trained (a boolean a token), trained_text, source."""
    ids, trained = split.store.ids(document), split.store.trained(document)
    source = split.store.source(document)
    return {
        "text": _decode(tokenizer, ids.tolist()),
        "ids": ids.tolist(),
        "tokens": [token_text(tokenizer, token) for token in ids.tolist()],
        "trained": trained.tolist(),
        "trained_text": [_decode(tokenizer, ids[start:end].tolist()) for start, end in spans_of(trained)],
        "source": {"file": source.file, source.unit: source.row, "row": source.row},
    }


STEERING = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]")
"""Characters that a terminal may obey and that JSON leaves as they are (it escapes only those below U+0020)."""


def json_line(value: Any) -> str:
    """JSON on one line, readable, with no character in it that steers a terminal."""
    text = json.dumps(value, ensure_ascii=False)
    return STEERING.sub(lambda match: "".join(f"\\u{unit:04x}" for unit in _utf16(match.group())), text)


def _utf16(char: str) -> list[int]:
    data = char.encode("utf-16-be", "surrogatepass")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text; where it is only part of a character, as the vocabulary spells it."""
    text = _decode(tokenizer, [token])
    return text if "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(token))


def show_examples(
    console: Console, split: Split, tokenizer: PreTrainedTokenizerBase, amount: int, longest: int | None = None
) -> None:
    """Tokens in two shades, trained ones green and between ⟦ ⟧, so that they are apart without colour too.

    Args:
        longest: show at most so many tokens of each, the first trained ones among them; None: all.
    """
    for number, document in enumerate(_chosen(split, amount), 1):
        ids, trained = split.store.ids(document).tolist(), split.store.trained(document)
        console.heading(
            f"example {number}   {split.store.source(document)}   {len(ids)} tokens, {int(trained.sum())} trained"
        )
        done = 0
        for start, end in _parts(trained, longest):
            if start > done:
                console.plain(f"… {start - done:,} more tokens …")
            pieces = [_shown(token_text(tokenizer, token)) for token in ids[start:end]]
            if console.fancy:
                _colours(console, pieces, trained[start:end])
            else:
                console.plain(_brackets(pieces, trained[start:end]))
            done = end
        if len(ids) > done:
            console.plain(f"… {len(ids) - done:,} more tokens")
    if amount:
        console.heading("⟦trained⟧ · not trained · | between tokens · ↵ newline")


def _parts(trained: NDArray[np.bool_], longest: int | None) -> list[tuple[int, int]]:
    """[start, end) of what is shown of an example: its beginning, and where training sets in if that is further on."""
    length = len(trained)
    if longest is None or length <= longest:
        return [(0, length)]
    first = int(np.argmax(trained))
    if first < longest // 2:
        return [(0, longest)]
    head = longest // 3
    start = max(head, first - 10)
    return [(0, head), (start, min(length, start + longest - head))]


def _shown(text: str) -> str:
    return printable(text.replace("\n", "↵\n"), keep="\n")


def _brackets(pieces: list[str], trained: np.ndarray[Any, Any]) -> str:
    """Tokens with `|` between them and ⟦ ⟧ around trained runs."""
    text, open_ = "", False
    for piece, on in zip(pieces, trained, strict=True):
        if on and not open_:
            text += "⟦"
        elif open_ and not on:
            text += "⟧"
        elif text and not text.endswith("\n"):
            text += "|"
        open_ = bool(on)
        text += piece
    return text + ("⟧" if open_ else "")


def _colours(console: Console, pieces: list[str], trained: np.ndarray[Any, Any]) -> None:
    from rich.text import Text

    line, open_ = Text(), False
    for number, (piece, on) in enumerate(zip(pieces, trained, strict=True)):
        if on != open_:
            line.append("⟦" if on else "⟧", style="bold green")
        open_ = bool(on)
        shade = (
            ("black on green" if number % 2 else "black on bright_green")
            if on
            else ("dim" if number % 2 else "dim underline")
        )
        line.append(piece, style=shade)
    console.rich.print(line + Text("⟧" if open_ else "", style="bold green"))


def show_audit(console: Console, data: PreparedSplits, options: AuditOptions) -> None:
    """The audit, as rows of text, and what of it training would stop on."""
    console.heading("audit")
    for line in lines_of(data.audit):
        console.plain(f"  {line}")
    for one in over_thresholds(data.audit, options.fail_on) if options.mode == "stop" else []:
        first, *rest = told(one)
        console.plain(f"! train stops on it (audit.fail_on): {first}")
        for line in rest:
            console.plain(f"    {line}")
