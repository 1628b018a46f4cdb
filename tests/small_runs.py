"""Small trainings in process, without the command line: real GSM8K rows, a Llama of two layers with random weights.

    run = small_run(folder, documents(data, 40), lr=1e-2, max_steps=8)
    run.losses, run.model, run.facts

A document is (ids, trained): token ids and which of them bear the loss, straight from the tokenizer, so that tests
can compute what should come out without any code of dumbo's.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

torch.set_num_threads(1)

Document = tuple[np.ndarray, np.ndarray]
VOCAB = 512


def tiny_tokenizer() -> Any:
    from dumbo.model.tiny import Tiny

    return Tiny().load_tokenizer()


def documents(data: Path, amount: int, longest: int = 200, skip: int = 0) -> list[Document]:
    """Real questions and answers of GSM8K, cut to `longest`.

    Every third has a long question and three tokens of its answer, the others a short question and a long answer:
    rows of one length differ widely in trained tokens.
    """
    tokenizer = tiny_tokenizer()
    found: list[Document] = []
    for number, line in enumerate((data / "gsm8k" / "train.jsonl").open(encoding="utf-8")):
        if number < skip:
            continue
        row = json.loads(line)
        terse = number % 3 == 0
        asked = tokenizer.encode(row["question"], add_special_tokens=False)[: longest - 4 if terse else longest // 4]
        said = tokenizer.encode(row["answer"], add_special_tokens=False)[: 3 if terse else longest - longest // 4 - 1]
        ids = np.array([*asked, *said, tokenizer.eos_token_id], np.int32)
        found.append((ids, np.arange(len(ids)) >= len(asked)))
        if len(found) == amount:
            break
    return found


def model_of(seed: int = 0, **config: Any) -> Any:
    """A Llama with grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    wanted: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None, "attn_implementation": "eager", "initializer_range": 0.1,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**{**wanted, **config}))


def store_of(folder: Path, rows: Sequence[Document]) -> Any:
    """The rows as dumbo's store; row n is line n + 1 of rows.jsonl."""
    from dumbo.interfaces import Source
    from dumbo.prepare.store import Store, StoreWriter

    folder.mkdir(parents=True, exist_ok=True)
    writer = StoreWriter(folder, VOCAB)
    for number, (ids, trained) in enumerate(rows):
        writer.add(ids, trained, Source("rows.jsonl", number + 1), number, None)
    writer.close({})
    return Store(folder)


def splits_of(folder: Path, rows: Sequence[Document], held_out: Sequence[Document] = (), max_seq_len: int = 256) -> Any:
    """What a trainer gets."""
    from dumbo.prepare.store import PreparedSplits, Split

    store = store_of(folder / "store", [*rows, *held_out])
    train = Split(store, np.arange(len(rows)))
    evaluation = Split(store, np.arange(len(rows), len(rows) + len(held_out))) if held_out else None
    return PreparedSplits(train, evaluation, "gsm8k", "same", max_seq_len, {})


@dataclass
class Run:
    """A finished training."""

    path: Path
    model: Any
    metrics: dict[str, Any]
    said: str
    seconds: float

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    @property
    def training_rows(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "loss" in row]

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in self.training_rows]

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text())

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


DEFAULTS: dict[str, Any] = {
    "lr": 1e-2, "warmup_steps": 2, "global_batch_size": 4, "micro_batch_size": 4, "eval_every": None, "save_every": None,
    "num_samples": 0, "num_answers": 0, "max_seq_len": 256, "precision": "fp32",
}  # fmt: skip


def small_run(
    path: Path,
    data: Any,
    *,
    model: Any = None,
    resuming: bool = False,
    verify: bool = False,
    before: Callable[[Any], None] | None = None,
    **options: Any,
) -> Run:
    """Trains `trainer=sft` with these options on prepared splits.

    Args:
        path: the run's folder.
        resuming: go on from its checkpoints.
        verify: with the quick proofs.
        before: called with the session before it trains.
    """
    from dumbo.outputs.console import Console
    from dumbo.outputs.run_dir import RunDir
    from dumbo.trainer.session import Session
    from dumbo.trainer.sft import Sft

    said = io.StringIO()
    path.mkdir(parents=True, exist_ok=True)
    run = RunDir(path=path, console=Console(said), started=time.time(), resuming=resuming, verify_quick=verify)
    model = model if model is not None else model_of()
    session = Session(Sft(**{**DEFAULTS, **options}), model, tiny_tokenizer(), data, run)
    if before is not None:
        before(session)
    began = time.perf_counter()
    metrics = session.train()
    run.update(metrics=metrics)
    return Run(path, model, metrics, said.getvalue(), time.perf_counter() - began)
