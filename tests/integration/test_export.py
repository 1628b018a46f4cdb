"""`dumbo export`: small runs of each kind, trained once, and what plain transformers makes of the written folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dumbo.cli import main
from dumbo.export.parity import allowed

SHORT = [
    "dataset.limit=60", "trainer.max_steps=4", "trainer.warmup_steps=0", "trainer.lr=1e-2", "trainer.num_answers=0",
    "trainer.num_samples=2", "trainer.max_new_tokens=4", "trainer.save_every=null", "trainer.eval_every=null",
    "trainer.eval_at_start=false", "trainer.global_batch_size=4", "trainer.micro_batch_size=4", "verify.mode=off",
]  # fmt: skip
TEMPLATE = "{% for m in messages %}{{ 'A' if m.role == 'assistant' else 'Q' }}: {{ m.content }}\n{% endfor %}"
RUNS = {
    "lora": ["patch=lora"],
    "full": [],
    "jinja": ["patch=lora", "formatter=jinja", "formatter.template=own.jinja"],
    "completion": ["formatter=completion", "formatter.separator=' -> '"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one short run of each kind."""
    folder = tmp_path_factory.mktemp("exports")
    before, threads, cache = Path.cwd(), torch.get_num_threads(), os.environ["DUMBO_CACHE"]
    os.chdir(folder)
    os.environ["DUMBO_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    (folder / "own.jinja").write_text(TEMPLATE)
    for name, words in RUNS.items():
        assert main([*words, *SHORT, f"run_dir={name}"]) == 0
    yield folder
    os.chdir(before)
    os.environ["DUMBO_CACHE"] = cache
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("DUMBO_CACHE", str(place / "cache"))


def read(folder: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def logits_by_hand(run: str, ids: torch.Tensor) -> torch.Tensor:
    """Of the run's model: the tiny base, each adapted layer's weight with scale B A added by plain arithmetic."""
    from safetensors.torch import load_file

    from dumbo.model.tiny import Tiny

    tiny = Tiny()
    model: Any = tiny.load_model(tiny.load_tokenizer())
    adapters = load_file(f"{run}/model/adapter_model.safetensors")
    config = json.loads(Path(f"{run}/model/adapter_config.json").read_text())
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, a in adapters.items():
            if name.endswith("lora_A.weight"):
                b = adapters[name.replace("lora_A", "lora_B")]
                layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                weights[f"{layer}.weight"] += config["lora_alpha"] / config["r"] * (b @ a)
        return model(ids).logits


def test_adapters_are_merged(capsys: pytest.CaptureFixture[str]) -> None:
    """Against arithmetic that shares no code with the export; the plain folder needs no peft and no dumbo."""
    assert main(["export", "run=lora", "export.to=plain/lora", "export.format=json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == {"class": "LlamaForCausalLM", "parameters": 492160, "dtype": "float32", "merged": ["LORA"]}
    names = {path.name for path in Path("plain/lora").iterdir()}
    assert names >= {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "README.md",
        "export.json",
    }
    assert not any(
        path.suffix in (".bin", ".pt", ".pkl") or "adapter" in path.name for path in Path("plain/lora").iterdir()
    )
    model, tokenizer = read("plain/lora")
    ids = torch.tensor([tokenizer("What is 7 + 10? It is 17.")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, logits_by_hand("lora", ids), atol=1e-4)
    parity = said["parity"]
    for name in ("merged", "rounded", "written"):
        assert parity[name]["relative"] <= parity[name]["allowed"] == pytest.approx(allowed("float32", 2))
    assert parity["effect_of_training"] > 100 * parity["merged"]["allowed"], "the proof could have failed"
    assert said["template"]["rows_compared"] == 8
    assert said["template"]["generation_prompt_as_trained"] is True
    assert said["template"]["patched"] is None
    stored = json.loads(Path("plain/lora/export.json").read_text())
    assert stored == {key: value for key, value in said.items() if key != "to"}
    card = Path("plain/lora/README.md").read_text()
    assert "library_name: transformers" in card
    assert all(line.replace("<", "&lt;") in card for line in [*parity["told"], *said["template"]["told"]])
    assert Path("plain/lora").stat().st_mode & 0o777 == Path("plain").stat().st_mode & 0o777


def test_a_wrong_merge_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The scale of one layer's update is off by a tenth: exit code 4, and nothing is left."""
    from peft.tuners.lora.layer import Linear

    right, layers = Linear.get_delta_weight, []

    def wrong(self: Any, adapter: str) -> torch.Tensor:
        layers.append(self)
        return right(self, adapter) * (1.1 if len(layers) == 1 else 1.0)

    monkeypatch.setattr(Linear, "get_delta_weight", wrong)
    before = sorted(Path().iterdir())
    assert main(["export", "run=lora", "export.to=deep/down/wrong"]) == 4
    said = capsys.readouterr().err
    assert "After merging the adapters it is another model; nothing was written." in said
    assert len(said.strip().splitlines()) == 2
    assert sorted(Path().iterdir()) == before
