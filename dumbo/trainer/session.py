"""One training session of `trainer=sft`, told in order. State lives here, options in `sft.py`, the loop in Trainer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer

from dumbo.batch import Batch
from dumbo.errors import MemoryFull
from dumbo.launch.world import DISK
from dumbo.outputs.halvings import facts_of, fitting, give_up_graphs, halve, happened, reminder, settled
from dumbo.patch.chunked_loss import takes_places
from dumbo.patch.compile import compiled_layers
from dumbo.patch.modules import base_of
from dumbo.plan.noted import note
from dumbo.prepare.packing import Packs, pack
from dumbo.prepare.store import Split
from dumbo.trainer.answers import Answers
from dumbo.trainer.arguments import training_arguments
from dumbo.trainer.beside import room_for
from dumbo.trainer.callbacks import Flow, Progress, StateMemory, Wrapped
from dumbo.trainer.capturable import wanted
from dumbo.trainer.checkpoint import BadCheckpoint, Checkpoints
from dumbo.trainer.collate import Collate, Examples, Room
from dumbo.trainer.duration import seconds_of
from dumbo.trainer.engine import Engine
from dumbo.trainer.final import final_metrics
from dumbo.trainer.layout import choose_layout
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.saving import bytes_to_save, save_tokenizer, save_weights
from dumbo.trainer.schedule import require_schedule
from dumbo.trainer.sharded import is_sharded, place_whole, whole_weights
from dumbo.trainer.shrinking import Shrinking
from dumbo.trainer.signals import StopRequests
from dumbo.trainer.stop import StopCallback
from dumbo.verify.first_batch import loss_and_flow_proofs, tokens_proof
from dumbo.verify.quick import accumulation_proof, fused_loss_proof, unlike_documents
from dumbo.verify.unpatched import few

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.sft import Sft


class SftTrainer(Shrinking, Engine, Trainer):
    """transformers' Trainer with dumbo's engine."""


@dataclass
class Session:
    """Everything one call of `Sft.train` needs; `callbacks` are added to Trainer's."""

    sft: Sft
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: PreparedSplits
    run: RunDir
    stop: StopRequests = field(default_factory=StopRequests)
    callbacks: Sequence[TrainerCallback] = ()

    def train(self) -> dict[str, Any]:
        """The whole of it. Returns the final metrics."""
        run, console = self.run, self.run.console
        batch = settled(run, self.sft.batch(run.ranks), self.sft.micro_batch_size)
        trainer = self.trainer = self.equipped(batch)
        steps = self.sft.max_steps or trainer.order.steps() * self.sft.num_epochs
        schedule = require_schedule(trainer.args, steps)
        resume_from = self._resume(trainer, steps)
        trainer.args.eval_on_start = trainer.args.eval_on_start and resume_from is None
        self._show_plan(trainer, batch, steps)
        if schedule is not None:
            console.row("", schedule)
        asked = self.sft.micro_batch_size
        # With room, a proof's batch takes as much as one of training. A model that is not sharded yet is not its matter.
        with trainer.memory_told(asked) if run.wrapped_in != "FSDP2" else nullcontext():
            self._prove(trainer)
        answers = Answers(self.model, self.tokenizer, self.data, run, self.sft)
        before = answers.before()
        done = self._steps_done(resume_from)
        with console.training(steps, done) as bar, self.stop.listening(), trainer.memory_told(asked):
            trainer.add_callback(Progress(bar))
            self._bar = bar
            if resume_from is not None and done >= steps:
                trainer.take_finished(resume_from)
            else:
                if resume_from is not None:
                    trainer.take_up(resume_from)
                elif not run.world.main:
                    torch.manual_seed(self.sft.seed + run.world.rank)  # dropout is another one on each rank
                with trainer.saved_in_the_end():
                    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if trainer.graphs_said is not None:
            run.update(cuda_graphs=trainer.graphs_said)
        self.stop.settle(run.world)
        self.stop.raise_if_any()
        if self.sft.load_best_at_end:
            self._load_best(trainer)
        self._save_model(trainer, answers.stop_ids)
        return final_metrics(trainer, run, self.sft, self.state_memory.gib) | answers.after(before)

    # ---- before -----------------------------------------------------------------------------------------------

    def equipped(self, batch: Batch) -> SftTrainer:
        """Trainer with its data, ready to train; `verify` proves on the same."""
        trainer = self._trainer(batch)
        for callback in self.callbacks:
            trainer.add_callback(callback)
        return trainer

    def _trainer(self, batch: Batch) -> SftTrainer:
        run, data = self.run, self.data
        self.packs = self._pack(data.train, self.sft.seed)
        examples = Examples(self.packs, data.train.documents)
        held_out = self._examples_held_out()
        checkpoints = Checkpoints(run.path / "checkpoints", self.sft.save_total_limit, run.world)
        checkpoints.clean()
        trainer = SftTrainer(
            model=self.model,
            args=training_arguments(self.sft, run.path, batch, evaluates=held_out is not None, fsdp=self._fsdp()),
            train_dataset=examples,
            eval_dataset=held_out,
            processing_class=self.tokenizer,
            callbacks=[Flow(held_out is not None)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if run.wrapped_in == "FSDP2":
            place_whole(self.model, trainer.args.device)
        room = None
        if compiled_layers(self.model):
            few_kinds = self.sft.cuda_graphs is not False and takes_places(self.model)
            room = Room(batch.micro * data.max_seq_len, data.max_seq_len, few_kinds)
        self.layout, self.isolation = choose_layout(
            self.model,
            self.sft.packing,
            run.attn_implementation,
            bf16=trainer.args.bf16,
            longest=data.max_seq_len,
            room=room,
        )
        trainer.equip(
            store=data.train.store,
            examples=examples,
            sampler=GlobalBatches(
                len(examples),
                batch,
                self.sft.seed,
                None if self.packs is not None else data.train.lengths,
                run.world.rank,
            ),
            collate=self._collate(data.train, room),
            eval_examples=held_out,
            eval_collate=self._collate(data.eval, room) if data.eval is not None else None,
            checkpoints=checkpoints,
            on_row=self._on_row,
            world=run.world,
            on_bad=lambda text: self._bar.note("skipped", text),
            on_unsaved=lambda text: self._bar.note("checkpoint", text),
            max_bad_steps=self.sft.max_bad_steps,
            save_beside=self._saves_beside(trainer.args.device),
            master_weights=self.sft.master_weights,
            prefetch=self.sft.prefetch and trainer.args.device.type == "cuda",
            cuda_graphs=wanted(self.sft, self.model, trainer.args, room, self.layout, run),
        )
        trainer.on_full, trainer.on_graphs = self._on_full, self._on_graphs
        trainer.add_callback(Wrapped(trainer, run))
        self.state_memory = StateMemory()
        trainer.add_callback(self.state_memory)
        limit = seconds_of(self.sft.max_time)
        trainer.add_callback(
            StopCallback(
                self.stop, run.started, limit, lambda: trainer.save_seconds, lambda: trainer.eval_seconds, run.world
            )
        )
        return trainer

    def _saves_beside(self, device: torch.device) -> bool:
        """Left open: where a GPU computes, the CPU is free to write, and there is memory for a copy."""
        if self.sft.async_save is not None or device.type != "cuda":
            return bool(self.sft.async_save)
        sharded = self.run.wrapped_in == "FSDP2"
        needed = bytes_to_save(self.model) / (self.run.ranks if sharded else 1)
        if room_for(needed, self.run.world):
            return True
        self.run.console.row(
            "",
            f"checkpoints are written while training waits: no memory for a copy ({2 * needed / 2**30:,.1f} GiB a rank)",
        )
        return False

    def _fsdp(self) -> dict[str, Any] | None:
        """FSDP2's options, where the launch plugin asks for it."""
        return self.run.fsdp if self.run.wrapped_in == "FSDP2" else None

    def _examples_held_out(self) -> Examples | None:
        """What the held-out loss is measured on; None where no held-out token bears a loss."""
        split = self.data.eval
        if split is None or not len(split):
            return None
        if not split.trained_tokens:
            self.run.console.row("held out", f"{len(split):,} documents without a trained token: no held-out loss")
            return None
        return Examples(self._pack(split, 0), _by_length(split))

    def _pack(self, split: Split, seed: int) -> Packs | None:
        return pack(split.lengths, split.documents, self.data.max_seq_len, seed) if self.sft.packing else None

    def _collate(self, split: Split, room: Room | None) -> Collate:
        pad = self.tokenizer.pad_token_id
        return Collate(split.store, self.layout, pad if pad is not None else 0, room, takes_places(self.model))

    def _resume(self, trainer: SftTrainer, steps: int) -> Path | None:
        """The checkpoint to go on from, with counters and metrics.jsonl set back to it."""
        if not self.run.resuming:
            return None
        found = self._newest_good(trainer)
        if found is None:
            self.run.console.row("resume", "there is no checkpoint yet: from the start")
            self.run.cut_metrics(-1)
            return None
        done = self._steps_done(found)
        trainer.restore_counters(found)
        self.run.cut_metrics(done)
        self.run.console.row("resume", f"from {found.name}" + (", its last step" if done >= steps else ""))
        if trainer.eval_examples is not None:
            trainer.evaluate_first = self.run.world.share(self._evaluation_is_due(done, steps))
        return found

    def _newest_good(self, trainer: SftTrainer) -> Path | None:
        """As rank 0 finds it: looking at all its bytes once is enough, and all ranks must go on from the same one."""
        found: Path | None = None
        fault: BadCheckpoint | None = None
        if self.run.world.main:
            try:
                found = trainer.checkpoints.newest_good(lambda text: self.run.console.row("resume", text))
            except BadCheckpoint as error:
                fault = error
        said, text = self.run.world.share((str(found) if found else None, str(fault) if fault else None))
        if text is not None:
            raise BadCheckpoint(text) from fault
        return Path(said) if said else None

    def _evaluation_is_due(self, done: int, steps: int) -> bool:
        """Whether a stop left out the evaluation that belongs to the step gone on from."""
        every = [number for number in (self.sft.eval_every, self.sft.save_every) if number]
        due = done >= steps or any(done % number == 0 for number in every)
        return due and not any(row["step"] == done and "eval_loss" in row for row in self.run.metrics())

    def _steps_done(self, checkpoint: Path | None) -> int:
        return int(json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]) if checkpoint else 0

    def _show_plan(self, trainer: SftTrainer, batch: Batch, steps: int) -> None:
        run, console = self.run, self.run.console
        epoch_steps = trainer.order.steps()
        if self.sft.max_steps:
            length = (
                f"{steps:,} steps (trainer.max_steps wins over num_epochs; {steps / max(1, epoch_steps):.2f} epochs)"
            )
        else:
            length = f"{steps:,} steps, {self.sft.num_epochs} epoch{'s' * (self.sft.num_epochs != 1)}"
        console.row("batch", f"{batch}   {length}")
        if (reason := reminder(run, batch, self.sft.micro_batch_size)) is not None:
            console.row("", reason)
        if self.packs is not None:
            per_step = min(batch.global_, len(self.packs)) / max(1, len(self.packs))
            console.row(
                "",
                f"a step: {per_step * len(self.data.train):,.1f} documents, {per_step * self.data.train.trained_tokens:,.0f} trained "
                f"tokens on average, in packs of {self.data.max_seq_len:,} tokens, {100 * self.packs.filled:.1f}% full",
            )
        run.update(
            batch=facts_of(batch),
            packing={"layout": self.layout, "packs": len(self.packs) if self.packs is not None else None,
                     "filled": round(self.packs.filled, 4) if self.packs is not None else None},
            planned_steps=steps,
        )  # fmt: skip
        note(run, self.sft, self.model, self.data, batch, trainer.examples)

    def _prove(self, trainer: SftTrainer) -> None:
        proofs = [*self.run.proofs, self.isolation]
        if self.run.verify_quick:
            with self.run.proving():
                proofs += self._proven(trainer)
            self.run.update(proof_seconds=round(self.run.proof_seconds, 2))
        self.run.console.row("proofs", "\n".join(proofs))
        self.run.update(proofs=proofs)

    def _proven(self, trainer: SftTrainer) -> list[str]:
        """The quick proofs that take the trainer, as it is about to train."""
        before = self.run.before
        examples = before.examples if before is not None else []
        if not examples:
            first = fitting(self.run, self.sft.first_examples(self.data, self.run.ranks), self.sft)
            examples = few(first, self.data.train.store, self.model)
        proofs = [tokens_proof(trainer.collate(examples), self.tokenizer)]
        proofs += loss_and_flow_proofs(trainer, examples, before)
        unlike = unlike_documents(self.data.train)
        if len(unlike) < 2:
            return [*proofs, "accumulation not proven: that takes two documents, and there is one"]
        if getattr(base_of(self.model).config.get_text_config(), "output_router_logits", False):
            return [*proofs, "accumulation not proven: the router's loss is of each micro batch"]
        tolerance = 0.05 if trainer.args.bf16 or str(self.model.dtype) != "torch.float32" else 1e-4
        proofs.append(accumulation_proof(trainer, trainer.collate, unlike, tolerance))
        if takes_places(self.model):
            proofs.append(fused_loss_proof(trainer, trainer.collate, unlike, tolerance))
        return proofs

    # ---- during -----------------------------------------------------------------------------------------------

    def _on_row(self, row: dict[str, Any]) -> None:
        self.run.log_metrics(row)
        for tracker in self.run.trackers:
            tracker.log({key: value for key, value in row.items() if key != "step" and value is not None}, row["step"])
        if "eval_loss" in row:
            self._bar.note("eval", f"step {row['step']}  held-out loss {row['eval_loss']:.4f}")
        else:
            self._bar.step(row["step"], row)

    def _on_full(self, step: int, batch: Batch, said: str) -> Batch:
        full = MemoryFull(said, step, batch, self.sft.micro_batch_size)
        smaller = halve(self.run, full)
        self._bar.note("memory", f"{happened(full)}:\nit goes on with {smaller}")
        return smaller

    def _on_graphs(self, step: int, batch: Batch, said: str) -> None:
        full = MemoryFull(said, step, batch, self.sft.micro_batch_size, graphs=True)
        give_up_graphs(self.run, full)
        self._bar.note("memory", f"{happened(full)}:\nit goes on without CUDA graphs")

    # ---- after ------------------------------------------------------------------------------------------------

    def _load_best(self, trainer: SftTrainer) -> None:
        best, loss = trainer.counters.best_step, trainer.counters.best_loss
        assert best is not None, "check_data lets no run through without a held-out loss to choose by"
        assert loss is not None
        if best != trainer.state.global_step:
            trainer.load_weights(trainer.checkpoints.path(best))
        self.run.console.row("best", f"step {best}, held-out loss {loss:.4f}, goes into model/")

    def _save_model(self, trainer: SftTrainer, ends: tuple[int, ...]) -> None:
        model = trainer.accelerator.unwrap_model(self.model)
        base = base_of(model)
        base.config.use_cache = True
        if getattr(base, "generation_config", None) is not None and ends:
            base.generation_config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
        folder = self.run.path / "model"
        weights = whole_weights(model) if is_sharded(model) else None  # all ranks gather, rank 0 has them
        if self.run.world.main:
            self._write_model(model, base, folder, weights)
        self.run.world.barrier(DISK)

    def _write_model(self, model: Any, base: Any, folder: Path, weights: Any) -> None:
        save_weights(model, folder, weights)
        save_tokenizer(self.tokenizer, folder)
        if base is not model and getattr(base, "generation_config", None) is not None:
            base.generation_config.save_pretrained(folder)


def _by_length(split: Split) -> Any:
    """Held-out documents, alike lengths together, so that padding is small."""
    return split.documents[np.argsort(split.lengths, kind="stable")]
