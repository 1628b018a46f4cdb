"""Words cut by arrays are those that the pattern finds, and an index never takes one word for another."""

from __future__ import annotations

import random
import re
from itertools import pairwise, product

import numpy as np
import pytest

from dumbo.formatter import word_index
from dumbo.formatter.cutting import END, FIRST_PRIVATE, Cutter, kinds_of, words_begin
from dumbo.formatter.word_index import LANES, LONGEST, UNKNOWN, WordIndex, keys_of
from dumbo.formatter.word_patterns import GPT2, GPT2_BETWEEN_DIGITS, SPACES, STEADY, class_of, translated

PIECES = ["a", "bc", "Z", "é", "ß", "7", "42", "½", "²", " ", "  ", "\n", "\t", "\r\n", "\xa0", "\x85", "\x1c", "\x00", "'", "''", "'s",
          "'S", "'re", "'r", "'ll", "'l", "'t", "'ve", "'d", "’", "(", "...", "–", "€", "_", "<", " '", " 's",
          "\n's", "word", "straightforwardly"]  # fmt: skip


def cut_otherwise(texts: list[str], pattern: str, lone_digits: bool) -> list[tuple[str, list[str], list[str]]]:
    """(text, what the pattern finds, what is cut) of each that differs; all texts are cut end to end."""
    find = re.compile(translated(pattern)).findall
    whole = END.join(texts) + END * 3
    units = np.frombuffer(whole.encode("utf-16-le"), np.uint16)
    kinds = kinds_of(class_of("L"), class_of("N"), SPACES)
    begins = words_begin(units, kinds, lone_digits=lone_digits).tolist()
    words = [whole[a:b] for a, b in pairwise([*begins, len(whole)])]
    different = []
    for text in texts:
        expected = [*find(text), END]
        found, words = words[: len(expected)], words[len(expected) :]
        if found != expected:
            different.append((text, expected, found))
    return different


@pytest.mark.parametrize(
    ("pattern", "lone_digits"), [(GPT2, False), (GPT2_BETWEEN_DIGITS, True)], ids=["digits", "lone digits"]
)
class TestAsThePatternCuts:
    def test_made_up_texts(self, pattern, lone_digits):
        drawn = random.Random(0)
        for _ in range(60):
            texts = ["".join(drawn.choices(PIECES, k=drawn.randint(0, 12))) for _ in range(200)]
            assert cut_otherwise(texts, pattern, lone_digits) == []

    def test_all_short_texts_of_what_matters(self, pattern, lone_digits):
        texts = list(map("".join, product("a7 \n's.", repeat=5)))
        for start in range(0, len(texts), 200):
            assert cut_otherwise(texts[start : start + 200], pattern, lone_digits) == []

    def test_every_character(self, pattern, lone_digits):
        chars = [chr(point) for first, last in STEADY for point in range(first, last + 1)]
        texts = [f"a{char}b 1{char}2  {char}'s\n{char} 7 {char}{char} '{char}" for char in chars]
        assert cut_otherwise(texts, pattern, lone_digits) == []

    def test_numbers_stand_for_words(self, pattern, lone_digits):
        find, drawn = re.compile(translated(pattern)).findall, random.Random(1)
        known: list[str] = []

        def number(word):
            known.append(word)
            return len(known) - 1

        asked: dict[str, int] = {}
        cutter = Cutter(
            ["<x>", "<y>"], lambda word: asked.setdefault(word, None) or number(word), lone_digits=lone_digits
        )
        for _ in range(30):
            texts = [[drawn.choice(["<x>", "<y>"]) if place % 2 else "".join(drawn.choices(PIECES, k=5)) for place in range(5)]
                     for _ in range(drawn.randint(1, 9))]  # fmt: skip
            expected = [
                [word for place, part in enumerate(text) for word in ([part] if place % 2 else find(part))]
                for text in texts
            ]
            numbers, bounds = cutter.cut([list(text) for text in texts])
            found = [known[number] for number in numbers]
            assert [found[a:b] for a, b in pairwise(bounds)] == expected
        short = [word for word in known if len(word) <= LONGEST]
        assert len(short) <= 2 * len(set(short))  # asked once, but for those twice in the texts where they are new


def test_private_units_are_kept_apart_from_texts():
    assert all(last < FIRST_PRIVATE for _, last in STEADY)


def keys(*words):
    whole = "".join(words)
    units = np.frombuffer((whole + "\0" * (LONGEST + 1)).encode("utf-16-le"), np.uint16)
    lengths = np.asarray([len(word) for word in words])
    return keys_of(units, np.cumsum(lengths) - lengths, lengths)


class TestIndex:
    def test_words_are_told_apart_by_every_character_and_their_length(self):
        words = ["a", "a\0", "ab", "abcd", "abcde", "x" * LONGEST, "x" * (LONGEST - 1) + "y", "é", "\0"]
        found = keys(*words)
        assert found.shape == (LANES, len(words))
        assert len(set(zip(*found.tolist(), strict=True))) == len(words)

    def test_many_words_also_where_all_want_one_place(self, monkeypatch):
        for crowded in (False, True):
            if crowded:
                monkeypatch.setattr(WordIndex, "_slots", lambda self, keys: keys[0].astype(np.int64) & 1)
            index, amount = WordIndex(), 300 if crowded else 20_000
            all_keys = keys(*(f"w{n}" for n in range(amount)))
            assert (index.find(all_keys) == UNKNOWN).all()
            for start in range(0, amount, 97):
                part = np.arange(start, min(amount, start + 97))
                index.add(all_keys[:, part], part)
            assert index.find(all_keys).tolist() == list(range(amount))
            assert (index.find(keys("w", "w-1", "x1")) == UNKNOWN).all()

    def test_what_there_is_no_room_for_stays_unknown(self, monkeypatch):
        monkeypatch.setattr(word_index, "MOST", 3)
        index = WordIndex()
        index.add(keys("a", "b"), np.asarray([5, 6]))
        index.add(keys("c", "d"), np.asarray([7, 8]))
        index.add(keys("e"), np.asarray([9]))
        assert index.find(keys("a", "b", "c", "d", "e")).tolist() == [5, 6, 7, UNKNOWN, UNKNOWN]
