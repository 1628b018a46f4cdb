"""`dumbo export`: small runs of each kind, trained once, and what plain transformers makes of the written folders."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import model_of, tiny_tokenizer

from dumbo.cli import main
from dumbo.export.parity import allowed

SHORT = [
    "trainer.max_steps=3", "trainer.warmup_steps=0", "trainer.lr=1e-2", "trainer.num_answers=0", "trainer.num_samples=2",
    "trainer.max_new_tokens=2", "trainer.save_every=null", "trainer.eval_every=null", "trainer.eval_at_start=false",
    "trainer.global_batch_size=4", "trainer.micro_batch_size=4", "trainer.max_seq_len=512", "verify.mode=off",
]  # fmt: skip
QUIZ = ["dataset.limit=40", *SHORT]
FILES = ["dataset=files", "dataset.path=rows.jsonl", "dataset.eval_fraction=0.1", *SHORT]
TEMPLATE = "{% for m in messages %}{{ 'A' if m.role == 'assistant' else 'Q' }}: {{ m.content }}\n{% endfor %}"
ADDED = 'model.tokenizer.added_tokens=["<|x|>"]'
RUNS = {
    "lora": ["patch=lora", *QUIZ],
    "full": [*QUIZ, "model=pretrained", "model.path=tied", ADDED],
    "added": [*QUIZ, "patch=lora", "model=pretrained", "model.path=tied", ADDED, "trainer.precision=bf16"],
    "embed": [*QUIZ, "patch=lora", "patch.lora.modules_to_save=[embed_tokens]", "model=pretrained", "model.path=tied"],
    "jinja": ["patch=lora", "formatter=jinja", "formatter.template=own.jinja", *FILES],
    "completion": ["formatter=completion", "formatter.separator=' -> '", *FILES, "trainer.too_long=split",
                   "trainer.max_seq_len=12"],
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with one short run of each kind."""
    folder = tmp_path_factory.mktemp("exports")
    before, threads, cache = Path.cwd(), torch.get_num_threads(), os.environ["DUMBO_CACHE"]
    os.chdir(folder)
    os.environ["DUMBO_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    (folder / "own.jinja").write_text(TEMPLATE)
    (folder / "rows.jsonl").write_text("".join(f'{{"question": "q{n}?", "answer": "a {n}"}}\n' for n in range(40)))
    tied_model(folder / "tied")
    for name, words in RUNS.items():
        assert main([*words, f"run_dir={name}"]) == 0
    yield folder
    os.chdir(before)
    os.environ["DUMBO_CACHE"] = cache
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("DUMBO_CACHE", str(place / "cache"))


def tied_model(folder: Path) -> None:
    """A Llama whose head is its embedding, with the tiny model's tokenizer."""
    tokenizer = tiny_tokenizer()
    model_of(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def exported(run: str, *words: str) -> dict[str, Any]:
    """Exports a run; what it says as JSON."""
    said = io.StringIO()
    with redirect_stdout(said):
        assert main(["export", f"run={run}", "export.format=json", *words]) == 0
    return json.loads(said.getvalue())


def copy_of(run: str, name: str, **data: Any) -> Path:
    """A run's folder once more, to be tampered with; `data` goes over what run.json says of its data."""
    shutil.copytree(run, name)
    facts = json.loads(Path(name, "run.json").read_text())
    facts["data"] |= data
    Path(name, "run.json").write_text(json.dumps(facts))
    return Path(name)


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


@pytest.mark.parametrize("scale", [1.1, 0.0])
def test_a_wrong_merge_is_refused(
    scale: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One layer's update is off by a tenth, or lost: exit code 4, and nothing is left."""
    from peft.tuners.lora.layer import Linear

    right, layers = Linear.get_delta_weight, []

    def wrong(self: Any, adapter: str) -> torch.Tensor:
        layers.append(self)
        return right(self, adapter) * (scale if len(layers) == 1 else 1.0)

    monkeypatch.setattr(Linear, "get_delta_weight", wrong)
    before = sorted(Path().iterdir())
    assert main(["export", "run=lora", "export.to=deep/down/wrong"]) == 4
    said = capsys.readouterr().err
    assert "After merging the adapters it is another model; nothing was written." in said
    assert len(said.strip().splitlines()) == 2
    assert sorted(Path().iterdir()) == before


def held_out_loss(run: str, folder: str) -> float:
    """Of an exported folder, by a plain loop over the documents that the run held out."""
    from dumbo.check import check
    from dumbo.compose import compose
    from dumbo.preview import prepared

    composed = compose(RUNS[run])
    _, data = prepared(check(composed.cfg, composed.choices))
    model, total, count = read(folder)[0].float(), 0.0, 0
    assert data.eval is not None
    for document in data.eval.documents.tolist():
        ids, labels = (torch.as_tensor(part(document)) for part in (data.eval.store.ids, data.eval.store.labels))
        with torch.no_grad():
            scores = model(ids[None]).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(scores, labels[1:], ignore_index=-100, reduction="sum"))
        count += int((labels[1:] != -100).sum())
    return total / count


@pytest.mark.parametrize(("run", "dtype", "within"), [
    ("lora", "float32", 1e-5), ("full", "float32", 1e-5), ("added", "bfloat16", 2e-3), ("embed", "float32", 1e-5),
    ("completion", "float32", 1e-5),
])  # fmt: skip
def test_the_folder_has_the_runs_held_out_loss(run: str, dtype: str, within: float) -> None:
    """Full, adapters, added tokens on tied embeddings under bf16, an embedding that training untied from the head."""
    said = exported(run, f"export.to=loss/{run}")
    assert said["model"]["dtype"] == dtype
    trained = json.loads(Path(run, "run.json").read_text())["metrics"]["eval_loss"]
    assert held_out_loss(run, f"loss/{run}") == pytest.approx(trained, abs=within)
    model, tokenizer = read(f"loss/{run}")
    assert str(model.dtype) == f"torch.{dtype}"
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == model.config.tie_word_embeddings == (run in ("full", "added") or run in ("lora", "completion"))
    if run in ("full", "added"):
        assert tokenizer.convert_tokens_to_ids("<|x|>") == len(tokenizer) - 1
    if run == "completion":
        assert said["template"]["trained_with"] is False
        assert "the run's formatter, with the saved tokenizer, makes 8 rows" in said["template"]["told"][0]


def test_in_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    said = exported("lora", "export.to=half", "export.dtype=bfloat16")
    parity = said["parity"]
    assert 0 < parity["rounded"]["relative"] <= parity["rounded"]["allowed"] == pytest.approx(allowed("bfloat16", 2))
    assert parity["merged"]["allowed"] == parity["written"]["allowed"] == pytest.approx(allowed("float32", 2))
    assert parity["written"]["relative"] < 1e-6, "rounded once"
    assert Path("half/model.safetensors").stat().st_size < 0.6 * Path("lora/model").stat().st_size + 1_200_000


def test_a_template_of_ones_own_goes_along() -> None:
    """formatter.template becomes the chat template, with the eos that the formatter put behind each row."""
    said = exported("jinja", "export.to=own")
    assert said["template"]["rows_compared"] == 8
    assert said["template"]["trained_with"] is True
    assert said["template"]["patched"].startswith("formatter.template, in place of the base's own; with the eos that")
    assert said["template"]["generation_prompt_as_trained"] is False, "it begins no answer"
    card = Path("own/README.md").read_text()
    assert "formatter.template, in place of the base's own" in card
    assert "! add_generation_prompt=True does not give" in card
    tokenizer = read("own")[1]
    talk = [{"role": "user", "content": "q3?"}, {"role": "assistant", "content": "a 3"}]
    assert tokenizer.apply_chat_template(talk, tokenize=False) == f"Q: q3?\nA: a 3{tokenizer.eos_token}"
    assert tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True) == "Q: q3?\n"


GONE = {"stored_in": "/nowhere"}
CHANGED = {"rows_fingerprint": "another"}


@pytest.mark.parametrize(("name", "data", "samples", "rows", "texts"), [
    ("kept", {}, True, 8, ["into the ids they were trained with", "8 rows of the prepared training data"]),
    ("store", GONE, True, 2, ["2 rows of the run's samples (its prepared data is no longer here)"]),
    ("changed", CHANGED, True, 0, ["not rendered once more", "its data set is not here (it has changed since)"]),
    ("nothing", GONE, False, 0, ["made-up texts (neither the run's prepared data nor samples are here)"]),
])  # fmt: skip
def test_what_is_no_longer_there_is_said(
    name: str, data: dict[str, str], samples: bool, rows: int, texts: list[str]
) -> None:
    run = copy_of("lora", f"gone-{name}", **data)
    if not samples:
        (run / "samples.json").unlink()
    said = exported(str(run), f"export.to=without-{name}")
    assert said["template"]["rows_compared"] == rows
    for text in texts:
        assert text in said["template"]["told"][0]
    assert read(f"without-{name}")[1].chat_template == tiny_tokenizer().chat_template


def test_a_template_that_is_not_the_trained_one_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run = copy_of("lora", "edited")
    file = run / "model" / "chat_template.jinja"
    file.write_text(file.read_text().replace("<|im_end|>", "<|im_end|> "))
    assert main(["export", "run=edited", "export.to=refused"]) == 4
    said = capsys.readouterr().err
    assert "does not render shipped quiz, row" in said or "does not render quiz" in said
    assert "nothing was written" in said
    assert not Path("refused").exists()


@pytest.mark.parametrize(("words", "texts"), [
    (["run=lora"], ("Where to? Write export.to=FOLDER",)),
    (["run=lora", "export.to=tied"], ("export.to: the folder 'tied' is not empty",)),
    (["run=lora", "export.to=own.jinja"], ("export.to: 'own.jinja' is a file",)),
    (["run=nowhere", "export.to=x"], ("run: 'nowhere' is not a run's folder",)),
    (["export.to=x"], ("Which run? Write run=last, or run=FOLDER.",)),
    (["run=empty", "export.to=x"], ("has no model/ to export (its status is failed)",)),
    (["run=code", "export.to=x"], ("names code of the model's own", "export.trust_remote_code=true")),
    (["run=pickled", "export.to=x"], ("has no safetensors weights, and pickled ones are not read",)),
    (["run=untemplated", "export.to=x"], ("its chat template is not here", "own-gone.jinja", "Restore it")),
    (["run=lora", "export.to=x", "export.dtype=int8"], ("export.dtype must be one of auto, float32, bfloat16",)),
    (["run=lora", "export.to=x", "export.push='a b/c'"], ("export.push: 'a b/c' is no name of a repository",)),
    (["run=lora", "export.to=x", "export.push=me/mine"], ("HF_HUB_OFFLINE",)),
])  # fmt: skip
def test_refused(words: list[str], texts: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir(exist_ok=True)
    Path("empty/run.json").write_text('{"status": "failed"}')
    if "run=code" in words:
        config = copy_of("full", "code") / "model" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModelForCausalLM": "m.M"}}))
    if "run=pickled" in words:
        folder = copy_of("full", "pickled") / "model"
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    if "run=untemplated" in words:
        file = copy_of("jinja", "untemplated") / "config.yaml"
        file.write_text(file.read_text().replace("own.jinja", "own-gone.jinja"))
    assert main(["export", *words]) == 2
    said = capsys.readouterr().err
    for text in texts:
        assert text in said
    assert "Traceback" not in said
    assert not Path("x").exists()


def test_an_empty_folder_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    Path("there").mkdir()
    assert main(["export", "run=full", "export.to=there"]) == 0
    out = capsys.readouterr().out
    assert "as it was trained, no adapters" in out
    assert out.strip().splitlines()[-1] == "there"
    assert (Path("there") / "model.safetensors").is_file()


@pytest.mark.full
@pytest.mark.parametrize("words", [["patch=lora"], []], ids=["lora", "all"])
def test_a_sharded_run(words: list[str]) -> None:
    """Trained by two processes under FSDP2."""
    name = "sharded-lora" if words else "sharded"
    RUNS[name] = [*words, *QUIZ, "launch=fsdp", "launch.num_processes=2", "trainer.micro_batch_size=2"]
    assert main([*RUNS[name], f"run_dir={name}"]) == 0
    facts = json.loads(Path(name, "run.json").read_text())
    assert facts["parallel"] == "FSDP2"
    said = exported(name, f"export.to=plain/{name}")
    assert said["template"]["rows_compared"] == 8
    assert held_out_loss(name, f"plain/{name}") == pytest.approx(facts["metrics"]["eval_loss"], abs=1e-5)


@pytest.mark.full
@pytest.mark.parametrize(
    "how", ["use_dora=true", "use_rslora=true", "init=pissa", "init=olora", "modules_to_save=[lm_head]"]
)
def test_other_adapters(how: str) -> None:
    name = f"other-{how.split('=')[0]}-{how.split('=')[1].strip('[]')}"
    RUNS[name] = [*QUIZ, "patch=lora", f"patch.lora.{how}", "model=pretrained", "model.path=tied"]
    assert main([*RUNS[name], f"run_dir={name}"]) == 0
    exported(name, f"export.to=plain/{name}")
    trained = json.loads(Path(name, "run.json").read_text())["metrics"]["eval_loss"]
    assert held_out_loss(name, f"plain/{name}") == pytest.approx(trained, abs=1e-5)
