"""A batch made into a part at once gives the store that its rows give one by one, byte for byte, in every respect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dumbo.errors import UserError
from dumbo.interfaces import IGNORE, Example, Source
from dumbo.prepare.parts import PartMaker
from dumbo.prepare.store import StoreWriter


def drawn_example(drawn: np.random.Generator, row: int, specials: list[int]) -> Example:
    """Rows of all kinds: empty, of one token, with a reply or none, ended or not, with two bos, with something noticed."""
    size = int(drawn.choice([0, 1, 2, 5, 12, 30]))
    ids = drawn.integers(10, 400, size)
    if size > 1 and drawn.random() < 0.5:
        ids[-1] = specials[0]
    if size > 2 and drawn.random() < 0.3:
        ids[-2:] = [specials[0], ids[-1]]
    if size > 1 and drawn.random() < 0.2:
        ids[:2] = specials[1]
    trained = np.zeros(size, bool)
    reply = None
    if size > 1 and drawn.random() < 0.8:
        start, end = sorted(drawn.choice(np.arange(1, size + 1), 2, replace=size < 2).tolist())
        trained[start:end] = True
        reply = (start, end) if end > start and drawn.random() < 0.8 else None
    counts = {
        name: int(drawn.integers(0, 3))
        for name in ("control_tokens_in_text", "boundary_tokens")
        if drawn.random() < 0.1
    }
    source = Source(f"{drawn.integers(3)}.jsonl", row + 1, "line" if drawn.random() < 0.8 else "row")
    return Example(ids.tolist() if drawn.random() < 0.3 else ids, np.where(trained, ids, IGNORE), source, reply, counts)


def stored(folder: Path, maker: PartMaker, batches: list[list[Example]]) -> dict[str, bytes]:
    folder.mkdir()
    writer = StoreWriter(folder, len(maker.tokenizer))
    for batch in batches:
        writer.write(maker.part(batch))
    writer.close({})
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("too_long", ["truncate_right", "truncate_left", "drop", "split"])
@pytest.mark.parametrize("with_bos", [True, False])
def test_at_once_as_one_by_one(too_long, with_bos, tmp_path):
    from dumbo.model.tiny import Tiny

    tokenizer = Tiny().load_tokenizer()
    if with_bos:
        tokenizer.bos_token = "<|im_start|>"
    specials = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_start|>")]
    maker, drawn = PartMaker(tokenizer, 11, too_long), np.random.default_rng(0)
    for number in range(15):
        examples = [drawn_example(drawn, row, specials) for row in range(int(drawn.integers(1, 25)))]
        at_once = stored(tmp_path / f"{number}", maker, [examples, [], examples[:3]])
        one_by_one = stored(tmp_path / f"{number}-one", maker, [[example] for example in [*examples, *examples[:3]]])
        assert at_once == one_by_one


@pytest.mark.parametrize(
    ("ids", "labels", "problem"),
    [
        ([1, 2], [1, 2], "-100 at position 0"),
        ([1, 2, 3], [IGNORE, 3, IGNORE], "unshifted ids"),
        ([1, 2], [IGNORE], "a label for each token"),
    ],
)
def test_labels_that_are_no_unshifted_ids_stop_the_preparation(ids, labels, problem, tiny_tokenizer):
    right = Example([5, 6], [IGNORE, 6], Source("x", 1))
    with pytest.raises(AssertionError, match=problem):
        PartMaker(tiny_tokenizer, 100, "drop").part([right, Example(ids, labels, Source("x", 2)), right])


def test_a_number_that_the_stores_type_does_not_hold_is_no_other_token(tiny_tokenizer):
    example = Example([5, 6 + (1 << 16)], [IGNORE, 6 + (1 << 16)], Source("x", 1))
    with pytest.raises(UserError, match=r"gives the number 65,542, and says that it has \d+ tokens"):
        PartMaker(tiny_tokenizer, 100, "drop").part([example])
    assert len(PartMaker(tiny_tokenizer, 100, "drop").part([Example([], [], Source("x", 1))]).lengths) == 0
