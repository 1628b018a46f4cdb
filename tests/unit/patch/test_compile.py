"""Compiled layers: where they are found, what they refuse, and that they and their padding change no number.

On a CPU with torch's backends that do not generate code; tests/gpu/test_speed.py has the real one.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES
from small_runs import documents, model_of, small_run, splits_of, store_of

import dumbo
from dumbo.check import check
from dumbo.compose import compose
from dumbo.errors import ConfigError, RunFailed, UserError
from dumbo.patch import compile as compile_patch
from dumbo.patch.compile import Compile, as_written, compiled_layers, decoder_layers, past_limit
from dumbo.patch.compiled_call import PAST_LIMIT
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.lora import LoRA
from dumbo.trainer import attention, varlen
from dumbo.trainer.collate import BOUNDS_IN, Collate, Room

SHORT = ["dataset.limit=40", "trainer.max_steps=1", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.eval_every=null",
         "trainer.eval_at_start=false", "trainer.save_every=null", "verify.mode=off", "run_dir=run"]  # fmt: skip


def skeleton(kind: str) -> Any:
    from transformers import AutoModelForCausalLM

    config = ARCHITECTURES[kind]()
    config.vocab_size, config.pad_token_id = 97, None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_decoder_layers_are_found_in_every_architecture(kind: str) -> None:
    model = skeleton(kind)
    layers = decoder_layers(model)
    assert len(layers) == 2
    assert all(type(layer).__name__ in model._no_split_modules for layer in layers)


def test_inside_an_adapter_too() -> None:
    model = Compile(backend="eager").apply(LoRA().apply(model_of()))
    assert Compile(backend="eager").evidence(model) == "2 layers compiled (eager)"


def test_kernels_need_the_headers_of_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without them triton fails at the first kernel, which would end a run that performance=auto has compiled."""
    assert compile_patch._python_headers().name == "Python.h"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(compile_patch.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(compile_patch.shutil, "which", lambda name: name)
    monkeypatch.setattr(compile_patch, "_python_headers", lambda: tmp_path / "Python.h")
    assert Compile().unavailable() == f"no {tmp_path / 'Python.h'} (python3-dev), which triton needs"
    (tmp_path / "Python.h").touch()
    assert Compile().unavailable() is None


def test_no_layers_is_an_error() -> None:
    model = model_of()
    model.model.layers = torch.nn.ModuleList([*model.model.layers, torch.nn.Identity()])
    with pytest.raises(UserError, match=r"LlamaForCausalLM has no list of 2 decoder layers"):
        Compile().check(model)
    with pytest.raises(RuntimeError, match="no layer of LlamaForCausalLM is compiled"):
        Compile().evidence(model)


def test_a_routers_loss_is_not_taken_over_padding() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    with torch.device("meta"):
        model = MixtralForCausalLM(MixtralConfig(num_hidden_layers=1, output_router_logits=True))
    with pytest.raises(UserError, match=r"output_router_logits=true"):
        Compile().check(model)
    model.config.output_router_logits = False
    Compile().check(model)


def test_left_out_without_a_gpu_and_said_so(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dumbo.run(["patch=[compile]", *SHORT])
    assert json.loads((tmp_path / "run" / "run.json").read_text())["patches"] == {"compile": "left out: no CUDA device"}
    assert "left out: no CUDA device" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"patch\.compile is required and cannot run here: no CUDA device"):
        dumbo.run(["patch=[compile]", "patch.compile.required=true", *SHORT, "run_dir=required"])


def test_ligers_modules_are_refused_by_name() -> None:
    def checked(*words: str) -> None:
        composed = compose(["patch=[liger,compile]", *words])
        check(composed.cfg, composed.choices)

    with pytest.raises(ConfigError, match=r"rope, rms_norm, swiglu cannot be built[\s\S]*patch.liger.swiglu=false"):
        checked()
    with pytest.raises(ConfigError, match=r"patch.liger's rms_norm cannot be built"):
        checked("patch.liger.rope=false", "patch.liger.swiglu=false")
    checked("patch.liger.rope=false", "patch.liger.swiglu=false", "patch.liger.rms_norm=false")


def test_as_written_and_back() -> None:
    model = Compile(backend="eager").apply(model_of())
    layers = compiled_layers(model)
    with as_written(model):
        assert compiled_layers(model) == []
    assert compiled_layers(model) == layers


def test_more_graphs_than_torch_makes_end_the_run() -> None:
    """Torch itself would run the layers uncompiled. What else is compiled keeps to torch's ways."""
    from torch._dynamo import config

    model = Compile(backend="eager").apply(model_of())
    ids = torch.arange(8)[None]
    with config.patch(recompile_limit=1):
        model(input_ids=ids)
        with torch.no_grad(), pytest.raises(RunFailed, match=r"LlamaDecoderLayer needs more than the 1 graphs"):
            model(input_ids=ids)
        assert not config.fail_on_recompile_limit_hit
    torch.compiler.reset()


def test_the_limit_is_seen_whatever_torchs_log_is_set_to() -> None:
    log = logging.getLogger("torch._dynamo.convert_frame")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        from torch._dynamo import config

        torch.compiler.reset()
        model = Compile(backend="eager", past_limit="as_written").apply(model_of())
        ids = torch.arange(8)[None]
        with config.patch(recompile_limit=1), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model(input_ids=ids)
            assert not past_limit(model)
            with torch.no_grad():
                model(input_ids=ids)
        assert past_limit(model)
        assert (log.level, log.filters) == (logging.CRITICAL, [])
    finally:
        log.setLevel(before)
        torch.compiler.reset()


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
def test_past_the_limit_layers_go_on_as_written_where_that_is_said(checkpointed: bool) -> None:
    """Layers that train differently, as many kinds as there are, and room for three graphs: the numbers of uncompiled ones."""
    from torch._dynamo import config

    torch.compiler.reset()
    model = model_of(num_hidden_layers=4)
    for number, layer in enumerate(decoder_layers(model)):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad = number == 3 or ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")[number] in name
    if checkpointed:
        model = GradientCheckpointing().apply(model)
    plain = copy.deepcopy(model)
    model = Compile(backend="aot_eager", past_limit="as_written").apply(model).train()
    ids = torch.arange(8)[None]

    def numbers(of: Any) -> dict[str, torch.Tensor]:
        of.zero_grad()
        of(input_ids=ids, labels=ids).loss.backward()
        return {name: one.grad.clone() for name, one in of.named_parameters() if one.grad is not None}

    wanted = numbers(plain.train())
    with config.patch(recompile_limit=2), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            found = numbers(model)
            assert found.keys() == wanted.keys()
            assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)
    assert past_limit(model)
    words = [str(one.message) for one in said if "LlamaDecoderLayer needs more graphs" in str(one.message)]
    assert words
    assert "requires_grad mismatch" in words[0], "torch's reason"
    assert [hasattr(layer, PAST_LIMIT) for layer in decoder_layers(model)] == [False, False, True, False], "the first"
    assert not config.fail_on_recompile_limit_hit
    torch.compiler.reset()


def test_a_model_with_a_config_of_its_own_for_text_keeps_no_cache_in_it() -> None:
    model = model_of()
    text = copy.deepcopy(model.config)
    model.config.get_text_config = lambda **kwargs: text
    assert text.use_cache
    Compile(backend="eager").apply(model)
    assert not text.use_cache
    assert not model.config.use_cache


def test_room_is_filled_with_documents_of_no_loss(data: Path, tmp_path: Path) -> None:
    rows = documents(data, 6)
    store, room = store_of(tmp_path, rows), Room(1024, 300)
    picked = [np.array([3, 1]), np.array([0])]
    plain, filled = Collate(store, "tokens", 0)(picked), Collate(store, "tokens", 0, room)(picked)
    real = plain["input_ids"].shape[1]
    for name in ("input_ids", "labels", "position_ids"):
        assert filled[name].shape == (1, 1024)
        assert torch.equal(filled[name][:, :real], plain[name])
    assert (filled["labels"][:, real:] == -100).all()
    assert filled["position_ids"].max() < 300
    bounds = filled["cu_seq_lens_q"]
    assert bounds[:4].tolist() == plain["cu_seq_lens_q"].tolist()
    assert len(bounds) == BOUNDS_IN + 1
    assert int(bounds.diff().max()) <= 300
    assert int(bounds[-1]) == 1024
    assert filled["max_length_q"] == 300
    assert filled["documents"].tolist() == [3, 1, 0]


def test_the_longest_document_is_one_number_for_all_batches(data: Path, tmp_path: Path) -> None:
    """It is a Python number, which the compiler takes as a constant: each new one would be another graph."""
    rows = documents(data, 12)
    collate = Collate(store_of(tmp_path, rows), "tokens", 0, Room(1024, 300))
    batches = [collate([np.array([number])]) for number in range(len(rows))]
    assert len({len(ids) for ids, _ in rows}) > 3
    assert {batch["max_length_q"] for batch in batches} == {300} == {batch["max_length_k"] for batch in batches}


def test_room_grows_for_a_probe() -> None:
    assert Room(512, 256).holding([100, 90]) == Room(512, 256)
    assert Room(512, 256).holding([300, 290]) == Room(600, 300)
    assert Room(512, 256).left_by(100) == [256, 156]
    assert Room(5000, 5000).left_by(100) == [2048, 2048, 804]
    with pytest.raises(AssertionError, match="513 tokens are packed where there is room for 512"):
        Room(512, 256).left_by(513)


def test_compiled_and_padded_it_trains_the_same_numbers(data: Path, tmp_path: Path) -> None:
    """Losses, weights, and what is counted; held-out loss and both proofs through the compiled layers."""
    rows, held_out = documents(data, 24), documents(data, 4, skip=24)
    splits = splits_of(tmp_path, rows, held_out)
    options: dict[str, Any] = {
        "max_steps": 3,
        "eval_every": 3,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "num_samples": 1,
    }
    plain = small_run(tmp_path / "plain", splits, verify=True, **options)
    compiled = small_run(
        tmp_path / "compiled", splits, verify=True, model=Compile(backend="eager").apply(model_of()), **options
    )
    assert compiled.losses == pytest.approx(plain.losses, rel=1e-6)
    assert [row["eval_loss"] for row in compiled.rows if "eval_loss" in row] == pytest.approx(
        [row["eval_loss"] for row in plain.rows if "eval_loss" in row], rel=1e-6
    )
    for name, weight in plain.weights().items():
        assert torch.allclose(compiled.weights()[name], weight, atol=2e-6), name
    assert [row["tokens"] for row in compiled.rows] == [row["tokens"] for row in plain.rows]
    assert "pack leak 0 (isolated attention)" in compiled.said


def test_attention_is_traced_without_a_break(monkeypatch: Any) -> None:
    """On a GPU a layer must be one graph. The kernel itself cannot run here: what is traced is looked at, not run."""
    monkeypatch.setattr(varlen, "usable", lambda *tensors: True)
    graphs: list[Any] = []

    def recorded(graph: Any, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return lambda *arguments: (torch.zeros(1, 128, 32, requires_grad=True),)

    attention.register()
    model = model_of().bfloat16()
    model.set_attn_implementation(attention.NAME)
    layer = decoder_layers(model)[0]
    torch.compiler.reset()
    layer.compile(backend=recorded, fullgraph=True)
    hidden = torch.zeros(1, 128, 32, dtype=torch.bfloat16)
    turns = tuple(torch.ones(1, 128, 8, dtype=torch.bfloat16) for _ in range(2))
    for documents_there in (64, 128, 192):
        bounds = torch.linspace(0, 128, documents_there + 1).int()
        torch._dynamo.maybe_mark_dynamic(bounds, 0)
        layer(hidden, attention_mask=None, position_embeddings=turns, cu_seq_lens_q=bounds, max_length_q=64, use_cache=False)  # fmt: skip
    assert len(graphs) == 1, "the number of documents is no reason to compile anew"
    assert any("varlen_attn" in str(node.target) for node in graphs[0].graph.nodes)
    torch.compiler.reset()


def test_asking_the_device_and_autocast_is_a_constant_to_the_compiler(monkeypatch: Any) -> None:
    """What `varlen.usable` asks, which the test above leaves out: no break, and the answers are right."""
    monkeypatch.setattr(varlen, "_capability", lambda device: (9, 0))

    def asked(value: torch.Tensor) -> torch.Tensor:
        if varlen._has_kernel(value.device.index or 0) and varlen.arithmetic(value) == torch.bfloat16:
            return value + 1
        return value - 1

    torch.compiler.reset()
    compiled = torch.compile(asked, backend="eager", fullgraph=True)
    for kind, half, wanted in ((torch.float32, False, -1), (torch.bfloat16, False, 1), (torch.float32, True, 1)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            assert compiled(torch.zeros(3, dtype=kind)).tolist() == [wanted] * 3
    torch.compiler.reset()
