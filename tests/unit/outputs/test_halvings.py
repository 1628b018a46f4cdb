"""What is said where a run's memory is full and its micro batch cannot be smaller."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dumbo.batch import Batch
from dumbo.errors import MemoryFull, RunFailed
from dumbo.outputs.console import Console
from dumbo.outputs.halvings import halve
from dumbo.outputs.run_dir import RunDir


def test_only_patches_that_were_chosen_are_to_be_typed(tmp_path: Path) -> None:
    """What `performance` added or left out could not be typed beside the others: Liger and compile, say."""
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    run.note_patch("liger", "4 modules")
    run.left_out("compile", "performance=auto, patch.liger's rope cannot be built inside")
    run.note_patch("lora", "8 layers")
    run.note_patch("fused_lora", "8 layers")
    run.update(performance=["fused_lora"])
    with pytest.raises(RunFailed, match=r"patch=\[liger,lora,gradient_checkpointing\]'"):
        halve(run, MemoryFull("full", 3, Batch.of(4, 1, 1), 1))


@pytest.mark.parametrize(
    ("evidence", "advised"),
    [("8 of 32 layers recomputed in the backward pass", True), ("32 of 32 layers recomputed in the backward pass", False),
     ("all 32 layers recomputed in the backward pass", False), ("33 modules recomputed in the backward pass", False)],
)  # fmt: skip
def test_where_some_layers_are_checkpointed_the_others_can_be(evidence: str, advised: bool, tmp_path: Path) -> None:
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    run.note_patch("gradient_checkpointing", evidence)
    with pytest.raises(RunFailed) as failed:
        halve(run, MemoryFull("full", 3, Batch.of(4, 1, 1), 1))
    assert ("patch.gradient_checkpointing.layers=null" in str(failed.value)) == advised
    assert "trainer.max_seq_len=…" in str(failed.value)


@pytest.mark.parametrize(
    ("text", "ranks", "set_already", "advised"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", 1, "", True),
        ("rank 0: CUDA out of memory. Tried to allocate 2.00 GiB", 1, "", True),
        ("rank 1: CUDA out of memory. Tried to allocate 2.00 GiB", 2, "", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", 1, "expandable_segments:True", False),
        ("not enough memory", 1, "", False),
    ],
)
def test_a_gpus_memory_may_lie_in_pieces(
    text: str, ranks: int, set_already: str, advised: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", set_already)
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    run.note_patch("gradient_checkpointing", "4 modules recomputed in the backward pass")
    with pytest.raises(RunFailed) as ended:
        halve(run, MemoryFull(text, 3, Batch.of(ranks, 1, ranks), 1))
    said = str(ended.value)
    assert ("Go on with its memory in fewer pieces: " in said) is advised
    assert (", and PYTORCH_ALLOC_CONF=expandable_segments:True before the command" in said) is advised
    assert ("or write a smaller trainer.max_seq_len" in said) is advised
    assert "rite a smaller trainer.max_seq_len" in said
