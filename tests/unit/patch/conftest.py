"""Models to patch: small, random, with a real tokenizer where one matters."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny():
    """A fresh tiny Llama (tied embeddings), dropout-free."""
    from dumbo.model.tiny import Tiny

    loader = Tiny(hidden_size=32, intermediate_size=64, num_attention_heads=2)
    return loader.load_model(loader.load_tokenizer())


@pytest.fixture
def untied():
    """The same without tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False, attention_bias=True, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.fixture
def batch():
    ids = torch.randint(0, 97, (2, 17), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.fixture
def one_step(batch):
    """One optimizer step on a model; returns the names of the parameters that it changed."""

    def step(model, steps: int = 1) -> set[str]:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05, weight_decay=0.0)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            model(**batch, use_cache=False).loss.backward()
            optimizer.step()
        return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}

    return step


@pytest.fixture
def logits_of(batch):
    def logits(model) -> torch.Tensor:
        with torch.no_grad():
            ids = batch["input_ids"]
            return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

    return logits
