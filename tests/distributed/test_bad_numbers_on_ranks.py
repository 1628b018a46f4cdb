"""A loss that is not finite on one rank of two: skipped on both, its documents named, back to a checkpoint, then the end.

A patch of the test's own makes the loss NaN, on rank 1 alone, in the forward passes it is told.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import environment, facts, rows
from safetensors.torch import load_file

POISON = '''
import os
from dataclasses import dataclass
from typing import ClassVar

from dumbo.interfaces import Stage


@dataclass(frozen=True, kw_only=True)
class Poison:
    """NaN in the losses of these training passes (from 0) of rank 1."""

    passes: list[int]
    stage: ClassVar[Stage] = Stage.COMPILE

    def apply(self, model):
        seen = [0]

        def hook(module, args, output):
            if module.training and output.loss is not None:
                if os.environ.get("RANK") == "1" and seen[0] in self.passes:
                    output.loss = output.loss * float("nan")
                seen[0] += 1

        model.register_forward_hook(hook)
        return model

    def evidence(self, model):
        return "rank 1"
'''
WORDS = ("patch=poison", "verify.mode=off", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null",
         "trainer.eval_at_start=false", "trainer.packing=false", "trainer.global_batch_size=8", "trainer.micro_batch_size=2",
         "trainer.max_bad_steps=3", "trainer.warmup_steps=2", "dataset.limit=120", "dataset.eval_limit=10",
         "launch.num_processes=2")  # fmt: skip


def run(folder: Path, *words: str) -> tuple[int, str, Path]:
    conf = folder / "mine"
    (conf / "patch").mkdir(parents=True)
    (conf / "poison.py").write_text(POISON)
    (conf / "patch" / "poison.yaml").write_text("# @package patch.poison\n_target_: poison.Poison\npasses: []\n")
    command = [sys.executable, "-m", "dumbo", f"--config-dir={conf}", *WORDS, *words, f"run_dir={folder / 'run'}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr, folder / "run"


def documents_of(step: int, rank: int) -> list[str]:
    """File and line of what a rank has in the second pass of a step (from 0), by the sampler alone."""
    import dumbo.dataset.quiz as quiz
    from dumbo.batch import Batch
    from dumbo.trainer.sampler import GlobalBatches

    del quiz
    lengths = _lengths()
    order = GlobalBatches(len(lengths), Batch.of(8, 2, 2), 42, lengths).step(step)
    return [f"{number + 1}" for number in order[rank::2][2:4].tolist()]


def _lengths():  # type: ignore[no-untyped-def]
    from dumbo.check import check
    from dumbo.compose import compose, prepare_hydra
    from dumbo.preview import prepared

    composed = compose([*prepare_hydra([], None), "dataset.limit=120", "dataset.eval_limit=10"])
    return prepared(check(composed.cfg, composed.choices))[1].train.lengths


@pytest.mark.full
@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
def test_skipped_on_all_ranks_and_named(launch: str, tmp_path: Path) -> None:
    """Pass 5 is the second of step 3 (accumulation 2)."""
    code, said, folder = run(tmp_path, f"launch={launch}", "patch.poison.passes=[5]", "trainer.max_steps=6")
    assert code == 0, said
    assert "step 3 is skipped: the loss is nan" in said
    named = said.split("step 3 is skipped")[1].split("in the batch: ")[1].split("\n")[0]
    assert [part.rpartition(" ")[2] for part in named.split("; ")] == documents_of(2, 1)
    assert [row.get("skipped_steps") for row in rows(folder) if row["step"] > 0 and "lr" in row] == [
        None,
        None,
        1,
        None,
        None,
        None,
    ]
    assert all(torch.isfinite(tensor).all() for tensor in load_file(folder / "model" / "model.safetensors").values())
    assert facts(folder)["parallel"] == {"ddp": "DDP", "fsdp": "FSDP2"}[launch]


@pytest.mark.full
@pytest.mark.parametrize("launch", ["ddp", "fsdp"])
def test_back_to_the_checkpoint_then_the_end(launch: str, tmp_path: Path) -> None:
    """Steps 5-7 are bad: back to step 4. From step 9 on all are: the run ends with a report."""
    passes = ",".join(str(number) for number in [*range(8, 14), *range(16, 60)])
    words = (f"launch={launch}", f"patch.poison.passes=[{passes}]", "trainer.max_steps=20", "trainer.save_every=4")
    code, said, folder = run(tmp_path, *words)
    assert code == 1, said
    assert "weights and optimizer go back to step-000004" in said
    assert "Going back to a checkpoint has not helped before" in said
    assert "Traceback" not in said
    assert facts(folder)["status"] == "failed"
