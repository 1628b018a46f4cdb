"""The final metrics of a run, from metrics.jsonl and what was counted."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir
    from dumbo.trainer.engine import Engine
    from dumbo.trainer.sft import Sft


def final_metrics(trainer: Engine, run: RunDir, sft: Sft, state_memory_gib: float | None) -> dict[str, Any]:
    """The final numbers (run.json, `metrics`), exact match not among them; those that there are none of are left out.

    Args:
        state_memory_gib: of weights, gradients and optimizer state on this rank's GPU.
    """
    rows = list(run.metrics())
    evals = [row["eval_loss"] for row in rows if "eval_loss" in row]
    training = [row for row in rows if "loss" in row]
    speeds = [row["tokens_per_s"] for row in training[len(training) // 5 :]]
    metrics: dict[str, Any] = {
        "steps": trainer.state.global_step,
        "train_loss": trainer.counters.train_loss,
        "first_loss": training[0]["loss"] if training else None,
        "eval_loss": (trainer.counters.best_loss if sft.load_best_at_end else evals[-1]) if evals else None,
        "eval_loss_before": evals[0] if len(evals) > 1 and sft.eval_at_start else None,
        "best_eval_loss": min(evals) if evals else None,
        "tokens": trainer.counters.tokens,
        "trained_tokens": trainer.counters.trained_tokens,
        "documents": trainer.counters.documents,
        "tokens_per_s": float(np.median(speeds)) if speeds else None,
        "mfu": float(np.median([row["mfu"] for row in training]))
        if training and training[-1].get("mfu") is not None
        else None,
        "peak_memory_gib": training[-1]["peak_memory_gib"] if training else None,
        "save_stall_seconds": round(max(trainer.save_stalls), 3) if trainer.save_stalls else None,
        "save_seconds": round(trainer.save_seconds, 3) if trainer.save_stalls else None,
        "state_memory_gib": state_memory_gib,
        "seconds": round(time.time() - run.started, 1),
    }
    return {name: value for name, value in metrics.items() if value is not None}
