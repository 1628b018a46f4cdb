"""Made-up sweeps for tests of the report: plausible run.json, metrics.jsonl, config.yaml, ledger.jsonl of any number of jobs."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from report_runs import CONFIG, FACTS

START = datetime(2026, 11, 29, 3, 0, tzinfo=UTC)
OOM = "Traceback (most recent call last):\n  File 'engine.py', line 40, in step\n"
OOM += "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate {} MiB"


def quality(values: dict[str, Any]) -> float:
    """The loss that a run of these settings ends at, but for its seed: best at lr 3e-4, better with rank, a bit with warmup."""
    far = math.log10(values.get("trainer.lr", 3e-4) / 3e-4)
    return (
        1.2
        + 0.35 * far * far
        + 0.6 / values.get("patch.lora.rank", 8)
        + (0.02 if values.get("trainer.lr_scheduler") == "linear" else 0.0)
    )


def grid(count: int) -> list[dict[str, Any]]:
    """Settings of a sweep of so many jobs."""
    if count <= 3:
        return [{"trainer.lr": lr} for lr in (1e-4, 3e-4, 1e-3)[:count]]
    if count <= 60:
        keys = {
            "trainer.lr": [1e-4, 3e-4, 1e-3],
            "patch.lora.rank": [4, 16, 64],
            "trainer.lr_scheduler": ["cosine", "linear"],
            "trainer.seed": [1, 2, 3],
        }
        return [
            dict(zip(keys, values, strict=True))
            for values in itertools.islice(itertools.product(*keys.values()), count)
        ]
    drawn = random.Random(7)  # a search: many values of the learning rate
    return [{"trainer.lr": float(f"{10 ** drawn.uniform(-5, -2):.3g}"), "patch.lora.rank": drawn.choice([4, 8, 16, 32, 64]),
             "trainer.lr_scheduler": drawn.choice(["cosine", "linear", "constant"]), "trainer.warmup_steps": drawn.choice([0, 20, 100]),
             "trainer.weight_decay": float(f"{drawn.uniform(0, 0.1):.2g}"), "trainer.seed": drawn.randrange(5)} for _ in range(count)]  # fmt: skip


def made_up_run(
    folder: Path, values: dict[str, Any], *, steps: int = 200, noise: random.Random, **facts: Any
) -> dict[str, Any]:
    """A run's folder; returns its metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    end = quality(values) + noise.gauss(0, 0.012)
    rows: list[dict[str, Any]] = [{"step": 0, "eval_loss": 6.1, "tokens": 0}]
    usual = {
        "lr": values.get("trainer.lr", 1e-3),
        "mfu": None,
        "peak_memory_gib": 11.3,
        "data_wait_ms": 0.2,
        "step_ms": 80.0,
    }
    for step in range(1, steps + 1):
        loss = end + (6 - end) * math.exp(-step / (steps / 6)) + noise.gauss(0, 0.04)
        rows.append({"step": step, "tokens": 1000 * step, "loss": loss, "grad_norm": 1 + noise.random(),
                     "tokens_per_s": 50_000 + noise.gauss(0, 900), **usual})  # fmt: skip
        if step % max(1, steps // 5) == 0:
            rows.append(
                {"step": step, "eval_loss": end + (6 - end) * math.exp(-step / (steps / 7)), "tokens": 1000 * step}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = {"steps": steps, "train_loss": rows[-2]["loss"], "eval_loss": rows[-1]["eval_loss"], "tokens": 1000 * steps,
               "trained_tokens": 400 * steps, "tokens_per_s": 50_000 + noise.gauss(0, 500), "peak_memory_gib": 11.3,
               "seconds": steps * (0.08 + 0.02 * noise.random())}  # fmt: skip
    config = copy.deepcopy(CONFIG)
    for key, value in values.items():
        node = config
        *parts, last = key.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    (folder / "config.yaml").write_text(json.dumps(config))
    (folder / "overrides.yaml").write_text(json.dumps([f"{key}={value}" for key, value in values.items()]))
    told = {
        **FACTS,
        "metrics": metrics,
        "hardware": {"gpu": "NVIDIA H200", "cpu": "AMD EPYC"},
        "batch": {"global": 16, "micro": 2, "ranks": 1, "accumulation": 8},
    }
    (folder / "run.json").write_text(json.dumps({**told, **facts}))
    return metrics


def made_up_sweep(folder: Path, count: int, *, steps: int = 200, failing: bool = True) -> Path:
    """A sweep's folder: with `failing`, of many jobs every seventeenth ran out of memory and every fortieth was interrupted."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = random.Random(count)
    rows = []
    settings = grid(count)
    varied = [key for key in settings[0] if len({one[key] for one in settings}) > 1]
    for number, values in enumerate(settings):
        words = [f"{key}={values[key]}" for key in varied]
        name = f"{number:03d}-{'-'.join(f'{key.rpartition(chr(46))[2]}={values[key]}' for key in varied)}-{number * 2654435761 % 65536:04x}"
        state = (
            "failed" if failing and number % 17 == 16 else "interrupted" if failing and number % 40 == 33 else "done"
        )
        began = START + timedelta(seconds=18 * (number // 4))
        error = OOM.format(100 + number) if state == "failed" else None
        status = {"done": "finished", "interrupted": "preempted"}.get(state, "failed")
        metrics = made_up_run(folder / name, values, steps=steps if state == "done" else steps // 2, noise=noise, error=error,
                              name="smollm-lora", status=status, started=began.isoformat())  # fmt: skip
        ended = began + timedelta(seconds=metrics["seconds"])
        rows.append({"number": number, "name": name, "overrides": words, "config_hash": f"{number:04x}", "state": state,
                     "attempt": 1 + (number % 11 == 3), "started": began.isoformat(), "ended": ended.isoformat(), "seconds": metrics["seconds"],
                     "exit_code": {"done": 0, "failed": 1}.get(state, 143), "result": metrics["eval_loss"] if state == "done" else None,
                     "metrics": metrics if state == "done" else {}, "error": error, "device": f"GPU {number % 4}"})  # fmt: skip
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = ["model=smollm", "patch=[lora]"]
    told = {"typed": ["-m", *fixed, *(f"{key}=…" for key in varied)], "fixed": fixed, "swept": varied, "launcher": "gpu_pool",
            "metric": "eval_loss", "direction": "minimize", "base_hash": "b0ee", "started": START.isoformat(),
            "versions": FACTS["versions"], "git": FACTS["git"]}  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(told))
    return folder
