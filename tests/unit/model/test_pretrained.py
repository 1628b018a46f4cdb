"""`model=pretrained`: folders, dtypes, attention, pickles, code that comes with a model."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest
import torch
from models import random_model

from dumbo.errors import UserError
from dumbo.model.dtype import weights_dtype
from dumbo.model.pretrained import Pretrained
from dumbo.model.special_tokens import SpecialTokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm_folder):
    return random_model(tmp_path_factory.mktemp("llama"), "llama", smollm_folder)


@pytest.fixture
def pickled(folder, tmp_path):
    """The same model with pytorch_model.bin in place of safetensors."""
    from safetensors.torch import load_file

    copy = tmp_path / "pickled"
    shutil.copytree(folder, copy)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    return copy


def load(folder, **keys):
    loader = Pretrained(path=str(folder), **keys)
    return loader.load_model(loader.load_tokenizer())


def test_pickled_weights_are_refused_unless_asked_for(pickled, folder):
    with pytest.raises(UserError, match=r"has no safetensors weights.\n.*model.allow_pickle=true"):
        load(pickled)
    loaded, own = load(pickled, allow_pickle=True), load(folder)
    for (name, mine), (_, theirs) in zip(loaded.named_parameters(), own.named_parameters(), strict=True):
        assert torch.equal(mine, theirs), name


class Trap:
    """Unpickled with full rights, it writes a file."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self):
        return (os.mkdir, (self.file,))


def test_a_pickle_never_runs_code(pickled, tmp_path):
    trap = tmp_path / "sprung"
    torch.save({"model.norm.weight": Trap(str(trap))}, pickled / "pytorch_model.bin")
    with pytest.raises((UserError, pickle.UnpicklingError), match=r"pytorch_model.bin|[Ww]eights.only"):
        load(pickled, allow_pickle=True)
    assert not trap.exists()


def test_safetensors_win_over_a_pickle(folder, tmp_path):
    copy = tmp_path / "both"
    shutil.copytree(folder, copy)
    (copy / "pytorch_model.bin").write_bytes(b"no pickle")
    wanted = dict(load(folder).named_parameters())
    found = dict(load(copy, allow_pickle=True).named_parameters())
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_code_of_a_model_does_not_run(folder, tmp_path):
    copy = tmp_path / "coded"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}}
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    with pytest.raises(UserError):
        load(copy)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_reaches_the_weights(folder, dtype):
    assert {p.dtype for p in load(folder, dtype=dtype).parameters()} == {getattr(torch, dtype)}


def test_dtype_auto(folder):
    assert load(folder).dtype == torch.float32
    assert weights_dtype("auto", "bf16", frozen=True) == torch.bfloat16
    assert weights_dtype("auto", "bf16", frozen=False) == torch.float32, "the optimizer's master weights"
    assert weights_dtype("auto", "fp32", frozen=True) == torch.float32
    assert weights_dtype("float16", "fp32", frozen=True) == torch.float16
    with pytest.raises(UserError, match=r"no choice 'bfloat'.*Did you mean 'bfloat16'"):
        weights_dtype("bfloat", "fp32", frozen=False)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_reaches_the_model(folder, attention):
    assert load(folder, attn_implementation=attention).config._attn_implementation == attention


def test_context_length(folder):
    assert Pretrained(path=str(folder)).load_tokenizer().model_max_length == 1024, "from config.json"
    assert Pretrained(path=str(folder), context_length=77).load_tokenizer().model_max_length == 77


def test_from_scratch_is_random_and_seeded(folder):
    stored, first, again = (
        load(folder),
        load(folder, from_scratch=True, seed=7),
        load(folder, from_scratch=True, seed=7),
    )
    other = load(folder, from_scratch=True, seed=8)
    name = "model.layers.0.mlp.up_proj.weight"
    weight = {
        key: dict(m.named_parameters())[name] for key, m in zip("sfao", (stored, first, again, other), strict=True)
    }
    assert torch.equal(weight["f"], weight["a"])
    assert not torch.equal(weight["f"], weight["s"])
    assert not torch.equal(weight["f"], weight["o"])


def test_skeleton_has_shapes_and_no_weights(folder):
    loader = Pretrained(path=str(folder))
    skeleton = loader.load_skeleton(loader.load_tokenizer())
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert [n for n, _ in skeleton.named_modules()] == [n for n, _ in load(folder).named_modules()]


def test_problems_of_a_path(folder, tmp_path):
    (tmp_path / "models" / "smol").mkdir(parents=True)
    (tmp_path / "file.txt").write_text("")

    def problem(path: str) -> str:
        return " ".join(Pretrained(path=path).problems())

    assert "there is no './models/smoll'. Did you mean 'smol'?" in problem("./models/smoll")
    assert "has no config.json" in problem("./models/smol")
    assert "is a file; give a folder" in problem("file.txt")
    assert problem("HuggingFaceTB/SmolLM2-135M") == ""
    assert problem(str(folder)) == ""


def test_no_tokenizer_is_named(folder, tmp_path):
    copy = tmp_path / "bare"
    copy.mkdir()
    shutil.copy(folder / "config.json", copy)
    with pytest.raises(UserError, match=r"no tokenizer that transformers can load[\s\S]*model.tokenizer.path="):
        Pretrained(path=str(copy)).load_tokenizer()


def test_trained_rows_of_added_tokens_are_kept_by_saving(folder, tmp_path):
    """A base with added tokens is saved with them, so that an adapter trained on it finds the same ids."""
    from transformers import AutoModelForCausalLM

    loader = Pretrained(path=str(folder), tokenizer=SpecialTokens(added_tokens=["<a>"]))
    model = loader.load_model(loader.load_tokenizer())
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert again.config.tie_word_embeddings
