"""samples.md -> what the model answered. Reads what `outputs/samples.py` writes (`samples_page`)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dumbo.outputs.report.values import cut

MOST_SAMPLES = 20
PARTS = {
    "Prompt": "prompt",
    "Before training": "before",
    "After training": "after",
    "In the data": "reference",
}
"""Lines above a block -> what the block is."""
FENCE = re.compile(r"(?P<fence>`{3,})text")


@dataclass(frozen=True)
class Sample:
    """A held-out prompt; texts that are missing are None.

    Attributes:
        source: where the row stands.
        prompt, before, after, reference: as text, control tokens of the prompt kept.
    """

    source: str
    texts: dict[str, str] = field(default_factory=dict)

    def shown(self) -> list[tuple[str, str]]:
        """(title, text) of what is there."""
        return [(title, cut(self.texts[part], 6000)) for title, part in PARTS.items() if part in self.texts]

    @property
    def same(self) -> bool:
        """Whether the answer after training is the data's own."""
        after, reference = self.texts.get("after"), self.texts.get("reference")
        return bool(after) and after == reference


def samples_of(page: str) -> list[Sample]:
    """The samples of the page, in order; blocks that do not end are left out."""
    found: list[Sample] = []
    title = ""
    lines = iter(page.split("\n"))
    for line in lines:
        if line.startswith("## "):
            if len(found) == MOST_SAMPLES:
                break
            found.append(Sample(re.sub(r"^\d+\. ", "", line[3:])))
        elif line in PARTS:
            title = line
        elif found and title and (opening := FENCE.fullmatch(line)):
            block: list[str] = []
            for inner in lines:
                if inner == opening["fence"]:
                    found[-1].texts[PARTS[title]] = "\n".join(block)
                    break
                block.append(inner)
            title = ""
    return found
