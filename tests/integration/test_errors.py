"""What users get wrong: exit code 2, no traceback, at most a screen, what was set and what to write instead.

Most run in this process through `main`; a spy shows that no weights were loaded. Those that need a start of their
own (what was imported) are in test_startup.py.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dumbo.cli import main

SCREEN = 25
TINY = (
    "trainer.max_steps=1",
    "trainer.num_answers=0",
    "trainer.num_samples=0",
    "trainer.eval_every=null",
    "run_dir=run",
)
ROWS = '{"question": "What is two and two?", "answer": "4"}\n' * 8


@dataclass(frozen=True)
class Case:
    """A wrong command line: words, what the message must hold, and what lies in the folder."""

    words: tuple[str, ...]
    says: tuple[str, ...]
    prepare: Callable[[Path], None] = field(default=lambda folder: None)

    def __str__(self) -> str:
        return " ".join(self.words)[:70]


def case(words: str | list[str], *says: str, prepare: Callable[[Path], None] = lambda folder: None) -> Case:
    return Case(tuple(words.split(" ") if isinstance(words, str) else words), says, prepare)


def files(**named: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        for name, text in named.items():
            path = folder / name.replace("__", ".").replace("___", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return prepare


def conf(path: str, text: str) -> Callable[[Path], None]:
    """A user's folder `my` with one YAML file, and a module of plugins."""

    def prepare(folder: Path) -> None:
        (folder / "my" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "my" / path).write_text(text)
        (folder / "my" / "cli_error_plugins.py").write_text(
            "import subprocess\nfrom subprocess import Popen\n\ndef function():\n    pass\n\nclass NoMethod:\n    pass\n"
        )

    return prepare


def run_folder(folder: Path) -> None:
    (folder / "old").mkdir()
    (folder / "old" / "run.json").write_text(json.dumps({"status": "failed"}))
    (folder / "old" / "overrides.yaml").write_text("[]\n")


def other_files(folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.tex").write_text("…")


def model_folder(folder: Path, *, weights: str = "safetensors", kind: str = "gpt_neo") -> None:
    """A random model of few weights with a real tokenizer (the one dumbo ships), in `model`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from dumbo.model.tiny import Tiny

    shapes = {
        "gpt_neo": {"hidden_size": 32, "num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 2},
        "llama": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
    }
    config = AutoConfig.for_model(kind, vocab_size=512, max_position_embeddings=128, **shapes[kind])
    model = AutoModelForCausalLM.from_config(config)
    tokenizer = Tiny().load_tokenizer()
    tokenizer.save_pretrained(folder / "model")
    config.save_pretrained(folder / "model")
    if weights == "safetensors":
        model.save_pretrained(folder / "model")
    elif weights == "pickle":
        torch.save(model.state_dict(), folder / "model" / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    model_folder(folder, weights="none")


def pickled(folder: Path) -> None:
    model_folder(folder, weights="pickle")


def local_model(folder: Path) -> None:
    model_folder(folder)
    (folder / "rows.jsonl").write_text(ROWS)


def llama(folder: Path) -> None:
    model_folder(folder, kind="llama")


def not_gguf(folder: Path) -> None:
    (folder / "x.gguf").write_bytes(b"not a model at all" * 100)


LOCAL = "model=pretrained model.path=model"
NAMES = [
    case("model=smolm", "model has no choice 'smolm'", "Did you mean 'smollm'?", "choices of model:"),
    case("patch=[liger,lroa]", "patch has no choice 'lroa'", "'lora'"),
    case("patch=[varlen,tile_attention]", "patch.varlen and patch.tile_attention cannot be used together"),
    case("patch=[varlen] patch.varlen.flash=FA2", "patch.varlen.flash", "FA3"),
    case("trainer=dpo", "trainer=dpo is not built yet", "sft"),
    case("+experiment=smollm_gsm8k_lor", "Did you mean 'smollm_gsm8k_lora'?"),
    case("experiment=mine", "+experiment=mine"),
    case("trainer.lrr=1e-4", "trainer has no key 'lrr'. Did you mean trainer.lr?", "dumbo --info trainer"),
    case("+trainer.lrr=1e-4", "trainer has no key 'lrr'. Did you mean trainer.lr?"),
    case("++trainer.lrr=1e-4", "trainer has no key 'lrr'. Did you mean trainer.lr?"),
    case("trainer.gradient_accumulation_steps=4", "It is derived: trainer.global_batch_size / (trainer.micro"),
    case("trainer.bf16=true", "trainer has no key 'bf16'. Did you mean trainer.precision?"),
    case("trainer.gradient_checkpointing=true", "It is set elsewhere: patch=[gradient_checkpointing]"),
    case("patch=[lora] patch.lora.r=8", "Did you mean patch.lora.rank?"),
    case("model=HuggingFaceTB/SmolLM2-135M", "Write model=pretrained model.path=HuggingFaceTB/SmolLM2-135M"),
    case("dataset=tatsu-lab/alpaca", "Write dataset=hub dataset.path=tatsu-lab/alpaca"),
    case(
        "patch=[lora] trainer.master_weights=true trainer.precision=bf16", "what patch.lora trains is in float32 itself"
    ),
    case("trainer.extra.torch_compile=true", "this is set elsewhere: patch=[compile]"),
    case("trainer.learning_rate=1e-4", "trainer has no key 'learning_rate'. Did you mean trainer.lr?"),
    case("precision=bf16", "no key 'precision'. Did you mean trainer.precision?"),
    case("per_device_train_batch_size=4", "Did you mean trainer.micro_batch_size?"),
    case("trainer.save_steps=4", "Did you mean trainer.save_every?"),
    case("trainer.batch_size=4", "Did you mean trainer.global_batch_size?"),
    case("eval_steps=4", "Did you mean trainer.eval_every?"),
    case("seed=4", "Did you mean trainer.seed?"),
    case("nothing_like_it=4", "The config has no key 'nothing_like_it'.\n  keys: model"),
    case("--batch-size 4", "unrecognized arguments: --batch-size. Keys are typed as KEY=VALUE: trainer.lr=1e-4."),
    case("modle=tiny", "no key 'modle'. Did you mean model?"),
    case("+trianer.lr=1", "no key 'trianer'. Did you mean trainer?"),
    case("verify.mod=quick", "verify has no key 'mod'. Did you mean verify.mode?"),
    case("patch=[lora] patch.lora.rnk=8", "patch.lora has no key 'rnk'. Did you mean patch.lora.rank?"),
    case("patch=[liger] patch.lora.rank=8", "patch.lora was not chosen", "Write patch=[liger,lora] patch.lora.rank=…"),
    case("dataset.path=rows.jsonl", "dataset has no key 'path'", "dataset=files dataset.path=…"),
    case(
        "+model.tokenizer.pad_tok=x model=smollm", "model.tokenizer has no key 'pad_tok'", "model.tokenizer.pad_token"
    ),
    case("launch=single +launch.ranks=2", "launch has no keys at all"),
    case("+launch.ranks=2", "launch has no key 'ranks'", "num_processes"),
    case("launch=ddp launch.num_processes=0", "launch.num_processes must be at least 1"),
    case("launch=ddp launch.num_nodes=2", "the machines need a place to meet", "launch.rdzv_endpoint=HOST:PORT"),
    case("launch=fsdp launch.rdzv_endpoint=host", "launch.rdzv_endpoint must be HOST:PORT"),
    case("launch=ddp launch.timeout=soon", "launch.timeout is seconds above 0"),
    case("launch=ddp launch.num_processes=2", "The batch does not divide", "trainer.micro_batch_size=1"),
]
VALUES = [
    case("trainer.lr=fast", "trainer.lr must be a number, got the text 'fast'", "Write trainer.lr=0.0001, say"),
    case("trainer.lr=true", "trainer.lr must be a number, got true"),
    case("trainer.max_steps=1e3", "must be a whole number or null, got 1000.0", "Write trainer.max_steps=1000"),
    case("trainer.packing=maybe", "must be true or false"),
    case("trainer.too_long=truncate_lft", "one of truncate_left", "Did you mean trainer.too_long=truncate_left?"),
    case("trainer.lr_scheduler=cosin", "trainer.lr_scheduler has no choice 'cosin'. Did you mean 'cosine'?"),
    case("trainer.max_time=soon", "trainer.max_time", "90m"),
    *[case(f"trainer.max_time={wrong}", "trainer.max_time is seconds above 0", "90m")
      for wrong in ("1.2.3h", ".", "h", "1h.", "1h_5", "0", "-5", "0h", "'٣h'")],
    case("trainer.max_time=inf", "trainer.max_time is inf, which is no number to work with"),
    *[case(f"{key}={value}", f"{key} is {value}, which is no number to work with", f"{key}=NUMBER")
      for key in ("trainer.lr", "trainer.weight_decay", "trainer.max_grad_norm", "trainer.warmup_steps", "trainer.extra.adam_epsilon",
                  "chat.temperature", "preview.fail_on.truncated") for value in ("nan", "inf")],
    case("patch=[lora] patch.lora.alpha=nan", "patch.lora.alpha is nan"),
    case("dataset=files dataset.path=x dataset.eval_fraction=nan", "dataset.eval_fraction is nan"),
    case("model=pretrained model.path=a/b model.attn_implementation=fash", "one of auto, sdpa, eager, flex_attention, flash_attention_2"),
    case("model=pretrained model.path=a/b model.attn_implementation=flash_attention2",
         "Did you mean model.attn_implementation=flash_attention_2?"),
    case("model.attn_implementation=someone/kernel", "must be one of auto, sdpa, eager"),
    case("model.attn_implementation=flash_attention_3", "its package flash-attn-3 is not installed", "leave model.attn_implementation out"),
    case("model.dtype=float31", "must be one of auto, float32", "Did you mean model.dtype=float32?"),
    case("model=pretrained model.path=a/b model.context_length=0", "model.context_length must be at least 1"),
    case("model=smollm_gguf model.context_length=-1", "model.context_length must be at least 1"),
    *[case(f"model.{key}=0", f"model.{key} must be at least 1, got 0")
      for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "context_length")],
    *[case(f"{key}={value}", f"{key} must be") for key in ("model.seed", "trainer.seed") for value in (-1, 2**32)],
    *[case(f"trainer.{key}=0", f"trainer.{key} must be at least 1") for key in
      ("num_epochs", "max_steps", "save_every", "log_every", "save_total_limit", "max_new_tokens", "global_batch_size", "micro_batch_size")],
    *[case(f"trainer.{key}=-1", f"trainer.{key} must be at least 0") for key in
      ("lr", "weight_decay", "max_grad_norm", "warmup_steps", "num_samples", "num_answers")],
    case("trainer.max_seq_len=1", "trainer.max_seq_len must be at least 2"),
    case("dataset.limit=0", "dataset.limit must be at least 1"),
    case("chat.seed=-1", "chat.seed must be at least 0"),
    case("chat.max_new_tokens=0", "chat.max_new_tokens must be at least 1"),
    case("preview preview.fail_on.truncated=-1", "preview.fail_on.truncated must be at least 0"),
    case("trainer.eval_every=0", "trainer.eval_every must be at least 1"),
    case("model=smollm model.tokenizer=chatml", "model.tokenizer must be a mapping", "model.tokenizer.path=…"),
    case("model=smollm model.tokenizer.added_tokens=x", "must be a list of texts", "added_tokens=[x]"),
    case("patch=[lora] patch.lora=8", "patch.lora is 8 where its keys should be", "patch.lora.KEY=…"),
    case("dataset=[alpaca,gsm8k]", "dataset takes one choice, got the list [alpaca,gsm8k]", "Write dataset=alpaca."),
    case("model=[tiny]", "model takes one choice", "Write model=tiny."),
    case("model=5", "model takes names of choices, got 5"),
    case("patch=null", "patch cannot be null", "patch=[] for none"),
    case("trainer=null", "trainer cannot be null", "dumbo --info trainer"),
    case("~model", "a run needs a model", "model=NAME"),
    case("+model=tiny", "Leave out the '+': model=tiny"),
    case("patch=liger,lora", "has several values", "-m patch=liger,lora", "patch=[liger,lora]"),
    case("trainer.seed=1,2", "has several values", "python -m dumbo -m trainer.seed=1,2"),
    case("trainer.lr={a", "The override trainer.lr={a cannot be read", "quotes inside quotes"),
    case("hydra.mode=MULTIRUN", "hydra.mode=MULTIRUN", "-m"),
    case("hydra.searchpath=[nowhere]", "there is no folder 'nowhere'"),
    case("trainer.lr=${oc.env:DUMBO_NOT_SET}", "trainer.lr", "DUMBO_NOT_SET is not set", "${oc.env:DUMBO_NOT_SET,…}"),
    case("trainer.lr=${trainer.lrr}", "trainer.lr cannot be resolved", "'trainer.lrr'"),
    case("trainer.global_batch_size=6 trainer.micro_batch_size=4", "global batch 6 = micro 4 x ranks 1 x accumulation 1.50",
         "trainer.micro_batch_size=3", "trainer.global_batch_size=8"),
    case("trainer.extra.adam_beta3=0.9", "TrainingArguments has no 'adam_beta3'", "'adam_beta2'"),
    case("trainer.extra.learning_rate=1", "trainer.extra.learning_rate", "trainer.lr"),
    case("trainer.extra.report_to=all", "tracker=[…]"),
    case("trainer.extra=5", "trainer.extra must be a mapping"),
    case("preview preview.fail_on.truncatd=1", "preview.fail_on.truncatd", "Did you mean 'truncated'?"),
    case("preview preview.num_examples=-1", "preview.num_examples must be at least 0"),
    case("patch=[liger] patch.liger.cross_entropy=true", "exclude each other", "fused_linear_cross_entropy=false"),
    case("patch=[freeze]", "patch.freeze", "patch.freeze.train=["),
    case("tracker=wandb", "tracker.wandb: wandb is not installed", "pip install 'dumbo[wandb]'"),
]  # fmt: skip
WORDS = [
    case(["tell me a story " * 30], "is neither a verb, nor a file, nor an override"),
    case("trian", "'trian' is neither a verb, nor a file, nor an override. Did you mean 'train'?"),
    case(
        "notes.md",
        "'notes.md' is a file, but neither data nor an experiment by its name",
        "dataset.kind=jsonl",
        prepare=files(notes__md="x"),
    ),
    case("sweep run=last", "sweep: what of it?", "dumbo sweep status FOLDER", "-m trainer.lr=1e-4,3e-4"),
    case("run=last", "run= is the run that evaluate, chat, export and report read", "resume=…"),
    case("sweep stauts x", "'stauts' is none of its actions. Did you mean 'status'?"),
    case("sweep status", "sweep status: which sweep?", "or last"),
    case("sweep wait last", "last: there is no sweep below multirun_outputs/ here"),
    case("sweep status nowhere", "'nowhere' is not a sweep's folder (there is no sweep.json in it)"),
    case("-m sweep_dir=nowhere", "'nowhere' is not a sweep's folder (there is no sweep.json in it)"),
    case("-m trainer.seed=1,2 sweep.gpus_per_job=2 sweep.jobs_per_gpu=2", "a job has several GPUs, or shares one"),
    case("-m trainer.seed=1,2 sweep.cpu_slots=0", "sweep.cpu_slots must be at least 1, got 0."),
    case("-m trainer.seed=1,2 sweep.direction=up", "sweep.direction"),
    case("trainer.lr", "'trainer.lr' lacks its value: trainer.lr=VALUE"),
    case(["preview", "two words"], "'two words' is no override"),
    case(["patch=[liger,", "lora]"], "A list has no spaces in it: patch=[liger,lora]"),
    case(
        "train rows.jsonl",
        "'rows.jsonl' is a data file",
        "dataset=files dataset.path=rows.jsonl",
        prepare=files(**{"rows.jsonl": "{}"}),
    ),
    case("model=tiny preview", "The verb comes first: python -m dumbo preview"),
    case("model=tiny verify", "The verb comes first: python -m dumbo verify"),
    case("audit", "'audit' has keys of its own: audit.KEY=VALUE"),
    case("--lr=3", "unrecognized arguments: --lr=3", "dumbo --help"),
    case("--config-dir=nowhere", "there is no folder 'nowhere'"),
    case("--info trianer", "there is no group or verb 'trianer'. Did you mean 'trainer'?"),
    case("preview -m trainer.seed=1,2", "cannot sweep over preview"),
    case("chat run=last chat.prompt=hello", "there is no run below outputs/", "run=FOLDER"),
    case("chat run=nowhere chat.prompt=hello", "'nowhere' is not a run's folder"),
    case("resume=nowhere", "resume: 'nowhere' is not a run's folder", "resume=FOLDER"),
    case("repeat=nowhere", "repeat: 'nowhere' is not a run's folder"),
    case("mine.yml", "There is no file 'mine.yml'. Did you mean 'mine.yaml'?", prepare=files(mine__yaml="trainer:\n")),
    case("mine.yaml", "must hold a mapping", prepare=files(mine__yaml="- model\n- patch\n")),
    case("mine.yaml", "is not valid YAML", "line 2", prepare=files(mine__yaml="trainer:\n  lr: [1\n")),
    case("mine.yaml", "trainer has no key 'lrr'", "trainer.lr", prepare=files(mine__yaml="trainer:\n  lrr: 1\n")),
    case(
        "mine.yaml",
        "model is the text 'smollm'",
        "override /model: smollm",
        prepare=files(mine__yaml="model: smollm\n"),
    ),
]
TARGETS = [
    case(f"--config-dir=my {group}={chosen}", *says, prepare=conf(f"{group}/bad.yaml", text))
    for group, chosen, text, says in (
        ("model", "bad", "_target_: os.system\ncommand: ls\n", ("'os.system' is not allowed", "--config-dir")),
        ("model", "bad", "_target_: subprocess.Popen\nargs: ls\n", ("'subprocess.Popen' is not allowed",)),
        ("model", "bad", "_target_: dumbo.model.pretrained.Path\n", ("only an import of pathlib.Path",)),
        ("model", "bad", "_target_: cli_error_plugins.Popen\n", ("only an import of subprocess.Popen",)),
        ("model", "bad", "_target_: cli_error_plugins.function\n", ("is not a class",)),
        ("model", "bad", "_target_: cli_error_plugins.NoMethod\n", ("lacks the methods load_tokenizer, load_model",)),
        ("model", "bad", "_target_: cli_error_plugins.NoMehtod\n", ("Did you mean 'NoMethod'?",)),
        ("model", "bad", "_target_: dumbo.model.tny.Tiny\n", ("no module 'dumbo.model.tny'", "'tiny'")),
        ("model", "bad", "_target_: dumbo.model.tiny.Tiny\ndtype:\n  a:\n    - _target_: os.system\n",
         ("model.dtype.a.0", "'os.system' is not allowed")),
        ("patch", "[bad]", "_target_: dumbo.patch.lora.LoRA\n", ("lacks the first line", "# @package patch.NAME")),
    )
]  # fmt: skip
TOUCH = "{_target_: pathlib.Path.touch, self: {_target_: pathlib.Path, _args_: [pwned]}}"
FACTORY = "{version: 1, handlers: {h: {(): pathlib.Path, _args_: [x]}}, root: {handlers: [h]}}"
HYDRA = [
    case(words, *says, prepare=files(mine__yaml=text))
    for text, says in (
        (f"hydra: {{callbacks: {{x: {TOUCH}}}}}\n", ("hydra.callbacks cannot be set", "--config-dir")),
        (f"what: {{x: {TOUCH}}}\nhydra: {{callbacks: '${{what}}'}}\n", ("hydra.callbacks cannot be set",)),
        (f"hydra: {{job_logging: {FACTORY}}}\n", ("hydra.job_logging cannot be set", "dumbo.log")),
        (f"hydra: {{hydra_logging: {FACTORY}}}\n", ("hydra.hydra_logging cannot be set", "dumbo.log")),
        ("hydra: {launcher: {_target_: os.system, command: ls}}\n",
         ("hydra.launcher._target_ 'os.system' is not allowed", "hydra/launcher=NAME")),
        (f"hydra: {{launcher: {{x: [{{y: {TOUCH}}}]}}}}\n", ("hydra.launcher.x.0.y._target_ 'pathlib.Path.touch' is not allowed",)),
        (f"what: {TOUCH}\nhydra: {{launcher: {{x: '${{what}}'}}}}\n", ("hydra.launcher.x._target_ 'pathlib.Path.touch'",)),
        ("name: os.system\nhydra: {launcher: {_target_: '${name}'}}\n", ("hydra.launcher._target_ '${name}' is not allowed",)),
        ("hydra: {launcher: {x: '${nowhere}'}}\n", ("hydra.launcher cannot be resolved",)),
        ("hydra: {launcher: {x: \"${oc.create:'{_target_: a.b}'}\"}}\n", ("hydra.launcher.x._target_ 'a.b' is not allowed",)),
        ("y: '{_target_: a.b}'\nhydra: {launcher: {x: ['${oc.decode:${y}}']}}\n", ("hydra.launcher.x.0._target_ 'a.b' is not allowed",)),
        ("hydra: {launcher: {setup: [touch pwned]}}\n", ("hydra.launcher.setup: a file sets it", "hydra.launcher.setup=…")),
        ("hydra: {sweeper: {_target_: os.system}}\n", ("hydra.sweeper._target_ 'os.system' is not allowed",)),
        ("hydra: {job: {env_set: {LD_PRELOAD: x.so}}}\n", ("hydra.job.env_set cannot be set", "NAME=VALUE python -m dumbo")),
        ("hydra: {job: {chdir: true}}\n", ("hydra.job.chdir cannot be set", "run_dir=FOLDER")),
        ("hydra: {run: {dir: elsewhere}}\n", ("hydra.run.dir cannot be set", "run_dir=FOLDER")),
        ("hydra: {sweep: {dir: elsewhere}}\n", ("hydra.sweep.dir cannot be set", "sweep_dir=FOLDER")),
        ("hydra: {searchpath: ['pkg://antigravity']}\n", ("hydra.searchpath",)),
        ("hydra: {sweeper: {params: {model.trust_remote_code: true}}}\n",
         ("hydra.sweeper.params: 'model.trust_remote_code' cannot be swept from a file",)),
        ("hydra: {sweeper: {params: {++hydra.callbacks.x: 1}}}\n", ("'++hydra.callbacks.x' cannot be swept from a file",)),
        ("defaults: [{override /model: pretrained}]\nmodel: {path: a/b, trust_remote_code: true}\n",
         ("model.trust_remote_code: a file sets it", "model.trust_remote_code=…")),
        ("chat: {trust_remote_code: true}\n", ("chat.trust_remote_code: a file sets it",)),
    )
    for words in (["mine.yaml"], ["-m", "mine.yaml", "trainer.seed=1,2", "sweep_dir=sweep"])
] + [
    case(words, *says)
    for words, says in (
        ("+hydra.callbacks.x._target_=pathlib.Path.cwd", ("hydra.callbacks cannot be set",)),
        ("hydra/job_logging=default", ("hydra.job_logging cannot be set",)),
        ("hydra.verbose=true", ("hydra.verbose cannot be set", "dumbo.log")),
        ("-m hydra.launcher._target_=os.system trainer.seed=1,2", ("'os.system' is not allowed",)),
        ("--cfg job +hydra.job.env_set.A=1", ("hydra.job.env_set cannot be set",)),
        ("-m --cfg job trainer.seed=1,2", ("-m runs a sweep; --cfg only shows one run",)),
    )
]  # fmt: skip
DATA = [
    case("dataset=files dataset.path=nowhere.jsonl", "no file 'nowhere.jsonl'"),
    case("dataset=files", "dataset.path must be set"),
    case("dataset=files dataset.path=rows.jsonl", "rows.jsonl", prepare=files(rows__jsonl="")),
    case("dataset=files dataset.path=.", "holds no data file", prepare=files(notes__doc="x")),
    case("dataset=files dataset.path=rows.jsonl", "rows.jsonl, line 1", "assistant", "on_bad_row=skip",
         prepare=files(rows__jsonl='{"messages": [{"role": "user", "content": "hi"}]}\n')),
    case("dataset=files dataset.path=rows.jsonl", "rows.jsonl, line 9", "'answer'", "on_bad_row=skip",
         prepare=files(rows__jsonl=ROWS + '{"question": "and now?", "answer": ""}\n')),
    case("dataset=files dataset.path=rows.jsonl", "rows.jsonl, line 2", "on_bad_row=skip",
         prepare=files(rows__jsonl=ROWS.splitlines()[0] + '\n{"question": \n')),
    case(["formatter=jinja", "formatter.template='{% for m in messages %}'"], "formatter.template", "syntax error", "endfor"),
    case(["formatter=jinja", "formatter.template='{{ messages.__class__ }}'"], "formatter.template", "__class__"),
    case("formatter=jinja formatter.template=nowhere.jinja", "there is no file 'nowhere.jinja'"),
]  # fmt: skip
FOLDERS = [
    case("run_dir=old", "there is a run in old already", "resume=old", prepare=run_folder),
    case("run_dir=mine", "the folder mine is not empty", "run_dir=FOLDER", prepare=other_files),
    case("run_dir=file__txt".replace("__", "."), "run_dir: 'file.txt' is a file", prepare=files(file__txt="x")),
    case("run_dir=file.txt/below", "cannot be written", "run_dir=FOLDER", prepare=files(file__txt="x")),
    case("run_dir=/proc/nowhere/run", "cannot be written", "run_dir=FOLDER"),
    case("resume=old run_dir=other", "resume=old goes on in its own folder", prepare=run_folder),
]
MODELS = [
    case("model=pretrained model.path=./modle", "there is no './modle'. Did you mean 'model'?", prepare=no_weights),
    case("model=smollm", "HuggingFaceTB/SmolLM2-135M is not cached here", "model.path=FOLDER", "model=smollm_gguf"),
    case("model=pretrained model.path=x.gguf", "x.gguf", "GGUF", prepare=not_gguf),
    case(f"{LOCAL} trainer.max_seq_len=64", "has no safetensors weights", prepare=no_weights),
    case(f"{LOCAL} trainer.max_seq_len=64", "has no safetensors weights", "model.allow_pickle=true", prepare=pickled),
    case(f"{LOCAL} trainer.max_seq_len=4096", "trainer.max_seq_len is 4,096", "context is 128 tokens", "trainer.max_seq_len=128",
         prepare=local_model),
    case(f"{LOCAL} patch=[lora] patch.lora.target_modules=[q_prok]", "patch.lora.target_modules", "'q_prok'", "'q_proj'",
         prepare=local_model),
]  # fmt: skip
ALL = [*NAMES, *VALUES, *WORDS, *TARGETS, *HYDRA, *DATA, *FOLDERS, *MODELS]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every model whose weights are loaded or made for real while the test runs (skeletons on meta are none)."""
    from dumbo.model.gguf import Gguf
    from dumbo.model.pretrained import Pretrained
    from dumbo.model.tiny import Tiny

    seen: list[str] = []
    for cls in (Tiny, Pretrained, Gguf):
        real = cls.load_model

        def spy(self, *args, _real=real, **kwargs):
            model = _real(self, *args, **kwargs)
            seen.append(type(self).__name__)
            return model

        monkeypatch.setattr(cls, "load_model", spy)
    return seen


@pytest.fixture(autouse=True)
def _hub_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def asked(wrong: Case) -> list[str]:
    """The words, with what keeps a run that should not have begun short."""
    words = list(wrong.words)
    trains = not any(
        word in ("preview", "chat", "-m", "sweep", "evaluate", "trian") or word.startswith("--info") for word in words
    )
    typed = {word.split("=")[0] for word in words}
    return words + (
        [word for word in TINY if word.split("=")[0] not in typed | {"run_dir" if "resume" in typed else ""}]
        if trains
        else []
    )


def test_there_are_many() -> None:
    assert len(ALL) >= 80


@pytest.mark.parametrize("wrong", ALL, ids=str)
def test_wrong_input_is_said(
    wrong: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str], loaded: list[str]
) -> None:
    if "wandb is not installed" in "".join(wrong.says) and __import__("importlib").util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    wrong.prepare(tmp_path)
    capsys.readouterr()
    code = main(asked(wrong))
    said = capsys.readouterr()
    everything = said.out + said.err
    assert code == 2, everything
    assert "Traceback" not in everything
    for text in wrong.says:
        assert text in said.err, f"{text!r} is not in\n{said.err}"
    assert len(said.err.splitlines()) <= SCREEN
    assert max(map(len, said.err.splitlines())) <= 1500, "no dump of a giant list"
    assert loaded == [], "weights were loaded"


def test_liger_and_an_architecture_that_it_does_not_know(tmp_path, capsys, loaded) -> None:
    pytest.importorskip("liger_kernel.transformers.monkey_patch")
    local_model(tmp_path)
    code = main([*LOCAL.split(), "patch=[liger]", "trainer.max_seq_len=64", *TINY])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "no kernels for the architecture 'gpt_neo'" in said
    assert "without liger" in said
    assert loaded == []


def test_all_faults_of_a_config_come_together(capsys) -> None:
    """Nobody should mend them one start at a time."""
    code = main(
        [
            "trainer.lr=fast",
            "+trainer.sede=1",
            "trainer.too_long=cut",
            "patch=[lora]",
            "patch.lora.rank=x",
            "verify.mode=on",
        ]
    )
    said = capsys.readouterr().err
    assert code == 2
    for text in (
        "trainer.lr must",
        "no key 'sede'. Did you mean trainer.seed?",
        "trainer.too_long must",
        "patch.lora.rank must",
        "verify.mode must",
    ):
        assert text in said


def test_a_fault_that_problems_raises_is_said_with_the_others(tmp_path, capsys) -> None:
    conf("patch/bad.yaml", "# @package patch.bad\n_target_: raising_problems.P\n")(tmp_path)
    (tmp_path / "my" / "raising_problems.py").write_text(
        "class P:\n    def apply(self, model): ...\n    def problems(self): raise ValueError('neither here nor there')\n"
    )
    code = main(["--config-dir=my", "patch=[bad]", "trainer.max_time=1.2.3h", *TINY])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "patch.bad: neither here nor there" in said
    assert "trainer.max_time is seconds above 0" in said


def test_text_of_others_cannot_drive_the_terminal(tmp_path, capsys) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "\\u001b[2J\\u202e x", "answer": ""}\n')
    assert main(["dataset=files", "dataset.path=rows.jsonl", *TINY]) == 2
    said = capsys.readouterr()
    assert not {"\x1b", "\u202e"} & set(said.err + said.out)


def test_a_fault_found_after_the_start_stands_in_run_json(tmp_path, capsys) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": ""}\n')
    assert main(["dataset=files", "dataset.path=rows.jsonl", *TINY]) == 2
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["status"] == "failed"
    assert "'answer'" in facts["error"]


def test_from_python_the_same_fault_is_an_exception() -> None:
    import dumbo
    from dumbo.errors import UserError

    with pytest.raises(UserError, match=r"Did you mean trainer\.lr"):
        dumbo.run(["trainer.lrr=1"])
    with pytest.raises(UserError, match="trains one experiment"):
        dumbo.run(["preview"])
    assert os.path.basename(sys.argv[0]) != "dumbo"
