"""Documents and models for measuring speed: shapes of real models with random weights, no network, no real tokenizer.

A token is a word ("w17"); lengths of documents are lognormal, as those of many instruction sets are (mean about 250
tokens, at most 2,048). A folder holds a model (bf16), such a tokenizer, the documents as text (`docs.jsonl`, for dumbo) and
as ids (`docs.npz`, for peers).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

EOS, PAD, FIRST_WORD = 1, 2, 3


@dataclass(frozen=True)
class Shape:
    """A Llama: keys of its config, and the longest document in tokens."""

    config: dict[str, Any]
    longest: int = 2048


SHAPES = {
    "tiny": Shape({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
                   "intermediate_size": 64, "vocab_size": 512, "tie_word_embeddings": True}, longest=128),
    "smollm135": Shape({"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                        "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True}),
    "llama1b": Shape({"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
                      "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True}),
    "llama8b": Shape({"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                      "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False}),
}  # fmt: skip


def write(folder: Path, shape: Shape, tokens: int, *, full_rows: bool = False) -> None:
    """The folder for one shape, with at least so many tokens of documents; `full_rows`: all of the longest length."""
    write_model(folder, shape)
    write_documents(folder, shape, tokens, full_rows=full_rows)


def write_model(folder: Path, shape: Shape) -> None:
    """Random weights and the tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder.mkdir(parents=True)
    words = {"<unk>": 0, "<eos>": EOS, "<pad>": PAD}
    words |= {f"w{number}": number for number in range(FIRST_WORD, _words(shape))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    config = {
        "max_position_embeddings": max(8192, shape.longest),
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a billion random numbers take a CPU a minute
        model = LlamaForCausalLM._from_config(LlamaConfig(**config, **shape.config), dtype=torch.bfloat16)
    model.save_pretrained(folder)


def write_documents(folder: Path, shape: Shape, tokens: int, *, full_rows: bool = False) -> None:
    """Over those that there are."""
    made = documents(_words(shape), shape.longest, tokens, shortest=shape.longest if full_rows else 16)
    with (folder / "docs.jsonl").open("w", encoding="utf-8") as file:
        for ids in made:
            file.write(json.dumps({"text": " ".join(f"w{number}" for number in ids[:-1].tolist())}) + "\n")
    np.savez(folder / "docs.npz", ids=np.concatenate(made), lengths=np.array([len(ids) for ids in made]))


def _words(shape: Shape) -> int:
    return min(shape.config["vocab_size"], 49_152)


def documents(vocabulary: int, longest: int, tokens: int, shortest: int = 16) -> list[np.ndarray]:
    """Random ids, each document ended by eos, its length with that in [shortest, longest]."""
    generator = np.random.default_rng(0)
    found: list[np.ndarray] = []
    while tokens > 0:
        length = int(np.clip(generator.lognormal(5.3, 0.7) * longest / 2048, shortest, longest))
        found.append(np.append(generator.integers(FIRST_WORD, vocabulary, length - 1), EOS))
        tokens -= length
    return found


def read(folder: Path) -> list[list[int]]:
    """The documents as ids."""
    stored = np.load(folder / "docs.npz")
    return [part.tolist() for part in np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])]
