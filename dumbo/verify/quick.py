"""Three proofs at the start of a run, in seconds, on the loaded model and the prepared data.

1. mask: trained tokens, decoded, are the assistant turns of the source rows.
2. pack leak: another document in the pack changes nothing, and packed is as alone (`pack_leak.py`).
3. accumulation: one micro batch of documents gives the loss and gradient of the same documents in two.

A proof that does not hold ends the run (exit code 4): its numbers would have been wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import ProofFailed
from dumbo.interfaces import BadRow, Message, Row, Splits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from dumbo.prepare.store import Split
    from dumbo.trainer.collate import Collate
    from dumbo.trainer.engine import Engine

ROWS_PROVEN = 64


def mask_proof(splits: Splits, train: Split, tokenizer: PreTrainedTokenizerBase, formatter: Any) -> str:
    """Decodes the trained tokens of the first rows and finds each assistant turn of the source in them, and no more.

    Returns:
        what was proven, for the start panel.

    Raises:
        ProofFailed: a turn is missing from the trained tokens, or a user's turn is among them.
    """
    loss_on = str(getattr(formatter, "loss_on", "all"))
    rows = _first_rows(splits)
    proven = 0
    for document in train.documents[: 4 * ROWS_PROVEN].tolist():
        row = rows.get(str(train.store.source(document)))
        ids = train.store.ids(document)
        cut = len(ids) >= train.store.meta["max_seq_len"]
        unknown = (
            tokenizer.unk_token_id is not None
            and (ids == tokenizer.unk_token_id).any()
            and tokenizer.unk_token_id != tokenizer.bos_token_id
        )
        if row is None or cut or unknown:
            continue
        _prove_row(row, ids, train.store.trained(document), tokenizer, loss_on, str(train.store.source(document)))
        proven += 1
        if proven == ROWS_PROVEN:
            break
    return (
        f"trained tokens are the assistant's turns in {proven} rows"
        if loss_on != "all"
        else f"all tokens trained in {proven} rows"
    )


def _first_rows(splits: Splits) -> dict[str, Row | None]:
    """Source -> row, for the first few; None where a source gave several rows."""
    found: dict[str, Row | None] = {}
    for row in itertools.islice((row for batch in splits.train for row in batch), 8 * ROWS_PROVEN):
        if isinstance(row, BadRow):
            continue
        key = str(row.source)
        found[key] = None if key in found else row
    return found


def _prove_row(
    row: Row,
    ids: NDArray[np.int64],
    trained: NDArray[np.bool_],
    tokenizer: PreTrainedTokenizerBase,
    loss_on: str,
    where: str,
) -> None:
    said = (
        [message.get("content", "") for message in _expected(row.messages, loss_on)]
        if row.messages
        else [row.text or ""]
    )
    if loss_on == "all":
        trained = np.ones_like(trained)
    spans = [
        _squeezed(tokenizer.decode(ids[start:end].tolist(), clean_up_tokenization_spaces=False))
        for start, end in spans_of(trained)
    ]
    place = 0
    text = "\0".join(spans)
    for turn in map(_squeezed, said):
        at = text.find(turn, place)
        if at < 0:
            raise ProofFailed(
                f"The mask is wrong at {where}: the assistant's turn is not among the trained tokens.\n  turn: {turn[:100]}\n  trained: {text[:100]}"
            )
        place = at + len(turn)
    if loss_on == "all" or not row.messages:
        return
    if len(spans) > len(said) and loss_on != "completion":
        raise ProofFailed(f"The mask is wrong at {where}: {len(spans)} trained spans for {len(said)} turns.")
    for message in row.messages:
        asked = _squeezed(message.get("content", ""))
        if (
            message["role"] == "user"
            and len(asked) > 40
            and asked in text
            and not any(asked in _squeezed(turn) for turn in said)
        ):
            raise ProofFailed(f"The mask is wrong at {where}: a user's turn is trained.\n  {asked[:100]}")


def _expected(messages: Sequence[Message], loss_on: str) -> list[Message]:
    """The turns whose text must be trained."""
    if loss_on == "all":
        return list(messages)
    turns = [message for message in messages if message["role"] == "assistant"]
    if loss_on in ("last", "completion"):
        return turns[-1:]
    return [message for message in turns if message.get("train")] if loss_on == "field" else turns


def _squeezed(text: Any) -> str:
    return "".join(str(text).split())


def spans_of(trained: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[start, end) of each run of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], trained.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def unlike_documents(split: Split) -> list[NDArray[np.int64]]:
    """Two documents with the fewest trained tokens, then two with the most, among the first and shorter ones.

    Halves with unequal numbers of trained tokens are what a mean of means gets wrong.
    """
    first = split.documents[:256]
    short = first[split.store.lengths[first] <= max(512, int(np.sort(split.store.lengths[first])[:4].max()))]
    by_trained = sorted(short.tolist(), key=lambda document: int(split.store.trained(document).sum()))
    chosen = by_trained if len(by_trained) < 4 else [*by_trained[:2], *by_trained[-2:]]
    return [np.array([document]) for document in chosen]


def accumulation_proof(
    engine: Engine, collate: Collate, examples: Sequence[NDArray[np.int64]], tolerance: float
) -> str:
    """The same examples in one micro batch and in two: loss and gradient norm agree.

    Raises:
        ProofFailed: they do not, within `tolerance` (relative).
    """
    halves = [list(examples[: len(examples) // 2]), list(examples[len(examples) // 2 :])]
    once = _loss_and_norm(engine, [collate(list(examples))])
    twice = _loss_and_norm(engine, [collate(half) for half in halves if half])
    difference = max(abs(a - b) / max(abs(a), 1e-12) for a, b in zip(once, twice, strict=True))
    if difference > tolerance:
        raise ProofFailed(
            f"Gradient accumulation changes the numbers: loss {once[0]:.6f} and gradient norm {once[1]:.6f} in one micro "
            f"batch, {twice[0]:.6f} and {twice[1]:.6f} in two (tolerance {tolerance:g})."
        )
    return f"accumulation 1 = 2 to {difference:.0e}"


def _loss_and_norm(engine: Engine, batches: list[dict[str, Any]]) -> tuple[float, float]:
    model: Any = engine.model
    model.zero_grad()
    was_training = model.training
    model.eval()  # no dropout: the two must see the same numbers
    items = engine.items_of(batches, engine.args.device)
    total = 0.0
    for batch in batches:
        inputs = engine._prepare_inputs({key: value for key, value in batch.items() if key != "documents"})
        with torch.autocast(engine.args.device.type, dtype=torch.bfloat16, enabled=engine.args.bf16):
            loss = engine.compute_loss(model, inputs, num_items_in_batch=items)
        loss.backward()
        total += float(loss.detach())
    norm = float(
        torch.sqrt(
            sum(
                (p.grad.float().square().sum() for p in model.parameters() if p.grad is not None),
                torch.zeros((), device=engine.args.device),
            )
        )
    )
    model.zero_grad()
    model.train(was_training)
    return total, norm
