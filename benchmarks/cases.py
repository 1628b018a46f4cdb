"""What `benchmarks.gpu` measures: one case a shape, kind of work and size of a step; `--table`: the cases of the README's table."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, replace

from benchmarks.made_up import SHAPES, Shape
from dumbo.patch.auto import PAYS

WARM = 20
"""Steps before those that count, where nothing needs more."""
COUNTED = 24
WARM_DEFAULT = 6
"""Of TRL as it comes, whose step takes seconds and compiles nothing."""


@dataclass(frozen=True)
class Case:
    """Rows on the same documents.

    Attributes:
        packs: packs of `longest` tokens a step.
        variants: one row each.
        longest: None: the shape's own.
        full_rows: documents that fill their pack.
    """

    shape: str
    work: str
    packs: int
    variants: tuple[str, ...]
    longest: int | None = None
    full_rows: bool = False

    @property
    def documents(self) -> Shape:
        own = SHAPES[self.shape]
        return replace(own, longest=self.longest or own.longest)


BESIDE = ("trl", "trl_default")
TABLE = (
    Case("smollm135", "full", 64, ("auto_masters", "auto", *BESIDE)),
    Case("llama1b", "full", 16, ("auto_masters", *BESIDE)),
    Case("llama1b", "lora", 16, ("auto", *BESIDE)),
    Case("llama8b", "lora", 4, ("auto", *BESIDE)),
    Case("llama8b", "lora", 4, ("auto_checkpointed", "trl_checkpointed")),
    Case("llama8b", "lora", 2, ("auto", *BESIDE), longest=4096, full_rows=True),
)


def cases(asked: argparse.Namespace) -> list[Case]:
    """Those asked for; of the table's those that no word leaves out."""
    if not asked.table:
        return [
            Case(shape, work, asked.packs, tuple(asked.variants or ("tiles", "trl")), asked.longest, asked.full_rows)
            for shape in asked.shapes or ("smollm135",)
            for work in asked.work or ("full", "lora")
        ]
    chosen = [
        replace(case, variants=tuple(name for name in case.variants if name in (asked.variants or case.variants)))
        for case in TABLE
        if case.shape in (asked.shapes or SHAPES)
        and case.work in (asked.work or ("full", "lora"))
        and (case.full_rows or not asked.full_rows)
    ]
    return [case for case in chosen if case.variants]


def steps(case: Case, variant: str, asked: argparse.Namespace) -> tuple[int, int]:
    """How many, and how many of them before those that count. `auto` compiles where there are so many steps that it pays."""
    last, counted = (WARM + COUNTED, COUNTED) if asked.table else (asked.steps, asked.steps - asked.warmup)
    if variant == "trl_default":
        last = min(last, WARM_DEFAULT + counted)
    if asked.table and variant.startswith("auto"):
        last = max(last, math.ceil(PAYS / SHAPES[case.shape].config["num_hidden_layers"]))
    return last, last - counted
