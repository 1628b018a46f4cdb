"""What `benchmarks.attention` does before a GPU is needed: its packs, and tiles that are tried and put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.attention import CANDIDATES, LENGTHS, PARTS, _cut, measured, ways_for
from dumbo.trainer import tiles


@pytest.mark.parametrize(("name", "lengths"), LENGTHS.items(), ids=LENGTHS)
def test_documents_fill_the_axis(name: str, lengths: Callable[[int], list[int]]) -> None:
    found = lengths(65_536)
    assert sum(found) >= 65_536
    limits = {"documents": 2048, "long documents": 20_000}
    assert max(found) <= (limits[name] if name in limits else int(name.split()[-1]))


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


def test_a_row_holds_each_way_against_torchs_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the kernels: one that is twice as fast, and one that this machine has not."""
    took = {"tiles": 1.0, "varlen": 2.0, "packs": 0.5}

    def apart(way: str, given: object) -> float:
        if way not in took:
            raise RuntimeError("No available kernel. Aborting execution.")
        return 0.0

    monkeypatch.setattr("benchmarks.attention.tensors", lambda *shape: {})
    monkeypatch.setattr("benchmarks.attention.apart", apart)
    monkeypatch.setattr(
        "benchmarks.attention.times", lambda way, given: {"forward_ms": took[way], "backward_ms": took[way]}
    )
    row = measured("llama1b", "rows of 1024", 65_536)
    assert row["ratio"] == {"tiles": 2.0, "packs": 4.0}
    assert row["cudnn"] == {"failed": "No available kernel. Aborting execution."}
    assert ways_for("documents") == ["tiles", "varlen"], "cuDNN takes rows alone"
