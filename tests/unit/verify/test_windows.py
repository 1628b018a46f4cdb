"""A model that keeps its window or chunk in its mask alone cannot go without it in packs: another layout is taken."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch

from dumbo.errors import ProofFailed
from dumbo.trainer.layout import choose_layout
from dumbo.verify.pack_leak import LENGTHS, lengths_past


def phimoe() -> Any:
    from transformers import PhimoeConfig, PhimoeForCausalLM

    torch.manual_seed(0)
    return PhimoeForCausalLM(
        PhimoeConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
                     vocab_size=64, num_local_experts=2, num_experts_per_tok=1, sliding_window=64, max_position_embeddings=512)
    )  # fmt: skip


def test_a_window_in_the_mask_alone_is_found() -> None:
    """Whether its own attention isolates is a matter of its own; that of dumbo would have lost the window."""
    with suppress(ProofFailed):
        assert choose_layout(phimoe(), True, "auto", longest=512)[0] == "rows"
    with pytest.raises(ProofFailed, match="isolated: leak 0, "):
        choose_layout(phimoe(), True, "isolated", longest=512)


def test_the_probe_looks_past_the_window_where_documents_reach_it() -> None:
    config = phimoe().config
    assert lengths_past(config, 512) == (19, 88, 77)
    assert lengths_past(config, 64) == LENGTHS


@pytest.mark.parametrize("window", [8, 40])
def test_a_window_passed_to_the_attention_is_honoured(window: int) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    model: Any = MistralForCausalLM(
        MistralConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                      vocab_size=64, sliding_window=window)
    )  # fmt: skip
    layout, proof = choose_layout(model, True, "auto", longest=512)
    assert layout == "tokens"
    assert "pack leak 0 (isolated attention)" in proof
