"""The audit's counts on a file made so that each is known beforehand, and counted again by plain loops."""

from __future__ import annotations

from collections import Counter

import pytest

from dumbo.errors import UserError
from dumbo.formatter.chat import Chat
from dumbo.formatter.jinja import Jinja
from dumbo.formatter.text import Text
from dumbo.interfaces import Example
from dumbo.prepare.audit import lines_of
from dumbo.prepare.gates import GATES, check_thresholds, over_thresholds


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
        "end_token_missing": 5, "reasoning_dropped_by_template": 0, "train_marks_ignored": 0, "boundary_tokens": 0,
        "truncated_tokens": audit["source_tokens"] - audit["tokens"] - 2 * 300, "end_token_untrained": 0,
        "control_tokens_unescaped": 0,
    }  # fmt: skip
    assert {name: audit[name] for name in GATES} == wanted
    assert audit["end_token_trained"] == audit["rows"] - 5
    assert audit["rows_by_source"] == {one: 43, two: 9}
    assert (audit["train_documents"], audit["eval_documents"]) == (50, 0)
    named = {name: [int(row.rsplit(" ", 1)[1]) for row in rows] for name, rows in audit["first_rows"].items()}
    assert named == {
        "control_tokens_in_text": [1, 2, 3], "rows_with_control_tokens": [1, 2, 3], "zero_label_rows": [8, 9],
        "too_long": [5, 6, 7], "truncated": [5, 6, 7], "truncated_tokens": [5, 6, 7], "end_token_missing": [5, 6, 7],
    }  # fmt: skip
    assert audit["first_rows"]["zero_label_rows"] == [f"{two}, line 8", f"{two}, line 9"]


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


def test_marks_that_loss_on_does_not_heed(jsonl, prepared):
    """`train: false` (or `weight: 0`) holds under loss_on=field; elsewhere such turns are trained, and counted."""
    talk = [
        ("user", "a", {}),
        ("assistant", "b", {"weight": 0}),
        ("user", "c", {}),
        ("assistant", "d", {"train": True}),
    ]
    row = {"messages": [{"role": role, "content": text, **mark} for role, text, mark in talk]}
    path = jsonl([row, row, {"messages": row["messages"][2:]}])
    assert prepared(path, Chat()).audit["train_marks_ignored"] == 2
    heeded = prepared(path, Chat(loss_on="field"))
    assert heeded.audit["train_marks_ignored"] == 0
    assert heeded.train.trained_tokens < prepared(path, Chat()).train.trained_tokens


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
    assert audit["control_tokens_in_text"] == audit["control_tokens_unescaped"] == 3


NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'user' %}<|im_end|>{% endif %}\n{% endfor %}"
)
MIDDLE_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.first %}<|im_end|>{% endif %}\n{% endfor %}"
)
WITH_END = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>\n{% endfor %}"
TALK = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2")]


@pytest.mark.parametrize("loss_on", ["assistant", "last", "all"])
class TestEndTokens:
    """Whether the last trained turn ends with a trained control token, whatever the template writes after it."""

    def missing(self, prepared, path, formatter, **options):
        audit = prepared(path, formatter, **options).audit
        assert audit["end_token_trained"] + audit["end_token_missing"] == audit["rows"]
        whole = audit["rows"] - audit["truncated"]
        assert audit["end_token_untrained"] == (audit["end_token_missing"] if whole == audit["rows"] else 0)
        return audit["end_token_missing"]

    @pytest.fixture
    def path(self, jsonl):
        talk = {"messages": [{"role": role, "content": text} for role, text in TALK]}
        return jsonl([talk, {"messages": talk["messages"][:2]}])

    def test_chatml_whose_rows_end_with_a_newline(self, loss_on, path, prepared, tiny_tokenizer):
        split = prepared(path, Chat(loss_on=loss_on))
        assert tiny_tokenizer.decode(split.train.store.ids(0)).endswith("<|im_end|>\n")
        assert split.audit["end_token_missing"] == 0

    def test_really_missing(self, loss_on, path, prepared):
        for template in (NO_END, MIDDLE_END):
            assert self.missing(prepared, path, Jinja(template=template, loss_on=loss_on, append_eos=False)) == 2

    def test_there(self, loss_on, path, prepared):
        assert self.missing(prepared, path, Jinja(template=WITH_END, loss_on=loss_on, append_eos=False)) == 0
        assert self.missing(prepared, path, Jinja(template=NO_END, loss_on=loss_on, append_eos=True)) == 0

    def test_cut_off(self, loss_on, jsonl, prepared):
        path = jsonl([qa("short?", "yes"), qa("long?", "word " * 100)])
        assert self.missing(prepared, path, Chat(loss_on=loss_on), max_seq_len=60) == 1


def test_what_the_gate_asks_of_end_tokens(jsonl, prepared):
    """Only of rows with an answer, and only where their end is there: cut from the left it is, cut in pieces it may be lost."""
    path = jsonl([qa("short?", "yes"), qa("long?", "word " * 100)])
    ends = {"truncate_left": 2, "truncate_right": 1, "drop": 1, "split": 1}
    for too_long, wanted in ends.items():
        options = {"max_seq_len": 60, "too_long": too_long}
        assert prepared(path, Chat(), **options).audit["end_token_untrained"] == 0
        broken = prepared(path, Jinja(template=NO_END, append_eos=False), **options).audit
        assert broken["end_token_untrained"] == wanted, too_long
    plain = prepared(jsonl([{"text": "one"}], "text.jsonl"), Text(append_eos=False)).audit
    assert (plain["end_token_missing"], plain["end_token_untrained"]) == (1, 0)


def test_end_tokens_of_other_formatters(jsonl, prepared, tiny_tokenizer):
    """A formatter may leave the end token out of what it calls the reply; a row of text ends with eos or it does not."""

    class Apart:
        def format(self, rows, tokenizer):
            end = tokenizer.convert_tokens_to_ids("<|im_end|>")
            ids = [[5, 6, 7, end], [5, 6, 7, 8], [5, 6, end, 7]]
            return [Example(i, [-100, *i[1:]], row.source, (2, 3)) for i, row in zip(ids, rows, strict=True)]

    path = jsonl([qa("a?", "b")] * 3)
    assert prepared(path, Apart()).audit["end_token_missing"] == 1
    text = jsonl([{"text": "one line\n"}], "text.jsonl")
    assert prepared(text, Text()).audit["end_token_missing"] == 0
    assert prepared(text, Text(append_eos=False)).audit["end_token_missing"] == 1


def test_loss_on_all_passes_the_gate(jsonl, tmp_path):
    from dumbo.cli import main

    path = jsonl([qa(f"q{n}?", f"a{n}") for n in range(4)])
    words = [
        "preview",
        "dataset=files",
        f"dataset.path={path}",
        "formatter.loss_on=all",
        "preview.fail_on.end_token_missing=0",
    ]
    assert main(words) == 0
    (tmp_path / "no_end.jinja").write_text(NO_END)
    assert main([*words, "formatter=jinja", "formatter.template=no_end.jinja", "formatter.append_eos=false"]) == 3


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
        assert [str(one) for one in over_thresholds(self.AUDIT, fail_on)] == over

    @pytest.mark.parametrize(
        ("fail_on", "message"),
        [
            (
                {"duplicate": 1},
                r"preview\.fail_on\.duplicate: the audit has no such count\. Did you mean 'duplicates'\?",
            ),
            ({"duplicates": -1}, "must be at least 0"),
        ],
    )
    def test_names_and_numbers(self, fail_on, message):
        with pytest.raises(UserError, match=message):
            check_thresholds(fail_on, "preview")
