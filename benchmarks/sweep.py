"""What a sweep adds to its jobs: wall time of N jobs through the pool beside what the same N runs say they took.

    python -m benchmarks.sweep                                  # tiny jobs on the CPU, one and two at once
    python -m benchmarks.sweep --per-gpu 1 2 4 8 --jobs 8 --words model=smollm dataset=gsm8k trainer.max_steps=200
    python -m benchmarks.sweep --small

`added_seconds_per_job` is (wall × at once - sum of the runs' own seconds) / jobs: starting, importing, composing, ending,
and slots that stay empty at the end. `ledger` is timed by itself: a change of a row, and opening 10,000 rows.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import Record, middle
from dumbo.sweep.ledger import Ledger, Row

TINY = (
    "model=tiny", "trainer.max_steps=3", "dataset.limit=16", "trainer.num_answers=0", "trainer.num_samples=0",
    "trainer.eval_every=null", "trainer.eval_at_start=false", "verify.mode=off",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2], help="CPU jobs at once")
    parser.add_argument("--per-gpu", type=int, nargs="+", help="jobs at once on one GPU, instead of CPU slots")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", nargs="+", default=list(TINY), help="what each job is")
    parser.add_argument("--small", action="store_true", help="two jobs, one round")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    asked = parser.parse_args()
    jobs, rounds = (2, 1) if asked.small else (asked.jobs, asked.rounds)
    name = "sweep_gpu" if asked.per_gpu else "sweep"
    record = Record(name, "wall time of a sweep's jobs beside what the runs say they took, medians of rounds")
    if asked.out:
        record.folder = asked.out
    key, counts = ("sweep.jobs_per_gpu", asked.per_gpu) if asked.per_gpu else ("sweep.cpu_slots", asked.slots)
    record.facts["words"] = asked.words
    table: list[dict[str, Any]] = []
    record.facts["table"] = table
    for count in counts:
        row = _row(key, count, jobs, rounds, asked.words)
        table.append(row)
        row["times_faster_than_the_first"] = round(table[0]["wall_seconds"] / row["wall_seconds"], 2)
        print(row, flush=True)
        record.write()  # what is measured stays, whatever comes
    record.facts["ledger"] = _ledger()
    print(record.facts["ledger"])
    print(record.write())


def _row(key: str, count: int, jobs: int, rounds: int, words: list[str]) -> dict[str, Any]:
    found = [_once(key, count, jobs, words) for _ in range(rounds)]
    return {key: count, "jobs": jobs, **{name: round(middle(found, name), 2) for name in found[0]}}


def _once(key: str, count: int, jobs: int, words: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        seeds = ",".join(str(number) for number in range(jobs))
        command = [sys.executable, "-m", "dumbo", "-m", f"trainer.seed={seeds}", *words, f"{key}={count}"]
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [*command, "hydra/launcher=gpu_pool", f"sweep_dir={place}/sweep"],
            capture_output=True,
            text=True,
            check=False,
        )
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"the sweep ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        rows = Ledger.open(Path(place) / "sweep").rows
        own = sum(float(row.metrics["seconds"]) for row in rows)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    added = (wall * count - own) / jobs
    return {"wall_seconds": wall, "cpu_seconds": cpu, "own_seconds": own, "added_seconds_per_job": added}


def _ledger(count: int = 10_000) -> dict[str, float]:
    """Seconds of a change, fsync in it, and of opening so many rows."""
    metrics = dict.fromkeys(("eval_loss", "train_loss", "tokens_per_s", "steps", "tokens", "seconds"), 0.123456789)
    with tempfile.TemporaryDirectory() as place:
        ledger = Ledger.open(Path(place))
        ledger.put(
            Row(number=n, name=f"{n:03d}-x", overrides=[f"trainer.seed={n}"], metrics=metrics) for n in range(count)
        )
        began = time.perf_counter()
        for number in range(100):
            ledger.change(number, state="running")
        changed = (time.perf_counter() - began) / 100
        began = time.perf_counter()
        opened = len(Ledger.open(Path(place)))
        seconds = time.perf_counter() - began
    assert opened == count
    return {"rows": count, "change_ms": round(1000 * changed, 2), "open_seconds": round(seconds, 3)}


if __name__ == "__main__":
    main()
