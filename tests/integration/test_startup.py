"""Start-up: `--help` and `--cfg job` at once, and nothing heavy imported before the config has passed its checks."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import time

import pytest

LIMIT = 0.7
"""Seconds, median of five. Alone, as .ci/full runs it, by the clock. Beside other test workers by CPU time, which a busy
machine does not change; the clock then gets a generous factor."""
BUSY = 6
ALONE = "PYTEST_XDIST_WORKER" not in os.environ
HEAVY = ("torch", "transformers", "polars", "rich", "datasets", "accelerate", "peft", "tokenizers", "optuna")


def _seconds(*words: str) -> tuple[float, float]:
    """CPU and clock of one start."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "dumbo", *words], capture_output=True, text=True, check=False)
    clock, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 500
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, clock


@pytest.mark.parametrize("words", [("--help",), ("--cfg", "job"), ("--info", "trainer")])
def test_is_there_at_once(words: tuple[str, ...]) -> None:
    measured = [_seconds(*words) for _ in range(5)]
    cpu, clock = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"{' '.join(words)}: CPU {cpu:.2f} s, clock {clock:.2f} s")
    assert cpu <= LIMIT
    assert clock <= (LIMIT if ALONE else LIMIT * BUSY)


CHILD = """
import sys
HEAVY = {heavy}
import dumbo.check
real = dumbo.check.check
def audited(*args, **kwargs):
    plugins = real(*args, **kwargs)
    print("passed", [name for name in HEAVY if name in sys.modules], file=sys.__stdout__)
    raise KeyboardInterrupt
dumbo.check.check = audited
from dumbo.cli import main
for words in {cases}:
    code = main(words)
    print(code, [name for name in HEAVY if name in sys.modules], " ".join(words), file=sys.__stdout__)
"""


def test_nothing_heavy_before_the_config_has_passed(tmp_path) -> None:
    """In a process of its own, sys.modules is looked at when check() returns, and after each refused config."""
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    good = [
        [],
        ["preview"],
        ["model=smollm", "patch=[liger,lora,gradient_checkpointing]", "dataset=files", "dataset.path=rows.jsonl"],
        ["model=smollm_gguf", "dataset=gsm8k", "patch=lora", "tracker=tensorboard"],
        [
            "model=pretrained",
            "model.path=a/b",
            "dataset=hub",
            "dataset.path=a/b",
            "formatter=text",
            "trainer.extra.adam_beta2=0.9",
        ],
        [
            "formatter=jinja",
            "formatter.template='{{ messages[0].content }}'",
            "patch=[freeze]",
            "patch.freeze.train=[norm]",
        ],
    ]
    bad = [
        ["trainer.lrr=1"],
        ["trainer.lr=fast"],
        ["model=smolm"],
        ["patch=[lroa]"],
        ["trainer.global_batch_size=5"],
        ["dataset=files", "dataset.path=nowhere.jsonl"],
        ["formatter=jinja", "formatter.template='{% for %}'"],
        ["trainer.extra.adam_beta3=1"],
        ["trainer.optimizer=adan"],
        ["++model._target_=os.system"],
        ["tracker.wandb.mode=offline"],
        ["run=last", "resume=nowhere"],
    ]
    script = CHILD.format(heavy=HEAVY, cases=[*good, *bad])
    env = {**os.environ, "CI": "true"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    lines = done.stdout.strip().splitlines()
    assert [line for line in lines if line.startswith("passed")] == ["passed []"] * len(good), done.stdout + done.stderr
    ends = [line for line in lines if not line.startswith("passed")]
    assert [line.split(" ")[0] for line in ends] == ["130"] * len(good) + ["2"] * len(bad), done.stdout + done.stderr
    assert all("[]" in line for line in ends), done.stdout


def test_a_line_is_shown_before_anything_heavy_is_imported(tmp_path) -> None:
    script = f"""
import sys, dumbo.train
def stop(run):
    print("heavy", [name for name in {HEAVY} if name in sys.modules])
    sys.stdout.flush(); import os; os._exit(0)
dumbo.train.silence_libraries = stop
from dumbo.cli import main
main([])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    assert lines[0].startswith("dumbo "), done.stdout + done.stderr
    assert lines[-1] == "heavy []"


def test_importing_dumbo_is_cheap() -> None:
    script = f"import sys, dumbo; print([name for name in {('hydra', *HEAVY)} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
