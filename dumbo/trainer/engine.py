"""What dumbo changes of transformers' Trainer, in one mixin that any subclass of Trainer can take.

    class SftTrainer(Engine, Trainer): ...

Public methods overridden: get_train_dataloader, get_eval_dataloader, get_batch_samples, training_step, compute_loss,
evaluate, log, floating_point_ops. Private ones, each with a test, within the versions of transformers in
pyproject.toml:

    _save_checkpoint      complete or absent, in dumbo's folder names
    _save                 no training_args.bin (a pickle)

Private ones called: _save_optimizer_and_scheduler, _save_scaler, _save_rng_state (their files in our folder),
_load_from_checkpoint (weights alone), _prepare_inputs.

What is not overridden: the loop, the optimizer and scheduler, gradient clipping, mixed precision, loading state.
"""

from __future__ import annotations

import inspect
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from transformers import Trainer, TrainerCallback, TrainerState

from dumbo.interfaces import IGNORE
from dumbo.patch.modules import base_of
from dumbo.prepare.store import Store
from dumbo.trainer.bad_numbers import Watch
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.collate import Collate, Examples
from dumbo.trainer.progress import Counters, Interval, Meter
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.throughput import flops_per_token, peak_flops

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    _Base = Trainer
else:
    _Base = object

COUNTERS = "counters.json"
STATE = "trainer_state.json"
BYTES_PER_SECOND = 2e8
"""What a disk is taken to write before the first checkpoint has shown it."""


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
        self.counters, self.interval = Counters(), Interval()
        self.watch = Watch(store, checkpoints.folder.parent)
        self.pending: deque[NDArray[Any]] = deque()
        self.fused_loss = "skip_logits" in inspect.signature(base_of(self.model).forward).parameters  # Liger's
        self.held_out: tuple[int, float] | None = None  # (step, loss) of the last evaluation
        self.evaluate_first = False
        self.eval_seconds = 0.0
        self.save_seconds = _bytes_of_state(self.model) / BYTES_PER_SECOND
        peak = peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self.meter = Meter(self.model, flops_per_token(self.model), peak)
        self.add_callback(_Beginnings(self))

    # ---- data -------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Batches in the sampler's order. Not prepared by accelerate: the sampler already is what a rank trains on."""
        return torch.utils.data.DataLoader(
            self.examples, batch_sampler=self.order, collate_fn=self.collate, **self._loading(self.order.seed)
        )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Held-out batches, in the data's order."""
        assert self.eval_examples is not None
        size = self.order.batch.micro
        return torch.utils.data.DataLoader(
            self.eval_examples, batch_size=size, shuffle=False, collate_fn=self.eval_collate, **self._loading(0)
        )

    def _loading(self, seed: int) -> dict[str, Any]:
        """How batches are fetched. A generator of their own: neither loading nor evaluating moves the random state."""
        workers = self.args.dataloader_num_workers
        return {
            "num_workers": workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor if workers else None,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context if workers else None,
            "in_order": self.args.dataloader_in_order,
            "persistent_workers": self.args.dataloader_persistent_workers and workers > 0,
            "pin_memory": self.args.dataloader_pin_memory and self.args.device.type == "cuda",
            "generator": torch.Generator().manual_seed(seed),
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The micro batches of a step and the trained tokens in all of them; counts, and times the waiting."""
        began = time.perf_counter()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self.interval.waited += time.perf_counter() - began
        self.interval.steps += 1
        self.counters.trained_tokens += sum(trained_tokens(batch) for batch in batches)
        items = self.items_of(batches, device)
        for batch in batches:
            documents = batch.pop("documents")
            lengths = self.store.lengths[documents]
            self.counters.documents += len(documents)
            self.counters.tokens += int(lengths.sum())
            self.interval.add(lengths)
            self.pending.append(documents)
        return batches, items

    def items_of(self, batches: Sequence[dict[str, Any]], device: torch.device) -> torch.Tensor:
        """What the sum of the tokens' losses is divided by: the trained tokens of these batches, on all ranks."""
        items = torch.tensor(sum(trained_tokens(batch) for batch in batches), device=device)
        if self.args.world_size > 1:
            items = self.accelerator.gather(items).sum()
        return items.clamp(min=1)  # a step of cut-off rows may have none: its loss is 0, not 0/0

    # ---- loss -------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of a micro batch."""
        # compute_loss divides by the trained tokens of the whole global batch: Trainer must not divide once more.
        self.current_gradient_accumulation_steps = 1
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.watch.add(self.state.global_step + 1, self.pending.popleft(), loss)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Sum of the tokens' losses over `num_items_in_batch`.

        transformers divides inside models that take that number; for others it is done here. Where output head and
        loss are one (Liger), that is so in evaluation too: all logits are never held at once.
        """
        assert num_items_in_batch is not None
        if self.model_accepts_loss_kwargs:
            if self.fused_loss and not return_outputs and self.label_smoother is None:
                inputs = {**inputs, "skip_logits": True}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].float()
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE, reduction="sum"
        )
        loss = total / num_items_in_batch * self.accelerator.num_processes
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
                tokens += trained_tokens(batch)
                inputs = self._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
                with self.compute_loss_context_manager():
                    total += self.compute_loss(model, inputs, num_items_in_batch=one).detach().double()
        model.train(was_training)
        assert tokens, "nothing is held out that could be measured"
        metrics = {f"{metric_key_prefix}_loss": float(total) / tokens}
        self.held_out = (self.state.global_step, metrics[f"{metric_key_prefix}_loss"])
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.eval_seconds = time.perf_counter() - began
        self.interval.paused += self.eval_seconds
        return metrics

    # ---- numbers ----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row for metrics.jsonl: training rows carry `loss`, evaluation rows `eval_loss`; Trainer's summary is dropped.

        Raises:
            RunFailed: the loss or the gradient norm is not finite (the row is written all the same).
        """
        row: dict[str, Any] = {"step": self.state.global_step}
        if "loss" in logs:
            row |= self.meter.row(logs, self.counters, self.interval)
            self.counters.note_loss(logs["loss"])
            self.interval = Interval()
        elif "eval_loss" in logs:
            row |= {"eval_loss": logs["eval_loss"], "tokens": self.counters.tokens}
        else:
            return
        self.on_row(row)
        if "loss" in logs:
            self.watch.check(logs["loss"], logs.get("grad_norm"))
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, dict(row))

    def floating_point_ops(self, inputs: Any) -> int:
        """Trainer's own estimate walks all parameters every step and counts padding; ours is in `mfu`."""
        return 0

    # ---- checkpoints ------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        self.counters.note_saved(self.state.global_step, self.held_out)
        self.checkpoints.save(self.state.global_step, self._write_state, self.counters.best_step)
        self.save_seconds = time.perf_counter() - began
        self.interval.paused += self.save_seconds

    def _write_state(self, folder: Path) -> None:
        """Model or adapters, optimizer, scheduler, random states, Trainer's state, our counters."""
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_scaler(str(folder))
        self._save_rng_state(str(folder))
        self.state.save_to_json(str(folder / STATE))
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

    def load_weights(self, checkpoint: Path) -> None:
        """The weights of a checkpoint, the rest of the state as it is."""
        self._load_from_checkpoint(str(checkpoint))

    def take_finished(self, checkpoint: Path) -> None:
        """Instead of `train`, when the last step is in a checkpoint already: its weights and Trainer's state."""
        self.load_weights(checkpoint)
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))
        self.accelerator.prepare_model(self.model, evaluation_mode=True)  # the arithmetic (bf16) of training
        if self.evaluate_first:
            self.evaluate_left_out()

    def evaluate_left_out(self) -> None:
        """The evaluation that a stop left out at the step gone on from; that step may be the best one."""
        self.evaluate()
        self.counters.note_saved(self.state.global_step, self.held_out)


def trained_tokens(batch: dict[str, Any]) -> int:
    """Tokens of a batch that bear the loss: labels (B, T) unshifted, the first of a row has nothing before it."""
    return int((batch["labels"][:, 1:] != IGNORE).sum())


def save_weights(model: Any, folder: Path) -> None:
    """A model, or adapters alone, as safetensors. peft is told not to look at the hub whether embeddings changed."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def _bytes_of_state(model: Any) -> float:
    """Of a checkpoint, about: what trains, and two moments of it."""
    return sum(3.0 * p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


class _Beginnings(TrainerCallback):
    """At the start of training and of each epoch."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.compute_steps(args, state.max_steps)  # on resuming Trainer would keep the earlier log_every, save_every
        self.engine.interval = Interval()
        if self.engine.evaluate_first:
            self.engine.evaluate_left_out()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # At the start of an epoch, and on resuming inside one. Trainer itself counts epochs in this way.
        self.engine.order.set_epoch(state.global_step // self.engine.order.steps())
