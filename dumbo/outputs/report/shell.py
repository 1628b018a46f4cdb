"""What every page has: one file with style, scripts and uPlot in it, and a policy that lets nothing else in or out.

Texts come from data, models and files: control characters are shown (`printable`), everything is escaped, and numbers
for the scripts stand in a JSON block. https://www.w3.org/TR/CSP3/ (hashes), https://github.com/leeoniya/uPlot
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

import dumbo
from dumbo.outputs.printable import printable
from dumbo.outputs.report.values import cut

HERE = Path(__file__).parent
UPLOT = HERE / "vendor" / "uplot"


def rendered(template: str, *, styles: Sequence[str], scripts: Sequence[str], told: dict[str, Any], block: Any) -> str:
    """A whole page as HTML.

    Args:
        template, styles, scripts: files of this package; uPlot's come before them.
        told: what the template shows, nothing of it trusted.
        block: numbers for the scripts.
    """
    style = f"{_read(UPLOT / 'uPlot.min.css').strip()}\n{''.join(_read(HERE / name) for name in styles)}"
    parts = [_uplot(), *(_read(HERE / name) for name in scripts)]
    return _environment().get_template(template).render(
        policy=_policy(style, parts), style=Markup(style), scripts=[Markup(part) for part in parts], block=Markup(_json_block(block)),
        version=dumbo.__version__, **told,
    )  # fmt: skip


def _json_block(numbers: Any) -> str:
    """For a <script type="application/json">: no character in it can end the element or begin a comment."""
    text = json.dumps(numbers, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _policy(style: str, scripts: Sequence[str]) -> str:
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
def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").replace("\r\n", "\n")
