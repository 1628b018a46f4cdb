"""CUDA graphs under DDP: passes go around it, and gradients are added up once a step. The same numbers as through DDP.

Two gloo ranks; the graph itself is played by the CPU (`graphs_worker.py`), on GPUs it is tested in tests/gpu/test_two_gpus.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import SMALL, curve, facts, torchrun

WORDS = (*SMALL, "launch=ddp", "trainer.global_batch_size=8", "trainer.max_seq_len=64", "trainer.num_epochs=5")
CASES: dict[str, dict[str, Any]] = {
    "always": {"always": True, "wrong": None},
    "decided": {"always": None, "wrong": None},  # after some passes, by all ranks together
    "one gives up": {"always": None, "wrong": 1},  # and goes on as written; the other replays
}


@pytest.mark.parametrize(
    "micro", [pytest.param(2, id="two micro batches"), pytest.param(4, id="one", marks=pytest.mark.full)]
)
def test_around_ddp_is_through_ddp(micro: int, tmp_path: Path) -> None:
    """199 rows that no global batch divides, five epochs: losses, norms and held-out losses to 1e-5."""
    own = (*WORDS, f"trainer.micro_batch_size={micro}")
    wanted = str(tmp_path / "written")
    cases = {wanted: {"words": [*own, f"run_dir={wanted}"], "graphs": None}}
    for name, graphs in CASES.items():
        cases[str(tmp_path / name)] = {"words": [*own, f"run_dir={tmp_path / name}"], "graphs": graphs}
    file = tmp_path / "cases.json"
    file.write_text(json.dumps(cases))
    done = torchrun(2, "-m", "graphs_worker", str(file))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    for name in CASES:
        said = facts(tmp_path / name)["cuda_graphs"]
        assert said.startswith("on"), (name, said)
        replayed, passes = (int(word.replace(",", "")) for word in (said.split(", ")[-1].split()[0], said.split()[-3]))
        assert replayed > passes / 3, (name, said)
        found, expected = curve(tmp_path / name), curve(wanted)
        assert len(found) > 10
        for one, other in zip(found, expected, strict=True):
            assert one[:2] == pytest.approx(other[:2], abs=1e-5), name
            if one[2] is not None:
                assert one[2] == pytest.approx(other[2], rel=1e-3), name
    assert json.loads((tmp_path / "one gives up" / "rank1.json").read_text())["said"].startswith(
        "off: a graph's gradients are"
    )
