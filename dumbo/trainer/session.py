"""One training session of `trainer=sft`, told in order. State lives here, options in `sft.py`, the loop in Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer

from dumbo.batch import Batch
from dumbo.errors import MemoryFull
from dumbo.outputs.halvings import fitting, give_up_graphs, halve, happened, settled
from dumbo.patch.chunked_loss import takes_places
from dumbo.patch.compile import compiled_layers, past_limit
from dumbo.patch.modules import base_of, keep_cache
from dumbo.plan.noted import note
from dumbo.prepare.packing import Packs, pack
from dumbo.prepare.store import Split
from dumbo.tracker.tracking import tell
from dumbo.trainer.answers import Answers
from dumbo.trainer.arguments import training_arguments
from dumbo.trainer.attention import idle
from dumbo.trainer.beside import room_for
from dumbo.trainer.callbacks import Flow, Progress, StateMemory, Wrapped
from dumbo.trainer.capturable import wanted
from dumbo.trainer.checkpoint import Checkpoints
from dumbo.trainer.collate import Collate, Examples, Room
from dumbo.trainer.duration import seconds_of
from dumbo.trainer.engine import Engine
from dumbo.trainer.final import final_metrics
from dumbo.trainer.flash import switch_back
from dumbo.trainer.going_on import going_on_from, steps_done
from dumbo.trainer.into_model import load_best, save_model
from dumbo.trainer.layout import choose_layout
from dumbo.trainer.sampler import GlobalBatches
from dumbo.trainer.saving import bytes_to_save
from dumbo.trainer.schedule import require_schedule
from dumbo.trainer.sharded import place_whole
from dumbo.trainer.signals import StopRequests
from dumbo.trainer.start_panel import show_batches
from dumbo.trainer.stop import StopCallback
from dumbo.verify.at_start import proven_at_start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.sft import Sft


class SftTrainer(Engine, Trainer):
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
        resume_from = going_on_from(run, self.sft, trainer, steps)
        trainer.args.eval_on_start = trainer.args.eval_on_start and resume_from is None
        show_batches(run, self.sft, self.data, batch, self.packs, self.layout, trainer.order.steps(), steps)
        note(run, self.sft, self.model, self.data, batch, trainer.examples)
        if schedule is not None:
            console.row("", schedule)
        asked = self.sft.micro_batch_size
        # With room, a proof's batch takes as much as one of training. A model that is not sharded yet is not its matter.
        with trainer.memory_told(asked) if run.wrapped_in != "FSDP2" else nullcontext():
            self._prove(trainer)
        self._note_limit()
        answers = Answers(self.model, self.tokenizer, self.data, run, self.sft, trainer.args.bf16)
        before = answers.before()
        done = steps_done(resume_from)
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
        self._note_limit()
        if trainer.graphs_said is not None:
            run.update(cuda_graphs=trainer.graphs_said)
        self.stop.settle(run.world)
        self.stop.raise_if_any()
        if self.sft.load_best_at_end:
            load_best(run, trainer)
        save_model(run, trainer, self.model, self.tokenizer, answers.stop_ids)
        if trainer.save_stalls:
            run.update(save_stalls=[round(seconds, 3) for seconds in trainer.save_stalls])
        return final_metrics(trainer, run, self.sft, self.state_memory.gib) | answers.after(before)

    def _note_limit(self) -> None:
        """That compiled layers were more kinds than torch makes graphs of, which shows when they are called."""
        said = "some layers as they are written: more kinds of them than torch makes graphs"
        if past_limit(self.model) and self.run.facts.get("patches", {}).get("compile") != f"applied: {said}":
            self.run.note_patch("compile", said)

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
        keep_cache(self.model, False)  # Trainer says it to the outer config alone
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if run.wrapped_in == "FSDP2":
            place_whole(self.model, trainer.args.device)
        room = self._room(batch)
        with run.proving():
            self.layout, self.isolation = choose_layout(
                self.model,
                self.sft.packing,
                run.attn_implementation,
                bf16=trainer.args.bf16,
                longest=data.max_seq_len,
                room=room,
                as_training=room is not None and run.wrapped_in != "FSDP2",  # sharded, layers have other graphs
            )
        implementation = str(base_of(self.model).config._attn_implementation)
        for name, kernel in (("tile_attention", "tiles"), ("varlen", "varlen")):
            if run.left_out(name, idle(kernel, self.model, self.layout, implementation, trainer.args.bf16)):
                switch_back()  # no other attention is to take the kernels that varlen may have switched to
        trainer.equip(
            store=data.train.store,
            examples=examples,
            sampler=self._sampler(examples, batch),
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
        trainer.add_callback(self._stopping(trainer))
        return trainer

    def _room(self, batch: Batch) -> Room | None:
        """Where layers are compiled, every batch has the same shape."""
        if not compiled_layers(self.model):
            return None
        few_kinds = self.sft.cuda_graphs is not False and takes_places(self.model)
        return Room(batch.micro * self.data.max_seq_len, self.data.max_seq_len, few_kinds)

    def _sampler(self, examples: Examples, batch: Batch) -> GlobalBatches:
        lengths = None if self.packs is not None else self.data.train.lengths
        return GlobalBatches(len(examples), batch, self.sft.seed, lengths, self.run.world.rank)

    def _stopping(self, trainer: SftTrainer) -> StopCallback:
        limit = seconds_of(self.sft.max_time)
        saving, evaluating = lambda: trainer.save_seconds, lambda: trainer.eval_seconds
        return StopCallback(self.stop, self.run.started, limit, saving, evaluating, self.run.world)

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

    def _prove(self, trainer: SftTrainer) -> None:
        proofs = [*self.run.proofs, self.isolation]
        if self.run.verify_quick:
            with self.run.proving():
                proofs += proven_at_start(trainer, self.tokenizer, self.data.train, self._first_batch, self.run.before)
            self.run.update(proof_seconds=round(self.run.proof_seconds, 2))
        self.run.console.row("proofs", "\n".join(proofs))
        self.run.update(proofs=proofs)

    def _first_batch(self) -> Any:
        """Its documents, by example."""
        return fitting(self.run, self.sft.first_examples(self.data, self.run.ranks), self.sft)

    # ---- during -----------------------------------------------------------------------------------------------

    def _on_row(self, row: dict[str, Any]) -> None:
        self.run.log_metrics(row)
        tell(self.run, row, self._bar.note)
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


def _by_length(split: Split) -> Any:
    """Held-out documents, alike lengths together, so that padding is small."""
    return split.documents[np.argsort(split.lengths, kind="stable")]
