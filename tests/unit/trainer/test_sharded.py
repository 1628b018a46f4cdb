"""Which models FSDP2 cannot take, said before it is put around them."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from dumbo.errors import UserError
from dumbo.patch.lora import LoRA
from dumbo.trainer.sharded import hides_a_tie, require_shardable


def model(*, tied: bool, added: list[int]) -> Any:
    made: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    )
    made.added_token_ids = added
    return made


@pytest.mark.parametrize(("tied", "added"), [(True, []), (False, [39]), (False, [])])
@pytest.mark.parametrize("lora", [False, True])
def test_one_weight_or_two_can_be_sharded(tied: bool, added: list[int], lora: bool) -> None:
    made = model(tied=tied, added=added)
    assert not hides_a_tie(LoRA(rank=2).apply(made) if lora else made)


def test_a_weight_that_two_wrappers_share_cannot() -> None:
    with pytest.raises(UserError, match=r"cannot shard this model(.|\n)*launch=ddp"):
        require_shardable(LoRA(rank=2).apply(model(tied=True, added=[39])))
    assert not hides_a_tie(model(tied=True, added=[39])), "without the wrappers accelerate sees it"
