"""`-m`: each job in a process of its own, a failing job does not end the sweep, names are safe, Ctrl-C ends it."""

from __future__ import annotations

import os
import signal
import textwrap
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import Command
from sweeps import NotStarted, facts, fork_the_worker

from dumbo.cli import main
from dumbo.command import parse
from dumbo.sweep.runner import Runner
from dumbo.sweep.typed import suffix

SHORT = (
    "model=tiny", "trainer.max_steps=1", "dataset.limit=16", "trainer.num_answers=0", "trainer.num_samples=0",
    "trainer.eval_every=null", "trainer.eval_at_start=false", "verify.mode=off",
)  # fmt: skip

LEAKY = """
    import os
    from dataclasses import dataclass
    from typing import ClassVar

    from dumbo.interfaces import Stage


    @dataclass(frozen=True, kw_only=True)
    class Leaky:
        \"\"\"Changes transformers for the whole process, as kernel patches do.\"\"\"

        stage: ClassVar[Stage] = Stage.KERNELS

        def apply(self, model):
            return model

        def evidence(self, model):
            import transformers

            before = getattr(transformers, "left_by_a_patch", None)
            transformers.left_by_a_patch = os.getpid()
            return f"process {os.getpid()} found {before}"


    @dataclass(frozen=True, kw_only=True)
    class Fails:
        stage: ClassVar[Stage] = Stage.MEMORY

        def apply(self, model):
            raise RuntimeError("this patch always fails")
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    folder = tmp_path / "my conf"  # a space: paths travel through two command lines
    (folder / "patch").mkdir(parents=True)
    (folder / "sweep_test_patches.py").write_text(textwrap.dedent(LEAKY))
    for name, cls in (("leaky", "Leaky"), ("fails", "Fails")):
        (folder / "patch" / f"{name}.yaml").write_text(f"# @package patch.{name}\n_target_: sweep_test_patches.{cls}\n")
    return folder


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> NotStarted:
    """What would be started."""
    starter = NotStarted()
    monkeypatch.setattr("dumbo.sweep.runner.Warm", starter)
    return starter


def test_patches_of_one_job_never_reach_the_next_and_a_failure_does_not_end_it(users, tmp_path, capsys) -> None:
    """Three jobs: leaky, failing, leaky again."""
    code = main([
        "-m", f"--config-dir={users}", "patch=[leaky],[fails],[leaky]", 'sweep_dir="it\'s a sweep"', "sweep.retries=0", *SHORT,
    ])  # fmt: skip
    said = capsys.readouterr().out
    assert code == 1, said
    runs = facts(tmp_path / "it's a sweep")
    assert [run["status"] for run in runs] == ["finished", "failed", "finished"]
    first, second = runs[0]["patches"]["leaky"], runs[2]["patches"]["leaky"]
    assert first.endswith("found None")
    assert second.endswith("found None"), "a patch of an earlier job was still there"
    assert first != second, "two jobs in one process"
    assert str(os.getpid()) not in first.split()
    assert "this patch always fails" in runs[1]["error"]
    assert "failed (exit code 1)" in said
    assert "1 of 3" in said
    assert said.strip().splitlines()[-1].endswith("it's a sweep")
    logs = sorted((tmp_path / "it's a sweep").glob("*.log"))
    assert len(logs) == 3
    assert "this patch always fails" in logs[1].read_text()


@pytest.mark.full
def test_choice_a_list_and_a_product(tmp_path, capsys) -> None:
    assert main(["-m", "patch=[],[lora]", "trainer.seed=choice(1)", "sweep_dir=sweep", *SHORT]) == 0, (
        capsys.readouterr().out
    )
    runs = facts(tmp_path / "sweep")
    assert [list(run["patches"]) for run in runs] == [[], ["lora"]]
    assert [run["seed"] for run in runs] == [1, 1]
    assert "best" in capsys.readouterr().out


def test_each_jobs_folder_and_words_without_running_them(tmp_path, jobs, capsys) -> None:
    """Cheap: what would be started for a product of four values, and what each job's command line holds."""
    path = tmp_path / "ein Ordner, [mit] 'allem'.jsonl"
    path.write_text('{"question": "a", "answer": "b"}\n')
    from dumbo.override_text import value_text

    words = ["-m", "trainer.lr=1e-4,3e-4", "patch=[liger],[liger,lora]", "dataset=files", f"dataset.path={value_text(str(path))}",
             "trainer.extra.adam_beta2=0.9", "sweep_dir=sweep"]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    seen = jobs.words
    assert len(seen) == 4
    from dumbo.compose import compose

    composed = [compose(parse(one[1:]).overrides).cfg for one in seen]
    assert [one[0] for one in seen] == ["train"] * 4
    assert sorted((cfg.trainer.lr, tuple(cfg.patch)) for cfg in composed) == [
        (1e-4, ("liger",)), (1e-4, ("liger", "lora")), (3e-4, ("liger",)), (3e-4, ("liger", "lora")),
    ]  # fmt: skip
    assert all(cfg.dataset.path == str(path) and cfg.trainer.extra.adam_beta2 == 0.9 for cfg in composed)
    names = [Path(cfg.run_dir).name for cfg in composed]
    assert [name[:3] for name in names] == ["000", "001", "002", "003"]
    assert "trainer.lr=" in names[0]
    assert "adam_beta2" not in names[0], "what all jobs share is no part of the name"


@pytest.mark.parametrize(
    "varied",
    [
        ["dataset.path=../../etc/passwd"],
        ["patch=[a,b]"],
        ["x='with \"quotes\" and spaces'"],
        ["x=" + "long" * 200],
        ["x=" + "ünïcødé日本𝒳" * 40],
        ["x=\n\0"],
        ["x=.."],
    ],
)
def test_folder_names_are_safe(varied: list[str], tmp_path: Path) -> None:
    name = "000" + suffix(varied)
    assert "/" not in name
    assert len(name.encode()) <= 100
    assert name.isascii()
    assert name.isprintable()
    (tmp_path / name).mkdir()
    (tmp_path / f"{name}.log").touch()


def test_names_that_look_alike_do_not_clash() -> None:
    assert suffix(["patch=[a,b]"]) != suffix(["patch=_a_b_"])
    assert suffix(["x=" + "a" * 200 + "1"]) != suffix(["x=" + "a" * 200 + "2"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["patch=[liger],[liger,lora]", "patch.liger.rope=false"],
            ["patch.liger was not chosen", "patch.liger.rope=choice(…)"],
        ),
        (["patch=[liger],[lora]", "patch.lora.rank=8,16"], ["patch.lora was not chosen"]),
        (["dataset=[quiz,alpaca],quiz"], ["dataset takes one choice"]),
        (["sweep_dir=a,b"], ["sweep_dir takes one folder"]),
        (["patch=null,[lora]"], ["patch cannot be null"]),
        (["trainer.lrr=1,2"], ["trainer has no key 'lrr'", "trainer.lr"]),
        (["model=smolm,tiny"], ["model has no choice 'smolm'", "'smollm'"]),
        (["trainer.lr=abc,xyz"], ["trainer.lr must be a number, got the text 'abc'"]),
        (["trainer.lr=-1,-2", "trainer.seed=1,2"], ["lr must"]),
    ],
)
def test_faults_of_a_sweep_are_explained_before_any_job(words, says, tmp_path, capsys, jobs) -> None:
    assert main(["-m", "sweep_dir=sweep", *words]) == 2
    assert jobs.words == []
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for text in says:
        assert text in said, said


def test_jobs_that_are_going_to_fail_are_named_before_the_first(jobs, capsys) -> None:
    """Each value is looked at once: abc in the third job of four."""
    main(["-m", "trainer.lr=1e-4,abc", "trainer.seed=1,2", "sweep_dir=sweep"])
    said = " ".join(capsys.readouterr().out.split())
    assert len(jobs.words) == 4, "the others run, and Hydra's combinations are what they are"
    assert "faults 002-trainer.lr=abc-trainer.seed=1" in said
    assert "is going to fail: trainer.lr must be a number, got the text 'abc'." in said
    assert said.count("is going to fail") == 1
    assert said.index("is going to fail") < said.index("is running")


def test_the_documented_way_round_the_trap(jobs, capsys) -> None:
    assert main(["-m", "patch=[liger],[liger,lora]", "patch.liger.rope=choice(false)", "sweep_dir=sweep"]) == 0, (
        capsys.readouterr().err
    )
    seen = jobs.words
    assert len(seen) == 2
    from dumbo.compose import compose

    assert [compose(parse(words[1:]).overrides).cfg.patch.liger.rope for words in seen] == [False, False]


def test_a_file_and_secrets_of_the_environment_travel(tmp_path, monkeypatch, jobs, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 3e-3\n")
    monkeypatch.setenv("MY_RUN", "x")
    assert main(["-m", "mine.yaml", "trainer.seed=1,2", "run=${oc.env:MY_RUN}", "sweep_dir=sweep"]) == 0, (
        capsys.readouterr().err
    )
    seen = jobs.words
    assert len(seen) == 2
    assert all(words[:2] == ["train", str(tmp_path / "mine.yaml")] for words in seen)
    from dumbo.compose import compose

    cfgs = [compose(parse(words[2:]).overrides).cfg for words in seen]
    assert [OmegaConf.to_container(cfg)["run"] for cfg in cfgs] == ["${oc.env:MY_RUN}"] * 2, (
        "no secret in a command line"
    )
    assert [cfg.run for cfg in cfgs] == ["x"] * 2


def test_without_a_sweep_the_launcher_says_what_to_type(tmp_path, capsys) -> None:
    Runner._current = None
    (tmp_path / "mine.yaml").write_text("sweep_dir: there\nhydra:\n  mode: MULTIRUN\n")
    code = main(["mine.yaml"])
    said = capsys.readouterr()
    assert code == 2, said.err
    assert "-m" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.full)]
)
def test_a_signal_ends_the_sweep_and_its_job_saves(number: signal.Signals, code: int, tmp_path: Path) -> None:
    words = [
        "-m", "trainer.seed=1,2", "trainer.max_steps=10000", "trainer.num_epochs=1", "dataset.limit=64", "sweep_dir=sweep",
        "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null", "trainer.save_every=null", "verify.mode=off",
    ]  # fmt: skip
    command = Command(tmp_path, *words, prelude=fork_the_worker)
    command.until(lambda: any((tmp_path / "sweep").glob("000*/metrics.jsonl")))
    command.kill(number)
    assert command.wait() == code, command.said()
    runs = facts(tmp_path / "sweep")
    assert [run["status"] for run in runs] == ["preempted"], "the second job was not started"
    assert list((tmp_path / "sweep").glob("000*/checkpoints/step-*")), "the running job saved"
    assert "stopped" in command.said()
