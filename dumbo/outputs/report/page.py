"""The page of one run: its parts, in order, into the template. What every page has is shell.py's."""

from __future__ import annotations

from dumbo.outputs.report.changes import changes
from dumbo.outputs.report.charts import drawn
from dumbo.outputs.report.data import audit
from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.planned import plan
from dumbo.outputs.report.proofs import proofs
from dumbo.outputs.report.results import STATUS, evaluation, export, final_numbers, headlines, when
from dumbo.outputs.report.setup import again, batch, machine, model, tracker_failures
from dumbo.outputs.report.shell import rendered
from dumbo.outputs.report.tables import Section
from dumbo.outputs.report.values import plain


def sections(run: Folder) -> list[Section]:
    """The parts below curves and samples, those with something in them."""
    parts = (evaluation, proofs, audit, plan, batch, changes, again, model, machine, export)
    return [section for part in parts if (section := part(run))]


def page(run: Folder) -> str:
    """The whole page as HTML."""
    charts = drawn(run.numbers)
    state, sentence = STATUS.get(run.status, ("warn", "run.json does not say how the run ended."))
    told = {
        "name": plain(run.facts.get("name") or run.path.name), "folder": plain(run.facts.text("run_dir") or str(run.path)),
        "when": when(run), "status": run.status, "state": state, "sentence": sentence, "error": run.facts.text("error"),
        "traceback": run.traceback, "headlines": headlines(run), "charts": charts, "numbers": run.numbers, "faults": run.faults,
        "samples": run.samples, "sections": sections(run), "final": final_numbers(run), "tracker_failures": tracker_failures(run),
    }  # fmt: skip
    curves = [{"name": one.chart.name, "unit": one.chart.unit, "series": one.series} for one in charts]
    return rendered(
        "page.html.j2", styles=["page.css"], scripts=["figures.js", "page.js"], told=told,
        block={"charts": curves, "marks": run.numbers.marks},
    )  # fmt: skip
