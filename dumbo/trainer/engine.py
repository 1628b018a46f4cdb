"""What dumbo changes of transformers' Trainer, in one mixin that any subclass of Trainer can take.

    class SftTrainer(Engine, Trainer): ...

Public methods overridden: get_train_dataloader, get_eval_dataloader, get_batch_samples, compute_loss, evaluate, log,
floating_point_ops. Private ones, each with a test, within the versions of transformers in pyproject.toml:

    _save_checkpoint      complete or absent, in dumbo's folder names
    _save                 no training_args.bin (a pickle)

What is not overridden: the loop, the optimizer and scheduler, gradient clipping, mixed precision, loading state.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from dumbo.interfaces import IGNORE
from dumbo.prepare.store import Store
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.collate import Collate, Examples
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.throughput import attention_flops, flops_per_token, peak_flops, peak_memory_gib

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    _Base = Trainer
else:
    _Base = object

COUNTERS = "counters.json"


@dataclass
class Counters:
    """Running sums over the whole run; saved with each checkpoint.

    Attributes:
        tokens: real tokens, padding not counted.
        trained_tokens: tokens that bore the loss.
        documents: documents seen.
        recent_losses: of the last logged steps, for `train_loss`.
    """

    tokens: int = 0
    trained_tokens: int = 0
    documents: int = 0
    recent_losses: list[float] = field(default_factory=list)

    @property
    def train_loss(self) -> float | None:
        """Mean of the last ten logged losses."""
        return sum(self.recent_losses) / len(self.recent_losses) if self.recent_losses else None


@dataclass
class _Interval:
    """Since the last logged step: what was done, and time that was not training."""

    began: float = 0.0
    tokens: int = 0
    flops_attention: float = 0.0
    waited: float = 0.0
    paused: float = 0.0
    steps: int = 0


class Engine(_Base):
    """The mixin. Call `equip` before `train`."""

    def equip(
        self,
        *,
        store: Store,
        examples: Examples,
        sampler: GlobalBatches,
        collate: Collate,
        eval_examples: Examples | None,
        eval_collate: Collate | None,
        checkpoints: Checkpoints,
        on_row: Callable[[dict[str, Any]], None],
    ) -> None:
        """Gives the trainer its data, its checkpoints and where its numbers go.

        Args:
            store: of the training documents.
            examples, sampler, collate: what is trained on, in which order, and as which tensors.
            eval_examples, eval_collate: what is held out; None: nothing.
            checkpoints: where state is saved.
            on_row: called with every row for metrics.jsonl.
        """
        self.store, self.examples, self.order, self.collate = store, examples, sampler, collate
        self.eval_examples, self.eval_collate = eval_examples, eval_collate
        self.checkpoints, self.on_row = checkpoints, on_row
        self.counters = Counters()
        self.interval = _Interval()
        self._flops = flops_per_token(self.model)
        self._peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.add_callback(_Epochs(self))

    # ---- data -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in the sampler's order. Not prepared by accelerate: the sampler already is what a rank trains on."""
        return torch.utils.data.DataLoader(
            self.examples,
            batch_sampler=self.order,
            collate_fn=self.collate,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Held-out batches, in the data's order."""
        assert self.eval_examples is not None
        return torch.utils.data.DataLoader(
            self.eval_examples, batch_size=self.order.batch.micro, shuffle=False, collate_fn=self.eval_collate
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro batches of a step; counts their tokens on the CPU, and how long they were waited for."""
        began = time.perf_counter()
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.interval.waited += time.perf_counter() - began
        self.interval.steps += 1
        for batch in batches:
            documents = batch.pop("documents")
            lengths = self.store.lengths[documents]
            self.counters.documents += len(documents)
            self.counters.tokens += int(lengths.sum())
            self.counters.trained_tokens += int((batch["labels"][:, 1:] != IGNORE).sum())
            self.interval.tokens += int(lengths.sum())
            self.interval.flops_attention += float(np.square(lengths, dtype=np.float64).sum())
        return batches, items

    # ---- loss -------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the tokens' losses over the trained tokens of the whole global batch.

        transformers divides by `num_items_in_batch` inside models that take it; for others it is done here.
        """
        inputs.pop("documents", None)
        if self.model_accepts_loss_kwargs or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].float()
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        loss = total / num_items_in_batch
        return (loss, outputs) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss on the held-out documents: a mean over trained tokens, whatever the batch size."""
        began = time.perf_counter()
        model: Any = self.model
        was_training = model.training
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.args.device)
        tokens = 0
        one = torch.ones((), device=self.args.device)
        with torch.no_grad():
            for batch in self.get_eval_dataloader():
                tokens += int((batch["labels"][:, 1:] != IGNORE).sum())
                inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
                with self.compute_loss_context_manager():
                    total += self.compute_loss(model, inputs, num_items_in_batch=one).detach().double()
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_loss": float(total) / max(1, tokens)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.interval.paused += time.perf_counter() - began
        return metrics

    # ---- numbers ----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row for metrics.jsonl: training rows carry `loss`, evaluation rows `eval_loss`; Trainer's summary is dropped."""
        row: dict[str, Any] = {"step": self.state.global_step}
        if "loss" in logs:
            row |= self._training_row(logs)
        elif "eval_loss" in logs:
            row |= {"eval_loss": logs["eval_loss"], "tokens": self.counters.tokens}
        else:
            return
        self.on_row(row)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(row))

    def _training_row(self, logs: Mapping[str, float]) -> dict[str, Any]:
        now = time.perf_counter()
        interval = self.interval
        seconds = max(1e-9, now - interval.began - interval.paused)
        flops = self._flops * interval.tokens + attention_flops(self.model, interval.flops_attention)
        row = {
            "tokens": self.counters.tokens,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "lr": logs["learning_rate"],
            "tokens_per_s": round(interval.tokens / seconds, 1),
            "mfu": round(flops / seconds / self._peak, 4) if self._peak else None,
            "peak_memory_gib": round(peak_memory_gib(), 3),
            "data_wait_ms": round(1000 * interval.waited / max(1, interval.steps), 2),
            "step_ms": round(1000 * seconds / max(1, interval.steps), 2),
        }
        self.counters.recent_losses = [*self.counters.recent_losses, logs["loss"]][-10:]
        self.interval = _Interval(began=now)
        return row

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer's own estimate walks all parameters every step and counts padding; ours is in `mfu`."""
        return 0

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        self.checkpoints.save(self.state.global_step, self._write_state, self.state.best_global_step)
        self.interval.paused += time.perf_counter() - began

    def _write_state(self, folder: Path) -> None:
        """Model or adapters, optimizer, scheduler, random states, Trainer's state, our counters."""
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / "trainer_state.json"))
        (folder / COUNTERS).write_text(json.dumps(asdict(self.counters)))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Safetensors and the tokenizer."""
        assert output_dir is not None
        save_weights(self.accelerator.unwrap_model(self.model), Path(output_dir))
        assert self.processing_class is not None
        self.processing_class.save_pretrained(output_dir)

    def restore_counters(self, checkpoint: Path) -> None:
        """Takes the sums up where a checkpoint left them."""
        self.counters = Counters(**json.loads((checkpoint / COUNTERS).read_text()))


def save_weights(model: Any, folder: Path) -> None:
    """A model, or adapters alone, as safetensors. peft is told not to look at the hub whether embeddings changed."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


class _Epochs(TrainerCallback):
    """Tells the sampler its epoch, and starts the clock of the first interval."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.engine.interval = _Interval(began=time.perf_counter())

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the start of an epoch, and on resuming inside one, the whole part of state.epoch is its number.
        self.engine.order.set_epoch(int(state.epoch or 0))
