"""What a resumed run may change, what it refuses, and that a refusal leaves the run's record as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dumbo
from dumbo.errors import Stopped, UserError

WORDS = [
    "model=tiny",
    "dataset.limit=64",
    "trainer.num_epochs=4",
    "trainer.num_answers=0",
    "trainer.num_samples=0",
    "trainer.eval_every=null",
]


def stopped(folder: Path, *words: str) -> None:
    """A run that max_time ended after its first step."""
    with pytest.raises(Stopped):
        dumbo.run([*WORDS, *words, "trainer.max_time=0.001", f"run_dir={folder}"])


def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_a_change_that_the_checkpoint_would_ignore_is_refused(tmp_path: Path) -> None:
    stopped(tmp_path / "run")
    before = (tmp_path / "run" / "overrides.yaml").read_text()
    with pytest.raises(UserError, match=r"trainer\.lr: 0\.001 -> 0\.005"):
        dumbo.run([f"resume={tmp_path / 'run'}", "trainer.lr=5e-3"])
    assert (tmp_path / "run" / "overrides.yaml").read_text() == before
    assert dumbo.run([f"resume={tmp_path / 'run'}", "trainer.max_time=null"])["steps"] > 1


def test_gradient_checkpointing_may_be_added(tmp_path: Path) -> None:
    stopped(tmp_path / "run", "trainer.max_steps=3")
    done = dumbo.run([f"resume={tmp_path / 'run'}", "patch=[gradient_checkpointing]", "trainer.max_time=null"])
    assert "recomputed" in facts(tmp_path / "run")["patches"]["gradient_checkpointing"]
    assert done["steps"] == 3
    with pytest.raises(UserError, match=r"patch\.lora"):
        dumbo.run([f"resume={tmp_path / 'run'}", "patch=[lora]", "trainer.max_steps=4"])


def test_what_makes_a_step_faster_may_change(tmp_path: Path) -> None:
    """A run whose record has another default goes on, and one that a patch of performance=auto has ended without it."""
    stopped(tmp_path / "run", "trainer.max_steps=2", "performance=off")
    words = (tmp_path / "run" / "overrides.yaml").read_text()
    (tmp_path / "run" / "overrides.yaml").write_text(words.replace("- performance=off\n", ""))
    assert dumbo.run([f"resume={tmp_path / 'run'}", "trainer.max_time=null"])["steps"] == 2


def test_other_data_is_refused_and_not_written_down(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n} and 1?", "answer": str(n + 1)}) + "\n" for n in range(40)))
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text().replace("and", "plus"))
    with pytest.raises(Stopped):
        dumbo.run(
            ["model=tiny", "dataset=files", f"dataset.path={rows}", "trainer.num_epochs=9", "trainer.num_samples=0",
             "trainer.max_time=0.001", f"run_dir={tmp_path / 'run'}"]
        )  # fmt: skip
    with pytest.raises(UserError, match="no longer what the run"):
        dumbo.run([f"resume={tmp_path / 'run'}", f"dataset.path={other}"])
    assert str(rows) in (tmp_path / "run" / "overrides.yaml").read_text()
    assert dumbo.run([f"resume={tmp_path / 'run'}", "trainer.max_time=null"])["steps"] > 1


def test_a_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*WORDS, "trainer.lr_scheduler=constant", "trainer.warmup_steps=0"]
    assert dumbo.run([*words, "trainer.max_steps=2", f"run_dir={run}"])["steps"] == 2
    assert dumbo.run([f"resume={run}"])["steps"] == 2
    assert dumbo.run([f"resume={run}", "trainer.max_steps=4"])["steps"] == 4
    assert facts(run)["status"] == "finished"


def test_the_best_step_is_found_where_a_stop_left_out_its_evaluation(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        dumbo.run([*WORDS, "trainer.eval_at_start=false", "trainer.load_best_at_end=true", "trainer.max_steps=1",
                   "trainer.max_time=0.001", f"run_dir={run}"])  # fmt: skip
    metrics = dumbo.run([f"resume={run}", "trainer.max_time=null"])
    assert metrics["steps"] == 1
    assert metrics["eval_loss"] == metrics["best_eval_loss"]


def test_one_process_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="launch=single is one process"):
        dumbo.run([*WORDS, "launch=single", f"run_dir={tmp_path / 'run'}"])
