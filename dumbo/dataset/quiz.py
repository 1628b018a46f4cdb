"""The embedded data set: short questions with one right answer, made here, so that the first run needs nothing.

Five kinds. In two of them, sums and comparisons, a held-out question asks about a pair of numbers that no
training question asks about in any wording or order: answering it is generalisation. In the other three
(capitals, neighbours of a number, spelling) the fact stands in training in other words: answering it is recall.
Nothing is downloaded and nothing is random beyond `seed`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement

from dumbo.cache import key_of
from dumbo.dataset.files import check_common
from dumbo.interfaces import BadRow, Message, Row, Source, Splits

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Brazil": "Brasilia", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Cuba": "Havana", "Egypt": "Cairo", "Finland": "Helsinki", "France": "Paris",
    "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens", "Hungary": "Budapest", "India": "New Delhi",
    "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Latvia": "Riga", "Morocco": "Rabat",
    "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Spain": "Madrid", "Sweden": "Stockholm", "Turkey": "Ankara", "Uganda": "Kampala", "Ukraine": "Kyiv",
    "Vietnam": "Hanoi",
}  # fmt: skip
WORDS = [
    "apple",
    "bread",
    "chair",
    "cloud",
    "dance",
    "eagle",
    "earth",
    "field",
    "flame",
    "forest",
    "garden",
    "glass",
    "green",
    "horse",
    "house",
    "juice",
    "lemon",
    "light",
    "money",
    "mouse",
    "music",
    "night",
    "ocean",
    "piano",
    "plant",
    "river",
    "snow",
    "stone",
    "storm",
    "table",
    "train",
    "water",
]

WORDINGS = {
    "sum": ("What is {a} + {b}?", "{a} plus {b}?", "Add {a} and {b}."),
    "larger": ("Which is larger, {a} or {b}?", "Larger: {a} or {b}?"),
    "smaller": ("Which is smaller, {a} or {b}?", "Smaller: {a} or {b}?"),
    "capital": (
        "What is the capital of {x}?",
        "Capital of {x}?",
        "Name the capital of {x}.",
        "Which city is the capital of {x}?",
        "The capital of {x} is which city?",
        "{x} has which capital?",
    ),
    "after": ("What comes after {x}?", "Which number follows {x}?", "Next number after {x}?"),
    "spell": (
        "Spell {x}.",
        "How do you spell {x}?",
        "Spell the word {x}.",
        "Which letters make {x}?",
        "Write {x} letter by letter.",
    ),
}
GENERALISE = ("sum", "larger", "smaller")
"""Kinds whose held-out questions have no rewording in training."""
HELD_OUT = {"sum": 30, "larger": 15, "smaller": 15, "capital": 20, "after": 10, "spell": 10}
"""Held-out questions of each kind; 60 of 100 ask for generalisation."""

SUM_LIMIT = 15
"""Sums add two numbers from 0 to this."""
NUMBER_LIMIT = 99
PAIRS_COMPARED = 700
"""Pairs of two-digit numbers in each kind of comparison; each stands in training in one wording and order."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its answer, its kind, and the fact it asks for: the same for every wording of it."""

    text: str
    answer: str
    kind: str
    fact: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Quiz:
    """Loads the quiz.

    Args:
        seed: which questions are held out.
        eval_limit: at most so many held-out questions; null: all 100.
        limit: at most so many training rows; null: all.
    """

    seed: int = 0
    eval_limit: int | None = 100
    limit: int | None = None

    def __post_init__(self) -> None:
        check_common(0.0, self.eval_limit, self.limit, None, {})

    def load(self) -> Splits:
        train, held_out = questions(self.seed)
        return Splits(
            train=_Batches("quiz train", train[: self.limit]),
            eval=_Batches("quiz held out", held_out[: self.eval_limit]),
            fingerprint=key_of(
                {
                    "train": [(question.text, question.answer) for question in train[: self.limit]],
                    "eval": [(question.text, question.answer) for question in held_out[: self.eval_limit]],
                }
            ),
            name="quiz",
            answer_pattern=r"(?s)^\s*(.*\S)",
        )


def questions(seed: int) -> tuple[list[Question], list[Question]]:
    """(train, held out), both shuffled."""
    rng = random.Random(seed)
    train: list[Question] = []
    held_out: list[Question] = []
    for kind, amount in HELD_OUT.items():
        facts = _facts(kind, rng)
        rng.shuffle(facts)
        for index, fact in enumerate(facts):
            asked = _wordings(kind, fact)
            if index >= amount:
                train += [rng.choice(asked)] if kind in ("larger", "smaller") else asked
            elif kind in GENERALISE:
                held_out.append(rng.choice(asked))
            else:
                chosen = rng.randrange(len(asked))
                held_out.append(asked[chosen])
                train += asked[:chosen] + asked[chosen + 1 :]
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


def _facts(kind: str, rng: random.Random) -> list[tuple[str, ...]]:
    if kind == "sum":
        return [(str(a), str(b)) for a, b in combinations_with_replacement(range(SUM_LIMIT + 1), 2)]
    if kind in ("larger", "smaller"):
        # Larger pairs have an even sum, smaller ones an odd one: no pair is asked about in both kinds.
        parity = 0 if kind == "larger" else 1
        numbers = range(10, NUMBER_LIMIT + 1)
        pairs = [(a, b) for a, b in combinations(numbers, 2) if (a + b) % 2 == parity]
        return [(str(a), str(b)) for a, b in rng.sample(pairs, PAIRS_COMPARED)]
    if kind == "capital":
        return [(country,) for country in CAPITALS]
    if kind == "after":
        return [(str(number),) for number in range(NUMBER_LIMIT)]
    return [(word,) for word in WORDS]


def _wordings(kind: str, fact: tuple[str, ...]) -> list[Question]:
    """Every wording of one fact; for pairs, in both orders."""
    orders = [fact] if len(fact) == 1 or fact[0] == fact[1] else [fact, fact[::-1]]
    asked = []
    for order in orders:
        names = {"x": order[0]} if len(order) == 1 else {"a": order[0], "b": order[1]}
        asked += [Question(w.format(**names), _answer(kind, fact), kind, fact) for w in WORDINGS[kind]]
    return asked


def _answer(kind: str, fact: tuple[str, ...]) -> str:
    if kind == "sum":
        return str(int(fact[0]) + int(fact[1]))
    if kind in ("larger", "smaller"):
        return str((max if kind == "larger" else min)(int(number) for number in fact))
    if kind == "capital":
        return CAPITALS[fact[0]]
    if kind == "after":
        return str(int(fact[0]) + 1)
    return " ".join(fact[0])


@dataclass(frozen=True)
class _Batches:
    name: str
    questions: list[Question]

    def __iter__(self) -> Iterator[list[Row | BadRow]]:
        yield [
            Row(
                source=Source(self.name, number, "row"),
                messages=[Message(role="user", content=q.text), Message(role="assistant", content=q.answer)],
            )
            for number, q in enumerate(self.questions, 1)
        ]
