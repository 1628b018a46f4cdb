"""`dumbo plan` as it is typed: arithmetic and disk by hand, and against a run of the same words."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dumbo.cli import main
from dumbo.plan import disk as disk_module
from dumbo.plan import memory as memory_module
from dumbo.plan.disk import disk
from dumbo.plan.shown import duration, size

PARAMETERS = 492_160
WORDS = ("trainer.packing=false", "trainer.max_seq_len=64", "trainer.global_batch_size=4", "trainer.micro_batch_size=2",
         "trainer.num_epochs=2", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null", "trainer.save_every=2",
         "trainer.eval_at_start=false", "verify.mode=off", "dataset=files", "dataset.path=rows.jsonl", "dataset.eval_fraction=0",
         "launch=single")  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> None:
    """Ten of them: three steps an epoch, the last of two rows."""
    lines = [json.dumps({"question": f"What is {n} + 1?", "answer": str(n + 1)}) for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["plan", *WORDS, "plan.format=json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.usefixtures("rows")
def test_the_plan_is_what_the_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    plan = planned(capsys)
    assert plan["model"] == {"name": "tiny", "parameters": PARAMETERS, "trainable": PARAMETERS, "dtype": "float32"}
    assert plan["batch"] == {"global": 4, "micro": 2, "ranks": 1, "accumulation": 2, "chosen": None}
    assert (plan["steps"], plan["epochs"]) == (6, 2.0)
    assert plan["disk"]["kept"] == 2
    assert plan["disk"]["needed"] == 3 * plan["disk"]["checkpoint"] + plan["disk"]["model"]
    assert plan["time"] == {"seconds": None}
    assert not list(Path().glob("outputs"))

    assert main([*WORDS, "run_dir=outputs/a"]) == 0
    capsys.readouterr()
    facts = json.loads(Path("outputs/a/run.json").read_text())
    assert facts["planned_steps"] == plan["steps"]
    assert (facts["metrics"]["tokens"], facts["metrics"]["trained_tokens"]) == (plan["tokens"], plan["trained_tokens"])
    for name, folder in (("checkpoint", "checkpoints/step-000006"), ("model", "model")):
        written = sum(file.stat().st_size for file in Path("outputs/a", folder).rglob("*") if file.is_file())
        assert abs(plan["disk"][name] / written - 1) < 0.05

    noted = facts["plan"]
    assert noted["source"] == "the start of training"
    assert {key: noted[key] for key in ("steps", "epochs", "tokens", "trained_tokens")} == {
        key: plan[key] for key in ("steps", "epochs", "tokens", "trained_tokens")
    }
    weights = 4 * PARAMETERS
    held = noted["memory"]["held"]
    assert held["gradients"] == weights
    assert held["optimizer"] == 2 * weights
    assert weights <= held["weights"] < 1.01 * weights  # and buffers
    assert noted["time"]["seconds"] is None

    again = planned(capsys, "trainer.lr=1e-5")
    logged = [json.loads(line) for line in Path("outputs/a/metrics.jsonl").read_text().splitlines()]
    speeds = sorted(row["tokens_per_s"] for row in logged if "loss" in row)
    assert speeds[0] <= again["time"]["tokens_per_s"] <= speeds[-1]
    assert again["time"]["source"] == "outputs/a, the same model, patches and shape"
    assert planned(capsys)["time"]["source"] == "outputs/a, the same config"
    assert planned(capsys, "trainer.max_seq_len=32")["time"] == {"seconds": None}
    assert planned(capsys, "plan.tokens_per_s=10")["time"]["seconds"] == plan["tokens"] / 10


@pytest.mark.usefixtures("rows")
def test_as_text_and_into_the_runs_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder is the run's afterwards."""
    words = [*WORDS, "trainer.max_steps=1", "run_dir=run", "patch=[lora,compile]"]
    assert main(["plan", *words]) == 0
    said = capsys.readouterr().out
    assert "model     tiny   574 k parameters, 82 k trainable (14.3%)   float32" in said
    assert "compile  left out: no CUDA device" in said
    assert "batch     global batch 4 = micro 2 x ranks 1 x accumulation 2   1 step, 0.33 epochs" in said
    assert "time      unknown: run some steps" in said
    plan = json.loads(Path("run/plan.json").read_text())
    assert plan["steps"] == 1
    assert main(words) == 0
    noted = json.loads(Path("run/run.json").read_text())["plan"]
    before = noted["memory"].pop("before")
    assert 100 * 2**20 < before < 4 * 2**30
    assert noted == {"source": "plan.json", **plan}
    assert main(["report", "run=run"]) == 0
    page = Path("run/report.html").read_text()
    assert page.index("memory.peak") < page.index("Planned besides") < page.index("memory.parts.activations")
    capsys.readouterr()

    # the same folder of another run: what was planned there is not its plan
    Path("other").mkdir()
    Path("run/plan.json").rename("other/plan.json")
    assert main([*words, "run_dir=other", "trainer.lr=1e-5", "plan.tokens_per_s=10"]) == 0
    noted = json.loads(Path("other/run.json").read_text())["plan"]
    assert noted["source"] == "the start of training"
    assert "peak" not in noted["memory"]
    assert noted["time"] == {"seconds": noted["tokens"] / 10, "tokens_per_s": 10.0, "source": "plan.tokens_per_s"}


@pytest.mark.usefixtures("rows")
def test_what_does_not_fit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    large = ("trainer.global_batch_size=1024", "trainer.micro_batch_size=512")
    monkeypatch.setattr(memory_module, "available_memory", lambda: 1e8)
    monkeypatch.setattr(disk_module.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**6))
    assert main(["plan", *WORDS, *large]) == 2
    said = capsys.readouterr()
    assert "memory" in said.out
    assert "micro batch 512 needs about" in said.err
    assert "Write trainer.micro_batch_size=" in said.err
    assert "The disk is not enough" in said.err
    assert "Write trainer.save_total_limit=1" in said.err
    monkeypatch.setattr(memory_module, "available_memory", lambda: 1e6)
    assert main(["plan", *WORDS]) == 2
    assert "Write patch=[gradient_checkpointing], or a trainer.max_seq_len below 64" in capsys.readouterr().err


@pytest.mark.usefixtures("rows")
def test_measured_beside_the_prediction(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On a CPU: the micro batch that is planned, in a process of its own. On a GPU: tests/gpu/test_memory_on_gpu.py."""
    assert main(["plan", *WORDS, "plan.measure=true", "run_dir=run"]) == 0
    said = capsys.readouterr().out
    assert "at the peak, by two steps on the longest batch: the prediction is" in said
    memory = json.loads(Path("run/plan.json").read_text())["memory"]
    found = memory["measured"]
    assert found["tried"] == {"2": found["peak"]}
    assert found["largest"] == 2
    assert found["limit"] == memory["available"]
    assert 5 * 2**20 < found["peak"] < 200 * 2**20
    assert planned(capsys)["memory"]["measured"] is None
    assert [file.name for file in Path("run").iterdir()] == ["plan.json"]


def test_measured_too_large(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The prediction says that it fits; what is measured counts."""
    monkeypatch.setattr(memory_module, "available_memory", lambda: 2.0**32)
    monkeypatch.setattr("dumbo.plan.measure.largest_measured", lambda *given, **named: (None, {2: None}, 2**20))
    assert main(["plan", "trainer.max_seq_len=64", "dataset.limit=50", "launch=single", "plan.measure=true"]) == 2
    said = capsys.readouterr()
    assert "measured  micro batch 2 does not fit, 1 MiB may be used" in said.out
    assert "micro batch 2 did not fit into 1 MiB, measured" in said.err
    assert "trainer.micro_batch_size=1" in said.err


def test_what_is_spread_cannot_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["launch=fsdp", "launch.num_processes=2", "trainer.global_batch_size=4", "dataset.limit=50"]
    assert main(["plan", *words, "plan.measure=true"]) == 2
    assert "one process cannot hold what they share" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("steps", "every", "limit", "evaluates", "kept", "at_once"),
    [
        (100, None, 2, True, 1, 1),  # the last step alone
        (100, 10, 2, False, 2, 3),  # a new one is whole before an old one goes
        (100, 10, 2, True, 3, 4),  # and the best one
        (10, 10, 2, True, 1, 1),
        (25, 10, 4, True, 3, 3),  # steps 10, 20 and 25, all of them kept
    ],
)
def test_checkpoints_on_the_disk(
    steps: int, every: int | None, limit: int, evaluates: bool, kept: int, at_once: int
) -> None:
    import torch

    model = torch.nn.Linear(10, 10, bias=False)  # 400 bytes
    trainer = SimpleNamespace(save_every=every, save_total_limit=limit)
    found = disk(model, None, 800, trainer, steps, evaluates, Path("not/there"))
    assert (found.model, found.checkpoint, found.kept) == (400, 1200, kept)
    assert found.needed == at_once * 1200 + 400
    assert found.free is not None


def test_words_for_numbers() -> None:
    assert [size(n) for n in (2048, 3 * 2**20, 1.5 * 2**30, 12 * 2**30)] == ["2 KiB", "3 MiB", "1.5 GiB", "12 GiB"]
    assert [duration(n) for n in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_planned(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dumbo.plan.plan.made", lambda *arguments: pytest.fail("it was planned"))
    Path("file").write_text("")
    assert main(["plan", "run_dir=file/here"]) == 2
    assert "run_dir: the folder file/here cannot be written" in capsys.readouterr().err


@pytest.mark.usefixtures("rows")
def test_master_weights_where_the_arithmetic_is_float32(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the run would say it."""
    monkeypatch.setattr("dumbo.model.dtype.bf16_in_hardware", lambda: False)
    assert main(["plan", *WORDS, "trainer.master_weights=true"]) == 2
    assert "trainer.master_weights is for bf16, and the arithmetic here is fp32" in capsys.readouterr().err
