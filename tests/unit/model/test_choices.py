"""The facts in conf/model: hub ids, context lengths, base or instruct, special tokens.

Hub ids, context lengths and file lists were looked up in published copies of config.json and model cards; tokens are
checked here on the real tokenizers at hand.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dumbo.check import check
from dumbo.compose import compose
from dumbo.model.special_tokens import SpecialTokens

FACTS = {
    # choice: (hub id, context length in tokens, what the first line says)
    "smollm": ("HuggingFaceTB/SmolLM2-135M", 8192, "base"),
    "smollm_360m": ("HuggingFaceTB/SmolLM2-360M", 8192, "base"),
    "smollm_1_7b": ("HuggingFaceTB/SmolLM2-1.7B", 8192, "base"),
    "smollm3_3b": ("HuggingFaceTB/SmolLM3-3B", 65536, "instruct"),
    "tinystories_1m": ("roneneldan/TinyStories-1M", 2048, "base"),
    "llama3_1b": ("meta-llama/Llama-3.2-1B-Instruct", 131072, "instruct"),
    "llama3_8b": ("meta-llama/Llama-3.1-8B-Instruct", 131072, "instruct"),
    "qwen3_0_6b": ("Qwen/Qwen3-0.6B", 40960, "instruct"),
    "qwen3_8b": ("Qwen/Qwen3-8B", 40960, "instruct"),
    "gemma3_1b": ("google/gemma-3-1b-it", 32768, "instruct"),
    "mistral_7b": ("mistralai/Mistral-7B-Instruct-v0.3", 32768, "instruct"),
}
CONF = Path(__file__).parents[3] / "conf" / "model"


def plugin(choice: str):
    composed = compose([f"model={choice}"])
    return check(composed.cfg, composed.choices).model


def test_every_choice_is_in_the_table():
    others = {"tiny", "smollm_gguf", "pretrained"}
    assert {file.stem for file in CONF.glob("*.yaml")} == set(FACTS) | others


@pytest.mark.parametrize("choice", FACTS)
def test_facts(choice):
    hub_id, context, kind = FACTS[choice]
    model = plugin(choice)
    assert (model.path, model.context_length) == (hub_id, context)
    assert model.trust_remote_code is False
    assert model.allow_pickle is (choice == "tinystories_1m"), "its repository holds pytorch_model.bin only"
    assert kind in (CONF / f"{choice}.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("choice", "real", "bos", "eos", "pad"),
    [
        ("smollm", "smollm", None, "<|im_end|>", "<|endoftext|>"),
        ("smollm_gguf", "smollm", "<|im_start|>", "<|im_end|>", "<|im_end|>"),
        ("qwen3_0_6b", "qwen3", None, "<|im_end|>", "<|endoftext|>"),
        ("qwen3_8b", "qwen3", None, "<|im_end|>", "<|endoftext|>"),
        ("gemma3_1b", "gemma3", "<bos>", "<end_of_turn>", "<pad>"),
    ],
)
def test_special_tokens_on_the_real_tokenizer(choice, real, bos, eos, pad, tokenizer_folder, smollm_folder):
    """The choice adds no token to the vocabulary, and gives those that its comments name."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder if real == "smollm" else tokenizer_folder(real))
    before = len(tokenizer)
    special: SpecialTokens = plugin(choice).tokenizer
    special.apply(tokenizer)
    assert len(tokenizer) == before
    assert (tokenizer.eos_token, tokenizer.pad_token) == (eos, pad)
    if choice != "smollm":  # this folder is the instruct model's, whose bos differs from the base's
        assert tokenizer.bos_token == bos
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert "Ho" in tokenizer.apply_chat_template(chat, tokenize=False)


def test_llamas_pad_token_is_a_reserved_one(tokenizer_folder):
    """Llama 3.1 and 3.2 call token 128004 <|finetune_right_pad_id|>; in Llama 3's own vocabulary it is reserved."""
    from transformers import AutoTokenizer

    assert "reserved_special_token" in AutoTokenizer.from_pretrained(tokenizer_folder("llama3")).decode([128004])
    assert (
        plugin("llama3_1b").tokenizer.pad_token
        == plugin("llama3_8b").tokenizer.pad_token
        == "<|finetune_right_pad_id|>"
    )
