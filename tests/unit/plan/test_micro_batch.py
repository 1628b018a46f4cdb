"""`trainer.micro_batch_size=auto`: what is tried, what is chosen, what is kept."""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dumbo.cli import main
from dumbo.errors import UserError
from dumbo.launch.world import World
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.plan import memory as memory_module
from dumbo.plan.circumstances import changes, circumstances
from dumbo.plan.measure import Task, bisected, child_environment, largest_measured
from dumbo.plan.micro_batch import Choice, choose, settled, sizes

QUICK = ("dataset.limit=100", "trainer.max_seq_len=64", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.max_steps=2",
         "trainer.eval_at_start=false", "trainer.eval_every=null", "verify.mode=off", "launch=single")  # fmt: skip


def test_sizes_keep_the_global_batch() -> None:
    assert sizes(24, 2) == [1, 2, 3, 4, 6, 12]
    with pytest.raises(UserError, match="does not divide"):
        sizes(3, 2)


@pytest.mark.parametrize("most", [0, 1, 2, 5, 12, 100])
def test_bisection_finds_the_largest(most: int) -> None:
    found, tried = bisected([1, 2, 3, 4, 6, 12], lambda size: size * 10 if size <= most else None)
    assert found == max((size for size in (1, 2, 3, 4, 6, 12) if size <= most), default=None)
    assert len(tried) <= 3
    assert all((peak is None) == (size > most) for size, peak in tried.items())


@pytest.mark.parametrize("first", [1, 4, 12])
@pytest.mark.parametrize("most", [0, 2, 5, 100])
def test_a_size_is_tried_in_any_case(first: int, most: int) -> None:
    found, tried = bisected([1, 2, 3, 4, 6, 12], lambda size: size if size <= most else None, first)
    assert found == max((size for size in (1, 2, 3, 4, 6, 12) if size <= most), default=None)
    assert next(iter(tried)) == first


def test_a_child_is_nobodys_rank() -> None:
    own = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "a",
           "ACCELERATE_USE_FSDP": "1", "OMPI_COMM_WORLD_RANK": "1", "PATH": "p", "CUDA_VISIBLE_DEVICES": "3,1"}  # fmt: skip
    assert child_environment(own) == {"PATH": "p", "CUDA_VISIBLE_DEVICES": "3"}
    assert child_environment({"CUDA_VISIBLE_DEVICES": ""})["CUDA_VISIBLE_DEVICES"] == ""


def test_chosen_recorded_and_kept_on_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for 4 of 8; a resumed run takes 4 again, whatever is free by then."""
    free = {"bytes": 10**12}
    monkeypatch.setattr(memory_module, "available_memory", lambda: free["bytes"])
    words = ("trainer.micro_batch_size=auto", "trainer.global_batch_size=8", "trainer.save_every=1", "run_dir=run")
    assert main(["plan", *QUICK, *words, "plan.format=json"]) == 0
    tried = json.loads(capsys.readouterr().out)["batch"]["chosen"]["tried"]
    assert tried.keys() == {"2", "4", "8"}
    free["bytes"] = int((tried["4"] + tried["8"]) / 2 / 0.8)
    assert main([*QUICK, *words]) == 0
    facts = json.loads(Path("run/run.json").read_text())
    assert facts["batch"] == {"global": 8, "micro": 4, "ranks": 1, "accumulation": 2}
    assert facts["micro_batch"]["how"] == "predicted"
    assert "micro batch 4, predicted" in capsys.readouterr().out
    free["bytes"] = 10**12
    assert main(["resume=run", "trainer.max_steps=3"]) == 0
    assert json.loads(Path("run/run.json").read_text())["batch"]["micro"] == 4
    capsys.readouterr()
    assert main(["resume=run", "trainer.max_steps=4", "patch=[gradient_checkpointing]"]) == 0
    assert "the micro batch is chosen again: patch.gradient_checkpointing is new" in capsys.readouterr().out
    assert json.loads(Path("run/run.json").read_text())["batch"]["micro"] == 8


def test_nothing_fits(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "available_memory", lambda: 2.0**20)
    assert main([*QUICK, "trainer.micro_batch_size=auto"]) == 2
    said = capsys.readouterr().err
    assert "not enough for a single example" in said
    assert "patch=[gradient_checkpointing], or a trainer.max_seq_len below 64" in said
    some = ["patch=[gradient_checkpointing]", "patch.gradient_checkpointing.layers=1"]
    assert main([*QUICK, *some, "trainer.micro_batch_size=auto"]) == 2
    assert (
        "Write patch.gradient_checkpointing.layers=null, or a trainer.max_seq_len below 64" in capsys.readouterr().err
    )


def test_ranks_of_one_machine_share_its_memory(experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "available_memory", lambda: 8e9)
    plugins, tokenizer, data = experiment(
        "launch=ddp", "launch.num_processes=4", "trainer.global_batch_size=8", "trainer.micro_batch_size=auto"
    )
    chosen = choose(plugins, tokenizer, data, 4, Console(io.StringIO()))
    assert chosen.limit == int(0.8 * 2e9)
    assert Choice.of_facts(json.loads(json.dumps(chosen.facts()))) == chosen


def test_a_settled_batch_is_refused_as_a_typed_one(experiment: Callable[..., Any], tmp_path: Path) -> None:
    """What run.json says is for other ranks now: chosen anew. What is left is held against the same rules."""
    plugins, tokenizer, data = experiment("trainer.micro_batch_size=auto", "trainer.global_batch_size=6")
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0, world=World())
    of = circumstances(plugins)
    run.update(micro_batch=Choice(3, 1, 6, "measured", {3: 1}, None, of).facts())
    assert settled(plugins, run, tokenizer, data).trainer.batch(1).accumulation == 2
    run.update(micro_batch=Choice(1, 2, 6, "measured", {1: 1}, None, of).facts())
    assert settled(plugins, run, tokenizer, data).trainer.micro_batch_size == 6


OF = {
    "device": "cpu", "device_memory_gib": 64.0, "precision": "fp32", "max_seq_len": 128, "patch.lora": "f00",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": "NVIDIA H200"}, "device was cpu, is NVIDIA H200"),
        ({"device_memory_gib": 32.0}, "device_memory_gib was 64.0, is 32.0"),
        ({"precision": "bf16"}, "precision was fp32, is bf16"),
        ({"max_seq_len": 64}, "max_seq_len was 128, is 64"),
        ({"patch.lora": "ba7"}, "patch.lora has other options"),
        ({"patch.gradient_checkpointing": "f00"}, "patch.gradient_checkpointing is new"),
        ({"patch.lora": None}, "patch.lora is left out"),
        ({}, ""),
    ],
)
def test_what_has_changed(changed: dict[str, Any], said: str) -> None:
    assert changes(OF, {**OF, **changed}) == said


def test_another_device_is_chosen_for_anew(experiment: Callable[..., Any], tmp_path: Path) -> None:
    plugins, tokenizer, data = experiment("trainer.micro_batch_size=auto", "trainer.global_batch_size=6", "patch=lora")
    of = circumstances(plugins)
    heard = io.StringIO()
    run = RunDir(tmp_path, Console(heard), 0.0, world=World())
    for recorded in ({**of, "device": "NVIDIA H200"}, {}):
        run.update(micro_batch=Choice(3, 1, 6, "measured", {3: 1}, None, recorded).facts())
        assert settled(plugins, run, tokenizer, data).trainer.micro_batch_size == 6
        assert json.loads((tmp_path / "run.json").read_text())["micro_batch"]["of"] == of
    said = " ".join(heard.getvalue().split())
    assert "the micro batch is chosen again: device was NVIDIA H200, is cpu" in said
    assert "is not recorded" in said
    before = heard.getvalue()
    assert settled(plugins, run, tokenizer, data).trainer.micro_batch_size == 6
    assert heard.getvalue() == before, "nothing has changed since"


def test_a_peak_is_measured(experiment: Callable[..., Any], tmp_path: Path) -> None:
    """In this process: two steps and an evaluation of each size. More tokens take more."""
    from dumbo.plan.probe import Probe

    gc.collect()
    with suppress(
        AttributeError
    ):  # glibc's: what earlier tests freed and it kept would be taken again, and not counted
        ctypes.CDLL(None).malloc_trim(0)
    plugins, _, data = experiment(
        "trainer.global_batch_size=512", "trainer.micro_batch_size=auto", "trainer.max_seq_len=64"
    )
    probe = Probe.load(Task(plugins, data, [1, 128], 1), tmp_path)
    small, large = probe.peak(1), probe.peak(128)
    assert large - small > 50 * 2**20


@pytest.mark.full
def test_measured_in_children(experiment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes under a typed limit, within the environment of a rank: the largest that stays below it is found."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    plugins, _, data = experiment("trainer.global_batch_size=512", "trainer.micro_batch_size=auto")
    candidates = [1, 64, 512]
    micro, tried, limit = largest_measured(plugins, data, candidates, 1)
    assert (micro, limit) == (512, None)
    assert tried[64] is not None
    assert tried[512] is not None
    between = (tried[64] + tried[512]) // 2
    micro, tried, limit = largest_measured(plugins, data, candidates, 1, limit=between)
    assert (micro, limit) == (64, between)
    assert tried[512] is None
    assert largest_measured(plugins, data, candidates, 1, limit=2**20)[0] is None
    assert os.environ["RANK"] == "1"
