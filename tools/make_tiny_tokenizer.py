"""Makes the tokenizer that ships with `model=tiny`: a byte-level BPE of 512 tokens, digits one by one.

    python tools/make_tiny_tokenizer.py dumbo/model/tiny_tokenizer

It learns its merges from the quiz and a page of plain English, so that any text can be encoded (bytes) and the
quiz is short. Deterministic: a test makes it again and compares.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dumbo.dataset.quiz import questions

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
VOCAB_SIZE = 512
ENGLISH = """
A model learns from examples what to say next. The more often it sees a thing, the surer it becomes; what it has
never seen it must work out from what it has. People ask short questions and want short answers: the name of a
place, a sum, the letters of a word, the next of two numbers. When the question is clear and there is one right
answer, anybody can see whether the model has understood, and that is why we begin here. You are a helpful
assistant who answers the user in a few words and then stops. Please write, read, tell, show, find, make, give,
use, call the tool with its arguments and say what came back. This was made for you to try before anything else.
"""


def corpus() -> Iterator[str]:
    train, held_out = questions(seed=0)
    for question in [*train, *held_out]:
        yield f"user\n{question.text}"
        yield f"assistant\n{question.answer}"
    for _ in range(20):
        yield ENGLISH
        yield "system\n"
        yield "tool\n"


def build() -> Tokenizer:
    """The tokenizer, made from scratch."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    build().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "unk_token": None,
        "model_max_length": 1024,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
