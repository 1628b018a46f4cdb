"""What `performance=auto` adds on a GPU, what it leaves out and why, and that it does nothing on a CPU."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import documents, splits_of

import dumbo
from dumbo.check import check
from dumbo.compose import compose
from dumbo.errors import ConfigError
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch import auto, flash_race
from dumbo.patch.compile import Compile
from dumbo.patch.flash_race import Raced
from dumbo.patch.order import in_order
from dumbo.patch.tile_attention import TileAttention

LONG = "trainer.max_steps=20000"
BF16 = "trainer.precision=bf16"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "_not_here", lambda: None)
    monkeypatch.setattr(flash_race, "installed", dict)
    for patch in (Compile, TileAttention):
        monkeypatch.setattr(patch, "unavailable", lambda self: None)


@pytest.fixture
def chosen(data: Path, tmp_path: Path) -> Any:
    """Words of a command -> (names of the patches that are applied, what is said, run.json)."""

    def of(*words: str, capacity: int = 2048) -> tuple[list[str], str, dict[str, Any]]:
        composed = compose(["performance=auto", "trainer.precision=fp32", *words])
        plugins = check(composed.cfg, composed.choices)
        said = io.StringIO()
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        run = RunDir(path=folder, console=Console(said), started=time.time())
        tokenizer = plugins.model.load_tokenizer()
        splits = splits_of(tmp_path / str(time.monotonic_ns()), documents(data, 100), max_seq_len=capacity)
        found = auto.added(plugins, in_order(plugins.patches), tokenizer, splits, run)
        return list(found), said.getvalue(), json.loads((folder / "run.json").read_text())

    return of


def test_all_are_added_in_their_places(on_a_gpu: None, chosen: Any) -> None:
    names, _, facts = chosen("patch=[lora]", LONG, BF16)
    assert names == ["chunked_loss", "tile_attention", "lora", "fused_lora", "compile"]
    assert facts["performance"] == ["chunked_loss", "compile", "fused_lora", "tile_attention"]


def test_packs_that_would_be_filled_up_with_padding_are_not_compiled(on_a_gpu: None, chosen: Any) -> None:
    """Documents of some 200 tokens: one fits into 256, and what is left of a pack stays empty."""
    names, said, _ = chosen(LONG, BF16, capacity=256)
    assert names == ["chunked_loss", "tile_attention"]
    assert re.search(
        r"packs of 256 tokens are \d\d% full, and compiled ones are filled up with padding", " ".join(said.split())
    )


def test_what_compile_cannot_do_goes_on_uncompiled_where_nobody_asked_for_it(
    on_a_gpu: None, data: Path, tmp_path: Path
) -> None:
    composed = compose(["performance=auto", "trainer.precision=fp32", LONG])
    run = RunDir(path=tmp_path, console=Console(io.StringIO()), started=time.time())
    plugins = check(composed.cfg, composed.choices)
    splits = splits_of(tmp_path / "data", documents(data, 100), max_seq_len=2048)
    found = auto.added(plugins, {}, plugins.model.load_tokenizer(), splits, run)
    assert found["compile"].past_limit == "as_written"  # type: ignore[attr-defined]
    assert Compile().past_limit == "error"


def test_smoothed_labels_are_left_to_the_models_own_loss(on_a_gpu: None, chosen: Any) -> None:
    words = ("++trainer.extra.label_smoothing_factor=0.1", LONG, BF16)
    names, said, _ = chosen(*words)
    assert "chunked_loss" not in names
    assert "does not smooth labels" in " ".join(said.split())
    with pytest.raises(ConfigError, match=r"patch\.chunked_loss does not smooth labels[\s\S]*Leave chunked_loss out"):
        chosen("patch=[chunked_loss]", *words)
    with pytest.raises(ConfigError, match=r"Write patch\.liger\.fused_linear_cross_entropy=false, or"):
        chosen("patch=[liger]", *words)


def test_some_of_them_and_none(on_a_gpu: None, chosen: Any) -> None:
    assert chosen("performance=[chunked_loss]", LONG)[0] == ["chunked_loss"]
    assert chosen("performance=off", LONG)[0] == []
    assert chosen("performance=off", "patch=[compile]", LONG)[0] == ["compile"], "what was chosen stays"


def test_ligers_kernels_are_kept_and_said_to_be_the_reason(on_a_gpu: None, chosen: Any) -> None:
    names, said, facts = chosen("patch=[liger]", LONG)
    assert names == ["liger"]
    assert "left out: performance=auto, patch.liger's rope, rms_norm, swiglu cannot be built inside" in " ".join(
        said.split()
    )
    assert "both are the loss" in facts["patches"]["chunked_loss"]


def test_sharded_models_get_what_whole_ones_get(on_a_gpu: None, chosen: Any) -> None:
    assert chosen("launch=fsdp", "launch.num_processes=1", LONG)[0] == ["chunked_loss", "compile"]


def test_float32_has_nothing_for_tiles(on_a_gpu: None, chosen: Any) -> None:
    names, said, _ = chosen(LONG, "trainer.precision=fp32")
    assert names == ["chunked_loss", "compile"]
    assert "the arithmetic is fp32" in " ".join(said.split())


def test_long_documents_are_left_to_torchs_kernel(on_a_gpu: None, chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "MEASURED", 50)
    names, said, _ = chosen(LONG, BF16)
    assert names == ["chunked_loss", "compile"]
    assert "tokens on average; it is measured up to 50" in " ".join(said.split())
    monkeypatch.setattr(auto, "not_in_cudnn", lambda skeleton: None)
    assert "tile_attention" in chosen(LONG, BF16)[0]


def test_an_installed_flash_attention_that_is_faster_takes_the_place_of_tiles(
    on_a_gpu: None, chosen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "_faster_flash", lambda *given: Raced("FA3", "FA3 takes 1.00 ms, tiles 2.00", 1.0, 2.0))
    names, said, _ = chosen(LONG, BF16)
    assert names == ["chunked_loss", "varlen", "compile"]
    assert "tile_attention left out: performance=auto, FA3 takes 1.00 ms, tiles 2.00" in " ".join(said.split())


def test_a_short_run_is_not_compiled(on_a_gpu: None, chosen: Any) -> None:
    names, said, _ = chosen("trainer.max_steps=50")
    assert names == ["chunked_loss"]
    assert "50 steps of" in said
    assert chosen("trainer.max_steps=50", "patch=[compile]")[0] == ["chunked_loss", "compile"]


@pytest.mark.parametrize("word", ["trainer.packing=false", "model.attn_implementation=sdpa"])
def test_shapes_that_change_are_not_compiled(on_a_gpu: None, chosen: Any, word: str) -> None:
    """Past torch's limit of graphs the run would end; and without packs there is nothing for tiles."""
    names, said, _ = chosen(word, LONG, BF16)
    assert names == ["chunked_loss"]
    assert "their shapes change" in " ".join(said.split())
    assert "on one token axis: it has nothing to do" in " ".join(said.split())


def test_a_model_that_cannot_is_left_as_it_is(on_a_gpu: None, chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dumbo.patch import chunked_loss

    monkeypatch.setattr(chunked_loss, "BETWEEN", ("hidden_size",))
    names, said, _ = chosen(LONG)
    assert names == ["compile"]
    assert "patch.chunked_loss: LlamaForCausalLM has hidden_size" in " ".join(said.split())


def test_what_cannot_be_checked_is_left_out(on_a_gpu: None, chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("dumbo.model.tiny.Tiny.load_skeleton")
    names, said, _ = chosen(LONG)
    assert names == []
    assert "has no load_skeleton" in " ".join(said.split())


def test_steps_are_about_those_that_will_be_made() -> None:
    split: Any = SimpleNamespace(tokens=10_000, __len__=lambda self: 90)
    data: Any = SimpleNamespace(train=split, max_seq_len=100)
    trainer = SimpleNamespace(packing=True, global_batch_size=10, max_steps=None, num_epochs=3)
    assert auto.steps_of(trainer, data) == 30
    trainer.max_steps = 7
    assert auto.steps_of(trainer, data) == 7


def test_nothing_changes_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dumbo.run(["performance=auto", "dataset.limit=40", "trainer.max_steps=1", "trainer.num_answers=0", "trainer.num_samples=0",
               "trainer.eval_at_start=false", "trainer.save_every=null", "verify.mode=off", "run_dir=run"])  # fmt: skip
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["performance"] == "nothing added: no CUDA device"
    assert capsys.readouterr().out.count("speed     performance=auto adds no patch: no CUDA device\n") == 1
    assert facts.get("patches", {}) == {}


def test_what_is_asked_for_by_name_is_said_to_be_left_out(chosen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names, said, facts = chosen("performance=[tile_attention]", LONG)
    assert names == []
    assert "tile_attention left out: no CUDA device" in " ".join(said.split())
    assert facts["patches"] == {"tile_attention": "left out: no CUDA device"}


def test_unknown_choices_are_refused() -> None:
    for word in ("performance=fast", "performance=[compile,fast]"):
        composed = compose([word])
        with pytest.raises(ConfigError, match=r"performance has no choice 'fast'[\s\S]*Write performance=auto"):
            check(composed.cfg, composed.choices)
