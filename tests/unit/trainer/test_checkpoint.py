"""Checkpoints: complete or absent, verified when read, rotated, and never a pickle that runs code."""

from __future__ import annotations

import errno
import json
import os
import pickletools
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of

from dumbo.errors import RunFailed
from dumbo.trainer import manifest
from dumbo.trainer.checkpoint import BadCheckpoint, Checkpoints
from dumbo.trainer.manifest import verify


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(range(256)) * 40)
    (folder / "deep").mkdir()
    (folder / "deep" / "state").write_text("state")


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def newest(checkpoints: Checkpoints) -> tuple[str | None, list[str]]:
    said: list[str] = []
    found = checkpoints.newest_good(said.append)
    return found.name if found else None, said


def test_complete_and_verified(checkpoints: Checkpoints) -> None:
    folder = checkpoints.save(7, write, None)
    assert folder.name == "step-000007"
    assert verify(folder) is None
    assert set(json.loads((folder / manifest.FILE).read_text())) == {"weights", "deep/state"}
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000007"]


def _truncate(folder: Path) -> None:
    os.truncate(folder / "weights", 100)


def _flip(folder: Path) -> None:
    content = bytearray((folder / "weights").read_bytes())
    content[5000] ^= 1
    (folder / "weights").write_bytes(content)


def _lose(folder: Path) -> None:
    (folder / "deep" / "state").unlink()


def _half(folder: Path) -> None:
    (folder / manifest.FILE).unlink()


def _garble(folder: Path) -> None:
    (folder / manifest.FILE).write_text('{"weights": {"byt')


def _emptied(folder: Path) -> None:
    (folder / manifest.FILE).write_text("[]")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_truncate, "weights has 100 bytes, not 10,240"), (_flip, "weights is corrupt"), (_lose, "lacks deep/state"),
        (_half, "no readable manifest.json"), (_garble, "no readable manifest.json"), (_emptied, "no readable manifest.json"),
    ],
)  # fmt: skip
def test_a_bad_one_is_named_and_the_one_before_it_taken(checkpoints: Checkpoints, harm: Any, told: str) -> None:
    checkpoints.save(1, write, None)
    harm(checkpoints.save(2, write, None))
    name, said = newest(checkpoints)
    assert name == "step-000001"
    assert len(said) == 1
    assert told in said[0]
    assert said[0].startswith("step-000002")


def test_all_bad(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        _flip(checkpoints.save(step, write, None))
    before = {path: path.read_bytes() for path in checkpoints.folder.rglob("*") if path.is_file()}
    with pytest.raises(BadCheckpoint, match=r"(?s)step-000002.*step-000001.*Nothing was changed") as raised:
        checkpoints.newest_good(lambda said: None)
    assert raised.value.exit_code == 1
    assert before == {path: path.read_bytes() for path in checkpoints.folder.rglob("*") if path.is_file()}


def test_none_yet(checkpoints: Checkpoints) -> None:
    assert newest(checkpoints) == (None, [])


@pytest.mark.parametrize(
    ("best", "kept"), [(None, [5, 6]), (2, [2, 5, 6]), (5, [5, 6]), (6, [5, 6]), (1, [1, 5, 6])]
)  # fmt: skip
def test_rotation_keeps_the_last_and_the_best(checkpoints: Checkpoints, best: int | None, kept: list[int]) -> None:
    for step in range(1, 7):
        checkpoints.save(step, write, best)
    assert checkpoints.steps() == kept
    assert not list(checkpoints.folder.glob(".*"))


def test_a_corrupt_one_is_replaced(checkpoints: Checkpoints) -> None:
    _flip(checkpoints.save(3, write, None))
    assert verify(checkpoints.save(3, write, None)) is None
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000003"]


def test_a_failed_write_leaves_the_others(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, write, None)

    def fails(folder: Path) -> None:
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        RunFailed,
        match=r"(?s)step-000002 could not be written: the disk is full.*intact: step-000001.*Free some space.*resume=",
    ):
        checkpoints.save(2, fails, None)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000001"]
    assert newest(checkpoints) == ("step-000001", [])


def test_another_failure_is_not_called_a_full_disk(checkpoints: Checkpoints) -> None:
    def fails(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(RunFailed, match=r"PermissionError.*\n.*Mend that"):
        checkpoints.save(2, fails, None)


KILLED = """
import os, signal, sys
from pathlib import Path
from dumbo.trainer import checkpoint
from dumbo.trainer.checkpoint import Checkpoints

after = int(sys.argv[1])
calls = 0
def die(event, args):
    global calls
    if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        calls += 1
        if calls == after:
            os.kill(os.getpid(), signal.SIGKILL)

def write(folder):
    for name in ("a", "b"):
        (folder / name).write_bytes(b"x" * 10000)

checkpoints = Checkpoints(Path("checkpoints"), keep=1)
checkpoints.save(1, write, None)
sys.addaudithook(die)
checkpoints.save(2, write, None)
print("whole")
"""


def test_killed_at_every_moment_of_saving(tmp_path: Path) -> None:
    """kill -9 before each file operation of a save: there is always a good checkpoint, the old one or the new."""
    seen = set()
    for after in range(1, 60):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(after)], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
        name, said = newest(checkpoints)
        assert name in ("step-000001", "step-000002"), (after, name)
        assert not said, "one that looked whole was not"
        seen.add(name)
        checkpoints.clean()
        assert not list(checkpoints.folder.glob(".*"))
        shutil.rmtree(tmp_path / "checkpoints")
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    else:
        pytest.fail("the save never ended")
    assert seen == {"step-000001", "step-000002"}


# ---- a real training's checkpoint ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 24, longest=80)


@pytest.fixture(scope="module")
def trained(rows: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    small_run(folder / "run", splits_of(folder, rows[:16], rows[16:]), save_every=2, max_steps=4, packing=False)
    return folder / "run"


ALLOWED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch FloatStorage", "torch LongStorage", "torch ByteStorage",
           "torch IntStorage", "torch.storage UntypedStorage", "torch.serialization _get_layout"}  # fmt: skip


def test_nothing_in_it_runs_code_when_loaded(trained: Path) -> None:
    folder = trained / "checkpoints" / "step-000004"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert "training_args.bin" not in names
    assert {
        "model.safetensors",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
        "counters.json",
    } <= set(names)
    for name in names:
        path = folder / name
        if zipfile.is_zipfile(path):
            import numpy as np

            with torch.serialization.safe_globals(
                [np._core.multiarray._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32))]
            ):
                torch.load(path, weights_only=True)
        else:
            assert path.suffix in (".json", ".safetensors", ".jinja"), name


def test_every_load_of_resuming_is_weights_only(rows: list[Document], tmp_path: Path, monkeypatch: Any) -> None:
    shared = splits_of(tmp_path, rows)
    small_run(tmp_path / "run", shared, save_every=2, max_steps=4)
    loads: list[tuple[str, Any]] = []
    load = torch.load

    def noted(file: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append((Path(str(file)).name, kwargs.get("weights_only")))
        return load(file, *args, **kwargs)

    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-000004")
    monkeypatch.setattr(torch, "load", noted)
    small_run(tmp_path / "run", shared, save_every=2, max_steps=4, resuming=True)
    assert {name for name, _ in loads} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert all(only is True for _, only in loads), loads


def test_opcodes_would_show_a_foreign_pickle(trained: Path) -> None:
    """What optimizer.pt names is torch's and collections' alone."""
    folder = trained / "checkpoints" / "step-000004"
    with zipfile.ZipFile(folder / "optimizer.pt") as archive:
        data = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    named = {arg for opcode, arg, _ in pickletools.genops(data) if opcode.name == "GLOBAL"}
    assert named <= ALLOWED, named - ALLOWED


def test_the_state_is_that_of_its_step(trained: Path) -> None:
    from safetensors.torch import load_file

    for step in (2, 4):
        folder = trained / "checkpoints" / f"step-{step:06d}"
        assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == step
        assert verify(folder) is None
    last = load_file(trained / "checkpoints" / "step-000004" / "model.safetensors")
    final = load_file(trained / "model" / "model.safetensors")
    assert last.keys() == final.keys()
    assert all(torch.equal(last[name], final[name]) for name in last)


def test_best_and_last_are_kept(rows: list[Document], tmp_path: Path) -> None:
    """The best saved step stays, though it is not among the last; load_best_at_end puts it into model/."""
    from safetensors.torch import load_file

    shared = splits_of(tmp_path, rows[:6], rows[16:])
    run = small_run(tmp_path / "run", shared, packing=False, lr=0.1, lr_scheduler="constant", max_steps=24, eval_every=3, save_every=4,
                    save_total_limit=1, load_best_at_end=True, model=model_of())  # fmt: skip
    evaluated = {
        row["step"]: row["eval_loss"] for row in run.rows if "eval_loss" in row and row["step"] % 4 == 0 and row["step"]
    }
    best = min(evaluated, key=lambda step: evaluated[step])
    assert best < 20, "this training was to overfit; its best step is near the end"
    kept = sorted(int(path.name[5:]) for path in (run.path / "checkpoints").iterdir())
    assert kept == [best, 24]
    weights, chosen = (
        load_file(path / "model.safetensors")
        for path in (run.path / "model", run.path / "checkpoints" / f"step-{best:06d}")
    )
    assert all(torch.equal(weights[name], chosen[name]) for name in chosen)
    assert run.metrics["eval_loss"] == evaluated[best]
    assert f"step {best}" in run.said


def test_what_was_passed_over_does_not_push_out_what_is_new(tmp_path: Path) -> None:
    """Step 100 is corrupt, the run goes on from 50 and saves 60: with one kept, it is 60, and it is found."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    for step in (50, 100):
        checkpoints.save(step, lambda folder: (folder / "state").write_text("x"), best_step=50)  # type: ignore[arg-type]
    (checkpoints.path(100) / "state").write_text("y")
    assert checkpoints.newest_good(lambda text: None) == checkpoints.path(50)
    checkpoints.save(60, lambda folder: (folder / "state").write_text("z"), best_step=None)  # type: ignore[arg-type]
    assert checkpoints.steps() == [60]
    assert checkpoints.newest_good(lambda text: None) == checkpoints.path(60)
