"""The plan of a run in its run.json (`plan`), which the report holds beside what came of it.

    plan.json of the same config and batch in the run's folder    as `dumbo plan` with this run_dir wrote it
    else                                                          what is known when training starts, by arithmetic alone

The second takes milliseconds: steps and tokens, what weights, gradients and AdamW's state hold, the peak where the micro
batch was chosen by memory, and the time where runs before this one say how fast it is. A rehearsal would take seconds of
every start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from dumbo.outputs.halvings import facts_of
from dumbo.plan.arithmetic import arithmetic
from dumbo.plan.meter import resident
from dumbo.plan.micro_batch import KEY as CHOICE
from dumbo.plan.plan import FILE
from dumbo.plan.speed import Speed, known_speed
from dumbo.trainer.masters import HALF, idle_buckets

if TYPE_CHECKING:
    from dumbo.batch import Batch
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.collate import Examples

KEY = "plan"
RUNS_LOOKED_AT = 20
"""The newest ones, for how fast they were."""


def note(run: RunDir, trainer: Any, model: Any, data: PreparedSplits, batch: Batch, examples: Examples) -> None:
    """Records it.

    Args:
        trainer: the plugin.
        model: patched, where it trains.
        examples: what the sampler's numbers stand for.
    """
    if not run.writes:
        return
    held = _held(run, trainer, model, batch)
    told = _planned(run, batch)
    plan = told if told is not None else _counted(run, trainer, data, batch, examples, held)
    if not torch.cuda.is_available():  # resident memory at the end is with what was there before the model
        plan["memory"]["before"] = max(0, resident() - held.get("weights", 0))
    run.update(**{KEY: plan})


def _planned(run: RunDir, batch: Batch) -> dict[str, Any] | None:
    """plan.json, where it is of this run."""
    try:
        found = json.loads((run.path / FILE).read_text(encoding="utf-8"))
        theirs = found["config_hash"], {name: found["batch"][name] for name in facts_of(batch)}
        device = found["memory"]["device"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if (*theirs, device) != (run.facts.get("config_hash"), facts_of(batch), here):
        return None
    return {"source": FILE, **found}


def _counted(
    run: RunDir, trainer: Any, data: PreparedSplits, batch: Batch, examples: Examples, held: Mapping[str, int]
) -> dict[str, Any]:
    of = arithmetic(trainer, data, batch, examples)
    speed = _speed(run, batch)
    choice = run.facts.get(CHOICE) or {}
    peak = choice.get("tried", {}).get(str(batch.micro)) if choice.get("micro") == batch.micro else None
    return {
        "source": "the start of training",
        "steps": of.steps,
        "epochs": round(of.epochs, 4),
        "tokens": of.tokens,
        "trained_tokens": of.trained_tokens,
        "memory": {**({"peak": peak} if peak is not None else {}), "held": dict(held)},
        "time": {
            "seconds": round(of.tokens / speed.tokens_per_s, 1) if speed is not None else None,
            "tokens_per_s": speed.tokens_per_s if speed is not None else None,
            "source": speed.source if speed is not None else None,
        },
    }


def _held(run: RunDir, trainer: Any, model: Any, batch: Batch) -> dict[str, int]:
    """Bytes of one process; of a model that is going to be spread over several, nothing."""
    if run.wrapped_in == "FSDP2":
        return {}
    tensors = [*model.parameters(), *model.buffers()]
    found = {"weights": sum(tensor.numel() * tensor.element_size() for tensor in tensors)}
    masters = trainer.master_weights
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sizes = [(p.numel(), max(4, p.element_size()) if masters else p.element_size()) for p in trained]
    found["gradients"] = sum(count * size for count, size in sizes)
    if masters and run.wrapped_in == "DDP":  # in its buckets; several micro batches a step are summed up beside them
        found["gradients"] += idle_buckets(trained)
        if batch.accumulation == 1:
            found["gradients"] -= sum(4 * p.numel() for p in trained if p.dtype in HALF)
    if trainer.optimizer.startswith("adamw_torch"):  # two moments in the dtype of what is stepped on, and masters
        kept = [count * (2 * size + (size if masters else 0)) for count, size in sizes]
        found["optimizer"] = sum(kept)
    return found


def _speed(run: RunDir, batch: Batch) -> Speed | None:
    try:
        config = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    if not isinstance(config, dict):
        return None
    typed = (config.get("plan") or {}).get("tokens_per_s")
    if typed:
        return Speed(float(typed), "plan.tokens_per_s")
    return known_speed(config, batch.ranks, run.facts.get("hardware", {}), Path(), newest=RUNS_LOOKED_AT)
