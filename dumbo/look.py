"""`dumbo DATA.jsonl`: what a file looks like to dumbo, and the train command to try.

It is `preview` with the embedded model's tokenizer (no download), told about the file, with bad rows counted
instead of stopping; other overrides go on top, `model=…` among them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dumbo.command import Command
from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Row
from dumbo.outputs.console import Console
from dumbo.outputs.printable import shortened

EXAMPLES = 3
ROWS_READ_FOR_COLUMNS = 2000
TOKENS_SHOWN = 300
LONGEST = 1 << 17
"""Tokens; so long that a look at a file cuts nothing."""


def as_preview(command: Command) -> Command:
    """The command with the file as its data set, the user's own overrides last."""
    assert command.data is not None
    formatter = "text" if _shape(command.data) == "text" else "chat"
    own = {word.lstrip("+~").split("=")[0] for word in command.overrides}
    added = [
        "dataset=files",
        f"dataset.path='{command.data}'",
        "dataset.on_bad_row=skip",
        f"formatter={formatter}",
        "model=tiny",
    ]
    if formatter == "chat":
        added += ["formatter.special_tokens_in_text=escape"]
    if own.isdisjoint({"model", "trainer.max_seq_len"}):
        added += [f"model.context_length={LONGEST}", f"trainer.max_seq_len={LONGEST}"]
    kept = [word for word in added if word.split("=")[0] not in own]
    return replace(command, verb="look", overrides=(*kept, *command.overrides))


def _shape(file: Path) -> str:
    """The recognised shape of a file. Raises UserError when there is none."""
    from dumbo.dataset.columns import recognise
    from dumbo.dataset.files import _Broken, _read, expand, kind_of_file

    expand(str(file), "the file")
    kind = kind_of_file(file, "auto")
    if kind == "txt":
        return "text"
    for raws in _read(file, kind, "paragraph"):
        return recognise((raw for _, raw in raws if not isinstance(raw, _Broken)), "auto", {}, str(file)).shape
    raise UserError(f"{file} holds no row.")


def look(plugins: Any, command: Command) -> int:
    """Columns, examples, problems, audit, and a command."""
    from dumbo.preview import prepared, show_audit, show_examples

    assert command.data is not None
    console = Console()
    shape = _shape(command.data)
    rows, bad = _count(plugins.dataset)
    console.row("file", f"{command.data.name}   {command.data.stat().st_size / 2**20:.2f} MiB")
    console.row("columns", f"recognised as {shape}")
    first = next((row for row in rows if isinstance(row, Row)), None)
    if first is not None and first.messages:
        for message in first.messages[:4]:
            console.row(
                "",
                f"{message['role']:<9} {shortened(message.get('content', '') or str(message.get('tool_calls', '')), 90)}",
            )
    tokenizer, data = prepared(plugins)
    if plugins.model.name == "tiny":
        console.row(
            "tokens", "of the embedded tokenizer, which knows 512; a model's own makes a third as many: add model=NAME"
        )
    show_examples(console, data.train, tokenizer, EXAMPLES, longest=TOKENS_SHOWN)
    show_audit(console, data)
    console.heading("problems")
    for problem in bad[:5]:
        console.plain(f"  {str(problem).splitlines()[0]}")
    skipped = data.audit["skipped"]
    console.plain(f"  {skipped:,} rows cannot be used" if skipped else "  none found")
    console.heading("train on it")
    console.plain(f"  {_suggestion(command, shape, data.audit)}")
    return 0


def _count(dataset: Any) -> tuple[list[Row | BadRow], list[BadRow]]:
    """The first rows, and the bad ones among them."""
    rows: list[Row | BadRow] = []
    for batch in dataset.load().train:
        rows += batch
        if len(rows) >= ROWS_READ_FOR_COLUMNS:
            break
    return rows, [row for row in rows if isinstance(row, BadRow)]


def _suggestion(command: Command, shape: str, audit: dict[str, Any]) -> str:
    words = ["python -m dumbo", "model=smollm", "patch=[liger,lora]", "dataset=files", f"dataset.path='{command.data}'"]
    if shape == "text":
        words += ["formatter=text", "trainer.too_long=split"]
    if audit["skipped"]:
        words.append("dataset.on_bad_row=skip")
    if audit["control_tokens_in_text"]:
        words.append("formatter.special_tokens_in_text=escape")
    return " ".join(words)
