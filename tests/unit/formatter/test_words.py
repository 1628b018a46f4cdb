"""The table of words gives what the tokenizer itself gives, id by id and place by place, or leaves the text to it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dumbo.formatter.encode import Rendered, encode
from dumbo.formatter.word_patterns import STEADY
from dumbo.formatter.words import Words

REAL = ("smollm", "qwen3", "llama3")
AROUND = ("a{0}b", " {0} ", "1{0}2", "'{0}", "{0}'S", "  {0}", "{0}  \n", "\n{0}{0}", "{0} 7", "{0}\t x", "It's {0}'ll")
HARD = ("", " ", "   12  ", "a  1", "\n\n  5\n", "don't DON'T we'Ll", "x<|im_end|>y", "!<|im_end|>  <|im_start|>\n", "\x1c\x1d x",
        "a\x00b", "½ ² Ⅷ", "naïve café £5 €6 – “q”", "\r\n\r\n a", "ſ's", "日本語 text", "e\u0301", "\u2000\u2001 x")  # fmt: skip


@pytest.fixture(scope="session")
def real(smollm_folder, tokenizer_folder):
    from transformers import AutoTokenizer

    folders = {"smollm": lambda: smollm_folder}
    return {
        name: AutoTokenizer.from_pretrained(folders.get(name, lambda n=name: tokenizer_folder(n))()) for name in REAL
    }


def taken(texts, backend):
    """How many texts the table takes; those are compared with the tokenizer's own encoding."""
    words = Words.of(backend)
    assert words is not None
    pieces = words.encode(texts)
    for text, piece, own in zip(texts, pieces, backend.encode_batch(texts, add_special_tokens=False), strict=True):
        if piece is not None:
            assert piece[0].tolist() == own.ids, text
            assert list(zip(piece[1].tolist(), piece[2].tolist(), strict=True)) == own.offsets, text
    return sum(piece is not None for piece in pieces)


@pytest.mark.parametrize("name", REAL)
class TestRealTokenizers:
    def test_real_rows(self, name, real, data):
        lines = (data / "gsm8k" / "train.jsonl").read_text().splitlines()[:1500]
        turns = [[{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
                 for row in map(json.loads, lines)]  # fmt: skip
        texts = [real[name].apply_chat_template(turn, tokenize=False) for turn in turns]
        assert taken(texts, real[name].backend_tokenizer) >= 0.99 * len(texts)

    def test_multilingual_and_code(self, name, real, data):
        talks = json.loads((data / "fastchat" / "dummy_conversation.json").read_text())
        texts = [turn["value"] for talk in talks for turn in talk["conversations"]]
        texts += (data / "tinyshakespeare" / "input.txt").read_text()[:200_000].split("\n\n")
        assert taken(texts, real[name].backend_tokenizer) > 0

    def test_every_character_it_cuts(self, name, real):
        chars = [chr(point) for first, last in STEADY for point in range(first, last + 1)]
        texts = [around.format(char) for char in chars for around in AROUND]
        most = 0.98 if name == "smollm" else 1  # a few control bytes are not in its vocabulary
        assert taken(texts, real[name].backend_tokenizer) >= most * len(texts)

    def test_hard_texts(self, name, real):
        texts = [*HARD, *real[name].all_special_tokens]
        assert taken(texts, real[name].backend_tokenizer) > 0

    def test_encode_gives_the_same_with_texts_of_both_kinds(self, name, real):
        backend = real[name].backend_tokenizer
        for row, found in zip(HARD, encode([Rendered(text) for text in HARD], real[name]), strict=True):
            own = backend.encode(row, add_special_tokens=False)
            assert found.ids.tolist() == own.ids
            assert found.ids.dtype == np.int32
            assert list(zip(found.starts.tolist(), found.ends.tolist(), strict=True)) == own.offsets


def test_a_table_that_is_full_begins_anew(real, monkeypatch):
    monkeypatch.setattr("dumbo.formatter.words.MOST_TOKENS", 10)
    words = Words.of(real["smollm"].backend_tokenizer)
    first = words.encode(["one two three four five six seven eight nine ten eleven twelve"])[0]
    words.encode(["something else"])
    again = words.encode(["one two three four five six seven eight nine ten eleven twelve"])[0]
    assert first[0].tolist() == again[0].tolist()
    assert len(words._ids) < 2 * len(first[0])


def test_truncation_and_padding_are_left_to_the_tokenizer(real):
    backend = Tokenizer.from_str(real["smollm"].backend_tokenizer.to_str())
    words = Words.of(backend)
    backend.enable_truncation(2)
    assert words.encode(["one two three"]) == [None]


def plain(**changes):
    """A byte-level BPE without merges; its alphabet is its vocabulary."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, [], **changes.pop("model", {})))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, value in changes.items():
        setattr(backend, name, value)
    return backend


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": normalizers.Lowercase()},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"post_processor": processors.ByteLevel(trim_offsets=True)},
        {"model": {"dropout": 0.1}},
        {"model": {"continuing_subword_prefix": "##"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_other_tokenizers_get_no_table(changes):
    assert Words.of(plain()) is not None
    assert Words.of(plain(**changes)) is None


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized"])
def test_added_tokens_that_take_more_than_their_text_get_no_table(flag):
    backend = plain()
    backend.add_special_tokens([AddedToken("<x>", normalized=False)])
    assert Words.of(backend) is not None
    backend.add_tokens([AddedToken("<y>", **{"normalized": False, flag: True})])
    assert Words.of(backend) is None


@pytest.mark.parametrize("pattern", [r"\p{Lu}+|.", r"\d++|.", r"(?<=a)b|.", r"[\p{L}&&[^a]]+|.", r"\b\w+|."])
def test_patterns_that_two_engines_could_read_differently_get_no_table(pattern):
    from tokenizers import Regex

    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    whole = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    assert Words.of(plain(pre_tokenizer=whole)) is None


def test_a_pattern_that_leaves_gaps_is_left_to_the_tokenizer():
    from tokenizers import Regex

    cut = pre_tokenizers.Split(Regex(r"\p{L}+"), "isolated")
    whole = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = Words.of(plain(pre_tokenizer=whole))
    assert [piece is None for piece in words.encode(["ab", "a b"])] == [False, True]


def test_a_word_that_the_model_does_not_take_is_left_to_the_tokenizer():
    backend = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert [piece is None for piece in Words.of(backend).encode(["ab", "ac", "", "ba"])] == [False, True, False, False]


def test_a_table_that_errs_stops_the_preparation(real, monkeypatch):
    """One text of each batch is put to the tokenizer too."""
    right = Words.encode

    def errs(self, texts):
        return [(ids + 1, starts, ends) for ids, starts, ends in right(self, texts)]

    monkeypatch.setattr(Words, "encode", errs)
    with pytest.raises(AssertionError, match="tokens by words differ"):
        encode([Rendered("What is 7 + 10?")], real["smollm"])
