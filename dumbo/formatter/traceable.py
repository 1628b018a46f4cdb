"""Which templates `tracing.py` can look through, as far as their syntax shows it.

Refused is what makes plain text of a content before it is put out, since what happens to plain text is not seen, and what
looks at a content without asking it: a plain text that it is looked for in.
"""

from __future__ import annotations

from jinja2 import nodes

MAKES_TEXT = (
    nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Include, nodes.Import, nodes.FromImport,
    nodes.Extends, nodes.Block, nodes.Concat,
)  # fmt: skip


class Untraceable(Exception):
    """The rendering depends on what is said in a way that no form tells."""


def require_seen(tree: nodes.Template) -> None:
    """No syntax that makes plain text of a content, or looks at one where that cannot be refused. Raises Untraceable."""
    for node in tree.find_all(MAKES_TEXT):
        raise Untraceable(type(node).__name__)
    for loop in tree.find_all(nodes.For):
        if loop.recursive:
            raise Untraceable("a recursive loop")
    for comparison in tree.find_all(nodes.Compare):
        sides = [comparison.expr, *(operand.expr for operand in comparison.ops)]
        for side, operand in zip(sides, comparison.ops, strict=False):
            if operand.op in ("in", "notin") and not (isinstance(side, nodes.Const) or _is_role(side)):
                raise Untraceable("looked for in something")
    if any(_gives_a_role(node) for node in tree.find_all((nodes.NSRef, nodes.Pair))):
        raise Untraceable("a role that no message has")


def _is_role(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "role"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "role"


def _gives_a_role(node: nodes.Node) -> bool:
    """Whether something else than a message could have a role, which might be a content: one that stands in a plain text
    (`ns.role in 'abc'`) is looked at without asking it.
    """
    if isinstance(node, nodes.NSRef):
        return node.attr == "role"
    assert isinstance(node, nodes.Pair)
    if isinstance(node.key, nodes.Const):
        return node.key.value == "role" and not isinstance(node.value, nodes.Const)
    return True
