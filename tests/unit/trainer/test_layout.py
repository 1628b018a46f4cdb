"""How packs are laid out for a model, and that no layout that leaks is taken."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Document, documents, model_of, small_run, splits_of

from dumbo.errors import ProofFailed, UserError
from dumbo.trainer.layout import choose_layout


@pytest.fixture(scope="module")
def rows(data: Path) -> list[Document]:
    return documents(data, 12)


def leaking(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
    """Causal over the whole token axis, boundaries or not."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2), None


@pytest.fixture
def everything_leaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attention that transformers knows ignores boundaries; so does ours."""
    from transformers import AttentionInterface
    from transformers.models.llama import modeling_llama

    from dumbo.trainer import attention

    monkeypatch.setattr(attention, "isolated_attention", leaking)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", leaking)
    before = AttentionInterface._global_mapping["sdpa"]
    AttentionInterface.register("sdpa", leaking)
    yield
    AttentionInterface.register("sdpa", before)
    monkeypatch.undo()
    attention.register()


def test_a_leaking_model_is_refused(everything_leaks: None, rows: list[Document], tmp_path: Path) -> None:
    with pytest.raises(
        ProofFailed, match=r"(?s)cannot keep packed documents apart here \(isolated: leak .*packing=false"
    ) as failed:
        small_run(tmp_path / "run", splits_of(tmp_path, rows), max_steps=1)
    assert failed.value.exit_code == 4
    small_run(tmp_path / "padded", splits_of(tmp_path, rows), max_steps=1, packing=False)


def test_an_attention_that_computes_something_else_is_refused(rows: list[Document], monkeypatch: Any) -> None:
    """Isolated, and yet not the model's attention: found by comparing with the model's own."""
    from dumbo.trainer import attention

    right = attention.isolated_attention

    def unscaled(module: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
        return right(module, 1.5 * query, *args, **kwargs)

    monkeypatch.setattr(attention, "isolated_attention", unscaled)
    layout, proof = choose_layout(model_of(use_cache=False), True, "auto")
    monkeypatch.undo()
    attention.register()
    assert (layout, proof) == ("rows", "pack leak 0 (eager attention)")


def test_what_isolated_cannot_do_goes_to_rows(monkeypatch: Any) -> None:
    from dumbo.trainer import attention

    def cannot(*args: Any, **kwargs: Any) -> Any:
        raise attention.CannotIsolate("LlamaAttention needs softcap")

    monkeypatch.setattr(attention, "isolated_attention", cannot)
    layout, _ = choose_layout(model_of(use_cache=False), True, "auto")
    monkeypatch.undo()
    attention.register()
    assert layout == "rows"


def test_a_models_own_word_that_it_cannot_is_in_the_refusal(monkeypatch: Any) -> None:
    """Qwen3.5's linear attention refuses packs, unless a package is installed; before transformers 5.2x it let them leak."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
        max_position_embeddings=512, use_cache=False,
    )  # fmt: skip
    with pytest.raises(
        ProofFailed, match=r"(?s)\(isolated: (leak|.*flash-linear-attention).*Write trainer.packing=false"
    ):
        choose_layout(Qwen3_5ForCausalLM(config), True, "auto")


@pytest.mark.parametrize("error", [ValueError("no such kernel\nhere"), ValueError()])
def test_what_was_refused_is_said_where_another_layout_holds(error: ValueError, monkeypatch: Any) -> None:
    from dumbo.trainer import attention

    def refuses(*args: Any, **kwargs: Any) -> Any:
        raise error

    monkeypatch.setattr(attention, "isolated_attention", refuses)
    layout, proof = choose_layout(model_of(use_cache=False), True, "auto")
    monkeypatch.undo()
    attention.register()
    assert layout == "rows"
    assert proof.endswith(f"; isolated: {str(error).splitlines()[0] if str(error) else 'ValueError'}")


def test_a_users_error_stays_one(monkeypatch: Any) -> None:
    from dumbo.trainer import attention

    def refuses(*args: Any, **kwargs: Any) -> Any:
        raise UserError("patch.mine: set X to Y.")

    monkeypatch.setattr(attention, "isolated_attention", refuses)
    with pytest.raises(UserError, match="set X to Y"):
        choose_layout(model_of(use_cache=False), True, "auto")
    monkeypatch.undo()
    attention.register()


def test_training_keeps_no_cache_in_a_config_of_its_own_for_text(
    rows: list[Document], tmp_path: Path, monkeypatch: Any
) -> None:
    """As of a model that also sees; in model/ it is on again."""
    model = model_of()
    text, seen = copy.deepcopy(model.config), []
    text.use_cache = True
    monkeypatch.setattr(type(model.config), "get_text_config", lambda config, **kwargs: text)
    right = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append(text.use_cache)
        return right(*args, **kwargs)

    model.forward = forward
    small_run(tmp_path / "run", splits_of(tmp_path, rows), model=model, max_steps=1, packing=False)
    assert seen
    assert not any(seen)
    assert text.use_cache


def test_a_cache_would_leak_and_is_refused() -> None:
    """With a cache transformers takes one row for one document: rows leak, and the probe sees it."""
    with pytest.raises(ProofFailed, match="eager: leak"):
        choose_layout(model_of(use_cache=True), True, "eager")
    assert choose_layout(model_of(use_cache=False), True, "eager")[0] == "rows"


def test_rows_and_tokens_train_alike(rows: list[Document], tmp_path: Path) -> None:
    """The same packs, as (B, T) rows in eager attention and on one token axis: the same losses."""
    from dumbo.outputs.run_dir import RunDir

    found = {}
    for implementation in ("auto", "eager"):

        def ask(session: Any, implementation: str = implementation) -> None:
            assert isinstance(session.run, RunDir)
            session.run.attn_implementation = implementation

        run = small_run(
            tmp_path / implementation, splits_of(tmp_path, rows), max_steps=4, micro_batch_size=2, before=ask
        )
        found[run.facts["packing"]["layout"]] = run.losses
    assert found["rows"] == pytest.approx(found["tokens"], abs=1e-5)


def test_the_probe_leaves_the_model_as_it_was() -> None:
    model = model_of()
    model.train()
    before = {name: p.clone() for name, p in model.named_parameters()}
    choose_layout(model, True, "auto")
    assert model.training
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
