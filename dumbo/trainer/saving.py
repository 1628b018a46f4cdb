"""What a checkpoint holds, and how transformers' Trainer takes one up: the part of the engine that has to do with disks.

Private methods of Trainer called: _load_from_checkpoint, _load_optimizer_and_scheduler; _save_scaler, _save_rng_state (their
files in our folder).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from dumbo.errors import RunFailed
from dumbo.launch.world import World
from dumbo.trainer import sharded_state
from dumbo.trainer.beside import Beside
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.device_clock import drain
from dumbo.trainer.progress import Counters, Interval
from dumbo.trainer.schedule import take_rates
from dumbo.trainer.sharded import is_sharded

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

COUNTERS = "counters.json"
STATE = "trainer_state.json"
BYTES_PER_SECOND = 2e8
"""What a disk is taken to write before the first checkpoint has shown it."""
PATIENCE = 5.0
"""Seconds for a checkpoint under way when a rank has failed."""


class Saving(_Base):
    """A mixin over Trainer, beneath `Engine`, whose `equip` sets what stands here."""

    world: World
    checkpoints: Checkpoints
    counters: Counters
    interval: Interval
    held_out: tuple[int, float] | None
    save_estimate: float
    save_stalls: list[float]
    beside: Beside | None
    best_before: tuple[int | None, float | None]
    on_unsaved: Callable[[str], None]
    taken_up: Path | None

    def save_checkpoint(self) -> None:
        """Waits for the one before, then writes this one: beside training, unless that failed the last time or it ends here."""
        began = time.perf_counter()
        drain(self.args.device)  # steps that were launched before: no part of the pause
        paused_at = time.perf_counter()
        failure = self._settled()
        last = self.control.should_training_stop or self.state.global_step >= self.state.max_steps
        if self.beside is not None and last:  # a copy would be for nothing
            self._write_last()
        else:
            self._write_checkpoint(None if failure is not None else self.beside)
        stall = time.perf_counter() - began
        self.interval.paused += time.perf_counter() - paused_at
        self.save_stalls.append(stall)
        if self.beside is None:
            self.save_estimate = stall

    def _write_checkpoint(self, beside: Beside | None) -> None:
        self.best_before = (self.counters.best_step, self.counters.best_loss)
        self.counters.note_saved(self.state.global_step, self.held_out)
        self.checkpoints.save(
            self.state.global_step, lambda folder: self._write_state(folder, beside), self.counters.best_step, beside
        )

    def _write_last(self) -> None:
        """Tried twice, as the last one of those that are written beside is (`saved_in_the_end`)."""
        try:
            self._write_checkpoint(None)
        except RunFailed as failure:
            self._not_written(failure, "it is tried once more")
            self._write_checkpoint(None)

    def _not_written(self, failure: RunFailed, then: str) -> None:
        """It is told, and is not the best one."""
        self.counters.best_step, self.counters.best_loss = self.best_before
        self.on_unsaved(f"{failure}\n{then}")

    def _settled(self) -> RunFailed | None:
        """Waits for the checkpoint under way; why it could not be written, which is told."""
        failure = self.beside.settle() if self.beside is not None else None
        if failure is not None:
            self._not_written(failure, "training has gone on; the next one is written while it waits")
        return failure

    @property
    def save_seconds(self) -> float:
        """How long saving takes until it is on the disk, as far as known; where one is under way, that one too."""
        if self.beside is None:
            return self.save_estimate
        written = self.save_estimate if self.beside.seconds is None else self.beside.seconds
        stall = self.save_stalls[-1] if self.save_stalls else 0.0
        return stall + written + (written if self.beside.busy else 0.0)

    @contextmanager
    def saved_in_the_end(self) -> Iterator[None]:
        """The block trains; after it, the last checkpoint is on the disk.

        When training fails, the checkpoint under way is still finished (with several ranks: given some seconds, since
        another rank may be gone); the failure rises.

        Raises:
            RunFailed: it could not be written, not a second time either; the older ones are as they were.
        """
        try:
            yield
        except Exception:
            if self.beside is not None:
                self.beside.give(None if self.world.size == 1 else PATIENCE)
            raise
        if self._settled() is not None:
            self._write_checkpoint(None)

    def _write_state(self, folder: Path, beside: Beside | None = None) -> Callable[[], None]:
        """Each rank its part: what is small at once, and a function that writes what is large.

        Args:
            beside: the large part is going to be written while training changes it: a copy is taken.
        """
        schedule: Any = self.lr_scheduler
        if self.world.main:
            torch.save(schedule.state_dict(), folder / SCHEDULER_NAME)
            self._save_scaler(str(folder))
            self.state.save_to_json(str(folder / STATE))
            (folder / COUNTERS).write_text(json.dumps(asdict(self.counters)))
        self._save_rng_state(str(folder))
        return self._sharded_part(folder, beside) if is_sharded(self._whole) else self._whole_part(folder, beside)

    def _sharded_part(self, folder: Path, beside: Beside | None) -> Callable[[], None]:
        tensors, scalars = sharded_state.state_of(self._whole, self._plain_optimizer)
        world = self.world
        if beside is not None:
            tensors, world = beside.copy(tensors, "sharded"), beside.world
        return lambda: sharded_state.save(tensors, scalars, folder, world)

    def _whole_part(self, folder: Path, beside: Beside | None) -> Callable[[], None]:
        """Model or adapters, tokenizer and optimizer, of rank 0; the others have the same."""
        if not self.world.main:
            return lambda: None
        model = self.accelerator.unwrap_model(self.model)
        optimizer = self._plain_optimizer
        state: Any = optimizer.state_dict()
        names = sharded_state.names_in_order(self._whole, optimizer)
        weights: dict[str, torch.Tensor] | None = None
        if beside is not None:
            frozen = {name for name, value in model.named_parameters(remove_duplicate=False) if not value.requires_grad}
            own: dict[str, torch.Tensor] = model.state_dict()
            weights = {name: tensor for name, tensor in own.items() if name in frozen}  # nothing changes them
            weights |= beside.copy({name: tensor for name, tensor in own.items() if name not in frozen}, "weights")
            state = beside.copy(state, "optimizer")

        def write() -> None:
            self._save_weights(folder, weights)
            torch.save(state, folder / OPTIMIZER_NAME)
            (folder / sharded_state.NAMES).write_text(json.dumps(names))

        return write

    @property
    def _whole(self) -> torch.nn.Module:
        model: Any = self.model
        return model

    def _save_weights(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Safetensors and the tokenizer."""
        save_weights(self.accelerator.unwrap_model(self.model), folder, weights)
        assert self.processing_class is not None
        self.processing_class.save_pretrained(folder)

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

    def weights_from(self, checkpoint: Path, model: Any) -> None:
        """Weights; Trainer's own way when neither the checkpoint nor the model is sharded."""
        if sharded_state.is_sharded_checkpoint(checkpoint):
            sharded_state.load_weights(model, checkpoint, self.world)
        elif not is_sharded(model):
            self._load_whole(checkpoint, model)
        elif self.taken_up == checkpoint:  # they went in before it was sharded
            self.taken_up = None
        else:
            sharded_state.load_whole_weights(model, checkpoint)

    def load_optimizer(self, checkpoint: str | None) -> None:
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
        if is_sharded(model) or sharded_state.is_sharded_checkpoint(folder):
            schedule.load_state_dict(torch.load(folder / SCHEDULER_NAME, weights_only=True))
        take_rates(schedule, self._plain_optimizer)

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


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Beside the weights, as transformers reads it again; `verify` proves that what is read is what was trained with."""
    tokenizer.save_pretrained(folder)


def bytes_to_save(model: Any) -> float:
    """Of a checkpoint, about: what trains, and two moments of it in float32."""
    return sum(p.numel() * (p.element_size() + 8.0) for p in model.parameters() if p.requires_grad)


def seconds_to_save(model: Any) -> float:
    """Of the first checkpoint, about."""
    return bytes_to_save(model) / BYTES_PER_SECOND
