"""A template's faults found before it renders anything: syntax, and attempts to leave the sandbox.

Templates run in jinja2's immutable sandbox. The sandbox turns a forbidden attribute into an undefined value,
which plain `Undefined` prints as empty text: a fault nobody would see. So names that begin with an underscore,
and format strings that reach attributes, are refused by reading the template's syntax tree.
"""

from __future__ import annotations

import re

import jinja2
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dumbo.errors import UserError

GENERATION = re.compile(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})")
END_GENERATION = re.compile(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})")


def check_template(text: str, name: str) -> None:
    """Raises a UserError that names the line and the fault of the template called `name`."""
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(without_generation(text))
        environment.compile(tree)  # parsing does not look for unknown filters and tests
    except jinja2.TemplateSyntaxError as error:
        line = (text.splitlines() or [""])[max(0, error.lineno - 1) : error.lineno]
        shown = f"\n  {line[0].strip()[:120]}" if line else ""
        raise UserError(f"{name} has a syntax error in line {error.lineno}: {error.message}{shown}") from error
    for node in tree.find_all((nodes.Getattr, nodes.Getitem, nodes.Filter)):
        if (reached := _underscored(node)) is not None:
            raise UserError(
                f"{name} reaches for '{reached}' in line {node.lineno}: names that begin with an underscore are "
                f"refused, a template only renders messages."
            )


def _underscored(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and str(node.arg.value).startswith("__"):
        return str(node.arg.value)
    if isinstance(node, nodes.Filter) and node.name == "attr":
        for argument in node.args:
            if isinstance(argument, nodes.Const) and str(argument.value).startswith("_"):
                return str(argument.value)
    return None


def without_generation(text: str) -> str:
    """`{% generation %}` blocks, which transformers adds to jinja, as blocks that are always taken.

    Lines and the tags' white space control stay as they are. The mask does not need them.
    """
    text = GENERATION.sub(r"\1if true\2", text)
    return END_GENERATION.sub(r"\1endif\2", text)
