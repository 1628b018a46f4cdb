"""Rows over `max_seq_len`: cut on either side, dropped, or split; every token accounted for."""

from __future__ import annotations

import numpy as np
import pytest

from dumbo.errors import UserError
from dumbo.formatter.chat import Chat
from dumbo.formatter.text import Text
from dumbo.interfaces import BadRow

LONGEST = 96


@pytest.fixture
def path(data):
    return str(data / "gsm8k" / "test.jsonl")


@pytest.fixture
def examples(path, smollm_tokenizer):
    """The formatter's own examples, before any cut."""
    from dumbo.dataset.files import Files

    rows = [row for batch in Files(path=path, limit=120).load().train for row in batch]
    done = Chat().format(rows, smollm_tokenizer)
    assert not any(isinstance(item, BadRow) for item in done)
    lengths = [len(item.input_ids) for item in done]
    assert min(lengths) > LONGEST, "all are too long for the first tests"
    return done


def last_trained(labels):
    return [label for label in labels if label != -100][-1]


def documents(split):
    return [(split.store.ids(d).tolist(), split.store.labels(d).tolist()) for d in split.documents.tolist()]


@pytest.mark.parametrize("too_long", ["truncate_right", "truncate_left"])
def test_truncated(too_long, path, examples, prepared, smollm_tokenizer):
    data = prepared(path, Chat(), LONGEST, too_long, limit=120, tokenizer=smollm_tokenizer)
    wanted = []
    for example in examples:
        part = slice(None, LONGEST) if too_long == "truncate_right" else slice(-LONGEST, None)
        ids, labels = list(example.input_ids[part]), list(example.labels[part])
        labels[0] = -100
        if any(label != -100 for label in labels):
            wanted.append((ids, labels))
    assert documents(data.train) == wanted
    audit = data.audit
    assert (audit["too_long"], audit["truncated"], audit["dropped"], audit["split"]) == (120, 120, 0, 0)
    assert audit["zero_label_rows"] == 120 - len(wanted)
    assert audit["longest"] == max(len(example.input_ids) for example in examples), "before any cut"
    end = smollm_tokenizer.eos_token_id
    assert audit["end_token_trained"] == sum(last_trained(labels) == end for _, labels in wanted)
    if too_long == "truncate_left":
        assert audit["end_token_trained"] == 120
    else:
        assert audit["zero_label_rows"] > 0, "questions so long that no answer is left"


def test_split(path, examples, prepared, smollm_tokenizer):
    data = prepared(path, Chat(), LONGEST, "split", limit=120, tokenizer=smollm_tokenizer)
    wanted, lines = [], []
    for example in examples:
        for start in range(0, len(example.input_ids), LONGEST):
            ids, labels = (list(part[start : start + LONGEST]) for part in (example.input_ids, example.labels))
            labels[0] = -100
            if any(label != -100 for label in labels):
                wanted.append((ids, labels))
                lines.append(example.source.row)
    assert documents(data.train) == wanted
    assert data.audit["split"] == 120
    last = {line: labels for (_, labels), line in zip(wanted, lines, strict=True)}  # a row's last piece
    end = smollm_tokenizer.eos_token_id
    assert data.audit["end_token_trained"] == sum(last_trained(labels) == end for labels in last.values())


def test_split_text_loses_no_token(data, prepared, smollm_tokenizer):
    file = str(data / "tinyshakespeare" / "input.txt")
    whole = prepared(file, Text(), 1 << 20, tokenizer=smollm_tokenizer, txt_rows="document")
    parts = prepared(file, Text(), 256, "split", tokenizer=smollm_tokenizer, txt_rows="document")
    assert len(whole.train) == 1
    assert (
        np.concatenate([parts.train.store.ids(d) for d in parts.train.documents]).tolist()
        == whole.train.store.ids(0).tolist()
    )
    assert set(parts.train.lengths[:-1].tolist()) == {256}
    assert parts.audit["trained_tokens"] == parts.audit["tokens"] - len(parts.train), "all but each part's first"


def test_drop(path, examples, prepared, smollm_tokenizer):
    lengths = [len(example.input_ids) for example in examples]
    middle = sorted(lengths)[60]
    data = prepared(path, Chat(), middle, "drop", limit=120, tokenizer=smollm_tokenizer)
    assert documents(data.train) == [
        (list(e.input_ids), list(e.labels)) for e, length in zip(examples, lengths, strict=True) if length <= middle
    ]
    dropped = sum(length > middle for length in lengths)
    assert (data.audit["dropped"], data.audit["too_long"]) == (dropped, dropped)
    assert data.audit["end_token_missing"] == 0, "a dropped row is not a row without its end"


def test_nothing_left_says_why(path, prepared, smollm_tokenizer):
    with pytest.raises(
        UserError, match=r"(?s)no row is left to train on.*120 rows were longer than trainer\.max_seq_len"
    ):
        prepared(path, Chat(), LONGEST, "drop", limit=120, tokenizer=smollm_tokenizer)


@pytest.mark.parametrize("too_long", ["truncate_right", "truncate_left", "split", "drop"])
def test_replies_move_with_the_cut_or_are_gone(too_long, path, examples, prepared, smollm_tokenizer):
    data = prepared(path, Chat(), 160, too_long, limit=120, tokenizer=smollm_tokenizer)
    by_line = {example.source.row: example for example in examples}
    seen = 0
    for document in data.train.documents.tolist():
        reply = data.train.store.reply(document)
        if reply is None:
            continue
        example = by_line[data.train.store.source(document).row]
        a, b = example.reply
        assert data.train.store.ids(document)[reply[0] : reply[1]].tolist() == list(example.input_ids[a:b])
        seen += 1
    assert seen > 20


def test_no_label_at_the_start_of_any_document(path, prepared, smollm_tokenizer):
    for too_long in ("truncate_right", "truncate_left", "split"):
        for formatter in (Chat(), Chat(loss_on="all"), Text()):
            data = prepared(path, formatter, LONGEST, too_long, limit=40, tokenizer=smollm_tokenizer)
            assert {labels[0] for _, labels in documents(data.train)} == {-100}
