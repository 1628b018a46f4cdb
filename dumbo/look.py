"""`dumbo DATA.jsonl`: what a file looks like to dumbo, and the train command to try.

It is `preview` with the embedded model's tokenizer (no download), told about the file, with bad rows counted
instead of stopping; other overrides go on top, `model=…` among them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from dumbo.command import Command
from dumbo.errors import UserError
from dumbo.interfaces import Row
from dumbo.outputs.console import Console
from dumbo.outputs.printable import shortened

EXAMPLES = 3
PROBLEMS = 5
TOKENS_SHOWN = 300
LONGEST = 1 << 17
"""Tokens; so long that a look at a file cuts nothing."""


FOR_LOOKING = (
    "model=tiny", "formatter=chat", "formatter=text", "formatter.special_tokens_in_text=escape",
    "formatter.tool_calls=as_text", f"model.context_length={LONGEST}", f"trainer.max_seq_len={LONGEST}",
)  # fmt: skip
"""What is set for looking alone."""


def as_preview(command: Command) -> Command:
    """The command with the file as its data set, the user's own overrides last."""
    assert command.data is not None
    own = {word.lstrip("+~").split("=")[0] for word in command.overrides}
    shape = _shape(command)
    added = ["dataset=files", f"dataset.path={_quoted(command.data)}", "dataset.on_bad_row=skip", "model=tiny"]
    if "formatter" not in own:
        added += [f"formatter={'text' if shape == 'text' else 'chat'}", "formatter.special_tokens_in_text=escape"]
        added += [] if shape == "text" else ["formatter.tool_calls=as_text"]  # the embedded template knows none
    if own.isdisjoint({"model", "trainer.max_seq_len"}):
        added += [f"model.context_length={LONGEST}", f"trainer.max_seq_len={LONGEST}"]
    kept = [word for word in added if word.split("=")[0] not in own]
    return replace(command, verb="look", overrides=(*kept, *command.overrides))


def _quoted(path: Path) -> str:
    """A path as Hydra's grammar takes it."""
    text = str(path)
    return text if re.fullmatch(r"[\w./-]+", text) else "'" + text.replace("'", "\\'") + "'"


def _shape(command: Command) -> str:
    """The shape of the file as recognised, or as the overrides name it. Raises UserError when there is none."""
    from dumbo.dataset.columns import recognise
    from dumbo.dataset.files import expand, kind_of_file
    from dumbo.dataset.reading import Broken, read

    assert command.data is not None
    said = dict(word.lstrip("+").partition("=")[::2] for word in command.overrides)
    columns = "dataset.columns."
    names = {key.removeprefix(columns): value for key, value in said.items() if key.startswith(columns)}
    expand(str(command.data), "the file")
    kind = kind_of_file(command.data, cast("Any", said.get("dataset.kind", "auto")))
    if kind == "txt":
        return "text"
    where = str(command.data)
    broken = ""
    for raws in read(command.data, kind, "paragraph"):
        if any(isinstance(raw, Mapping) for _, raw in raws):
            data_format = cast("Any", said.get("dataset.data_format", "auto"))
            return recognise((raw for _, raw in raws), data_format, names, where).shape
        for number, raw in raws[:1]:
            problem = raw.problem if isinstance(raw, Broken) else "a row must be a mapping of columns to values"
            broken = broken or f"\n  The first, number {number}: {problem}."
    raise UserError(f"{where} holds no row that can be read as {kind}.{broken}")


def look(plugins: Any, command: Command) -> int:
    """Columns, examples, problems, audit, and a command."""
    from dumbo.preview import prepared, show_audit, show_examples

    assert command.data is not None
    console = Console()
    shape = _shape(command)
    console.row("file", f"{command.data.name}   {command.data.stat().st_size / 2**20:.2f} MiB")
    console.row("columns", f"recognised as {shape}")
    rows = [row for row in next(iter(plugins.dataset.load().train), []) if isinstance(row, Row)]
    if rows and rows[0].messages:
        for message in rows[0].messages[:4]:
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
    show_audit(console, data, plugins.audit)
    console.heading("problems")
    skipped = data.audit["skipped"]
    for problem in data.train.store.meta["skipped"][:PROBLEMS]:
        console.plain(f"  {problem}")
    if skipped:
        console.plain(f"  {skipped:,} rows cannot be used")
    if shared := data.audit["eval_rows_in_train"]:
        console.plain(f"  {shared:,} held-out rows are in train too: the held-out loss will look better than it is")
    if not skipped and not shared:
        console.plain("  none found")
    console.heading("train on it")
    console.plain(f"  {_suggestion(command, shape, rows, data.audit)}")
    return 0


def _suggestion(command: Command, shape: str, rows: Sequence[Row], audit: dict[str, Any]) -> str:
    assert command.data is not None
    path = shlex.quote(f"dataset.path={_quoted(command.data)}")
    typed = [w for w in command.overrides if w.lstrip("+").startswith(TRAINED_WITH) and w not in FOR_LOOKING]
    own = [word for word in ("model=smollm", "patch=[liger,lora]") if not any(_group(word) == _group(o) for o in typed)]
    words = ["python -m dumbo", *own, "dataset=files", path, *map(shlex.quote, typed)]
    if shape == "text":
        words += ["formatter=text", "trainer.too_long=split"]
    if any(_calls_or_reasons(row) for row in rows):
        words.append("formatter.tool_calls=as_text")
    if audit["skipped"]:
        words.append("dataset.on_bad_row=skip")
    if audit["control_tokens_in_text"]:
        words.append("formatter.special_tokens_in_text=escape")
    return " ".join(words)


TRAINED_WITH = ("dataset.columns.", "dataset.kind=", "trainer.", "model", "patch", "formatter", "launch", "tracker")
"""Typed words that belong to the training, too."""


def _group(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _calls_or_reasons(row: Row) -> bool:
    """Whether a row holds what the suggested model's template leaves out."""
    return bool(row.tools) or any(
        message["role"] == "tool" or message.get("tool_calls") or message.get("reasoning_content")
        for message in row.messages
    )
