"""Memory that runs out on one of several ranks: all of them start again from the last checkpoint, with half the micro batch.

Gloo ranks on this machine; what fails is the plugin's (`tests/plugins/narrow.py`), everything after it is real.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ranks import curve, environment, facts, torchrun

PLUGINS = Path(__file__).resolve().parents[1] / "plugins"
WORDS = (
    "model=tiny", f"--config-dir={PLUGINS}", "patch=[narrow]", "dataset.limit=64", "trainer.packing=false",
    "trainer.global_batch_size=8", "trainer.micro_batch_size=4", "trainer.max_seq_len=64", "trainer.max_steps=5",
    "trainer.save_every=2", "trainer.eval_every=2", "trainer.eval_at_start=false", "trainer.num_answers=0",
    "trainer.num_samples=0", "verify.mode=off",
)  # fmt: skip


def run(folder: Path, *words: str, code: int = 0) -> str:
    """`python -m dumbo` with two ranks, in run_dir=FOLDER/run; what it said."""
    command = [sys.executable, "-m", "dumbo", *WORDS, f"run_dir={folder / 'run'}", "launch.num_processes=2", *words]
    done = subprocess.run(
        command, env=environment(), cwd=folder, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def same(run: Path, whole: Path, rel: float = 1e-5) -> None:
    """The same losses, norms and held-out losses at the same steps."""
    found, wanted = (
        [number for point in curve(each) for number in point if number is not None] for each in (run, whole)
    )
    assert found == pytest.approx(wanted, rel=rel)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing fails."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "launch=ddp", "patch.narrow.rows=4")
    return folder / "run"


@pytest.mark.full
@pytest.mark.parametrize(
    ("launch", "where", "after", "rank", "step", "place"),
    [
        ("ddp", "forward", 3, 1, 4, "the last checkpoint"),
        ("ddp", "backward", 1, 1, 2, "the start"),
        ("ddp", "step", 3, 0, 4, "the last checkpoint"),
        ("ddp", "evaluation", 3, 1, 4, "the last checkpoint"),
        ("fsdp", "forward", 3, 1, 4, "the last checkpoint"),
        ("fsdp", "backward", 3, "null", 4, "the last checkpoint"),
    ],
)
def test_all_ranks_start_again(
    tmp_path: Path, whole: Path, launch: str, where: str, after: int, rank: int, step: int, place: str
) -> None:
    full = [f"patch.narrow.{key}={value}" for key, value in (("where", where), ("after", after), ("rank", rank))]
    said = run(tmp_path, f"launch={launch}", *full)
    found = facts(tmp_path / "run")
    assert found["status"] == "finished"
    assert found["memory_halvings"] == [{"step": step, "from": 4, "to": 2, "asked": 4}]
    assert found["batch"] == {"global": 8, "micro": 2, "ranks": 2, "accumulation": 2}
    assert f"once more from {place}, global batch 8 = micro 2 x ranks 2 x accumulation 2" in said
    same(tmp_path / "run", whole)


@pytest.mark.full
def test_masters_go_on_with_more_micro_batches(tmp_path: Path) -> None:
    """DDP adds up one micro batch a step in bf16; after it was halved there are two, added up in float32 beside it."""
    masters = ("trainer.master_weights=true", "trainer.precision=bf16", "trainer.lr=1e-3", "trainer.warmup_steps=1")
    said = run(tmp_path, "launch=ddp", *masters, "patch.narrow.after=3", "patch.narrow.rank=1")
    found = facts(tmp_path / "run")
    assert found["parallel"] == "DDP"
    assert found["memory_halvings"] == [{"step": 4, "from": 4, "to": 2, "asked": 4}]
    assert "once more from the last checkpoint, global batch 8 = micro 2 x ranks 2 x accumulation 2" in said
    for name, micro, ranks in (("small", 2, 2), ("alone", 4, 1)):
        (tmp_path / name).mkdir()
        words = [f"launch.num_processes={ranks}", f"trainer.micro_batch_size={micro}", "patch.narrow.rows=4"]
        run(tmp_path / name, "launch=ddp", *masters, *words)
        assert facts(tmp_path / name / "run")["batch"]["accumulation"] == 2
        same(tmp_path / "run", tmp_path / name / "run", rel=1e-2)


@pytest.mark.full
def test_at_micro_batch_1_all_ends(tmp_path: Path) -> None:
    said = run(tmp_path, "launch=ddp", "patch.narrow.rows=0", "patch.narrow.rank=1", code=1)
    assert [(one["from"], one["to"]) for one in facts(tmp_path / "run")["memory_halvings"]] == [(4, 2), (2, 1)]
    assert "with a single example in a micro batch" in said
    assert "gradient_checkpointing" in said
    assert facts(tmp_path / "run")["status"] == "failed"


@pytest.mark.full
def test_one_rank_of_torchruns_says_what_to_write(tmp_path: Path, whole: Path) -> None:
    done = torchrun(
        2, "-m", "dumbo", *WORDS, "launch=ddp", f"run_dir={tmp_path / 'run'}", "patch.narrow.rank=1", "patch.narrow.after=3",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode
    assert (
        "The memory ran out at step 4 with micro batch 4 (CUDA out of memory. Tried to allocate 2.00 GiB)."
        in done.stderr
    )
    assert "Start all processes again with resume=run trainer.micro_batch_size=2" in done.stderr
    again = torchrun(
        2, "-m", "dumbo", f"--config-dir={PLUGINS}", "resume=run", "trainer.micro_batch_size=2", cwd=tmp_path
    )
    assert again.returncode == 0, again.stdout + again.stderr
    same(tmp_path / "run", whole)


@pytest.mark.full
def test_one_rank_alone_starts_again_too(tmp_path: Path, whole: Path) -> None:
    """DDP is around its model, and remembers half a backward pass."""
    said = run(tmp_path, "launch=ddp", "launch.num_processes=1")
    assert "once more from the start, global batch 8 = micro 2 x ranks 1 x accumulation 4" in said
    same(tmp_path / "run", whole)


def test_an_ending_travels(tmp_path: Path) -> None:
    from dumbo.batch import Batch
    from dumbo.errors import MemoryFull
    from dumbo.launch.endings import cause, ending_of, endings

    full = MemoryFull("CUDA out of memory", 7, Batch.of(8, 4, 2), 4)
    ending_of(full).write(tmp_path, 1)
    ending_of(ConnectionError("Connection closed by peer")).write(tmp_path, 0)
    found = cause(endings(tmp_path), {})
    assert isinstance(found, MemoryFull)
    assert (found.text, found.step, found.batch, found.asked) == ("rank 1: CUDA out of memory", 7, full.batch, 4)
