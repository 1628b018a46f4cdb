"""What a sweep was: what was typed, and what all its jobs share."""

from __future__ import annotations

from dumbo.outputs.report.setup import command
from dumbo.outputs.report.several.jobs import Several
from dumbo.outputs.report.tables import Section, Table, flat, rows
from dumbo.override_text import value_text


def setup(several: Several) -> Section:
    """sweep.json, and the command that goes on with it."""
    told = several.sweep
    if not told:
        return Section("setup", "The sweep")
    words = [str(word) for word in told.list("typed")]
    shown = {
        "folder": str(several.place),
        "launcher": told.text("launcher"),
        "varied": ", ".join(str(key) for key in told.list("swept")) or None,
        "the same for all": " ".join(str(word) for word in told.list("fixed")) or None,
        "compared by": f"{several.metric}, {'the lowest' if several.minimize else 'the highest'} is best",
        "started": told.text("started"),
    }
    git, commit = told.at("git"), told.text("git", "commit")
    if commit:
        shown["commit"] = f"{commit}{', with changes that are not committed' if git.get('changed') else ''}"
    on = command(["-m", f"sweep_dir={value_text(str(several.place))}"])
    code = (
        (("Typed", command(["-m", *(word for word in words if word != "-m")])), ("To go on with it", on))
        if words
        else ()
    )
    return Section(
        "setup",
        "The sweep",
        (Table("What it is", rows(shown)), flat("Versions", told.at("versions").values)),
        code=code,
    )
