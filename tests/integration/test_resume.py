"""A run that is killed, stopped and gone on with is the run that nothing stopped: to the last bit, on the CPU."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from processes import Command, curve, facts_of, rows_of, steps_logged
from safetensors.torch import load_file

import dumbo

STEPS = 24
FULL = ("trainer.lr=3e-3", "trainer.micro_batch_size=1")
LORA = ("patch=[lora]", "patch.lora.rank=4", "patch.lora.dropout=0.1", "trainer.lr=1e-2")
COMMON = (
    "trainer.num_samples=1", "trainer.num_answers=0", "trainer.max_new_tokens=4", f"trainer.max_steps={STEPS}", "trainer.save_every=5",
    "trainer.eval_every=7", "trainer.warmup_steps=4", "trainer.max_seq_len=128", "trainer.packing=false", "trainer.global_batch_size=4",
    "trainer.num_epochs=2",
)  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next((run / "model").glob("*.safetensors")))


def assert_same(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for key in (
        "steps",
        "train_loss",
        "eval_loss",
        "tokens",
        "trained_tokens",
        "documents",
        "best_eval_loss",
        "first_loss",
    ):
        assert facts_of(one)["metrics"][key] == facts_of(other)["metrics"][key], key


def run(folder: Path, *words: str) -> Path:
    """A run from start to end in `folder`/run."""
    command = Command(folder, *COMMON, *words, "run_dir=run")
    assert command.wait() == 0, command.said()
    return folder / "run"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole"), *FULL)


@pytest.fixture(scope="module")
def whole_lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("whole-lora"), *LORA)


def killed_again_and_again(folder: Path, kills: int, seed: int, *words: str) -> tuple[Path, list[int]]:
    """Starts with resume=auto, kills -9 at random moments of training, saving and ending; at last lets it end."""
    moments, path, died = random.Random(seed), folder / "run", []
    began = time.monotonic()
    for _ in range(kills):
        command = Command(folder, *COMMON, *words, "run_dir=run", "resume=auto")
        before = steps_logged(path)
        aim = moments.uniform(before, STEPS + 1)
        while command.alive and steps_logged(path) < min(aim, STEPS) and time.monotonic() < began + 300:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.15))
        command.kill(signal.SIGKILL)
        code = command.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL, command.said()
        died.append(steps_logged(path))
    command = Command(folder, *COMMON, *words, "run_dir=run", "resume=auto")
    assert command.wait() == 0, command.said()
    return path, died


def test_killed_at_random_moments(whole: Path, tmp_path: Path) -> None:
    path, died = killed_again_and_again(tmp_path, 2, 3, *FULL)
    assert died, "nothing was killed in time"
    assert_same(path, whole)
    assert facts_of(path)["status"] == "finished"


def test_killed_with_adapters(whole_lora: Path, tmp_path: Path) -> None:
    """Dropout's random numbers go on too."""
    path, died = killed_again_and_again(tmp_path, 1, 4, *LORA)
    assert died, "nothing was killed in time"
    assert_same(path, whole_lora)


def test_killed_while_saving_beside(whole: Path, tmp_path: Path) -> None:
    """Checkpoints are complete or absent also where a thread writes them while training goes on."""
    path, died = killed_again_and_again(tmp_path, 2, 5, *FULL, "trainer.async_save=true")
    assert died, "nothing was killed in time"
    assert_same(path, whole)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2))
def test_killed_twenty_times(whole: Path, whole_lora: Path, seed: int, tmp_path: Path) -> None:
    for number in range(5):
        words, wanted = ((FULL, whole), (LORA, whole_lora))[(seed + number) % 2]
        path, _ = killed_again_and_again(tmp_path / str(number), 4, 100 * seed + number, *words)
        assert_same(path, wanted)


def interrupted(whole: Path, folder: Path, step: int) -> Path:
    """The run as it was on the disk when it died after `step` was saved, and a little further."""
    path = folder / "run"
    shutil.copytree(whole, path)
    shutil.rmtree(path / "model")
    for checkpoint in (path / "checkpoints").iterdir():
        if int(checkpoint.name[5:]) > step:
            shutil.rmtree(checkpoint)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= step + 1) + '{"step": 2'
    )
    facts = facts_of(path) | {"status": "running", "metrics": {}, "run_dir": str(path)}
    (path / "run.json").write_text(json.dumps(facts))
    return path


def resumed(folder: Path, *words: str) -> Command:
    command = Command(folder, *words)
    assert command.wait() == 0, command.said()
    return command


def test_resume_names_a_folder(whole: Path, tmp_path: Path) -> None:
    """resume=FOLDER alone is the command the stopped run printed: it brings its own config."""
    path = interrupted(whole, tmp_path, 20)
    command = resumed(tmp_path, "resume=run", *COMMON, *FULL)
    assert "resume    from step-000020" in command.said()
    assert_same(path, whole)


def test_killed_after_the_last_step(whole: Path, tmp_path: Path) -> None:
    """Not one step more is trained; the model and the numbers are written."""
    path = interrupted(whole, tmp_path, STEPS)
    command = resumed(tmp_path, "resume=auto", "run_dir=run", *COMMON, *FULL)
    assert f"from step-{STEPS:06d}, its last step" in command.said()
    assert_same(path, whole)


def test_a_finished_run_is_left_alone(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = {
        p: p.read_bytes()
        for p in (tmp_path / "run").rglob("*")
        if p.is_file() and p.suffix in (".safetensors", ".jsonl")
    }
    command = resumed(tmp_path, "resume=auto", "run_dir=run", *COMMON, *FULL)
    assert "finished already" in command.said()
    assert before == {p: p.read_bytes() for p in before}


def test_more_steps(whole: Path, tmp_path: Path) -> None:
    """resume=FOLDER with more steps typed goes on to them, and says what changed."""
    path = interrupted(whole, tmp_path, 20)
    more = [word for word in COMMON if "max_steps" not in word]
    command = resumed(tmp_path, "resume=run", *more, *FULL, "trainer.max_steps=30")
    assert "trainer.max_steps: 24 -> 30" in command.said()
    rows = [row for row in rows_of(path) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 31))
    assert curve(path)[:20] == curve(whole)[:20]
    assert facts_of(path)["metrics"]["steps"] == 30


@pytest.mark.parametrize("at", [20, STEPS])
def test_more_steps_have_the_longer_schedule_from_the_first_one_on(at: int, whole: Path, tmp_path: Path) -> None:
    """A cosine of 24 steps ends at 0: the 25th of 30 is not to be trained with that. The rates are computed here."""
    path = interrupted(whole, tmp_path, at)
    more = [word for word in COMMON if "max_steps" not in word]
    resumed(tmp_path, "resume=run", *more, *FULL, "trainer.max_steps=30")
    found = {row["step"]: row["lr"] for row in rows_of(path) if "loss" in row}
    for step in range(at + 1, 31):
        wanted = 3e-3 * 0.5 * (1 + math.cos(math.pi * (step - 1 - 4) / (30 - 4)))
        assert found[step] == pytest.approx(wanted, rel=1e-6), step


def test_fewer_steps_than_it_has(whole: Path, tmp_path: Path) -> None:
    """Said, and nothing that stands in the run's folder changes."""
    path = interrupted(whole, tmp_path, 20)
    before = {name: (path / name).read_bytes() for name in ("config.yaml", "run.json", "metrics.jsonl")}
    fewer = [word for word in COMMON if "max_steps" not in word]
    command = Command(tmp_path, "resume=run", *fewer, *FULL, "trainer.max_steps=10")
    assert command.wait() == 2, command.said()
    assert "the run is at step 20, past trainer.max_steps=10" in command.said()
    assert before == {name: (path / name).read_bytes() for name in before}


@pytest.mark.parametrize("packing", ["true", "false"])
def test_fewer_epochs_than_it_has(packing: str, tmp_path: Path) -> None:
    """How many steps they are is known when the data is: the finished run stays finished, with its config."""
    words = [
        word for word in COMMON if not word.startswith(("trainer.max_steps", "trainer.num_epochs", "trainer.packing"))
    ]
    words += [f"trainer.packing={packing}", "dataset.limit=40", "trainer.lr=3e-3"]
    first = Command(tmp_path, *words, "trainer.num_epochs=3", "run_dir=run")
    assert first.wait() == 0, first.said()
    path = tmp_path / "run"
    before = {
        name: (path / name).read_bytes() for name in ("config.yaml", "overrides.yaml", "run.json", "metrics.jsonl")
    }
    fewer = Command(tmp_path, "resume=run", "trainer.num_epochs=1")
    assert fewer.wait() == 2, fewer.said()
    assert "(trainer.num_epochs=1)" in fewer.said()
    assert "past its new end at " in fewer.said()
    assert before == {name: (path / name).read_bytes() for name in before}


def test_ended_before_anything_was_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While its versions were asked for: what begins again with resume=auto is a run like any other."""
    few = [*COMMON, "trainer.max_steps=1", "dataset.limit=20", "verify.mode=off", "resume=auto"]
    with monkeypatch.context() as patched:
        patched.chdir(tmp_path)
        patched.setattr("dumbo.outputs.claim.git_state", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dumbo.run(few)
    monkeypatch.chdir(tmp_path)
    assert dumbo.run(few)["steps"] == 1


def test_changed_save_every_takes_effect(whole: Path, tmp_path: Path) -> None:
    """transformers would go on with the intervals that the checkpoint was saved with."""
    path = interrupted(whole, tmp_path, 20)
    other = [word for word in COMMON if "save_every" not in word]
    resumed(tmp_path, "resume=run", *other, *FULL, "trainer.save_every=1", "trainer.save_total_limit=9")
    kept = sorted(int(checkpoint.name[5:]) for checkpoint in (path / "checkpoints").iterdir())
    assert kept[-4:] == [21, 22, 23, 24]


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_taken(whole: Path, tmp_path: Path) -> None:
    path = interrupted(whole, tmp_path, STEPS)
    newest = path / "checkpoints" / f"step-{STEPS:06d}" / "optimizer.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    newest.write_bytes(content)
    command = resumed(tmp_path, "resume=auto", "run_dir=run", *COMMON, *FULL)
    assert "step-000024: optimizer.pt is corrupt" in command.said()
    assert "resume    from step-000020" in command.said()
    assert_same(path, whole)


def test_all_checkpoints_bad(whole: Path, tmp_path: Path) -> None:
    path = interrupted(whole, tmp_path, STEPS)
    for checkpoint in (path / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    before = (path / "metrics.jsonl").read_bytes()
    command = Command(tmp_path, "resume=auto", "run_dir=run", *COMMON, *FULL)
    assert command.wait() == 1, command.said()
    assert "No checkpoint of this run is whole" in command.said()
    assert (path / "metrics.jsonl").read_bytes() == before
    assert facts_of(path)["status"] == "failed"


def test_load_best_after_resuming(tmp_path: Path, whole: Path) -> None:
    """The best step before the interruption is still known after it."""
    words = (*COMMON, *FULL, "trainer.load_best_at_end=true", "trainer.save_total_limit=1", "trainer.lr=0.05",
             "trainer.lr_scheduler=constant", "dataset.limit=24")  # fmt: skip
    one = Command(tmp_path / "one", *words, "run_dir=run")
    assert one.wait() == 0, one.said()
    two = Command(tmp_path / "two", *words, "run_dir=run")
    path = tmp_path / "two" / "run"
    two.until(lambda: steps_logged(path) >= 17)
    two.kill(signal.SIGKILL)
    two.wait()
    again = Command(tmp_path / "two", *words, "run_dir=run", "resume=auto")
    assert again.wait() == 0, again.said()
    assert_same(path, tmp_path / "one" / "run")
