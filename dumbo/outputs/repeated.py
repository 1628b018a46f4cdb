"""A repetition (`repeat=RUN`) beside the run that it repeats: what differs is said at the start, the losses at the end.

recorded.py has the config. Here: versions, data, model, hardware; and in the end every logged loss, compared bitwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.outputs.places import short
from dumbo.outputs.surroundings import versions

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits
    from dumbo.recorded import Repeats

OF_DATA = ("dataset", "formatter", "model", "trainer.max_seq_len", "trainer.too_long")
"""Keys that what is trained on depends on."""
OF_MODEL = ("model",)
PLACES = ("run_dir", "sweep_dir")
"""Keys that say where the repetition lies, and nothing of it."""
MOST_FILES = 5


def begin(run: RunDir, repeats: Repeats) -> None:
    """Says what is repeated and what differs, and writes it into run.json (`repeat`), where each rank finds it."""
    facts = repeats.facts
    then = facts.get("versions", {})
    same = ", the same config" if not repeats.changed and facts.get("config_hash") else ""
    run.console.row("repeat", f"{short(repeats.run)}   config {facts.get('config_hash')}{same}")
    if repeats.kept:
        run.console.row("kept", "\n".join(repeats.kept))
    if repeats.changed:
        run.console.row("changed", "\n".join(repeats.changed))
    others = differing_versions(then, versions()) if then else []
    if others:
        run.console.row("versions", f"{', '.join(others)}\nother versions may change the last digits, or more")
    data = facts.get("data", {})
    typed = [key for key in repeats.typed if key not in PLACES]
    changed = [line.partition(":")[0] for line in repeats.changed]
    run.facts["repeat"] = {
        "run": str(repeats.run), "config_hash": facts.get("config_hash"), "typed": typed, "kept": repeats.kept,
        "changed": repeats.changed, "versions": others, "data_fingerprint": facts.get("data_fingerprint"),
        "rows_fingerprint": data.get("rows_fingerprint"), "files": data.get("files", {}), "hardware": facts.get("hardware", {}),
        "model": {key: value for key in ("commit", "sha256") if (value := facts.get("model", {}).get(key))},
        "other_data": _touches(OF_DATA, [*typed, *changed]), "other_model": _touches(OF_MODEL, [*typed, *changed]),
    }  # fmt: skip


def differing_versions(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`torch 2.12.0 then, 2.13.0 now`."""
    names = dict.fromkeys([*then, *now])
    return [
        f"{name} {then.get(name, 'none')} then, {now.get(name, 'none')} now"
        for name in names
        if then.get(name) != now.get(name)
    ]


def _touches(places: Sequence[str], keys: Sequence[str]) -> bool:
    """Whether a key is one of these, below one of them, or above one."""
    return any(
        key == place or key.startswith(f"{place}.") or place.startswith(f"{key}.") for key in keys for place in places
    )


def require_same_data(run: RunDir, data: PreparedSplits) -> None:
    """The data must be that of the repeated run, unless a key that it depends on was typed.

    Raises:
        UserError: a file changed, or how it is made into tokens.
    """
    told = run.facts.get("repeat")
    if not told or told.get("data_fingerprint") in (None, data.fingerprint):
        return
    then, now = told["data_fingerprint"], data.fingerprint
    if told["other_data"]:
        run.console.row("repeat", f"other data than the run's: fingerprint {then} then, {now} now")
        return
    where = _changed(told, data.origin)
    raise UserError(
        f"repeat: the data is no longer what the run in {short(Path(told['run']))} was trained on (fingerprint {then} then, {now} now).\n"
        f"{where}\n  Restore it. To train on what is there now, type a key of the data again: dataset.limit=…, dataset.path=…, dataset=…"
    )


def _changed(told: Mapping[str, Any], origin: Mapping[str, Any]) -> str:
    """Which files, or that it is none of them."""
    files, known = origin.get("files", {}), told.get("files", {})
    lines = [f"  {file}: sha256 {known.get(file, '(not there)')} then, {files.get(file, '(gone)')} now"
             for file in dict.fromkeys([*known, *files]) if known.get(file) != files.get(file)]  # fmt: skip
    if lines:
        more = [f"  … and {len(lines) - MOST_FILES:,} more"] if len(lines) > MOST_FILES else []
        return "\n".join([*lines[:MOST_FILES], *more])
    if told.get("rows_fingerprint") != origin.get("rows_fingerprint"):
        return f"  The rows are others: {told.get('rows_fingerprint')} then, {origin.get('rows_fingerprint')} now."
    return "  The rows are the same: the tokenizer, the template or the code that makes tokens of them is another."


def require_same_model(run: RunDir, origin: Mapping[str, Any], hardware: Mapping[str, Any]) -> None:
    """The base model likewise; other hardware is said.

    Raises:
        UserError: the base model is another one.
    """
    told = run.facts.get("repeat")
    if not told:
        return
    for key, then in told["model"].items():
        if origin.get(key) != then and not told["other_model"]:
            revision = f", or write model.revision={then}" if key == "commit" else ""
            raise UserError(
                f"repeat: the base model is another one now ({key} {then} then, {origin.get(key)} now).\n"
                f"  Restore it{revision}. To train on what is there now, type its key again: model.path=…"
            )
    then, now = (str(one.get("gpu") or one.get("cpu")) for one in (told["hardware"], hardware))
    if told["hardware"] and then != now:
        run.console.row("repeat", f"other hardware: {then} then, {now} now; the last digits may differ")


def compare_losses(run: RunDir) -> None:
    """Every logged loss beside the repeated run's; for a repetition that changes nothing on purpose. Into run.json."""
    told = run.facts.get("repeat")
    if not told or told["changed"] or not run.writes:
        return
    before, now = (losses_of(folder) for folder in (Path(told["run"]), run.path))
    shared = [place for place in now if place in before]
    if shared:
        told["losses"] = _in_words(before, now, shared)


def _in_words(
    before: Mapping[tuple[str, int], Any], now: Mapping[tuple[str, int], Any], shared: Sequence[tuple[str, int]]
) -> str:
    other = [place for place in shared if before[place] != now[place]]
    if not other:
        left = len(before.keys() ^ now.keys())
        return f"all {len(shared):,} logged losses are the run's, bit for bit" + (
            f"; {left:,} stand in one of them alone" if left else ""
        )
    name, step = other[0]
    far = max((abs(before[p] - now[p]) for p in other if None not in (before[p], now[p])), default=float("nan"))
    return (
        f"{len(other):,} of {len(shared):,} logged losses differ, by {far:.2g} at most; the first: {name} of step {step:,}, "
        f"{before[name, step]} then, {now[name, step]} now"
    )


def losses_of(folder: Path) -> dict[tuple[str, int], float | None]:
    """("loss", 12) -> its value, of every row of metrics.jsonl up to one that is cut."""
    from dumbo.outputs.report.reading import as_number, json_lines

    found: dict[tuple[str, int], float | None] = {}
    for row in json_lines(folder / "metrics.jsonl"):
        if isinstance(row, str):
            break
        for name in ("loss", "eval_loss"):
            if name in row and isinstance(row.get("step"), int):
                found[name, row["step"]] = as_number(row[name])
    return found
