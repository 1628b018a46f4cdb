"""Memory that runs out where a process cannot mend it in its place: the same process starts the run again.

See tests/unit/trainer/test_shrinking.py for what is mended in place, tests/distributed/test_memory_on_ranks.py for ranks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dumbo
from dumbo.errors import RunFailed

PLUGINS = str(Path(__file__).resolve().parents[1] / "plugins")

WORDS = [
    "model=tiny", "dataset.limit=64", "patch=[narrow]", "trainer.packing=false", "trainer.global_batch_size=8",
    "trainer.micro_batch_size=4", "trainer.max_seq_len=64", "trainer.max_steps=4", "trainer.num_answers=0",
    "trainer.num_samples=0", "trainer.eval_at_start=false", "trainer.eval_every=2", "verify.mode=off",
]  # fmt: skip


def facts(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def curve(run: Path) -> list[tuple[int, str, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], key, row[key]) for row in rows for key in ("loss", "grad_norm", "eval_loss") if key in row]


@pytest.mark.parametrize("saved", [True, pytest.param(False, marks=pytest.mark.full)])
def test_the_optimizers_step(capsys: pytest.CaptureFixture[str], saved: bool) -> None:
    every = f"trainer.save_every={2 if saved else 'null'}"
    # steps 1 and 2 are two passes each, of any size; in step 3 the optimizer finds no memory after the third pass more
    full = ["patch.narrow.where=step", "patch.narrow.after=5"]
    dumbo.run([*WORDS, every, *full, "run_dir=run"], config_dir=PLUGINS)
    said = capsys.readouterr().out
    assert sys.modules["narrow"].LEFT[-1] == 0, "the model of the first attempt is still in memory"
    dumbo.run([*WORDS, every, "patch.narrow.rows=4", "run_dir=other"], config_dir=PLUGINS)
    run = facts(Path("run"))
    assert run["status"] == "finished"
    assert run["memory_halvings"] == [{"step": 3, "from": 4, "to": 2, "asked": 4}]
    assert run["batch"] == {"global": 8, "micro": 2, "ranks": 1, "accumulation": 4}
    assert "The memory ran out at step 3 with micro batch 4 (CUDA out of memory. Tried to allocate 2.00 GiB):" in said
    again = "the last checkpoint" if saved else "the start"
    assert f"once more from {again}, global batch 8 = micro 2 x ranks 1 x accumulation 4" in said
    assert [point[:2] for point in curve(Path("run"))] == [point[:2] for point in curve(Path("other"))]
    for (_, _, found), (_, _, wanted) in zip(curve(Path("run")), curve(Path("other")), strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)


class Holding:
    """CUDA graphs, as far as memory goes: passes as written, and the optimizer finds none while they are there."""

    hold_memory, decided = True, True

    def __init__(self, trainer: Any) -> None:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self.trainer, self.hook = trainer, register_optimizer_step_pre_hook(self.full)

    def full(self, *arguments: Any) -> None:
        import torch

        self.hook.remove()
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")

    def run(self, model: Any, inputs: Any, items: Any) -> Any:
        from transformers import Trainer

        return Trainer.training_step(self.trainer, model, inputs, items)

    def facts(self) -> str:
        return "on"


def test_graphs_are_given_up_before_the_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the optimizer's first step: once more from the start, without them, in the same micro batches."""
    import dumbo.trainer.session as session
    from dumbo.outputs.halvings import graphs_given_up

    there: list[Any] = []

    def wanted(sft: Any, model: Any, args: Any, room: Any, layout: Any, run: Any) -> bool | None:
        return None if graphs_given_up(run, sft.micro_batch_size) is None else False

    def capture(self: Any) -> None:
        there.append(self.cuda_graphs)
        self.graphs = Holding(self) if self.cuda_graphs is not False else None

    words = [*WORDS, "trainer.save_every=null", "patch.narrow.rows=4"]
    with monkeypatch.context() as patched:
        patched.setattr(session, "wanted", wanted)
        patched.setattr(session.SftTrainer, "capture_from_now_on", capture)
        dumbo.run([*words, "run_dir=run"], config_dir=PLUGINS)
    said = capsys.readouterr().out
    dumbo.run([*words, "run_dir=other"], config_dir=PLUGINS)
    run = facts(Path("run"))
    assert there[:2] == [None, False]
    assert run["status"] == "finished"
    assert run["graphs_given_up"]["step"] == 1
    assert "memory_halvings" not in run
    assert run["batch"]["micro"] == 4
    assert "once more from the start, without CUDA graphs" in said
    assert curve(Path("run")) == curve(Path("other"))


def test_what_is_left_to_do_is_said() -> None:
    with pytest.raises(RunFailed, match="with a single example in a micro batch") as ended:
        dumbo.run([*WORDS, "patch.narrow.rows=0", "run_dir=run"], config_dir=PLUGINS)
    assert "resume=run 'patch=[narrow,gradient_checkpointing]'" in str(ended.value)
    assert [(one["from"], one["to"]) for one in facts(Path("run"))["memory_halvings"]] == [(4, 2), (2, 1)]
    assert facts(Path("run"))["status"] == "failed"


@pytest.mark.full
def test_memory_of_the_system(dumbo: Callable[..., Any]) -> None:
    """The address space is limited to some MiB more than the process has when training begins: real allocations fail."""
    words = [*WORDS[:1], "dataset.limit=300", *WORDS[2:], "trainer.packing=true", "trainer.global_batch_size=32",
             "trainer.micro_batch_size=32", "trainer.max_seq_len=256", "trainer.eval_every=null"]  # fmt: skip
    run = dumbo(f"--config-dir={PLUGINS}", *words, "patch.narrow.more_mib=150", "run_dir=run")
    other = dumbo(f"--config-dir={PLUGINS}", *words, "patch.narrow.rows=1000000", "run_dir=other")
    assert "DefaultCPUAllocator: can't allocate memory" in run.out
    halved = facts(run.run_dir)["memory_halvings"]
    assert halved[0]["from"] == 32
    for (_, _, found), (_, _, wanted) in zip(curve(run.run_dir), curve(other.run_dir), strict=True):
        assert found == pytest.approx(wanted, rel=1e-4)
