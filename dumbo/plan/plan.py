"""`dumbo plan`: what the experiment is going to cost. This process loads no weights and trains nothing.

    the data, prepared as for train -> arithmetic -> memory, rehearsed on the longest batch -> disk -> time
    plan.measure: a process of its own trains two steps on that batch (`measured.py`)

What does not fit ends with exit code 2 and what to write instead, after the plan has been shown.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.outputs.console import Console
from dumbo.outputs.whole_file import writable_folder, write_whole

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.plan.arithmetic import Arithmetic
    from dumbo.plan.disk import Disk
    from dumbo.plan.measured import Measured
    from dumbo.plan.memory import Memory
    from dumbo.plan.micro_batch import Choice
    from dumbo.plan.speed import Speed
    from dumbo.prepare.store import PreparedSplits

FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        config_hash: of what changes a run's numbers.
        model: name, parameters, trainable, dtype.
        patches: name -> what shows that it took, or why it is left out.
        memory: predicted.
        measured: in a process of its own, where that was asked for.
        chosen: how the micro batch was chosen, where that was left to dumbo.
        speed: None: not known.
    """

    config_hash: str
    model: dict[str, Any]
    patches: dict[str, str]
    data: PreparedSplits
    arithmetic: Arithmetic
    memory: Memory
    measured: Measured | None
    chosen: Choice | None
    disk: Disk
    speed: Speed | None

    @property
    def seconds(self) -> float | None:
        """Of training alone."""
        return self.arithmetic.tokens / self.speed.tokens_per_s if self.speed is not None else None

    @property
    def fits(self) -> bool:
        """In memory: as measured, else as predicted."""
        return self.memory.fits if self.measured is None else self.measured.peak is not None

    def facts(self) -> dict[str, Any]:
        """For programs. Bytes, seconds, tokens."""
        of, measured = self.arithmetic, self.measured
        return {
            "config_hash": self.config_hash,
            "model": self.model,
            "patches": self.patches,
            "data": {"name": self.data.name, "fingerprint": self.data.fingerprint, "documents": len(self.data.train)},
            "batch": {"global": of.batch.global_, "micro": of.batch.micro, "ranks": of.batch.ranks,
                      "accumulation": of.batch.accumulation, "chosen": self.chosen.facts() if self.chosen else None},
            "steps": of.steps, "epochs": round(of.epochs, 4), "tokens": of.tokens, "trained_tokens": of.trained_tokens,
            "memory": {"device": self.memory.device, "peak": self.memory.peak, "parts": dict(self.memory.parts),
                       "held": dict(self.memory.held), "available": self.memory.available,
                       "measured": measured.facts() if measured is not None else None, "fits": self.fits},
            "disk": asdict(self.disk) | {"fits": self.disk.fits},
            "time": {"seconds": self.seconds and round(self.seconds, 1), **(asdict(self.speed) if self.speed else {})},
        }  # fmt: skip


def plan(plugins: Plugins, composed: Composed, command: Command) -> int:
    """Makes the plan and shows it.

    Raises:
        UserError: memory or disk are not enough; what to write stands in it. `run_dir` cannot be written.
    """
    asked = plugins.options.run_dir
    folder = writable_folder(asked) if asked is not None else None
    text = plugins.plan.format == "text"
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|peft")  # of one to the other
    console = Console() if text else Console(stream=_nowhere())
    found, smaller = made(plugins, composed, console)
    if folder is not None:  # an earlier plan.json goes: a plan is made again at any time
        write_whole(folder / FILE, json.dumps(found.facts(), indent=2, ensure_ascii=False) + "\n")
    if text:
        from dumbo.plan.shown import show

        show(found, console)
    else:
        print(json.dumps(found.facts(), ensure_ascii=False))
    if faults := _faults(found, smaller, plugins):
        raise UserError("\n".join(faults))
    return 0


def made(plugins: Plugins, composed: Composed, console: Console) -> tuple[Plan, int | None]:
    """The plan, and the largest micro batch that fits where the one of the config does not (None: none does)."""
    import torch

    from dumbo.model.dtype import resolved_precision
    from dumbo.outputs.config_hash import config_hash
    from dumbo.outputs.secrets import masked
    from dumbo.outputs.surroundings import hardware
    from dumbo.plan.arithmetic import arithmetic
    from dumbo.plan.disk import disk
    from dumbo.plan.measured import measured, of_choice, wanted
    from dumbo.plan.memory import predict
    from dumbo.plan.micro_batch import AUTO, choose, largest_predicted
    from dumbo.plan.speed import Speed, known_speed
    from dumbo.plan.stand_in import chosen_patches, stand_in
    from dumbo.preview import prepared
    from dumbo.trainer.masters import refuse
    from dumbo.trainer.schedule import measurable

    if not hasattr(plugins.trainer, "micro_batch_size"):
        raise UserError("plan reads trainer.global_batch_size and micro_batch_size, which this trainer does not have.")
    if getattr(plugins.trainer, "master_weights", False):
        refuse(resolved_precision(plugins.trainer.precision), getattr(plugins.launch, "wrapper", "none"))
    quiet = replace(plugins, preview=replace(plugins.preview, format=plugins.plan.format))
    tokenizer, data = prepared(quiet)
    ranks = int(getattr(plugins.launch, "ranks", 1))
    measures = wanted(plugins.plan.measure, _sharded(plugins, ranks))
    chosen, took = None, None
    if plugins.trainer.micro_batch_size == AUTO:
        chosen = choose(plugins, tokenizer, data, ranks, console, measure=measures)
        plugins = replace(plugins, trainer=replace(plugins.trainer, micro_batch_size=chosen.micro))
        took = of_choice(chosen) if chosen.how == "measured" else None
    trainer = plugins.trainer
    of = arithmetic(trainer, data, trainer.batch(ranks))
    if measures and took is None and torch.cuda.is_available():  # before this process has memory of the GPU itself
        took = measured(plugins, data, ranks, of.batch.micro, None, console)
    found = stand_in(plugins, tokenizer, chosen_patches(plugins, tokenizer, data))
    total, trainable = found.parameters
    patches = {**found.evidence, **{name: f"left out: {reason}" for name, reason in found.left_out.items()}}
    model = {"name": str(getattr(plugins.model, "name", type(plugins.model).__name__)), "parameters": total,
             "trainable": trainable, "dtype": str(found.model.dtype).removeprefix("torch.")}  # fmt: skip
    memory = predict(plugins, tokenizer, data, of.batch, found)
    if measures and took is None and memory.fits:
        took = measured(plugins, data, ranks, of.batch.micro, memory.available, console)
    whole_state = memory.held["optimizer"] * (ranks if _sharded(plugins, ranks) else 1)
    folder = Path(plugins.options.run_dir or "outputs")
    written = disk(found.model, tokenizer, whole_state, trainer, of.steps, measurable(data.eval), folder)
    config = masked(composed.cfg)
    typed = plugins.plan.tokens_per_s
    speed = Speed(typed, "plan.tokens_per_s") if typed else known_speed(config, ranks, hardware())
    plan = Plan(config_hash(config), model, patches, data, of, memory, took, chosen, written, speed)
    if plan.fits or (took is not None and torch.cuda.is_available()):
        return plan, None if plan.fits or took is None else took.largest
    return plan, largest_predicted(plugins, tokenizer, data, ranks, below=of.batch.micro)


def _sharded(plugins: Plugins, ranks: int) -> bool:
    return ranks > 1 and getattr(plugins.launch, "wrapper", "none") == "FSDP2"


def _faults(found: Plan, smaller: int | None, plugins: Plugins) -> list[str]:
    from dumbo.plan.micro_batch import remedy
    from dumbo.plan.shown import size

    faults = []
    memory = found.memory
    if not found.fits:
        micro = found.arithmetic.batch.micro
        advice = (
            f"  Write trainer.micro_batch_size={smaller} (the global batch stays {found.arithmetic.batch.global_})"
            if smaller
            else remedy(plugins)
        )
        needs = f"needs about {size(memory.peak)}, {size(memory.available or 0)} are free"
        if found.measured is not None:
            needs = f"did not fit into {size(found.measured.limit or 0)}, measured"
        faults.append(f"The memory is not enough: micro batch {micro} {needs}.\n{advice}")
    if not found.disk.fits:
        faults.append(
            f"The disk is not enough: up to {size(found.disk.needed)} are written, {size(found.disk.free or 0)} are free.\n"
            "  Write trainer.save_total_limit=1, or run_dir=FOLDER on another disk"
        )
    return faults


def _nowhere() -> Any:
    import io

    return io.StringIO()
