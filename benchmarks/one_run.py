"""What one run of dumbo shows of its speed: by its rows in metrics.jsonl, and by when it printed what (`benchmarks.gpu`)."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import time
from typing import Any

STAGES = ("data", "model", "proofs", "training", "result")
"""First words of lines that a run prints as it comes to them."""


def seen(command: list[str]) -> dict[str, float]:
    """Runs it, passes on what it prints, and says after how many seconds it came to each stage."""
    print("+", " ".join(command[1:]), flush=True)
    began = time.perf_counter()
    at: dict[str, float] = {}
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            stage = line.split(" ", 1)[0]
            if stage in STAGES:
                at.setdefault(stage, round(time.perf_counter() - began, 1))
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(command[1:])}")
    if missing := [stage for stage in STAGES if stage not in at]:
        raise RuntimeError(f"no line begins with {', '.join(missing)}: {' '.join(command[1:])}")
    return at


def speed(training: list[dict[str, Any]], warmup: int) -> dict[str, Any]:
    """Of the logged intervals after the warm-up: the median of their tokens over their seconds, and means a step."""
    seconds = tokens = steps = 0.0
    waited = flops = 0.0
    speeds: list[float] = []
    for before, row in itertools.pairwise(training):
        if before["step"] < warmup:
            continue
        count = row["step"] - before["step"]
        speeds.append(row["tokens_per_s"])
        took = count * row["step_ms"] / 1000
        steps, seconds, tokens = steps + count, seconds + took, tokens + row["tokens"] - before["tokens"]
        waited += count * row["data_wait_ms"]
        flops += took * (row["mfu"] or 0.0)
    assert steps, f"no logged interval lies after {warmup} steps: raise --steps or lower --log-every"
    return {
        "steps_measured": int(steps),
        "first_step_s": round(training[0]["step_ms"] / 1000, 1),
        "tokens_per_s": round(statistics.median(speeds), 1),
        "mean_tokens_per_s": round(tokens / seconds, 1),
        "mfu": round(flops / seconds, 4) or None,
        "step_ms": round(1000 * seconds / steps, 2),
        "data_wait_ms": round(waited / steps, 2),
    }


def warm_up(training: list[dict[str, Any]], warmup: int, seen: dict[str, float]) -> dict[str, Any]:
    """Seconds from the start of the process to the first fast step, and to the stages before it.

    A step is fast whose logged interval is within a tenth of the median of those after the warm-up.
    """
    fast = 0.9 * statistics.median(row["tokens_per_s"] for row in training if row["step"] > warmup)
    at, step = seen["training"] - training[0]["step_ms"] / 1000, 0
    for row in training:
        if row["tokens_per_s"] >= fast:
            break
        at, step = at + (row["step"] - step) * row["step_ms"] / 1000, row["step"]
    return {"first_fast_step": step + 1, "seconds_to_it": round(at, 1), "seconds_to": seen}


def by_tens(training: list[dict[str, Any]]) -> list[float]:
    """Mean losses of steps 1 to 10, 11 to 20, …: as a peer logs them that does so each ten steps.

    Rows of several steps count in the ten that they end in. A ten that the run did not come to the end of is left out, unless it
    is the only one.
    """
    whole = training[-1]["step"] // 10 * 10 or 10
    tens: dict[int, list[float]] = {}
    for row in (row for row in training if row["step"] <= whole):
        tens.setdefault((row["step"] - 1) // 10, []).append(row["loss"])
    return [round(statistics.fmean(losses), 4) for losses in tens.values()]
