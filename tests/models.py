"""Random-weight model folders, one architecture class each: few layers, small width, a real tokenizer.

What cannot be downloaded is tested on these: `from models import random_model` (tests/ is on the path).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WIDTH = 32
WINDOW = 8
"""Of the sliding or local attention, in tokens: shorter than the documents of the tests, so that it matters."""

COMMON = {
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,  # large, so that what a token sees of others shows in its logits
}


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**COMMON, num_hidden_layers=2, tie_word_embeddings=True)


def _smollm3() -> Any:
    from transformers import SmolLM3Config

    # Every second layer without rotary positions (the real one: every fourth).
    return SmolLM3Config(**COMMON, num_hidden_layers=2, no_rope_layer_interval=2, tie_word_embeddings=True)


def _qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**COMMON, num_hidden_layers=2, tie_word_embeddings=True)


def _gemma3() -> Any:
    from transformers import Gemma3TextConfig

    layers = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(**COMMON, num_hidden_layers=2, layer_types=layers, sliding_window=WINDOW)


def _mistral() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**COMMON, num_hidden_layers=2, sliding_window=WINDOW, tie_word_embeddings=False)


def _gpt_neo() -> Any:
    from transformers import GPTNeoConfig

    return GPTNeoConfig(
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=WINDOW,
        max_position_embeddings=1024,
        initializer_range=0.3,
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
    )


ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "smollm3": _smollm3,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "mistral": _mistral,
    "gpt_neo": _gpt_neo,
}


def random_model(folder: Path, architecture: str, tokenizer: Path, **changes: Any) -> Path:
    """Writes a model of an architecture class, and a tokenizer beside it.

    Args:
        folder: where to; made.
        architecture: a key of ARCHITECTURES.
        tokenizer: folder of a real tokenizer; the vocabulary is as long as it.
        changes: of the model's config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    config = ARCHITECTURES[architecture]()
    special = {"bos_token_id": loaded.bos_token_id, "eos_token_id": loaded.eos_token_id, "pad_token_id": None}
    for key, value in {"vocab_size": len(loaded), **special, **changes}.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    loaded.save_pretrained(folder)
    return folder
