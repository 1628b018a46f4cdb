"""The older plugin format: every key used or refused by name; the examples equal their twins in ours, and run."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

import dumbo as package
from dumbo.check import check
from dumbo.cli import main
from dumbo.command import parse
from dumbo.compose import compose, prepare_hydra
from dumbo.errors import UserError
from dumbo.legacy.file import translate
from dumbo.legacy.names import (
    DATASET_TYPES,
    FORMATS,
    LIGER_KEYS,
    LORA_KEYS,
    PLUGINS,
    TOKENIZER_KEYS,
    TRAINER_KEYS,
)

EXAMPLES = Path(package.__file__).resolve().parent.parent / "examples"
PAIRS = [
    ("smollm/small.yaml", "smollm/small_dumbo.yaml"),
    ("tinystories_ci/1m_sft.yaml", "tinystories_ci/1m_sft_dumbo.yaml"),
]
MODEL = {"base_model": "some/model"}
DATA = [{"path": "some/rows"}]


def composed(words: list[str], file: Path | None = None) -> dict[str, Any]:
    command = parse(words)
    try:
        cfg = compose([*prepare_hydra([], file), *command.overrides]).cfg
    finally:
        prepare_hydra([], None)
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return plain


def words_of(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    """The printed equivalent as a shell would split it, and everything on standard output."""
    said = capsys.readouterr()
    line = next(line for line in said.err.split("The same as:\n", 1)[1:])
    words = shlex.split(line.strip())
    assert words[:3] == ["python", "-m", "dumbo"], said.err
    return words[3:], said.out


@pytest.mark.parametrize(("older", "ours"), PAIRS)
def test_an_example_composes_to_exactly_what_its_twin_does(older: str, ours: str, capsys) -> None:
    assert main([str(EXAMPLES / older), "--cfg", "job"]) == 0
    words, shown = words_of(capsys)
    translated = yaml.safe_load(shown)
    assert main([str(EXAMPLES / ours), "--cfg", "job"]) == 0
    assert translated == yaml.safe_load(capsys.readouterr().out)
    assert composed(words) == composed([], EXAMPLES / ours), "the printed command line, typed"
    plain = yaml.safe_load((EXAMPLES / older).read_text())
    assert composed(words)["model"]["path"] == plain["model"]["base_model"]
    assert composed(words)["formatter"]["template"] == plain["datasets"][0]["train_format"]["template"]


def local_model(folder: Path, kind: str, tokenizer: Any) -> Path:
    """A model of that architecture with few random weights, and the real tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes: dict[str, dict[str, Any]] = {
        "llama": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
                  "intermediate_size": 64, "tie_word_embeddings": True},
        "gpt_neo": {"hidden_size": 32, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2,
                    "window_size": 32},
    }  # fmt: skip
    torch.manual_seed(0)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), max_position_embeddings=512, **shapes[kind], **ids)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def alpaca_rows(data: Path, tmp_path: Path) -> Path:
    """Real instructions with Alpaca's columns."""
    rows = []
    for line in (data / "self-instruct" / "seed_tasks.jsonl").read_text().splitlines():
        task = json.loads(line)
        rows.append({"instruction": task["instruction"], **task["instances"][0]})
    file = tmp_path / "instructions.json"
    file.write_text(json.dumps([row for row in rows if row["output"].strip()][:80]))
    return file


@pytest.mark.parametrize(
    ("example", "kind"), [("smollm/small.yaml", "llama"), ("tinystories_ci/1m_sft.yaml", "gpt_neo")]
)
def test_an_example_runs_shrunk(
    example: str, kind: str, alpaca_rows: Path, smollm_folder: Path, tmp_path, capsys
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    folder = local_model(tmp_path / "small", kind, tokenizer)
    words = [
        f"model.path={folder}", f"dataset.path={alpaca_rows}", "trainer.max_steps=2", "trainer.max_seq_len=256",
        "trainer.global_batch_size=2", "trainer.micro_batch_size=1", "trainer.warmup_steps=1",
        "trainer.num_samples=0", "trainer.num_answers=0", "run_dir=run",
        "audit.fail_on.zero_label_rows=0.05",  # 256 tokens cut one answer of 80 off
    ]  # fmt: skip
    code = main([str(EXAMPLES / example), *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["metrics"]["steps"] == 2
    assert facts["model"]["class"] == {"llama": "LlamaForCausalLM", "gpt_neo": "GPTNeoForCausalLM"}[kind]
    assert set(facts["patches"]) == ({"liger"} if kind == "llama" else set())
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    wanted = yaml.safe_load((EXAMPLES / example).read_text())["model"]["tokenizer"]
    assert {key: getattr(saved, key) for key in wanted} == wanted
    assert "The same as:" in said.err


# ---- key by key -----------------------------------------------------------------------------------------------------


def cfg_of(**data: Any) -> dict[str, Any]:
    """The config that a file with this content composes to."""
    Path("older.yaml").write_text(yaml.safe_dump({"model": MODEL, "datasets": DATA, **data}))
    words = translate({"model": MODEL, "datasets": DATA, **data}, "older.yaml")
    assert shlex.split(" ".join(shlex.quote(word) for word in words)) == words
    return composed(words)


VALUES = {"lr_scheduler_type": "linear", "lr_scheduler": "linear", "optim": "sgd", "optimizer": "sgd", "packing": False,
          "learning_rate": 3e-5, "weight_decay": 0.1, "max_grad_norm": 0.5, "warmup_ratio": 0.1}  # fmt: skip


@pytest.mark.parametrize("key", TRAINER_KEYS)
def test_every_trainer_argument_is_used(key: str) -> None:
    value = VALUES.get(key, 3)
    assert cfg_of(trainer={"arguments": {key: value}})["trainer"][TRAINER_KEYS[key]] == value


def test_trainer_arguments_under_transformers() -> None:
    arguments = {"batch_size": 8, "learning_rate": 3e-5, "max_length": 512}
    data = {"model": MODEL, "datasets": DATA}
    under = translate({**data, "transformers": {"trainer": {"arguments": arguments}}}, "x")
    assert under == translate({**data, "trainer": {"arguments": arguments}}, "x")


def test_batch_sizes_mean_what_they_meant() -> None:
    cfg = cfg_of(trainer={"arguments": {"batch_size": 16, "physical_batch_size": 4}})
    assert (cfg["trainer"]["global_batch_size"], cfg["trainer"]["micro_batch_size"]) == (16, 4)


def test_other_trainer_arguments() -> None:
    cfg = cfg_of(
        trainer={"arguments": {"bf16": True, "gradient_checkpointing": True, "output_dir": "my run", "adam_beta2": 0.9}}
    )
    assert cfg["trainer"]["precision"] == "bf16"
    assert list(cfg["patch"]) == ["gradient_checkpointing"]
    assert cfg["run_dir"] == "my run"
    assert cfg["trainer"]["extra"] == {"adam_beta2": 0.9}
    assert cfg_of(trainer={"arguments": {"bf16": False}})["trainer"]["precision"] == "fp32"
    assert cfg_of(trainer={"arguments": {"gradient_checkpointing": False}})["patch"] == {}


@pytest.mark.parametrize("place", ["model", "top"])
def test_liger_in_both_places(place: str) -> None:
    switches = {key: key == "cross_entropy" for key in LIGER_KEYS}
    cfg = cfg_of(liger=switches) if place == "top" else cfg_of(model={**MODEL, "liger": switches})
    assert {key: cfg["patch"]["liger"][key] for key in LIGER_KEYS} == switches
    assert list(cfg_of(liger=True)["patch"]) == ["liger"]
    assert cfg_of(liger=False)["patch"] == {}


def test_lora_under_peft() -> None:
    given = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "bias": "all",
             "modules_to_save": ["lm_head"], "use_dora": True, "use_rslora": True}  # fmt: skip
    lora = cfg_of(peft={"lora": given})["patch"]["lora"]
    assert {key: lora[LORA_KEYS[key]] for key in given} == given
    assert list(cfg_of(peft={"lora": True})["patch"]) == ["lora"]


@pytest.mark.parametrize("key", TOKENIZER_KEYS)
def test_every_tokenizer_key_is_used(key: str) -> None:
    value = (
        ["<|a b|>", "<c>"]
        if key == "added_tokens"
        else "{{ 'it''s' }}\n\"<|x|>\" \\n"
        if key == "chat_template"
        else "<|x|>"
    )
    assert cfg_of(model={**MODEL, "tokenizer": {key: value}})["model"]["tokenizer"][key] == value


def test_other_model_keys() -> None:
    cfg = cfg_of(model={**MODEL, "revision": "v1.0", "torch_dtype": "bfloat16", "attn_implementation": "eager"})
    assert (cfg["model"]["revision"], cfg["model"]["dtype"], cfg["model"]["attn_implementation"]) == (
        "v1.0",
        "bfloat16",
        "eager",
    )


@pytest.mark.parametrize("kind", DATASET_TYPES)
def test_every_data_set_type(kind: str) -> None:
    cfg = cfg_of(
        datasets=[{"path": "a dir/rows.x", "type": kind, "data_format": "alpaca", "validation_split": 0.25, "limit": 9}]
    )
    files = kind.endswith("_polars") and kind != "huggingface_polars"
    assert cfg["dataset"]["_target_"] == ("dumbo.dataset.files.Files" if files else "dumbo.dataset.hub.Hub")
    assert (cfg["dataset"]["path"], cfg["dataset"]["data_format"]) == ("a dir/rows.x", "alpaca")
    assert (cfg["dataset"]["eval_fraction"], cfg["dataset"]["limit"]) == (0.25, 9)
    if files:
        assert cfg["dataset"]["kind"] == {"csv_polars": "csv", "parquet_polars": "parquet", "json_polars": "auto"}[kind]


@pytest.mark.parametrize("kind", ["csv_polars", "json_polars", "parquet_polars"])
def test_the_file_types_read_their_files(kind: str, tmp_path: Path) -> None:
    """Down to rows: what the translated data set loads."""
    import polars as pl

    frame = pl.DataFrame({"instruction": ["Add two and two.", "Say hi."], "input": ["", ""], "output": ["4", "hi"]})
    path = tmp_path / f"rows.{kind.removesuffix('_polars')}"
    {"csv_polars": frame.write_csv, "json_polars": frame.write_json, "parquet_polars": frame.write_parquet}[kind](path)
    words = translate({"model": MODEL, "datasets": [{"path": str(path), "type": kind, "data_format": "alpaca"}]}, "x")
    done = compose(words)
    rows = [row for batch in check(done.cfg, done.choices).dataset.load().train for row in batch]
    assert [[message["content"] for message in row.messages] for row in rows] == [
        ["Add two and two.", "4"],
        ["Say hi.", "hi"],
    ]


@pytest.mark.parametrize("data_format", FORMATS)
def test_every_data_format(data_format: str) -> None:
    assert cfg_of(datasets=[{**DATA[0], "data_format": data_format}])["dataset"]["data_format"] == data_format


def test_train_formats() -> None:
    for kind, target in (("chat", "chat.Chat"), ("completion", "completion.Completion"), ("text", "text.Text")):
        assert (
            cfg_of(datasets=[{**DATA[0], "train_format": {"type": kind}}])["formatter"]["_target_"]
            == f"dumbo.formatter.{target}"
        )
    template = "{% for m in messages %}{{ m['content'] }} ${not_ours} 'single' \"double\" \\n\n{% endfor %}".replace(
        "${not_ours} ", ""
    )
    cfg = cfg_of(datasets=[{**DATA[0], "train_format": {"type": "jinja_messages", "template": template}}])
    assert cfg["formatter"]["template"] == template


def test_a_validation_split_at_the_top() -> None:
    assert cfg_of(validation_split=0.1)["dataset"]["eval_fraction"] == 0.1


def test_wandb() -> None:
    cfg = cfg_of(wandb={"project": "p", "entity": "e", "run_name": "n", "mode": "offline"})
    assert {key: cfg["tracker"]["wandb"][key] for key in ("project", "entity", "name", "mode")} == {
        "project": "p", "entity": "e", "name": "n", "mode": "offline",
    }  # fmt: skip
    assert list(cfg_of(wandb=True)["tracker"]) == ["wandb"]


def test_plugins_choose_patches_and_trackers() -> None:
    cfg = cfg_of(plugins=list(PLUGINS))
    assert set(cfg["patch"]) == {"liger", "lora"}
    assert list(cfg["tracker"]) == ["wandb"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"modle": MODEL}, "the key 'modle' has no counterpart. Did you mean 'model'?"),
        ({"model": {**MODEL, "base_modle": "x"}}, "the key 'model.base_modle' has no counterpart"),
        ({"model": {**MODEL, "tokenizer": {"padding": 1}}}, "the key 'model.tokenizer.padding'"),
        ({"model": "some/model"}, "it names no model"),
        ({"model": {}}, "it names no model"),
        ({"datasets": []}, "it names no data set"),
        ({"datasets": DATA * 2}, "datasets holds 2 data sets; one is supported"),
        ({"datasets": [{**DATA[0], "type": "json_polar"}]}, "datasets.type 'json_polar' is not known. Did you mean 'json_polars'?"),
        ({"datasets": [{**DATA[0], "data_format": "alpacca"}]}, "Did you mean 'alpaca'?"),
        ({"datasets": [{**DATA[0], "train_format": {"type": "jinja"}}]}, "Did you mean 'jinja_messages'?"),
        ({"datasets": [{**DATA[0], "shuffle": True}]}, "the key 'datasets[0].shuffle' has no counterpart"),
        ({"trainer": {"arguments": {"learning_rte": 1}}}, "Did you mean 'learning_rate'?"),
        ({"trainer": {"arguments": {"gradient_accumulation_steps": 4}}}, "It is batch_size / physical_batch_size"),
        ({"trainer": {"arguments": {"report_to": "wandb"}}}, "tracker=[…]"),
        ({"trainer": {"args": {}}}, "the key 'trainer.args' has no counterpart. Did you mean 'arguments'?"),
        ({"trainer": {"arguments": {"warmup_steps": 5, "warmup_ratio": 0.1}}}, "trainer.warmup_steps is set twice"),
        ({"validation_split": 0.1, "datasets": [{**DATA[0], "validation_split": 0.2}]}, "dataset.eval_fraction is set twice"),
        ({"liger": {"ropes": True}}, "the key 'liger.ropes' has no counterpart. Did you mean 'rope'?"),
        ({"liger": None}, "'liger' is empty"),
        ({"liger": False, "plugins": ["liger"]}, "liger is false, but chosen too"),
        ({"peft": {"lora": {"ranks": 8}}}, "the key 'peft.lora.ranks' has no counterpart. Did you mean 'rank'?"),
        ({"peft": {"ia3": {}}}, "the key 'peft.ia3' has no counterpart"),
        ({"wandb": {"projct": "x"}}, "Did you mean 'project'?"),
        ({"plugins": ["ligr"]}, "the plugin 'ligr' is not known. Did you mean 'liger'?"),
        ({"plugins": "liger"}, "plugins must be a list"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused_by_name(data: dict[str, Any], says: str, tmp_path, capsys) -> None:
    (tmp_path / "older.yaml").write_text(yaml.safe_dump({"model": MODEL, "datasets": DATA, **data}))
    assert main(["older.yaml"]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 25


def test_what_is_typed_behind_the_file_wins(tmp_path, capsys) -> None:
    (tmp_path / "older.yaml").write_text(
        yaml.safe_dump({"model": MODEL, "datasets": DATA, "trainer": {"arguments": {"learning_rate": 1e-4, "seed": 1}}})
    )
    assert main(["older.yaml", "trainer.seed=2", "--cfg", "job"]) == 0
    words, shown = words_of(capsys)
    cfg = yaml.safe_load(shown)
    assert (float(cfg["trainer"]["lr"]), cfg["trainer"]["seed"]) == (1e-4, 2)
    assert words[-1] == "trainer.seed=2"


def test_a_file_of_the_older_format_from_python(tmp_path) -> None:
    (tmp_path / "older.yaml").write_text(yaml.safe_dump({"model": MODEL, "datasets": DATA, "nonsense": 1}))
    with pytest.raises(UserError, match="'nonsense' has no counterpart"):
        package.run(["older.yaml"])
