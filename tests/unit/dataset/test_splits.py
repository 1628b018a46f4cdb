"""What is held out: a seeded share, whole rows, the same every time; or files of their own."""

from __future__ import annotations

import json

import pytest

from dumbo.cache import cache_folder
from dumbo.dataset.files import Files
from dumbo.errors import UserError
from dumbo.formatter.text import Text
from dumbo.prepare.prepare import prepare

ROWS = 400


@pytest.fixture(scope="module")
def tokenizer():
    from dumbo.model.tiny import Tiny

    return Tiny().load_tokenizer()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {n} " + "x y " * (n % 60)}) + "\n" for n in range(ROWS)))
    return path


def split(tokenizer, max_seq_len=4096, too_long="truncate_right", **options):
    data = prepare(Files(**options).load(), Text(), tokenizer, max_seq_len=max_seq_len, too_long=too_long)
    return data, rows(data.train), rows(data.eval) if data.eval else []


def rows(part):
    return [part.store.source(document).row for document in part.documents.tolist()]


def test_a_share_is_held_out(file, tokenizer):
    _, train, held = split(tokenizer, path=str(file), eval_fraction=0.1)
    assert len(held) == ROWS // 10
    assert sorted(train + held) == list(range(1, ROWS + 1))
    assert held == sorted(held), "in the data's order"
    assert held != list(range(1, 41)), "and from all over it"
    assert max(held) > 300


def test_the_same_rows_every_time_and_others_for_another_seed(file, tokenizer):
    _, _, held = split(tokenizer, path=str(file), eval_fraction=0.1)
    _, _, again = split(tokenizer, path=str(file), eval_fraction=0.1)
    _, _, other = split(tokenizer, path=str(file), eval_fraction=0.1, split_seed=1)
    assert held == again
    assert held != other
    assert len(other) == len(held)


def test_the_seed_chooses_without_preparing_again(file, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))  # others prepare in the one that tests share
    split(tokenizer, path=str(file))
    stores = set(cache_folder("prepared").iterdir())
    split(tokenizer, path=str(file), split_seed=3, eval_fraction=0.3, eval_limit=7)
    assert set(cache_folder("prepared").iterdir()) == stores


def test_rows_that_are_cut_stay_whole(file, tokenizer):
    """A row in several documents is held out with all of them, or with none."""
    data, train, held = split(tokenizer, 32, "split", path=str(file), eval_fraction=0.25)
    assert len(train) + len(held) > 2 * ROWS
    assert not set(train) & set(held)
    assert len(set(held)) == ROWS // 4
    assert data.eval.rows == ROWS // 4


def test_none_and_limits(file, tokenizer):
    data, train, _ = split(tokenizer, path=str(file), eval_fraction=0)
    assert data.eval is None
    assert len(train) == ROWS
    _, train, held = split(tokenizer, path=str(file), eval_fraction=0.5, eval_limit=5)
    assert len(held) == 5
    assert len(train) == ROWS // 2, "what is over the limit is not trained on either"
    _, train, held = split(tokenizer, path=str(file), limit=20, eval_fraction=0.5)
    assert sorted(train + held) == list(range(1, 21))


def test_a_small_share_of_few_rows_is_one_row(file, tokenizer):
    _, _, held = split(tokenizer, path=str(file), limit=5, eval_fraction=0.01)
    assert len(held) == 1
    _, train, held = split(tokenizer, path=str(file), limit=1, eval_fraction=0.5)
    assert (train, held) == ([1], [])


@pytest.mark.parametrize(
    ("limit", "fraction", "trained"), [(3, 0.9, 1), (2, 0.99, 1), (10, 0.96, 1), (10, 0.94, 1), (10, 0.8, 2)]
)
def test_a_large_share_leaves_a_row_to_train_on(limit, fraction, trained, file, tokenizer):
    data, train, held = split(tokenizer, path=str(file), limit=limit, eval_fraction=fraction)
    assert (len(train), len(held)) == (trained, limit - trained)
    assert sorted(train + held) == list(range(1, limit + 1))
    assert data.audit["train_documents"] == trained
    _, train, held = split(tokenizer, path=str(file), limit=limit, eval_fraction=fraction, eval_limit=1)
    assert (len(train), len(held)) == (trained, 1)


def test_a_large_share_runs(file, tmp_path):
    import dumbo

    metrics = dumbo.run([
        "dataset=files", f"dataset.path={file}", "dataset.limit=3", "dataset.eval_fraction=0.9", "formatter=text", "run_dir=run",
        "trainer.max_steps=1", "trainer.num_samples=0", "trainer.global_batch_size=1", "trainer.micro_batch_size=1",
        "trainer.max_seq_len=64", "trainer.save_every=null", "trainer.eval_at_start=false", "verify.mode=off",
    ])  # fmt: skip
    assert metrics["steps"] == 1
    assert metrics["eval_loss"] > 0


def test_held_out_files_without_a_usable_row(file, tmp_path, tokenizer):
    """Who names files to hold out gets them held out, or an error: no run without a held-out loss."""
    other = tmp_path / "held.jsonl"
    other.write_text('{"text": ""}\n{"text": " "}\n')
    with pytest.raises(UserError, match=r"(?s)no row is left to hold out.*2 bad rows were skipped"):
        split(tokenizer, path=str(file), eval_path=str(other), on_bad_row="skip")
    other.write_text(json.dumps({"text": "long " * 200}))
    with pytest.raises(UserError, match=r"(?s)no row is left to hold out.*1 rows were longer than"):
        split(tokenizer, 64, "drop", path=str(file), eval_path=str(other))


def test_a_file_of_its_own(file, tmp_path, tokenizer):
    other = tmp_path / "held.jsonl"
    other.write_text("".join(json.dumps({"text": f"held {n}"}) + "\n" for n in range(30)))
    data, train, held = split(tokenizer, path=str(file), eval_path=str(other), eval_fraction=0.5)
    assert len(train) == ROWS
    assert held == list(range(1, 31))
    assert data.eval.store.source(int(data.eval.documents[0])).file == str(other)


def test_a_limit_of_held_out_files_that_grows(file, tmp_path, tokenizer):
    """The limit decides how much of those files is read: a store made under a smaller one is not taken for the larger."""
    other = tmp_path / "held.jsonl"
    other.write_text("".join(json.dumps({"text": f"held out {n}"}) + "\n" for n in range(30)))
    for limit in (3, 20, 3):
        _, _, held = split(tokenizer, path=str(file), eval_path=str(other), eval_limit=limit)
        assert len(held) == limit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_fraction": 1.0}, "from 0 to below 1"),
        ({"eval_fraction": -0.1}, "from 0 to below 1"),
        ({"limit": 0}, "limit must be at least 1"),
        ({"eval_limit": 0}, "eval_limit must be at least 1"),
        ({"answer_pattern": "("}, "not a regular expression"),
        ({"answer_pattern": "x"}, "needs a group"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        Files(path="x.jsonl", **options)
