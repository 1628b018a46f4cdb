"""How the run was set up: batch arithmetic, model, patches, the machine, versions, and how to do it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.tables import MOST_ROWS, Row, Section, Table, flat, rows
from dumbo.outputs.report.values import cut, figure, percent, plain
from dumbo.outputs.secrets import MASK
from dumbo.override_text import value_text
from dumbo.repeat import CONFIG_DIR, NOT_KEPT


def batch(run: Folder) -> Section:
    """`global 16 = micro 2 x ranks 4 x accumulation 2`, and what a step holds."""
    told = run.facts.at("batch")
    lead: list[str] = []
    if told:
        whole, micro, ranks, steps = (figure(told.get(key)) for key in ("global", "micro", "ranks", "accumulation"))
        lead.append(f"global batch {whole} = micro {micro} × ranks {ranks} × accumulation {steps}")
    metrics, packing = run.facts.at("metrics"), run.facts.at("packing")
    steps_done = metrics.number("steps")

    def a_step(name: str) -> str | None:
        number = metrics.number(name)
        return f"{number / steps_done:,.1f}" if number is not None and steps_done else None

    shown = {
        "documents a step, mean": a_step("documents"),
        "tokens a step, mean": a_step("tokens"),
        "trained tokens a step, mean": a_step("trained_tokens"),
        "packs": packing.number("packs"),
        "packs are full": percent(packing.get("filled")) if packing.number("filled") is not None else None,
        "layout": packing.text("layout"),
        "wrapper of the ranks": run.facts.text("parallel"),
        "precision": run.config.get("trainer", "precision"),
        "longest row in tokens": run.config.get("trainer", "max_seq_len"),
    }
    tables = [Table("A step", rows(shown))]
    halved = [one for one in run.facts.list("memory_halvings")[:MOST_ROWS] if isinstance(one, Mapping)]
    if halved:
        cells = [
            Row((plain(one.get("step")), f"{plain(one.get('from'))} to {plain(one.get('to'))}"), "warn")
            for one in halved
        ]
        tables.append(Table("Memory ran out: the micro batch was halved", cells, ("at step", "micro batch")))
    return Section("batch", "Batch arithmetic", tuple(tables) if lead or halved else (), tuple(lead))


def model(run: Folder) -> Section:
    """Size and origin of the model, and what became of each patch."""
    told = run.facts.at("model")
    total, trainable = told.number("parameters"), told.number("trainable")
    shown = {
        "name": told.text("name"),
        "class": told.text("class"),
        "parameters": total,
        "trainable": f"{figure(trainable)} ({percent(trainable / total)})" if total and trainable is not None else None,
        "kept in": told.text("dtype"),
    }
    others = {
        key: value
        for key, value in told.values.items()
        if key not in ("name", "class", "parameters", "trainable", "dtype")
    }
    tables = [Table("Model", [*rows(shown), *flat("", others).rows])]
    patches = list(run.facts.at("patches").values.items())[:MOST_ROWS]
    lines = []
    for name, state in patches:
        text = plain(state)
        lines.append(Row((cut(name, 200), text), "warn" if text.startswith("left out") else "good"))
    tables.append(Table("Patches", lines))
    return Section("model", "Model and patches", tuple(tables))


def machine(run: Folder) -> Section:
    """Hardware, versions, commit."""
    git = run.facts.at("git")
    commit = git.text("commit")
    state = {True: "with changes that are not committed", False: "nothing changed"}.get(bool(git.get("changed")))
    where = {"commit": f"{commit}, {state}" if commit else "outside a git checkout"}
    versions = [
        Row((cut(str(name), 100), plain(number)))
        for name, number in list(run.facts.at("versions").values.items())[:MOST_ROWS]
    ]
    hardware = flat("Hardware", run.facts.at("hardware").values)
    tables = [hardware, Table("Code", rows(where)), Table("Versions", versions)]
    return Section("machine", "Hardware and versions", tuple(tables) if run.facts else ())


def again(run: Folder) -> Section:
    """What was typed, and the command that repeats it."""
    folders = [word for word in run.words if word.startswith(CONFIG_DIR)]
    code = [
        ("Typed", command(run.words)),
        ("Again, by its folder", _by_folder(folders, "repeat", run)),
    ]
    if run.status in ("preempted", "failed", "lost"):
        code.append(("To go on from its last checkpoint", _by_folder(folders, "resume", run)))
    lead = []
    if hidden := [word for word in run.words if MASK in word]:
        lead.append(
            f"Values that were not written down are typed again: {', '.join(word.partition('=')[0] for word in hidden)}."
        )
    if kept := [word for word in run.words if word.partition("=")[0] in NOT_KEPT]:
        lead.append(f"Typed for this run alone, and left out in a repetition: {' '.join(kept)}")
    shown = {
        "folder": run.facts.text("run_dir") or str(run.path),
        "seed": run.facts.number("seed"),
        "config hash": run.facts.text("config_hash"),
        "data fingerprint": run.facts.text("data_fingerprint"),
        "repeats": run.facts.text("repeat", "run"),
        "beside it": run.facts.text("repeat", "losses"),
    }
    folded = [("The whole config (config.yaml)", run.config_text)] if run.config_text else []
    return Section(
        "again",
        "Do it again",
        (Table("What makes it the same run", rows(shown)),),
        tuple(lead),
        tuple(code),
        tuple(folded),
    )


def command(words: list[str]) -> str:
    """As it is typed into a shell."""
    return " ".join(["python -m dumbo", *(shlex.quote(word) for word in words)])


def _by_folder(config_dirs: list[str], key: str, run: Folder) -> str:
    return command([*config_dirs, f"{key}={value_text(str(run.path))}"])


def tracker_failures(run: Folder) -> list[str]:
    """What trackers could not be told."""
    return [plain(text) for text in run.facts.list("tracker_failures")[:20]]
