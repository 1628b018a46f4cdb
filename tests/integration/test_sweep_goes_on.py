"""A sweep that is started again: what is done is skipped, what failed goes on, what is new gets the next numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from sweeps import NotStarted, finished, leave

from dumbo.cli import main
from dumbo.command import parse
from dumbo.sweep.folder import HOME
from dumbo.sweep.ledger import Ledger, Row
from dumbo.sweep.typed import folder_of


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> NotStarted:
    starter = NotStarted()
    monkeypatch.setattr("dumbo.sweep.runner.Warm", starter)
    return starter


def only_sweep() -> Path:
    (folder,) = HOME.iterdir()
    return folder


def states(folder: Path) -> list[str]:
    return [row.state for row in Ledger.open(folder)]


def numbers(jobs: NotStarted) -> list[str]:
    """The first three characters of the names of the jobs that were started."""
    found = [next(word for word in words if word.startswith("run_dir=")).rpartition("/")[2][:3] for words in jobs.words]
    jobs.words.clear()
    return found


def fails(*numbers: int, code: int = 1):
    """Those starts fail, the others finish."""

    def ending(folder: Path, number: int) -> int:
        if number not in numbers:
            return finished(folder, number)
        folder.with_name(f"{folder.name}.log").open("a").write("Traceback\n  file x\nValueError: it is\nnot well\n")
        leave(folder, status="failed", error="it is not well")
        return code

    return ending


def test_the_same_command_again_does_nothing_and_more_values_are_appended(jobs: NotStarted, capsys) -> None:
    assert main(["-m", "trainer.seed=1,2", "trainer.lr=1e-3"]) == 0
    assert all(words[-1] == "resume=auto" for words in jobs.words)
    folder = only_sweep()
    assert folder.name.startswith("seed-")
    assert numbers(jobs) == ["000", "001"]
    facts = json.loads((folder / "sweep.json").read_text())
    assert facts["typed"] == ["trainer.seed=1,2", "trainer.lr=1e-3"]
    assert facts["swept"] == ["trainer.seed"]
    assert facts["fixed"] == ["trainer.lr=1e-3"]
    assert yaml.safe_load((folder / "base.yaml").read_text())["trainer"]["lr"] == 1e-3
    capsys.readouterr()
    assert main(["-m", "trainer.lr=1e-3", "trainer.seed=1,2"]) == 0
    assert numbers(jobs) == []
    assert "2 done already" in capsys.readouterr().out
    assert main(["-m", "trainer.seed=3,1,4,2", "trainer.lr=1e-3"]) == 0
    assert numbers(jobs) == ["002", "003"]
    assert only_sweep() == folder
    rows = Ledger.open(folder).rows
    assert [row.overrides for row in rows] == [[f"trainer.seed={n}"] for n in (1, 2, 3, 4)]
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == 4, "one row a job at the end"


def test_another_password_is_no_other_sweep() -> None:
    first, second, other = (
        folder_of(parse(["-m", "trainer.seed=1,2", "+tracker.t.api_key=" + key, "trainer.lr=" + lr]))
        for key, lr in (("a", "1"), ("b", "1"), ("a", "2"))
    )
    assert first == second
    assert first != other


def test_another_command_is_another_sweep(jobs: NotStarted) -> None:
    assert main(["-m", "trainer.seed=1,2", "trainer.lr=1e-3"]) == 0
    assert main(["-m", "trainer.seed=1,2", "trainer.lr=3e-3"]) == 0
    assert len(list(HOME.iterdir())) == 2
    assert numbers(jobs) == ["000", "001"] * 2


def test_a_job_that_fails_is_tried_again_and_does_not_end_the_sweep(jobs: NotStarted, capsys) -> None:
    jobs.ending = fails(0)
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0, "it worked the second time"
    assert sorted(numbers(jobs)) == ["000", "000", "001"]
    row = Ledger.open(Path("sweep"))[0]
    assert (row.state, row.attempt, row.error, row.exit_code) == ("done", 2, None, 0)
    assert "it is tried again" in capsys.readouterr().out


def test_what_still_fails_is_told_with_its_last_lines(jobs: NotStarted, capsys) -> None:
    jobs.ending = fails(*range(0, 9, 2))
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep", "sweep.retries=0"]) == 1
    out = capsys.readouterr().out
    assert "  file x\n" in out
    assert "not well" in out
    assert "1 of 2" in out
    assert "python -m dumbo -m sweep_dir=sweep" in out
    assert states(Path("sweep")) == ["failed", "done"]
    failed = Ledger.open(Path("sweep"))[0]
    assert failed.error == "  file x\nValueError: it is\nnot well"
    numbers(jobs)
    jobs.ending = finished
    assert main(["-m", "sweep_dir=sweep"]) == 0, "each invocation tries failed ones again"
    assert numbers(jobs) == ["000"]
    assert states(Path("sweep")) == ["done", "done"]


@pytest.mark.parametrize(("code", "starts"), [(-9, 3), (2, 1)])
def test_what_is_to_be_mended_is_not_tried_again(code: int, starts: int, jobs: NotStarted) -> None:
    """Exit codes 2, 3 and 4 say that the same again would end the same."""
    jobs.ending = fails(*range(9), code=code)
    assert main(["-m", "trainer.seed=1", "sweep_dir=sweep", "sweep.retries=2"]) == 1
    assert len(jobs.words) == starts
    row = Ledger.open(Path("sweep"))[0]
    assert (row.attempt, row.exit_code, row.state) == (starts, code, "failed")


def test_max_time_leaves_a_job_for_the_next_invocation(jobs: NotStarted, capsys) -> None:
    jobs.ending = lambda folder, number: leave(folder, status="preempted", error="stopped by max_time") or 0
    assert main(["-m", "trainer.seed=1", "sweep_dir=sweep", "trainer.max_time=5"]) == 1
    assert len(jobs.words) == 1, "it asked for the stop itself: not again at once"
    assert states(Path("sweep")) == ["interrupted"]
    assert "left      1 of 1: 000 (interrupted)" in capsys.readouterr().out


# ---- the folder alone -----------------------------------------------------------------------------------------------


def test_the_folder_alone_brings_everything(jobs: NotStarted, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 3e-3\n")
    jobs.ending = fails(*range(99))
    words = ["mine.yaml", "trainer.seed=1,2", "patch=[liger],[lora]", "sweep_dir=sweep", "sweep.retries=0"]
    assert main(["-m", *words]) == 1
    before = list(jobs.words)
    jobs.words.clear()
    assert main(["-m", "sweep_dir=sweep", "sweep.retries=0"]) == 1
    assert jobs.words == before, "the same four jobs in the same words"
    capsys.readouterr()
    assert main(["-m", "sweep_dir=sweep", "trainer.seed=1,2", "mine.yaml", "patch=[liger],[lora]"]) == 2
    assert "'mine.yaml' is no override" in capsys.readouterr().err


def test_jobs_of_earlier_commands_are_done_too(jobs: NotStarted) -> None:
    """lr=1,2 and then lr=3: the folder alone means all that is left."""
    jobs.ending = fails(*range(99))
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep", "sweep.retries=0"]) == 1
    assert main(["-m", "trainer.seed=3", "trainer.lr=1e-3", "sweep_dir=sweep", "sweep.retries=0"]) == 2, "another base"
    assert main(["-m", "trainer.seed=3,4", "sweep_dir=sweep", "sweep.retries=0"]) == 1
    numbers(jobs)
    jobs.ending = finished
    assert main(["-m", "sweep_dir=sweep"]) == 0
    assert sorted(numbers(jobs)) == ["000", "001", "002", "003"]
    assert states(Path("sweep")) == ["done"] * 4


@pytest.fixture
def of_another_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tracker.t` stands for a plugin with a key of its own; there is none, which a sweep says before its first job."""
    monkeypatch.setattr("dumbo.sweep.runner.faults_before", lambda *given, **more: {})


def test_secrets_are_typed_again(jobs: NotStarted, tmp_path: Path, of_another_tracker: None, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("tracker: {t: {x: 1}}\n")
    words = ["-m", "mine.yaml", "trainer.seed=1,2", "+tracker.t.api_key=typed-secret", "sweep_dir=sweep"]
    jobs.ending = fails(*range(99))
    assert main([*words, "sweep.retries=0"]) == 1
    written = [file for file in Path("sweep").rglob("*") if file.is_file() and "typed-secret" in file.read_text()]
    assert written == []
    capsys.readouterr()
    assert main(["-m", "sweep_dir=sweep"]) == 2
    assert "sweep_dir: the value of tracker.t.api_key was not written down" in capsys.readouterr().err
    jobs.words.clear()
    jobs.ending = finished
    assert main(["-m", "sweep_dir=sweep", "+tracker.t.api_key=typed-secret"]) == 0, capsys.readouterr().err
    assert len(jobs.words) == 2
    assert all("+tracker.t.api_key=typed-secret" in words for words in jobs.words)


def test_code_of_others_is_typed_again(jobs: NotStarted, tmp_path: Path, capsys) -> None:
    """Who got a sweep's folder from somebody else runs nothing of theirs by going on with it."""
    (tmp_path / "theirs").mkdir()
    jobs.ending = fails(*range(99))
    assert main(["-m", "--config-dir=theirs", "trainer.seed=1,2", "sweep_dir=sweep", "sweep.retries=0"]) == 1
    capsys.readouterr()
    assert main(["-m", "sweep_dir=sweep"]) == 2
    assert f"Type --config-dir={tmp_path}/theirs again if you trust it" in capsys.readouterr().err
    jobs.ending = finished
    assert main(["-m", "sweep_dir=sweep", "--config-dir=theirs"]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overrides": ["--config-dir=theirs"]}, "job 2 has the word '--config-dir=theirs', which is no override"),
        ({"overrides": ["theirs.yaml"]}, "job 2 has the word 'theirs.yaml', which is no override"),
        (
            {"overrides": ["model.trust_remote_code=true"]},
            "job 2: the run had model.trust_remote_code=true, and code that comes",
        ),
        ({"overrides": ["evaluate.tasks_path=theirs"]}, "and task files can run code"),
        ({"name": "../outside"}, "job 2 is called '../outside', which leads elsewhere"),
        ({"name": "/tmp/outside"}, "which leads elsewhere"),
    ],
)
def test_a_ledger_of_others_brings_no_code_and_writes_nothing_elsewhere(
    changes: dict[str, object], said: str, jobs: NotStarted, tmp_path: Path, capsys
) -> None:
    (tmp_path / "theirs").mkdir()
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0
    row = {"number": 2, "name": "002", "overrides": ["trainer.seed=3"], "state": "waiting", **changes}
    with Path("sweep/ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps(row) + "\n")
    jobs.words.clear()
    assert main(["-m", "sweep_dir=sweep"]) == 2
    assert said in capsys.readouterr().err
    assert jobs.words == []


def test_a_swept_secret_that_is_left_is_not_all_done(
    jobs: NotStarted, tmp_path: Path, of_another_tracker: None, capsys
) -> None:
    (tmp_path / "mine.yaml").write_text("tracker: {t: {x: 1}}\n")
    jobs.ending = fails(*range(99))
    words = ["-m", "mine.yaml", "sweep_dir=sweep", "sweep.retries=0"]
    assert main([*words, "+tracker.t.api_key=a,b"]) == 1
    jobs.ending = finished
    assert main([*words, "+tracker.t.api_key=c"]) == 0
    capsys.readouterr()
    assert main(["-m", "sweep_dir=sweep", "+tracker.t.api_key=c"]) == 1
    assert "000, 001: their words hold secrets" in capsys.readouterr().out
    assert states(Path("sweep")) == ["failed", "failed", "done"]


# ---- a changed base -------------------------------------------------------------------------------------------------


def test_a_sweep_that_was_killed_before_its_first_job_may_be_another_one(jobs: NotStarted, capsys) -> None:
    """Its base is what its jobs have, and not what was typed before there was one."""
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0
    Path("sweep/ledger.jsonl").unlink()
    for command in (["trainer.seed=1,2", "trainer.lr=3e-3"], ["trainer.seed=1,2,3", "trainer.lr=3e-3"]):
        assert main(["-m", *command, "sweep_dir=sweep"]) == 0, capsys.readouterr().err
    assert yaml.safe_load(Path("sweep/base.yaml").read_text())["trainer"]["lr"] == 3e-3
    assert states(Path("sweep")) == ["done"] * 3


def test_jobs_in_slurm_are_not_forced_into_another_config(jobs: NotStarted, monkeypatch, capsys) -> None:
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0
    monkeypatch.setattr("dumbo.sweep.sweep.submitted", lambda ledger: ledger.rows)
    capsys.readouterr()
    assert main(["-m", "trainer.seed=1,2", "trainer.lr=3e-3", "sweep_dir=sweep", "sweep.force=true"]) == 2
    assert (
        "2 jobs of sweep are in SLURM with the config as it was.\n  dumbo sweep cancel sweep" in capsys.readouterr().err
    )


def test_a_changed_base_is_refused_or_forced(jobs: NotStarted, capsys) -> None:
    jobs.ending = fails(1, 2)
    words = ["-m", "trainer.seed=1,2", "sweep_dir=sweep"]
    assert main([*words, "trainer.lr=1e-3"]) == 1
    assert numbers(jobs) == ["000", "001", "001"]
    capsys.readouterr()
    assert main([*words, "trainer.lr=3e-3"]) == 2
    said = capsys.readouterr().err
    assert "trainer.lr: 0.001 -> 0.003" in said
    assert "sweep.force=true" in said
    assert numbers(jobs) == []
    assert main([*words, "trainer.lr=1e-3", "trainer.log_every=7"]) == 0, "no number depends on it"
    jobs.ending = fails(*range(99))
    assert main(["-m", "trainer.seed=1,2,3", "sweep_dir=sweep", "trainer.lr=1e-3"]) == 1
    numbers(jobs)
    jobs.ending = finished
    capsys.readouterr()
    assert main(["-m", "trainer.seed=1,2,3", "sweep_dir=sweep", "trainer.lr=3e-3", "sweep.force=true"]) == 0
    assert numbers(jobs) == ["002"], "what is done stays"
    assert "trainer.lr: 0.001 -> 0.003" in capsys.readouterr().out
    assert [path.name for path in Path("sweep").glob("002*.before-1")], "what there was is moved aside"
    assert "sweep.force=true" not in json.loads(Path("sweep/sweep.json").read_text())["typed"]
    assert main(["-m", "trainer.seed=1,2,3", "sweep_dir=sweep", "trainer.lr=3e-3"]) == 0, "the new base is the base now"


def test_an_experiment_that_was_edited_is_a_changed_base(jobs: NotStarted, tmp_path: Path, capsys) -> None:
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 3e-3\n")
    assert main(["-m", "mine.yaml", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0
    (tmp_path / "mine.yaml").write_text("trainer:\n  lr: 5e-3\n")
    assert main(["-m", "mine.yaml", "trainer.seed=1,2", "sweep_dir=sweep"]) == 2
    assert "trainer.lr: 0.003 -> 0.005" in capsys.readouterr().err


def test_words_that_do_not_compose_do_not_make_a_sweep(jobs: NotStarted, capsys) -> None:
    """The next command in the same folder is not held to them."""
    assert main(["-m", "model=smolm,tiny", "sweep_dir=sweep"]) == 2
    assert main(["-m", "model=smollm,tiny", "sweep_dir=sweep", "trainer.lr=1e-3"]) == 0, capsys.readouterr().err


def test_a_required_key_that_is_swept(jobs: NotStarted, tmp_path: Path, capsys) -> None:
    """The base has no value for it: that is no fault."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    words = ["-m", "dataset=files", "dataset.path=a.jsonl,b.jsonl", "sweep_dir=sweep"]
    assert main(words) == 0, capsys.readouterr().err
    assert main(words) == 0, capsys.readouterr().err
    assert len(jobs.words) == 2


# ---- what a kill leaves ---------------------------------------------------------------------------------------------


def test_rows_that_ran_when_the_sweep_died_are_what_their_folders_say(jobs: NotStarted, capsys) -> None:
    jobs.ending = fails(*range(99))
    words = ["-m", "trainer.seed=1,2,3", "sweep_dir=sweep"]
    assert main([*words, "sweep.retries=0"]) == 1
    folder = Path("sweep")
    ledger = Ledger.open(folder)
    for row in ledger.rows:
        ledger.change(row.number, state="running", attempt=1)
    finished(folder / ledger[0].name, 0)
    leave(folder / ledger[1].name, status="running", config_hash="x")
    shutil.rmtree(folder / ledger[2].name)
    with (folder / "ledger.jsonl").open("a") as file:
        file.write('{"number": 2, "name"')  # and the ledger's last line is torn
    numbers(jobs)
    jobs.ending = finished
    capsys.readouterr()
    assert main(["sweep", "status", "sweep"]) == 0
    assert "2 interrupted" in capsys.readouterr().out, "a look changes nothing"
    assert main(words) == 0
    assert numbers(jobs) == ["001", "002"]
    rows = Ledger.open(folder).rows
    assert [row.state for row in rows] == ["done"] * 3
    assert [row.attempt for row in rows] == [1, 2, 2]
    assert rows[0].metrics["eval_loss"] == 0.0
    assert "a line that a crash cut short" in capsys.readouterr().out


def test_another_sweeps_ledger_row_is_not_lost(jobs: NotStarted) -> None:
    """Rows that this command does not name stay as they are."""
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0
    Ledger.open(Path("sweep")).put([Row(number=7, name="007-x", overrides=["trainer.seed=7"], state="failed")])
    assert main(["-m", "trainer.seed=1,2,3", "sweep_dir=sweep"]) == 0
    assert [(row.number, row.state) for row in Ledger.open(Path("sweep"))] == [
        (0, "done"), (1, "done"), (7, "failed"), (8, "done"),
    ]  # fmt: skip


# ---- other things ---------------------------------------------------------------------------------------------------


def test_another_metric_is_taken_from_the_runs_that_are_done(jobs: NotStarted, capsys) -> None:
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0
    assert "best      000-" in capsys.readouterr().out
    assert main(["-m", "sweep_dir=sweep", "sweep.metric=eval_loss", "sweep.direction=maximize"]) == 0
    assert "best      001-" in capsys.readouterr().out
    assert main(["-m", "sweep_dir=sweep", "sweep.metric=bleu"]) == 0
    assert "no job has bleu" in capsys.readouterr().out
    assert [row.result for row in Ledger.open(Path("sweep"))] == [None, None]


def test_what_this_machine_has_not_is_said_before_anything_is_written(jobs: NotStarted, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep", "sweep.gpus_per_job=4"]) == 2
    assert "sweep.gpus_per_job=4, but 2 GPUs are visible here" in capsys.readouterr().err
    assert not Path("sweep").exists()
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=sweep"]) == 0, "the pool: nobody typed a launcher"
    assert [start.environment["CUDA_VISIBLE_DEVICES"] for start in jobs.starts] == ["0", "1"]
    assert json.loads(Path("sweep/sweep.json").read_text())["launcher"] == "gpu_pool"
    jobs.starts.clear()
    assert main(["-m", "trainer.seed=3,4", "sweep_dir=sweep", "hydra/launcher=process"]) == 0
    assert [start.environment for start in jobs.starts] == [{}, {}], "all of the machine for each"


def test_a_runs_folder_is_no_sweeps(jobs: NotStarted, capsys) -> None:
    finished(Path("run"), 0)
    assert main(["-m", "trainer.seed=1,2", "sweep_dir=run"]) == 2
    assert "run is a run's folder" in capsys.readouterr().err
    assert [path.name for path in Path("run").iterdir()] == ["run.json"]


def test_what_only_slurm_can_is_refused_elsewhere(jobs: NotStarted, capsys) -> None:
    for launcher in ("process", "basic"):
        assert main(["-m", "trainer.seed=1,2", f"hydra/launcher={launcher}", "sweep.detach=true", "sweep_dir=a"]) == 2
        assert "sweep.detach=true is for hydra/launcher=submitit_slurm" in capsys.readouterr().err
    assert not Path("a").exists()
