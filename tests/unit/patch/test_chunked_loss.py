"""The chunked loss against the model's own loss from all its logits: numbers, gradients, and what it refuses."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES
from small_runs import documents, model_of, small_run, splits_of, store_of

from dumbo.check import check
from dumbo.compose import compose
from dumbo.errors import ConfigError, ProofFailed, RunFailed, UserError
from dumbo.patch.chunked_loss import ChunkedLoss, chunks_of, takes_places, trains, unlike
from dumbo.patch.compile import Compile
from dumbo.patch.lora import LoRA
from dumbo.patch.modules import base_of
from dumbo.trainer import chunks
from dumbo.trainer.collate import Collate
from dumbo.trainer.row_loss import RowLoss

SIZES = [1, 7, 64, 10_000]
"""Tokens a chunk: one, one that leaves a rest, one that divides, and more than there are."""


def model_with(head: str) -> Any:
    if head == "bias":
        model = model_of(tie_word_embeddings=False)
        model.lm_head = torch.nn.Linear(32, 512, bias=True)
        torch.nn.init.normal_(model.lm_head.bias)
        return model
    if head == "softcap":
        from transformers import AutoModelForCausalLM

        config = ARCHITECTURES["gemma3"]()
        config.vocab_size, config.pad_token_id, config.final_logit_softcapping = 512, None, 3.0
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)
    if head.startswith("lora"):
        torch.manual_seed(0)
        on_head = {"lora": {}, "lora beside a whole head": {"modules_to_save": ["lm_head"]},
                   "lora on the head": {"target_modules": ["q_proj", "lm_head"]}}[head]  # fmt: skip
        return LoRA(init="random", rank=4, **on_head).apply(model_of(tie_word_embeddings=head == "lora"))
    return model_of(tie_word_embeddings=head == "tied")


HEADS = ["tied", "untied", "bias", "softcap", "lora", "lora beside a whole head", "lora on the head"]


def numbers(model: Any, batch: dict[str, Any], **more: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    out = model(**batch, use_cache=False, num_items_in_batch=torch.tensor(37), **more)
    assert (out.logits is None) == bool(more.get("skip_logits"))
    out.loss.backward()
    return float(out.loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.fixture
def batch(data: Path, tmp_path: Path) -> dict[str, Any]:
    rows = [(ids % 512, trained) for ids, trained in documents(data, 5)]
    made = Collate(store_of(tmp_path, rows), "padded", 0, places=True)([np.array([n]) for n in range(5)])
    del made["documents"]
    return made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradients_are_those_from_the_logits(head: str, size: int, batch: dict[str, Any]) -> None:
    """With the trained places given, and without them; relative to the largest gradient of a parameter."""
    model = model_with(head).train()
    places = batch.pop("loss_at")
    wanted, gradients = numbers(model, batch)
    model = ChunkedLoss(chunk_size=size).apply(model)
    for more in ({}, {"loss_at": places}):
        if size == 1 and not more:
            continue  # a thousand chunks
        found, theirs = numbers(model, batch, skip_logits=True, **more)
        assert found == pytest.approx(wanted, rel=1e-6)
        for name, gradient in gradients.items():
            assert (theirs[name] - gradient).abs().max() <= 2e-6 * gradient.abs().max().clamp(min=1e-3), name
    assert numbers(model, {**batch, "loss_at": places})[0] == pytest.approx(wanted, rel=1e-6), "logits asked for"


class InTorch(RowLoss):
    """The kernel's work in torch's operations: gradients where the logits were."""

    def rows(self, logits, targets, softcap, *, gradients):
        with torch.enable_grad():
            own = logits.detach().float().clone().requires_grad_()
            capped = own if softcap is None else softcap * torch.tanh(own / softcap)
            losses = torch.nn.functional.cross_entropy(capped, targets, ignore_index=-100, reduction="none")
            total = losses.sum()
        if gradients:
            logits.copy_(torch.autograd.grad(total, own)[0])
        return losses.detach()


@pytest.mark.parametrize("size", [7, 10_000])
@pytest.mark.parametrize("head", HEADS)
def test_gradients_that_come_with_the_loss_are_the_same(
    head: str, size: int, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a kernel gives them (tests/gpu has the kernel); without gradients the loss alone, and the logits stay."""
    model = model_with(head).train()
    wanted, gradients = numbers(model, {name: value for name, value in batch.items() if name != "loss_at"})
    monkeypatch.setattr(ChunkedLoss, "_function", lambda self: InTorch())
    model = ChunkedLoss(chunk_size=size, kernel=True).apply(model)
    found, theirs = numbers(model, batch, skip_logits=True)
    assert found == pytest.approx(wanted, rel=1e-6)
    for name, gradient in gradients.items():
        assert (theirs[name] - gradient).abs().max() <= 2e-6 * gradient.abs().max().clamp(min=1e-3), name
    with torch.no_grad():
        loss = model(**batch, use_cache=False, num_items_in_batch=torch.tensor(37), skip_logits=True).loss
    assert float(loss) == pytest.approx(wanted, rel=1e-6)


def test_without_a_gpu_the_kernel_is_left_to_torch() -> None:
    if Compile().unavailable() is not None:
        assert ChunkedLoss()._function() is chunks.chunk_loss
        for patch in (ChunkedLoss(), ChunkedLoss(kernel=False)):
            assert patch.evidence(patch.apply(model_of())).endswith(
                "tokens at a time, in torch's operations: no CUDA device"
            )
        plain = ChunkedLoss(kernel=False, compiled=False)
        assert plain.evidence(plain.apply(model_of())).endswith("tokens at a time")


def test_places_are_the_tokens_before_the_labelled_ones(batch: dict[str, Any]) -> None:
    labels, width = batch["labels"], batch["labels"].shape[1]
    wanted = [row * width + column - 1 for row, column in torch.nonzero(labels != -100).tolist() if column > 0]
    assert batch["loss_at"].tolist() == wanted


@pytest.mark.parametrize("places", [False, True])
def test_a_batch_without_a_loss_has_zero_gradients(places: bool, batch: dict[str, Any]) -> None:
    """A rank that ran out of data: every parameter still gets a gradient, which DDP waits for."""
    batch["labels"] = torch.full_like(batch["labels"], -100)
    batch["loss_at"] = torch.zeros(0, dtype=torch.long) if places else None
    loss, gradients = numbers(ChunkedLoss().apply(model_of()), batch, skip_logits=True)
    assert loss == 0
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_no_more_than_a_chunk_of_logits_is_held(batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def counted(head: Any, softcap: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows.append(len(hidden))
        return right(head, softcap, hidden, targets)

    right = chunks.chunk_loss
    monkeypatch.setattr(ChunkedLoss, "_function", lambda self: counted)
    model = ChunkedLoss(chunk_size=64).apply(model_of())
    numbers(model, batch, skip_logits=True)
    trained = len(batch["loss_at"])
    assert rows == [64] * (-(-trained // 64)), "and only tokens that bear a loss are given to the head"
    with torch.no_grad():
        model.eval()(**batch, use_cache=False, skip_logits=True)
    assert max(rows) == 64


@pytest.mark.parametrize("of_chunk", [chunks.chunk_loss, InTorch()], ids=["torch", "kernel"])
def test_a_chunks_gradients_do_not_lie_beside_the_next_chunks(of_chunk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the head are as large as it, and are in the sum already."""
    given: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def watched(*arguments: Any, **more: Any) -> Any:
        alive.append(sum(one() is not None for one in given))
        found = right(*arguments, **more)
        if any(tensor.shape == head.weight.shape for tensor in found):
            given.extend(weakref.ref(tensor) for tensor in found)
        return found

    right = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", watched)
    head = torch.nn.Linear(8, 32, bias=False)
    hidden, targets = torch.randn(256, 8, requires_grad=True), torch.randint(0, 32, (256,))
    chunks.summed_loss(head, None, hidden, targets, None, 64, of_chunk)
    assert len(given) == 2 * 4
    assert max(alive) <= 1, "of the first chunk float32 gradients are the sum itself"


def test_in_bf16_arithmetic_it_is_as_close_as_the_logits_are(batch: dict[str, Any]) -> None:
    exact, gradients = numbers(model_of(), {key: value for key, value in batch.items() if key != "loss_at"})
    model = ChunkedLoss(chunk_size=64).apply(model_of())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, theirs = numbers(model, batch, skip_logits=True)
    assert found == pytest.approx(exact, rel=5e-3)
    for name, gradient in gradients.items():
        assert (theirs[name] - gradient).norm() <= 5e-2 * gradient.norm(), name


def test_the_heads_gradient_is_added_up_in_float32() -> None:
    """Of a head in bf16, over 256 chunks of one token like its neighbours: each adds less than half a step of the sum."""
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 16, bias=False).bfloat16()
    hidden, targets = torch.ones(256, 8).bfloat16(), torch.zeros(256, dtype=torch.long)
    found = []
    for size in (256, 64, 1):
        head.zero_grad()
        chunks.summed_loss(head, None, hidden, targets, None, size).backward()
        assert head.weight.grad.dtype == torch.bfloat16
        found.append(head.weight.grad.float())
    for gradient in found[1:]:
        assert (gradient - found[0]).norm() <= 1e-2 * found[0].norm()


def test_trains_the_same_model(data: Path, tmp_path: Path) -> None:
    """Through the engine, accumulating, evaluating, with its proofs: losses, held-out losses and weights."""
    splits = splits_of(tmp_path, documents(data, 24), documents(data, 4, skip=24))
    options: dict[str, Any] = {
        "max_steps": 3,
        "eval_every": 3,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "num_samples": 1,
    }
    plain = small_run(tmp_path / "plain", splits, **options)
    model = ChunkedLoss(chunk_size=100).apply(model_of())
    chunked = small_run(tmp_path / "chunked", splits, verify=True, model=model, **options)
    for key in ("loss", "eval_loss", "grad_norm"):
        one, other = ([row[key] for row in run.rows if key in row] for run in (chunked, plain))
        assert one == pytest.approx(other, rel=2e-6)
    for name, weight in plain.weights().items():
        assert torch.allclose(chunked.weights()[name], weight, atol=2e-6), name
    assert "fused loss = loss from logits to" in chunked.said


def test_a_wrong_one_ends_the_run(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that caps logits where the model does not."""
    right = chunks.chunk_loss
    wrong = lambda head, softcap, hidden, targets: right(head, 2.0, hidden, targets)  # noqa: E731
    monkeypatch.setattr(ChunkedLoss, "_function", lambda self: wrong)
    splits = splits_of(tmp_path, documents(data, 12))
    with pytest.raises(ProofFailed, match="The loss is not that of the model's logits"):
        small_run(tmp_path / "run", splits, verify=True, model=ChunkedLoss().apply(model_of()), max_steps=1)


def test_sums_over_chunks_are_proven(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of all chunks but the first are lost, in a run whose batches have one chunk only."""
    monkeypatch.setattr(torch, "_foreach_add_", lambda *given: None)
    splits = splits_of(tmp_path, documents(data, 12))
    with pytest.raises(ProofFailed, match="Output head and loss in one change the numbers"):
        small_run(tmp_path / "run", splits, verify=True, model=ChunkedLoss().apply(model_of()), max_steps=1)


def test_generating_is_as_before() -> None:
    ids = torch.arange(5)[None]
    plain, patched = model_of().eval(), ChunkedLoss().apply(model_of()).eval()
    wanted = plain.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(patched.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), wanted)


def test_what_it_would_leave_out_is_refused_by_name() -> None:
    model = model_of()
    model.config.logits_scaling = 8.0
    with pytest.raises(UserError, match=r"logits_scaling=8\.0, which it would leave out"):
        ChunkedLoss().check(model)
    del model.config.logits_scaling
    model.loss_function = lambda **kwargs: None
    with pytest.raises(UserError, match="has the loss <lambda>"):
        ChunkedLoss().check(model)
    with pytest.raises(UserError, match="chunk_size must be at least 1"):
        ChunkedLoss(chunk_size=0)
    with pytest.raises(RuntimeError, match="the chunked loss did not take"):
        ChunkedLoss().evidence(model_of())
    assert not takes_places(model_of())


SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WITH_MORE: dict[str, dict[str, Any]] = {
    "recurrent_gemma": {},
    "xlstm": {"hidden_size": 128, "num_heads": 4},
    "modernbert-decoder": {"global_attn_every_n_layers": 1},
    "electra": {"is_decoder": True, "embedding_size": 64},
    "bamba": {"z_loss_coefficient": 1e-3, "mamba_n_heads": 4, "mamba_d_head": 32},
}
"""Caps of other names, modules before the head, a term of the loss."""


def skeleton(kind: str, **config: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **config}))


@pytest.mark.parametrize("kind", WITH_MORE)
def test_a_model_with_more_than_a_head_is_refused(kind: str) -> None:
    """By what its own forward pass makes of random numbers, before any weight is loaded."""
    with pytest.raises(UserError, match=r"has more than a head between its layers and its loss, [\d.]+ where"):
        ChunkedLoss().check(skeleton(kind, **WITH_MORE[kind]))


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "gpt2", "opt", "mixtral", "mamba"])
def test_others_are_not(kind: str) -> None:
    model = skeleton(kind)
    ChunkedLoss().check(model)
    assert unlike(model) is None


def test_one_whose_forward_pass_is_not_understood_is_refused() -> None:
    model = skeleton("llama")
    model.outer = torch.nn.ModuleList([model.lm_head])
    del model.lm_head
    model.get_output_embeddings = lambda: model.outer[0]
    with pytest.raises(UserError, match=r"cannot be compared .*its output head is inside of another module"):
        ChunkedLoss().check(model)


def test_looking_leaves_model_and_random_numbers_as_they_are() -> None:
    model = model_of().eval()
    modules, random = list(model.modules()), torch.random.get_rng_state()
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    ChunkedLoss().check(model)
    assert list(model.modules()) == modules
    assert not any(module.training for module in modules)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in kept.items())


@pytest.mark.parametrize(
    ("vocabulary", "frozen", "training"),
    [(512, 8192, 8192), (49_152, 8192, 8192), (128_256, 4096, 8192), (262_144, 2048, 4096)],
)
def test_logits_of_a_chunk_have_room(vocabulary: int, frozen: int, training: int) -> None:
    """In 1 GiB, and in 2 GiB where the head trains."""
    assert ChunkedLoss().tokens(vocabulary, trains=False) == frozen
    assert ChunkedLoss().tokens(vocabulary, trains=True) == training
    assert ChunkedLoss(chunk_size=77).tokens(vocabulary, trains=True) == 77


@pytest.mark.parametrize("its", [True, False], ids=["trains", "frozen"])
def test_a_frozen_heads_chunks_are_the_smaller_ones(its: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what the head does when the loss is taken: adapters come after this patch."""
    monkeypatch.setattr("dumbo.patch.chunked_loss.MOST_BYTES", {False: 2**21, True: 2**22})
    chunked = ChunkedLoss(kernel=False, compiled=False)
    model = chunked.apply(model_of(vocab_size=512))
    assert chunked.evidence(model) == "head and loss over 4,096 tokens at a time, 2,048 where the head is frozen"
    seen: list[int] = []

    def summed(head: object, softcap: object, hidden: torch.Tensor, *others: int) -> torch.Tensor:
        seen.append(others[2])
        return hidden.sum()

    monkeypatch.setattr("dumbo.trainer.chunks.summed_loss", summed)
    model.get_output_embeddings().requires_grad_(its)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids, skip_logits=True)
    with chunks_of(3):
        model(input_ids=ids, labels=ids, skip_logits=True)
    assert seen == [4096 if its else 2048, 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["q_proj"]}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, True),
    ],
    ids=["adapters elsewhere", "adapters on it", "trained whole beside adapters"],
)
def test_a_head_with_adapters_does_not_train(options: dict[str, Any], expected: bool) -> None:
    model: Any = LoRA(rank=4, **options).apply(model_of(vocab_size=512, tie_word_embeddings=False))
    assert trains(base_of(model).get_output_embeddings()) == expected


def test_ligers_losses_are_refused_by_name() -> None:
    def checked(*words: str) -> None:
        composed = compose(["patch=[liger,chunked_loss]", *words])
        check(composed.cfg, composed.choices)

    with pytest.raises(ConfigError, match=r"patch\.liger\.fused_linear_cross_entropy=false"):
        checked()
    with pytest.raises(ConfigError, match=r"patch\.liger\.cross_entropy=false"):
        checked("patch.liger.fused_linear_cross_entropy=false", "patch.liger.cross_entropy=true")
    checked("patch.liger.fused_linear_cross_entropy=false")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The graphs that are made, by the shape of what the head is given; without a GPU they run as torch's own operations."""
    made: list[tuple[int, ...]] = []
    compile_ = torch.compile

    def counted(graph: Any, inputs: Any) -> Any:
        made.append(tuple(inputs[0].shape))
        return graph.forward

    monkeypatch.setattr(Compile, "unavailable", lambda self: None)
    monkeypatch.setattr(torch, "compile", lambda function: compile_(function, backend=counted))
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


def test_each_model_has_graphs_of_its_own(graphs: list[Any], batch: dict[str, Any]) -> None:
    """More models in one process than torch makes graphs of one function: every one is compiled, and none in free shapes."""
    from torch._dynamo import config

    for number in range(config.recompile_limit + 3):
        before = len(graphs)
        model = model_of(vocab_size=512 + number, hidden_size=32 + 8 * (number % 2))
        wanted, _ = numbers(model, batch)
        found, _ = numbers(ChunkedLoss(chunk_size=64, kernel=False).apply(model), batch, skip_logits=True)
        assert found == pytest.approx(wanted, rel=1e-5)
        assert len(graphs) == before + 1
        assert isinstance(graphs[-1][-1], int), "the width is a number that the kernels know"
    assert config.recompile_limit == 8
    assert not config.fail_on_recompile_limit_hit


def test_more_graphs_than_torch_makes_end_the_run(graphs: list[Any]) -> None:
    """In place of going on uncompiled without a word."""
    function = ChunkedLoss(kernel=False)._function()

    def loss_of(width: int) -> None:
        function(torch.nn.Linear(width, 5), None, torch.ones(3, width), torch.zeros(3, dtype=torch.long))

    for width in range(1, 17):
        loss_of(width)
    with pytest.raises(RunFailed, match=r"more than 16 compiled graphs[\s\S]*patch.chunked_loss.compiled=false"):
        loss_of(17)
