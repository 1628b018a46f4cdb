"""model/ holds the best checkpoint, not the last, also where the model is sharded when it is taken up."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import SMALL, facts, rows, run_cases
from safetensors.torch import load_file

WORDS = (*SMALL, "trainer.lr=0.05", "trainer.warmup_steps=0", "trainer.lr_scheduler=constant", "trainer.max_steps=4",
         "trainer.global_batch_size=8", "trainer.eval_every=2", "trainer.save_every=2", "trainer.save_total_limit=1",
         "trainer.load_best_at_end=true")  # fmt: skip
"""A learning rate at which the held-out loss rises again after step 2."""


@pytest.mark.full
def test_the_best_goes_into_the_model(tmp_path: Path) -> None:
    import dumbo

    dumbo.run([*WORDS, "launch=single", "trainer.micro_batch_size=4", f"run_dir={tmp_path / 'one'}"])
    cases = {
        str(tmp_path / launch): [
            *WORDS,
            f"launch={launch}",
            "trainer.micro_batch_size=2",
            f"run_dir={tmp_path / launch}",
        ]
        for launch in ("ddp", "fsdp")
    }
    run_cases(2, cases, tmp_path)
    losses = {row["step"]: row["eval_loss"] for row in rows(tmp_path / "one") if "eval_loss" in row and row["step"]}
    assert min(losses, key=lambda step: losses[step]) < max(losses), (
        "the last is the best: this test would show nothing"
    )
    wanted = load_file(tmp_path / "one" / "model" / "model.safetensors")
    for launch in ("ddp", "fsdp"):
        found = load_file(tmp_path / launch / "model" / "model.safetensors")
        assert found.keys() == wanted.keys()
        assert all((found[name] - wanted[name]).abs().max() < 1e-3 for name in wanted), launch
        assert facts(tmp_path / launch)["metrics"]["eval_loss"] == pytest.approx(min(losses.values()), abs=1e-3)
