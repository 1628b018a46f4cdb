"""Proof: in the very batches that enter the model, the labelled tokens are the assistant's turns of the source rows.

The batches come from the trainer's own loader. Each document is cut out of its tensors, decoded, and held against the row
that the data set gave: every turn is there, in order, and nothing else is. Where the tokenizer's own template renders the
row, the first label stands where that template's generation prompt ends: where an answer begins when the model is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dumbo.errors import ProofFailed
from dumbo.formatter.chat import Chat
from dumbo.interfaces import IGNORE, Row
from dumbo.verify.mask import holds_unknown, prove_row, spans_of
from dumbo.verify.proof import DoesNotApplyError, Proof, exact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dumbo.prepare.store import Split
    from dumbo.verify.subject import Subject

NAME = "mask"
Piece = tuple[int, "NDArray[np.int64]", "NDArray[np.int64]"]
"""(document, ids (T,), labels (T,))."""


def mask(subject: Subject) -> Proof:
    """Every document of the sample, in the batches of an epoch."""
    loss_on = getattr(subject.plugins.formatter, "loss_on", None)
    if loss_on is None:
        raise DoesNotApplyError("the formatter does not say what its loss is on (it has no `loss_on`)")
    rows, train = subject.source_rows(), subject.data.train
    proven = tokens = batches = turns = cut = 0
    for batch in subject.trainer.get_train_dataloader():
        batches += 1
        for document, ids, labels in pieces_of(batch, subject.trainer.collate.layout, train.store.lengths):
            where = str(train.store.source(document))
            row = rows.get(where)
            trained = labels != IGNORE
            wrong = np.flatnonzero(trained & (labels != ids))
            if len(wrong):
                return _failed(
                    f"At {where} the label of token {wrong[0]} is another token than the one that stands there."
                )
            if row is None or not is_whole(train, document) or holds_unknown(ids, subject.tokenizer):
                cut += 1
                continue
            try:
                prove_row(row, ids, trained, subject.tokenizer, loss_on, where, ends=False)
                if isinstance(subject.plugins.formatter, Chat) and loss_on == "assistant":
                    _begins_where_asked(row, ids, trained, subject.tokenizer, where)
                    _nothing_besides(row, ids, trained, subject.tokenizer, where)
            except ProofFailed as error:
                return _failed(str(error))
            proven += 1
            tokens += int(trained.sum())
            turns += sum(message["role"] == "assistant" for message in row.messages)
    if not proven:
        raise DoesNotApplyError("no row of the sample is whole: each is cut at trainer.max_seq_len or came in pieces")
    return exact(
        NAME,
        f"{tokens:,} labelled tokens of {proven:,} documents in {batches:,} batches: decoded, they are the {turns:,} "
        f"assistant turns of their source rows (loss_on={loss_on})"
        + (f"; {cut:,} cut documents not looked at" if cut else ""),
        None,
    )


def _failed(fault: str) -> Proof:
    remedy = "Look at the rows with dumbo preview; formatter.loss_on and the chat template decide what is trained."
    return exact(NAME, "labelled tokens of the batches, against the turns of the source rows", f"{fault}\n{remedy}")


def is_whole(split: Split, document: int) -> bool:
    """Whether a document is all of its row."""
    row = split.store.origin[document, 0]
    alone = int((split.store.origin[:, 0] == row).sum()) == 1
    return alone and int(split.store.lengths[document]) < int(split.store.meta["max_seq_len"])


def pieces_of(batch: Mapping[str, Any], layout: str, lengths: Any) -> Iterator[Piece]:
    """The documents of a batch, cut out of its tensors: one after another, by restarting positions, or by their padding.

    Args:
        lengths: (N,) of all documents, by number.

    Raises:
        ProofFailed: it holds more or fewer than it says.
    """
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    documents = batch["documents"].tolist()
    found: list[tuple[Any, Any]] = []
    if layout == "tokens":
        ends = [0, *np.cumsum(lengths[batch["documents"]]).tolist()] if documents else []
        found = [(ids[0, a:b], labels[0, a:b]) for a, b in pairwise(ends)]
    elif layout == "rows":
        for row, positions in enumerate(batch["position_ids"].numpy()):
            starts = [*np.flatnonzero(positions == 0).tolist(), len(positions)]
            found += [(ids[row, a:b], labels[row, a:b]) for a, b in pairwise(starts)]
        found = [piece for piece in found if (piece[1] != IGNORE).any()]  # the others are padding
    else:
        for row, seen in enumerate(batch["attention_mask"].numpy().astype(bool)):
            found.append((ids[row, seen], labels[row, seen]))
    if len(found) != len(documents):
        raise ProofFailed(f"A batch of {len(documents):,} documents holds {len(found):,} with labels.")
    return ((document, *piece) for document, piece in zip(documents, found, strict=True))


def _begins_where_asked(row: Row, ids: Any, trained: Any, tokenizer: Any, where: str) -> None:
    """The first label stands where the generation prompt of the first assistant turn ends; nothing where that is no prefix.

    Raises:
        ProofFailed: it stands elsewhere.
    """
    first = next((n for n, message in enumerate(row.messages) if message["role"] == "assistant"), None)
    if not first:
        return
    said = tokenizer.apply_chat_template(
        row.messages[:first], tools=row.tools, tokenize=False, add_generation_prompt=True
    )
    asked = tokenizer(said, add_special_tokens=False)["input_ids"]
    begins = int(np.argmax(trained))
    if ids[: len(asked)].tolist() == asked and begins != len(asked):
        raise ProofFailed(
            f"The mask is wrong at {where}: the first label is token {begins}, but the model is asked with {len(asked)} tokens: "
            f"{abs(begins - len(asked))} {'missing' if begins > len(asked) else 'too many'}."
        )


def _nothing_besides(row: Row, ids: Any, trained: Any, tokenizer: Any, where: str) -> None:
    """Besides its turns' words only white space and the template's own tokens are labelled.

    Raises:
        ProofFailed: something else is, such as the header of a turn.
    """
    if any(message.get("tool_calls") or message.get("reasoning_content") for message in row.messages):
        return  # how a template spells those is its own
    own = set(tokenizer.added_tokens_decoder)
    said = [
        "".join(str(message.get("content", "")).split()) for message in row.messages if message["role"] == "assistant"
    ]
    for (start, end), turn in zip(spans_of(trained), said, strict=False):
        words = [int(token) for token in ids[start:end] if int(token) not in own]
        text = "".join(tokenizer.decode(words, clean_up_tokenization_spaces=False).split())
        if text != turn and not any(str(tokenizer.decode([token])) in turn for token in own):
            raise ProofFailed(
                f"The mask is wrong at {where}: more is labelled than the turn.\n  labelled: {text[:100]}\n  turn: {turn[:100]}"
            )
