"""The page: template, style, script and uPlot in one file, with a policy that lets nothing else in or out.

Texts come from data, models and files: control characters are shown (`printable`), everything is escaped, and numbers
for the script stand in a JSON block. https://www.w3.org/TR/CSP3/ (hashes), https://github.com/leeoniya/uPlot
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

import dumbo
from dumbo.outputs.printable import printable
from dumbo.outputs.report.changes import changes
from dumbo.outputs.report.charts import drawn
from dumbo.outputs.report.data import audit
from dumbo.outputs.report.folder import Folder
from dumbo.outputs.report.planned import plan
from dumbo.outputs.report.proofs import proofs
from dumbo.outputs.report.results import STATUS, evaluation, export, final_numbers, headlines, when
from dumbo.outputs.report.setup import again, batch, machine, model, tracker_failures
from dumbo.outputs.report.tables import Section
from dumbo.outputs.report.values import cut, plain

HERE = Path(__file__).parent
UPLOT = HERE / "vendor" / "uplot"


def sections(run: Folder) -> list[Section]:
    """The parts below curves and samples, those with something in them."""
    parts = (evaluation, proofs, audit, plan, batch, changes, again, model, machine, export)
    return [section for part in parts if (section := part(run))]


def page(run: Folder) -> str:
    """The whole page as HTML."""
    charts = drawn(run.numbers)
    style, uplot, script = _style(), _uplot(), _read(HERE / "page.js")
    state, sentence = STATUS.get(run.status, ("warn", "run.json does not say how the run ended."))
    return _environment().get_template("page.html.j2").render(
        policy=_policy(style, [uplot, script]), style=Markup(style), uplot=Markup(uplot), script=Markup(script),
        name=plain(run.facts.get("name") or run.path.name), folder=plain(run.facts.text("run_dir") or str(run.path)),
        when=when(run), status=run.status, state=state, sentence=sentence, error=run.facts.text("error"),
        traceback=run.traceback, headlines=headlines(run), charts=charts, numbers=run.numbers, faults=run.faults,
        curves=Markup(_json_block([{"name": one.chart.name, "unit": one.chart.unit, "series": one.series} for one in charts], run)),
        samples=run.samples, sections=sections(run), final=final_numbers(run), tracker_failures=tracker_failures(run),
        version=dumbo.__version__,
    )  # fmt: skip


def _json_block(charts: list[dict[str, Any]], run: Folder) -> str:
    """For a <script type="application/json">: no character in it can end the element or begin a comment."""
    text = json.dumps({"charts": charts, "marks": run.numbers.marks}, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(style: str, scripts: list[str]) -> str:
    """Nothing is loaded, sent, framed or run, but for exactly these texts."""
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters["cut"] = cut
    return environment


def _safe(value: Any) -> Any:
    """Control characters and marks that turn text around are shown; Markup is this package's own."""
    return printable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _uplot() -> str:
    """The library, its licence above it."""
    return f"/*\n{_read(UPLOT / 'LICENSE').strip()}\n*/\n{_read(UPLOT / 'uPlot.iife.min.js').strip()}\n"


@cache
def _style() -> str:
    return f"{_read(UPLOT / 'uPlot.min.css').strip()}\n{_read(HERE / 'page.css')}"


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").replace("\r\n", "\n")
