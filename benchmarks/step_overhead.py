"""The trainer's own work: what a step of `trainer=sft` takes beyond a bare loop with the same model, kernels and batches.

    python -m benchmarks.step_overhead                          # a small shape on the CPU
    python -m benchmarks.step_overhead --shape 135m 1b          # on a GPU
    python -m benchmarks.step_overhead --shape 135m --packs 64 --patches chunked_loss tile_attention compile
    python -m benchmarks.step_overhead --small                  # seconds

Two numbers a shape. `percent_over_bare`: time of our steps over time of the bare loop's, blocks of steps in turn, the
median over rounds; the bare loop has its batches made before, on the device, and does nothing but forward, backward,
clipping and the optimizer's step (AdamW, fused), without looking at a loss in between. `percent_outside`: share of our
step that no forward, backward, clipping or optimizer step was running, by the clock of this process; on a GPU, which
works behind the process's back, that is the time in which nothing new was launched, so there only the first number
counts. Patches are on both sides, CUDA graphs on neither: a bare loop has none. Both start from the same weights and
train on the same batches: what their weights moved by must agree (`weights_apart`; losses of random tokens say nothing).

Random weights, documents of random tokens with lognormal lengths, whole and isolated in packs.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from benchmarks.record import Record, in_turn, middle, nothing_saved
from dumbo.batch import Batch
from dumbo.interfaces import Source
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch.chunked_loss import ChunkedLoss, takes_places
from dumbo.patch.compile import Compile, compiled_layers
from dumbo.patch.order import why_unavailable
from dumbo.patch.tile_attention import TileAttention
from dumbo.prepare.store import PreparedSplits, Split, Store, StoreWriter
from dumbo.trainer import long_documents
from dumbo.trainer.collate import leave_documents_free
from dumbo.trainer.session import Session, SftTrainer
from dumbo.trainer.sft import Sft

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 64, "vocab_size": 512},
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
              "intermediate_size": 768, "vocab_size": 8192},
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "intermediate_size": 1536, "vocab_size": 49152},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192, "vocab_size": 128256},
}  # fmt: skip
"""Llama's architecture in SmolLM2-135M's and Llama-3.2-1B's sizes, and two for a CPU; embeddings tied."""
LEARNING_RATE = 1e-4
APART = 0.3
"""Of what the weights moved: by so much rounding may part the two, whose kernels do not all add up in one order."""
PATCHES: dict[str, Callable[[], Any]] = {
    "chunked_loss": ChunkedLoss, "tile_attention": TileAttention, "compile": Compile,
}  # fmt: skip
"""In the order in which `performance=auto` applies them."""


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=["135m", "1b"] if on_gpu else ["small"])
    parser.add_argument("--steps", type=int, default=40 if on_gpu else 20, help="of a round, after the warm-up")
    parser.add_argument("--warm", type=int, default=10 if on_gpu else 3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--packs", type=int, default=8 if on_gpu else 2, help="packs a step")
    parser.add_argument("--capacity", type=int, default=2048 if on_gpu else 512, help="tokens a pack")
    parser.add_argument("--patches", nargs="*", default=[], choices=list(PATCHES), help="on both sides")
    parser.add_argument("--small", action="store_true", help="the tiny shape, 3 steps, one round")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    asked = parser.parse_args()
    if asked.small:
        asked.shape, asked.steps, asked.warm, asked.rounds, asked.capacity = ["tiny"], 3, 1, 1, 128
    name = "step_overhead_" + (torch.cuda.get_device_name().split()[1].lower() if on_gpu else "cpu")
    name += "_patched_" + "_".join(asked.shape) if asked.patches else ""
    record = Record(name, "a step of trainer=sft against a bare loop: same model, kernels, batches, optimizer")
    if asked.out:
        record.folder = asked.out
    record.facts["table"] = []
    nothing_saved()
    for shape in asked.shape:
        print(f"{shape}: {asked.packs} packs of {asked.capacity} tokens a step  {' '.join(asked.patches)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            record.facts["table"].append(_measured(shape, asked, Path(folder)))
        print(json.dumps(record.facts["table"][-1], indent=1))
        file = record.write()
        apart: float = record.facts["table"][-1]["weights_apart"]
        assert apart < APART, f"the two did not train alike: their weights are {apart:.3f} of what they moved apart"
    print(file)


def _measured(shape: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    steps = asked.warm + asked.steps
    data = _documents(
        folder / "store", SHAPES[shape]["vocab_size"], (steps + 2) * asked.packs * asked.capacity, asked.capacity
    )
    model = _model(shape, asked.patches)
    start = copy.deepcopy({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    sft = Sft(lr=LEARNING_RATE, lr_scheduler="constant", warmup_steps=0, global_batch_size=asked.packs,
              micro_batch_size=asked.packs, max_seq_len=asked.capacity, max_steps=steps, eval_every=None, save_every=None,
              num_samples=0, num_answers=0, cuda_graphs=False)  # fmt: skip
    number = iter(range(10**6))
    trained: dict[str, dict[str, torch.Tensor]] = {}

    def ours() -> dict[str, Any]:
        model.load_state_dict(start)
        found = _ours(sft, model, data, folder / f"run-{next(number)}", asked.warm)
        trained.setdefault("dumbo", _weights(model))
        return found

    def bare() -> dict[str, Any]:
        model.load_state_dict(start)
        found = _bare(sft, model, data, folder / f"run-{next(number)}", asked.warm, steps)
        trained.setdefault("bare loop", _weights(model))
        return found

    found = in_turn({"dumbo": ours, "bare loop": bare}, asked.rounds)
    over = [
        100 * (one["step_ms"] / other["step_ms"] - 1)
        for one, other in zip(found["dumbo"], found["bare loop"], strict=True)
    ]
    losses = {name: round(rounds[0]["loss"], 6) for name, rounds in found.items()}
    return {
        "shape": shape,
        "patches": asked.patches,
        "packs_a_step": asked.packs,
        "tokens_a_pack": asked.capacity,
        "steps": asked.steps,
        "step_ms": {name: round(middle(rounds, "step_ms"), 3) for name, rounds in found.items()},
        "percent_over_bare": round(float(np.median(over)), 2),
        "percent_over_bare_of_rounds": [round(one, 2) for one in over],
        "percent_outside": round(middle(found["dumbo"], "percent_outside"), 2),
        "outside_ms": round(middle(found["dumbo"], "outside_ms"), 3),
        "last_loss": losses,
        "weights_apart": round(weights_apart(start, *trained.values()), 6),
    }


def _weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters()}


def weights_apart(
    start: dict[str, torch.Tensor], one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> float:
    """|one - other| / |one - start|, over all weights: 0 where both trained alike, about 1.4 where on other batches."""
    between, moved = (
        sum(float(torch.linalg.vector_norm(one[name] - than[name])) ** 2 for name in one) for than in (other, start)
    )
    assert moved > 0, "neither of the two trained"
    return float((between / moved) ** 0.5)


def _model(shape: str, patches: list[str]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shape], tie_word_embeddings=True, max_position_embeddings=8192, bos_token_id=None,
                         eos_token_id=None, pad_token_id=None, use_cache=False)  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for name in (name for name in PATCHES if name in patches):
        patch = PATCHES[name]()
        if (reason := why_unavailable(name, patch)) is not None:
            raise SystemExit(f"{name}: {reason}")
        model = patch.apply(model)
    return model


def _documents(folder: Path, vocab_size: int, tokens: int, longest: int) -> PreparedSplits:
    """Random tokens, all trained but each document's first."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    writer = StoreWriter(folder, vocab_size)
    made = number = 0
    while made < tokens:
        ids = drawn.integers(0, vocab_size, int(np.clip(drawn.lognormal(5.3, 0.7), 16, longest)), dtype=np.int32)
        writer.add(ids, np.arange(len(ids)) > 0, Source("made up", number + 1), number, None)
        made, number = made + len(ids), number + 1
    writer.close({})
    store = Store(folder)
    return PreparedSplits(Split(store, np.arange(len(store))), None, "made up", "same", longest, {})


class _Timed(Session):
    """A session whose trainer's steps and the kernels in them are timed."""

    warm = 0

    def _trainer(self, batch: Batch) -> SftTrainer:
        trainer = super()._trainer(batch)
        self.clock = _Clock(self.warm, self.sft.max_steps or 0)
        trainer.add_callback(self.clock)
        self.inside = _Inside(trainer, self.clock)
        return trainer


class _Clock(TrainerCallback):
    """When the counted steps began and ended; what comes after the last one (saving) does not count."""

    def __init__(self, warm: int, steps: int) -> None:
        self.warm, self.steps, self.done = warm, steps, 0
        self.began = self.ended = 0.0

    @property
    def runs(self) -> bool:
        return self.began > 0 and not self.ended

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.done += 1
        if self.done == self.warm:
            _wait_for_gpu()
            self.began = time.perf_counter()
        if self.done == self.steps:
            _wait_for_gpu()
            self.ended = time.perf_counter()


class _Inside:
    """Seconds in forward, backward, clipping and the optimizer's step of the counted steps."""

    def __init__(self, trainer: SftTrainer, clock: _Clock) -> None:
        self.seconds, self.clock = 0.0, clock
        accelerator: Any = trainer.accelerator
        model: Any = trainer.model
        model.forward = self._timed(model.forward)
        accelerator.backward = self._timed(accelerator.backward)
        accelerator.clip_grad_norm_ = self._timed(accelerator.clip_grad_norm_)
        make = trainer.create_optimizer

        def made(*args: Any, **kwargs: Any) -> Any:
            optimizer = make(*args, **kwargs)
            optimizer.step = self._timed(optimizer.step)
            return optimizer

        trainer.create_optimizer = made  # type: ignore[method-assign]

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            value = function(*args, **kwargs)
            if self.clock.runs:
                self.seconds += time.perf_counter() - began
            return value

        return timed


def _session(sft: Sft, model: Any, data: PreparedSplits, path: Path, kind: type[Session] = Session) -> Any:
    from dumbo.model.tiny import Tiny

    path.mkdir()
    run = RunDir(path=path, console=Console(io.StringIO()), started=time.time(), verify_quick=False)
    return kind(sft, model, Tiny().load_tokenizer(), data, run)


def _ours(sft: Sft, model: Any, data: PreparedSplits, path: Path, warm: int) -> dict[str, Any]:
    patched = vars(model).get("forward")
    session = _session(sft, model, data, path, _Timed)
    session.warm = warm
    try:
        session.train()
    finally:
        del model.forward  # the timed one; the class, or a patch, has its own
        if patched is not None:
            model.forward = patched
        model._is_accelerate_prepared = False  # else accelerate leaves the next round without autocast
    steps = (sft.max_steps or 0) - warm
    seconds = session.clock.ended - session.clock.began
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {
        "step_ms": 1e3 * seconds / steps,
        "outside_ms": 1e3 * (seconds - session.inside.seconds) / steps,
        "percent_outside": 100 * (1 - session.inside.seconds / seconds),
        "loss": rows[-1]["loss"],
    }


def _bare(sft: Sft, model: Any, data: PreparedSplits, path: Path, warm: int, steps: int) -> dict[str, Any]:
    """Forward, backward, clipping, step; batches, attention and precision as the trainer has them."""
    trainer = _session(sft, model, data, path)._trainer(sft.batch(1))
    device = trainer.args.device
    batches = [_on(device, trainer.collate([trainer.examples[number] for number in trainer.order.step(step).tolist()]))
               for step in range(steps)]  # fmt: skip
    counts = [(batch["labels"][:, 1:] != -100).sum() for batch in batches]
    chunked = takes_places(model)
    assert trainer.fused_loss == chunked, "the two would not have the same loss"
    if chunked:
        batches = [{**batch, "skip_logits": True} for batch in batches]
    for batch in batches if compiled_layers(model) else ():
        leave_documents_free(batch)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=sft.weight_decay, fused=True)
    model.train()
    began, loss = 0.0, torch.zeros(())
    for step, (batch, count) in enumerate(zip(batches, counts, strict=True)):
        if step == warm:
            _wait_for_gpu()
            began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=trainer.args.bf16):
            out = model(**batch, num_items_in_batch=count)
        assert (out.logits is None) == chunked
        loss = out.loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, sft.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    _wait_for_gpu()
    seconds = time.perf_counter() - began
    return {"step_ms": 1e3 * seconds / (steps - warm), "loss": float(loss.detach())}


def _on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    batch.pop("documents")
    there = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    long_documents.tell(batch, there)
    return there


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
