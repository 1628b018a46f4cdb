"""Whether the trained tokens are the assistant's turns: decoded, and compared with the source rows.

Knows nothing of templates or of how the mask was made; only what the rows say. For each row: every turn that should
be trained stands in the trained tokens, in order; no other message does; and the token that ends a turn is trained.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dumbo.errors import ProofFailed
from dumbo.interfaces import BadRow, Message, Row, Splits

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from dumbo.prepare.store import Split

ROWS_PROVEN = 64
SHORTEST = 4
"""Characters below which a message may stand in the template's own words by chance ("hi" in "<think>")."""


def mask_proof(splits: Splits, train: Split, tokenizer: PreTrainedTokenizerBase, formatter: Any) -> str:
    """Decodes the trained tokens of the first rows and finds each assistant turn of the source in them, and no more.

    Returns:
        what was proven, for the start panel.

    Raises:
        ProofFailed: a turn is missing from the trained tokens, another message is among them, or an end token is not.
    """
    loss_on = getattr(formatter, "loss_on", None)
    if loss_on is None:
        return "mask not proven: the formatter does not say what its loss is on (loss_on)"
    rows = _first_rows(splits)
    numbers, pieces = np.unique(np.asarray(train.store.origin)[:, 0], return_counts=True)
    in_pieces = set(numbers[pieces > 1].tolist())  # rows that were split for their length
    proven = 0
    for document in train.documents[: 4 * ROWS_PROVEN].tolist():
        row = rows.get(str(train.store.source(document)))
        ids = train.store.ids(document)
        cut = len(ids) >= train.store.meta["max_seq_len"] or int(train.store.origin[document, 0]) in in_pieces
        if row is None or cut or holds_unknown(ids, tokenizer):
            continue
        prove_row(row, ids, train.store.trained(document), tokenizer, loss_on, str(train.store.source(document)))
        proven += 1
        if proven == ROWS_PROVEN:
            break
    if not proven:
        return "mask not proven: no row among the first is whole"
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


def holds_unknown(ids: NDArray[np.int64], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a document has tokens that no longer say what they were."""
    unknown = tokenizer.unk_token_id
    return unknown is not None and unknown != tokenizer.bos_token_id and bool((ids == unknown).any())


def prove_row(
    row: Row,
    ids: NDArray[np.int64],
    trained: NDArray[np.bool_],
    tokenizer: PreTrainedTokenizerBase,
    loss_on: str,
    where: str,
    *,
    ends: bool = True,
) -> None:
    """Raises ProofFailed where the trained tokens of a whole document are not the turns of its row.

    Args:
        ids, trained: (T,) of the document.
        where: file and line, for the error.
        ends: the tokens that end turns must be trained too.
    """
    said = [str(message.get("content", "")) for message in _expected(row.messages, loss_on)] or [row.text or ""]
    if loss_on == "all":
        if not trained[1:].all():
            raise ProofFailed(
                f"The mask is wrong at {where}: {int((~trained[1:]).sum())} tokens are not trained, though loss_on=all."
            )
        trained = np.ones_like(trained)
    spans = spans_of(trained)
    decoded = [
        _squeezed(tokenizer.decode(ids[start:end].tolist(), clean_up_tokenization_spaces=False)) for start, end in spans
    ]
    text = "\0".join(decoded)
    rest, place = "", 0  # what is trained besides the turns: end tokens, reasoning, tool calls
    for turn in map(_squeezed, said):
        at = text.find(turn, place)
        if at < 0 and turn.startswith("<think>"):  # templates leave the reasoning of earlier turns out
            turn = turn.partition("</think>")[2]
            at = text.find(turn, place) if turn else -1
        if at < 0:
            raise ProofFailed(
                f"The mask is wrong at {where}: the assistant's turn is not among the trained tokens.\n  turn: {turn[:100]}\n  trained: {text[:100]}"
            )
        rest += text[place:at] + "\0"
        place = at + len(turn)
    rest += text[place:]
    if loss_on == "all" or not row.messages:
        return
    if len(spans) > len(said) and loss_on != "completion":
        raise ProofFailed(f"The mask is wrong at {where}: {len(spans)} trained spans for {len(said)} turns.")
    _prove_no_more(row, rest, loss_on, where)
    for _, end in spans if ends else ():
        if ends_untrained(ids, end, tokenizer):
            token = tokenizer.convert_ids_to_tokens(int(ids[end]))
            raise ProofFailed(
                f"The mask is wrong at {where}: {token}, which ends the turn, is not trained: the model would not learn to stop."
            )


def _prove_no_more(row: Row, rest: str, loss_on: str, where: str) -> None:
    """None of the messages that should not be trained stands in what is trained besides the turns."""
    expected = _expected(row.messages, loss_on)
    calls = [json.dumps(turn.get("tool_calls", []), ensure_ascii=False) for turn in expected]
    own = _squeezed("".join([*calls, *(str(turn.get("reasoning_content", "")) for turn in expected)]))
    for message in row.messages:
        asked = _squeezed(message.get("content", ""))
        if any(message is turn for turn in expected) or len(asked) < SHORTEST or asked not in rest or asked in own:
            continue
        raise ProofFailed(f"The mask is wrong at {where}: the {message['role']}'s turn is trained.\n  {asked[:100]}")


def ends_untrained(ids: NDArray[np.int64], end: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the token after a trained span closes the turn: a control token, and after it another one or nothing.

    A control token that opens the next turn is followed by the words of that turn.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if end >= len(ids) or int(ids[end]) not in special or int(ids[end - 1]) in special:
        return False
    after = end + 1
    while after < len(ids) and not str(tokenizer.decode([int(ids[after])])).strip():
        after += 1
    return after == len(ids) or int(ids[after]) in special


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
