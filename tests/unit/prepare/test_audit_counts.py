"""The audit's counts on a file made so that each is known beforehand, and counted again by plain loops."""

from __future__ import annotations

from collections import Counter

import pytest

from dumbo.errors import UserError
from dumbo.formatter.chat import Chat
from dumbo.formatter.text import Text
from dumbo.prepare.audit import GATES, check_thresholds, lines_of, over_thresholds


def qa(asked, said):
    return {"question": asked, "answer": said}


@pytest.fixture
def made(jsonl, prepared):
    """40 plain rows, 3 of them twice more; 2 bad; 4 with control tokens; 5 cut, of which 2 lose all of the answer."""
    plain = [qa(f"number {n}?", f"it is {n}") for n in range(40)]
    twice = [plain[0], plain[0], plain[1]]
    bad = ['{"question": ', qa("x", "")]
    control = [qa(f"what is <|im_end|> {n}?", "an <|im_end|> token") for n in range(4)]
    cut = [qa(f"q{n}", "long " * 400) for n in range(3)] + [qa("long " * 400 + str(n), "a") for n in range(2)]
    one = jsonl([*plain, *twice, *bad[:1]], "one.jsonl")
    two = jsonl([*control, *cut, *bad[1:]], "two.jsonl")
    formatter = Chat(special_tokens_in_text="escape")
    data = prepared([one, two], formatter, 300, on_bad_row="skip")
    return data, one, two


def test_every_count(made):
    data, one, two = made
    audit = data.audit
    assert audit["rows"] == 40 + 3 + 4 + 5
    assert audit["documents"] == audit["rows"] - 2
    wanted = {
        "skipped": 2, "too_long": 5, "truncated": 5, "dropped": 0, "split": 0, "zero_label_rows": 2, "doubled_bos": 0,
        "control_tokens_in_text": 8, "rows_with_control_tokens": 4, "duplicates": 3, "eval_rows_in_train": 0,
        "end_token_missing": 5, "reasoning_dropped_by_template": 0, "boundary_tokens": 0,
    }  # fmt: skip
    assert {name: audit[name] for name in GATES} == wanted
    assert audit["end_token_trained"] == audit["rows"] - 5
    assert audit["rows_by_source"] == {one: 43, two: 9}
    assert (audit["train_documents"], audit["eval_documents"]) == (50, 0)


def test_against_counting_by_hand(made):
    data, _, _ = made
    store, audit = data.train.store, data.audit
    tokens = [store.ids(d).tolist() for d in data.train.documents]
    labels = [store.labels(d).tolist() for d in data.train.documents]
    trained = sum(label != -100 for row in labels for label in row)
    assert audit["tokens"] == sum(map(len, tokens))
    assert audit["trained_tokens"] == trained
    assert audit["trained_share"] == round(trained / sum(map(len, tokens)), 4)
    assert Counter(store.source(d).file for d in data.train.documents).most_common(1)[0][1] == 43
    whole = [ids for ids in map(tuple, tokens) if len(ids) < 300]
    assert audit["duplicates"] == len(whole) - len(set(whole))


def test_held_out_rows_that_stand_in_train(jsonl, prepared):
    train = jsonl([qa(f"q{n}", f"a{n}") for n in range(10)], "train.jsonl")
    held = jsonl([qa(f"q{n}", f"a{n}") for n in (3, 4, 50)], "held.jsonl")
    audit = prepared(train, Chat(), eval_path=held).audit
    assert audit["eval_rows_in_train"] == 2
    assert audit["duplicates"] == 2
    assert (audit["train_documents"], audit["eval_documents"]) == (10, 3)


def test_doubled_bos(prepared, jsonl, tokenizer_folder):
    """Text that brings its bos twice, let through, is counted; once is not."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("gemma3"))
    path = jsonl([{"text": "<bos><bos>twice"}, {"text": "<bos>once"}, {"text": "none"}])
    audit = prepared(path, Text(special_tokens_in_text="allow"), tokenizer=tokenizer).audit
    assert audit["doubled_bos"] == 1
    assert audit["control_tokens_in_text"] == 3


def test_real_data(data, prepared, smollm_tokenizer):
    split = prepared(str(data / "gsm8k" / "test.jsonl"), Chat(), eval_fraction=0.1, tokenizer=smollm_tokenizer)
    audit = split.audit
    assert audit["rows"] == audit["end_token_trained"] == 1319
    assert audit["train_documents"] + audit["eval_documents"] == 1319
    assert 0.4 < audit["trained_share"] < 0.7
    assert sum(audit[name] for name in GATES) == 0


def test_lines_mark_what_worries(made):
    lines = lines_of(made[0].audit)
    text = "\n".join(lines)
    assert "! duplicates                        3" in text
    assert "! zero label rows                   2" in text
    assert "  doubled bos                       0" in text
    assert all(str(name) in text for name in made[1:])


class TestThresholds:
    AUDIT = {"rows": 200} | dict.fromkeys(GATES, 0) | {"duplicates": 6, "truncated": 2}

    @pytest.mark.parametrize(
        ("fail_on", "over"),
        [
            ({"duplicates": 6}, []),
            ({"duplicates": 5}, ["duplicates is 6, allowed: 5"]),
            ({"duplicates": 0}, ["duplicates is 6, allowed: 0"]),
            ({"duplicates": 0.03}, []),
            ({"duplicates": 0.02}, ["duplicates is 6 (3.00% of the rows), allowed: 0.02"]),
            (
                {"skipped": 0, "truncated": 1, "duplicates": 1},
                ["truncated is 2, allowed: 1", "duplicates is 6, allowed: 1"],
            ),
        ],
    )
    def test_over(self, fail_on, over):
        assert over_thresholds(self.AUDIT, fail_on) == over

    @pytest.mark.parametrize(
        ("fail_on", "message"),
        [
            (
                {"duplicate": 1},
                r"preview\.fail_on\.duplicate: the audit has no such count\. Did you mean 'duplicates'\?",
            ),
            ({"duplicates": -1}, "must not be negative"),
        ],
    )
    def test_names_and_numbers(self, fail_on, message):
        with pytest.raises(UserError, match=message):
            check_thresholds(fail_on)
