"""What a checkpoint holds, and how transformers' Trainer takes one up: the part of the engine that has to do with disks.

Private methods of Trainer overridden, each with a test, within the versions of transformers in pyproject.toml:

    _save_checkpoint      complete or absent, in dumbo's folder names
    _save                 no training_args.bin (a pickle)
    _load_from_checkpoint, _load_optimizer_and_scheduler   shards, on any number of ranks

Private ones called: _save_optimizer_and_scheduler, _save_scaler, _save_rng_state (their files in our folder).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from dumbo.launch.world import World
from dumbo.trainer import sharded_state
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.progress import Counters, Interval
from dumbo.trainer.sharded import is_sharded

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

COUNTERS = "counters.json"
STATE = "trainer_state.json"
BYTES_PER_SECOND = 2e8
"""What a disk is taken to write before the first checkpoint has shown it."""


class Saving(_Base):
    """A mixin over Trainer, beneath `Engine`, whose `equip` sets what stands here."""

    world: World
    checkpoints: Checkpoints
    counters: Counters
    interval: Interval
    held_out: tuple[int, float] | None
    save_seconds: float
    taken_up: Path | None

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        self.counters.note_saved(self.state.global_step, self.held_out)
        self.checkpoints.save(self.state.global_step, self._write_state, self.counters.best_step)
        self.save_seconds = time.perf_counter() - began
        self.interval.paused += self.save_seconds

    def _write_state(self, folder: Path) -> None:
        """Model or adapters, optimizer, scheduler, random states, Trainer's state, our counters: each rank its part."""
        model: Any = self.model
        schedule: Any = self.lr_scheduler
        if is_sharded(model):
            sharded_state.save(model, self._plain_optimizer, folder, self.world)
            if self.world.main:
                torch.save(schedule.state_dict(), folder / SCHEDULER_NAME)
        elif self.world.main:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            names = sharded_state.names_in_order(model, self._plain_optimizer)
            (folder / sharded_state.NAMES).write_text(json.dumps(names))
        if self.world.main:
            self._save_scaler(str(folder))
            self.state.save_to_json(str(folder / STATE))
            (folder / COUNTERS).write_text(json.dumps(asdict(self.counters)))
        self._save_rng_state(str(folder))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Safetensors and the tokenizer."""
        assert output_dir is not None
        save_weights(self.accelerator.unwrap_model(self.model), Path(output_dir))
        assert self.processing_class is not None
        self.processing_class.save_pretrained(output_dir)

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        wrapped: Any = self.optimizer
        optimizer: torch.optim.Optimizer = getattr(wrapped, "optimizer", wrapped)
        return optimizer

    def take_up(self, checkpoint: Path) -> None:
        """Before `train`: whole weights go into the model before it is sharded."""
        if self.is_fsdp_enabled and not sharded_state.is_sharded_checkpoint(checkpoint):
            self._load_whole(checkpoint, self.model)
            self.taken_up = checkpoint

    def _load_whole(self, checkpoint: Path, model: Any) -> None:
        sharding, self.is_fsdp_enabled = self.is_fsdp_enabled, False  # Trainer would look for its own form of shards
        super()._load_from_checkpoint(str(checkpoint), model)
        self.is_fsdp_enabled = sharding

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights; Trainer's own way when neither the checkpoint nor the model is sharded."""
        checkpoint, model = Path(resume_from_checkpoint), self.model if model is None else model
        if sharded_state.is_sharded_checkpoint(checkpoint):
            sharded_state.load_weights(model, checkpoint, self.world)
        elif not is_sharded(model):
            self._load_whole(checkpoint, model)
        elif self.taken_up == checkpoint:  # they went in before it was sharded
            self.taken_up = None
        else:
            sharded_state.load_whole_weights(model, checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Optimizer state and schedule; Trainer's own way when neither the checkpoint nor the model is sharded."""
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        model: Any = self.model
        schedule: Any = self.lr_scheduler
        if sharded_state.is_sharded_checkpoint(folder):
            sharded_state.load_optimizer(model, self._plain_optimizer, folder, self.world)
        elif is_sharded(model):
            sharded_state.load_whole_optimizer(model, self._plain_optimizer, folder)
        else:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        schedule.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))

    def restore_counters(self, checkpoint: Path) -> None:
        """Takes the sums up where a checkpoint left them."""
        self.counters = Counters(**json.loads((checkpoint / COUNTERS).read_text()))

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, the rest of the state as it is."""
        self._load_from_checkpoint(str(checkpoint))


def save_weights(model: Any, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """A model, or adapters alone, as safetensors. peft is told not to look at the hub whether embeddings changed.

    Args:
        weights: name -> the whole tensor, of a model that has shards only.
    """
    own: dict[str, Any] = {} if weights is None else {"state_dict": dict(weights)}
    if hasattr(model, "peft_config"):
        own["save_embedding_layers"] = False
    model.save_pretrained(folder, **own)


def seconds_to_save(model: Any) -> float:
    """Of the first checkpoint, about: what trains, and two moments of it."""
    return sum(3.0 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) / BYTES_PER_SECOND
