"""Proofs of what the model is shown: the tokenizer that is saved is the one trained with, nothing is added, turns end.

saved tokenizer   written by the trainer's own saver, read again by transformers alone: the same template, and the rows of
                  the sample give the same ids and labels through the formatter.
nothing added     the ids of a row are those of its template, rendered and tokenised by transformers, with no bos put before
                  it; where raw text is trained, with the bos that the tokenizer puts there, once.
end token         the last label of a document is the token that ends a turn: without it no answer ever ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoTokenizer

from dumbo.formatter.chat import Chat
from dumbo.formatter.jinja import Jinja
from dumbo.interfaces import IGNORE, BadRow, Row
from dumbo.trainer.saving import save_tokenizer
from dumbo.verify.proof import EXACT, Proof, exact
from dumbo.verify.turns import is_whole

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject


def tokenisation(subject: Subject) -> list[Proof]:
    """All three, on the whole documents of the sample."""
    rows, train = subject.source_rows(), subject.data.train
    whole = [
        (int(document), row)
        for document in train.documents
        if is_whole(train, int(document)) and (row := rows.get(str(train.store.source(int(document))))) is not None
    ]
    return [_saved(subject, whole), _nothing_added(subject, whole), _ends(subject, whole)]


def _saved(subject: Subject, whole: list[tuple[int, Row]]) -> Proof:
    folder = subject.scratch / "tokenizer"
    save_tokenizer(subject.tokenizer, folder)
    trusts_code = bool(getattr(subject.plugins.model, "trust_remote_code", False))  # as typed for the model
    loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code)
    store = subject.data.train.store
    fault = None
    if loaded.chat_template != subject.tokenizer.chat_template:
        fault = "The chat template on disk is not the one that rendered the training data."
    examples = subject.plugins.formatter.format([row for _, row in whole], loaded) if fault is None else []
    for (document, row), example in zip(whole, examples, strict=False):
        if isinstance(example, BadRow):
            fault = f"With the tokenizer read from disk the row cannot be formatted any more: {example.problem}."
        elif not np.array_equal(np.asarray(example.input_ids), store.ids(document)):
            fault = f"The tokenizer read from disk gives other tokens at {row.source}."
        elif not np.array_equal(np.asarray(example.labels) != IGNORE, store.trained(document)):
            fault = f"The tokenizer read from disk leads to other labels at {row.source}."
        if fault:
            break
    return exact(
        "saved tokenizer",
        f"template, ids and labels of {len(whole):,} rows, with the tokenizer and with what is read again after saving it",
        fault
        and f"{fault}\nWhoever loads the trained model would ask it in other tokens. Set model.tokenizer.chat_template to a "
        "template of your own, or another model.tokenizer.path.",
    )


def _nothing_added(subject: Subject, whole: list[tuple[int, Row]]) -> Proof:
    tokenizer: Any = subject.tokenizer
    store = subject.data.train.store
    formatter = subject.plugins.formatter
    own_template = (
        isinstance(formatter, Chat) and formatter.special_tokens_in_text == "error" and formatter.tool_calls == "native"
    )
    bos = tokenizer.bos_token_id
    puts_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    fault, rendered = None, 0
    for document, row in whole:
        ids = store.ids(document).tolist()
        if bos is not None and ids[:2] == [bos, bos]:
            fault = f"{row.source} begins with {tokenizer.bos_token} twice."
        elif puts_bos and not isinstance(formatter, Chat | Jinja) and ids[0] != bos:
            fault = f"{row.source} lacks the {tokenizer.bos_token} that the tokenizer puts before a text."
        elif own_template and row.messages:
            rendered += 1
            text = tokenizer.apply_chat_template(_plain(row), tools=row.tools, tokenize=False)
            if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
                fault = f"{row.source} is not tokenised as transformers renders and tokenises it."
        if fault:
            break
    compared = (
        f"ids of {rendered:,} rows, and of their template rendered and tokenised by transformers" if rendered else ""
    )
    return exact(
        "nothing added",
        (compared + "; " if compared else "") + f"no doubled bos in {len(whole):,} rows",
        fault and f"{fault}\nThe model would be trained on other text than it is asked with: look at dumbo preview.",
    )


def _plain(row: Row) -> list[Any]:
    """The messages without what is dumbo's own."""
    return [{key: value for key, value in message.items() if key != "train"} for message in row.messages]


def _ends(subject: Subject, whole: list[tuple[int, Row]]) -> Proof:
    """The last label that is no white space is a control token, in every whole document."""
    name = "end token"
    formatter = subject.plugins.formatter
    if not getattr(formatter, "append_eos", True):
        return Proof(name=name, compared="", difference=None, tolerance=None, source=EXACT, passed=None,
                     detail="formatter.append_eos=false: texts do not end")  # fmt: skip
    tokenizer: Any = subject.tokenizer
    store = subject.data.train.store
    control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    control |= {tokenizer.eos_token_id}
    seen: dict[int, int] = {}
    without: list[str] = []
    for document, row in whole:
        last = [int(t) for t in store.ids(document)[store.trained(document)] if str(tokenizer.decode([int(t)])).strip()]
        if last and last[-1] in control:
            seen[last[-1]] = seen.get(last[-1], 0) + 1
        else:
            without.append(str(row.source))
    tokens = ", ".join(f"{tokenizer.convert_ids_to_tokens(token)} {count:,} times" for token, count in seen.items())
    fault = (
        f"{len(without):,} of {len(whole):,} documents have no trained end token, the first: {without[0]}.\nThe model would not learn "
        "to stop. With a template of your own: formatter.append_eos=true, or let it end turns with the eos token."
        if without
        else None
    )
    return exact(name, f"the last label of {len(whole):,} documents: {tokens or 'no control token'}", fault)
