"""What `benchmarks.attention` does before a GPU is needed: its packs, and tiles that are tried and put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.attention import CANDIDATES, LENGTHS, PARTS, _cut
from dumbo.trainer import tiles


@pytest.mark.parametrize(("name", "lengths"), LENGTHS.items(), ids=LENGTHS)
def test_documents_fill_the_axis(name: str, lengths: Callable[[int], list[int]]) -> None:
    found = lengths(65_536)
    assert sum(found) >= 65_536
    assert max(found) <= (2048 if name == "documents" else int(name.split()[-1]))


@pytest.mark.parametrize("part", PARTS)
def test_a_candidate_is_what_the_kernels_take_and_is_put_back(part: str) -> None:
    before = dict(tiles.TILES)
    assert set(before) == set(PARTS)
    own = before[part]
    assert (own.queries, own.keys, own.warps, own.stages) in CANDIDATES, (
        "what is shipped was among those that were tried"
    )
    with _cut(part, CANDIDATES[0]):
        assert tiles.TILES[part] == tiles.Tile(*CANDIDATES[0])
    assert before == tiles.TILES
