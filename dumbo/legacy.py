"""The older plugin format, translated: `dumbo FILE.yaml` where FILE has `plugins:`, `datasets:`, `trainer.arguments`.

    model:    {base_model: ID, tokenizer: {pad_token: …}, liger: {rope: true}}
    datasets: [{path: ID, type: huggingface_polars, data_format: alpaca, train_format: {type: jinja_messages, template: "…"}}]
    trainer:  {arguments: {batch_size: 16, physical_batch_size: 1, learning_rate: 1e-4}}
    plugins:  [transformers, transformers_trainer, liger, polars, jinja_formatter]

Every key is used, or refused by name. The equivalent command line is printed, so that the file can be left behind.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dumbo.command import Command
from dumbo.errors import UserError
from dumbo.outputs.printable import printable
from dumbo.outputs.secrets import masked_words
from dumbo.override_text import value_text
from dumbo.suggest import did_you_mean
from dumbo.trainer.extra import refusal
from dumbo.trainer.names import training_argument_names

Handler = Callable[[Any, str], Any]
"""Takes a key's value and its full name."""

MARKS = ("plugins", "datasets")
"""A file with one of these at its top level is in the older format."""

TRAINER_KEYS = {
    "batch_size": "global_batch_size", "physical_batch_size": "micro_batch_size", "learning_rate": "lr", "lr_scheduler_type": "lr_scheduler",
    "lr_scheduler": "lr_scheduler", "warmup_steps": "warmup_steps", "warmup_ratio": "warmup_steps", "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm", "optim": "optimizer", "optimizer": "optimizer", "num_train_epochs": "num_epochs", "epochs": "num_epochs",
    "num_epochs": "num_epochs", "max_steps": "max_steps", "seed": "seed", "eval_steps": "eval_every", "save_steps": "save_every",
    "logging_steps": "log_every", "max_seq_len": "max_seq_len", "max_seq_length": "max_seq_len", "max_length": "max_seq_len",
    "packing": "packing", "save_total_limit": "save_total_limit", "per_device_train_batch_size": "micro_batch_size",
}  # fmt: skip
HINTS = {
    "gradient_accumulation_steps": "It is batch_size / physical_batch_size: leave it out.",
    "fp16": "Write bf16: true, or leave it out (bf16 where the GPU has it, else fp32).",
    "task_type": "It is always CAUSAL_LM: leave it out.",
}
"""What to do about keys that follow from others."""
MOST_NAMED = 30
"""Keys listed in an error; further TrainingArguments are known too."""
TOKENIZER_KEYS = ("pad_token", "eos_token", "bos_token", "chat_template", "added_tokens")
LIGER_KEYS = ("rope", "rms_norm", "swiglu", "cross_entropy", "fused_linear_cross_entropy")
LORA_KEYS = {
    "r": "rank", "rank": "rank", "lora_alpha": "alpha", "alpha": "alpha", "lora_dropout": "dropout", "dropout": "dropout",
    "target_modules": "target_modules", "bias": "bias", "modules_to_save": "modules_to_save", "use_dora": "use_dora", "use_rslora": "use_rslora",
}  # fmt: skip
DATASET_TYPES = {
    "huggingface_polars": "hub", "huggingface": "hub", "csv_polars": "files", "json_polars": "files", "parquet_polars": "files",
}  # fmt: skip
FILE_KINDS = {"csv_polars": "csv", "json_polars": "auto", "parquet_polars": "parquet"}
PLUGINS = (
    "transformers", "transformers_trainer", "huggingface", "liger", "peft", "lora", "polars", "datasets", "jinja_formatter", "wandb",
    "chat_formatter", "accelerate",
)  # fmt: skip
"""Plugins of the older format; what they did is a group's choice, or always there."""
FORMATS = ("alpaca", "sharegpt", "messages", "prompt_completion", "question_answer", "text")


def translated(command: Command) -> Command:
    """The command with an older file replaced by the overrides it stands for; other files pass unchanged."""
    assert command.file is not None
    data = _load(command.file)
    if data is None or not _is_older(data):
        return command
    overrides = translate(data, str(command.file))
    words = masked_words([*overrides, *command.overrides])
    line = " ".join(shlex.quote(word) for word in (*([command.verb] if command.verb != "train" else []), *words))
    said = f"{command.file.name} is in the older plugin format. The same as:\n  python -m dumbo {line}"
    print(printable(said, keep="\n"), file=sys.stderr)
    return replace(command, file=None, overrides=(*overrides, *command.overrides))


def _load(file: Path) -> dict[str, Any] | None:
    import yaml

    try:
        node = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    return {str(key): value for key, value in node.items()} if isinstance(node, dict) else None


def _is_older(data: Mapping[str, Any]) -> bool:
    model, trainer = data.get("model"), data.get("trainer")
    return (
        any(mark in data for mark in MARKS)
        or (isinstance(model, Mapping) and "base_model" in model)
        or (isinstance(trainer, Mapping) and "arguments" in trainer)
        or "transformers" in data
    )


def translate(data: Mapping[str, Any], name: str) -> list[str]:
    """Overrides that compose to the same experiment.

    Raises:
        UserError: a key or value that has no counterpart, by its full name.
    """
    return _Translation(name).run(data)


def _hint(key: str) -> str | None:
    """What to do about a key of transformers or peft that is set otherwise here."""
    why = refusal(key)
    return HINTS.get(key) or (f"Leave it out here: {why}" if why else None)


@dataclass
class _Translation:
    name: str
    model: list[str] = field(default_factory=list)
    patches: dict[str, list[str]] = field(default_factory=dict)
    dataset: list[str] = field(default_factory=list)
    formatter: list[str] = field(default_factory=list)
    trainer: list[str] = field(default_factory=list)
    trackers: dict[str, list[str]] = field(default_factory=dict)
    off: list[str] = field(default_factory=list)

    def run(self, data: Mapping[str, Any]) -> list[str]:
        known: dict[str, Handler] = {
            "model": self._model, "datasets": self._datasets, "dataset": lambda value, at: self._datasets([value], at), "trainer": self._trainer,
            "plugins": self._plugins, "liger": self._liger, "peft": self._peft, "transformers": self._transformers, "wandb": self._wandb,
            "validation_split": self._validation_split,
        }  # fmt: skip
        self._require(data)
        self._each(data, "", known)
        words = [*self.model]
        if self.patches:
            words += [f"patch=[{','.join(self.patches)}]", *[word for own in self.patches.values() for word in own]]
        words += [*self.dataset, *self.formatter, *self.trainer]
        if self.trackers:
            words += [f"tracker=[{','.join(self.trackers)}]", *[word for own in self.trackers.values() for word in own]]
        self._refuse_contradictions(words)
        return list(dict.fromkeys(words))

    def _require(self, data: Mapping[str, Any]) -> None:
        """An experiment of that format names its model and its data; dumbo's own defaults are not meant."""
        transformers = data.get("transformers")
        places = [data.get("model"), transformers.get("model") if isinstance(transformers, Mapping) else None]
        if not any(isinstance(place, Mapping) and place.get("base_model") for place in places):
            raise UserError(f"{self.name}: it names no model.\n  Write model: {{base_model: HUB_ID_OR_FOLDER}}")
        if not (data.get("datasets") or data.get("dataset")):
            raise UserError(f"{self.name}: it names no data set.\n  Write datasets: [{{path: …, type: json_polars}}]")

    def _refuse_contradictions(self, words: list[str]) -> None:
        said: dict[str, str] = {}
        for word in words:
            key, _, value = word.partition("=")
            if said.setdefault(key, value) != value:
                raise UserError(
                    f"{self.name}: {key} is set twice, to {said[key]} and to {value}.\n  Leave one of them out."
                )
        for name in self.off:
            if name in self.patches or name in self.trackers:
                raise UserError(f"{self.name}: {name} is false, but chosen too.\n  Leave one of them out.")

    def _chosen(self, node: Any, path: str, chosen: dict[str, list[str]], name: str) -> list[str] | None:
        """The words of a patch or tracker that a section turns on; None when it turns it off, or has no keys."""
        if node is False:
            self.off.append(name)
            return None
        words = chosen.setdefault(name, [])
        return None if node is True else words

    def _each(self, node: Any, path: str, known: Mapping[str, Handler]) -> None:
        """Hands each key of a mapping to its handler; refuses the others by name."""
        if not isinstance(node, Mapping):
            raise UserError(f"{self.name}: {path or 'the file'} must be a mapping, got {node!r}.")
        for key, value in node.items():
            at = f"{path}.{key}" if path else str(key)
            if str(key) not in known:
                hint = _hint(str(key)) if path.endswith(("arguments", "lora")) else None
                near = "" if hint else did_you_mean(str(key), known)
                hint = hint or f"keys known there: {', '.join(list(known)[:MOST_NAMED])}" + ", …" * (
                    len(known) > MOST_NAMED
                )
                raise UserError(f"{self.name}: the key '{at}' has no counterpart.{near}\n  {hint}")
            if value is None and str(key) in ("liger", "lora", "peft", "wandb"):
                raise UserError(f"{self.name}: '{at}' is empty.\n  Write its keys, or leave it out.")
            if value is not None:
                known[str(key)](value, at)

    def _into(self, words: list[str], prefix: str, names: Mapping[str, str]) -> dict[str, Handler]:
        """Handlers that turn keys into `prefix.name=value`."""

        def handler(new: str) -> Handler:
            return lambda value, at: words.append(f"{prefix}.{new}={value_text(value)}")

        return {old: handler(new) for old, new in names.items()}

    def _model(self, node: Any, path: str) -> None:
        plain = self._into(
            self.model,
            "model",
            {
                "revision": "revision",
                "attn_implementation": "attn_implementation",
                "torch_dtype": "dtype",
                "dtype": "dtype",
            },
        )
        tokens = self._into(self.model, "model.tokenizer", {key: key for key in TOKENIZER_KEYS})
        self.model.append("model=pretrained")
        self._each(
            node,
            path,
            {
                **plain,
                "base_model": lambda value, at: self.model.append(f"model.path={value_text(value)}"),
                "tokenizer": lambda value, at: self._each(value, at, tokens),
                "liger": self._liger,
                "peft": self._peft,
            },
        )

    def _liger(self, node: Any, path: str) -> None:
        words = self._chosen(node, path, self.patches, "liger")
        if words is None:
            return
        self._each(node, path, self._into(words, "patch.liger", {key: key for key in LIGER_KEYS}))

    def _peft(self, node: Any, path: str) -> None:
        self._each(node, path, {"lora": self._lora})

    def _lora(self, node: Any, path: str) -> None:
        words = self._chosen(node, path, self.patches, "lora")
        if words is not None:
            self._each(node, path, self._into(words, "patch.lora", LORA_KEYS))

    def _transformers(self, node: Any, path: str) -> None:
        self._each(node, path, {"trainer": self._trainer, "model": self._model})

    def _trainer(self, node: Any, path: str) -> None:
        known = self._into(self.trainer, "trainer", TRAINER_KEYS)
        known["bf16"] = lambda value, at: self.trainer.append(f"trainer.precision={'bf16' if value else 'fp32'}")
        known["gradient_checkpointing"] = lambda value, at: (
            self.patches.setdefault("gradient_checkpointing", []) if value else None
        )
        known["output_dir"] = lambda value, at: self.trainer.append(f"run_dir={value_text(value)}")
        extra = [key for key in training_argument_names() if key not in known and refusal(key) is None]
        known |= self._into(self.trainer, "++trainer.extra", {key: key for key in extra})
        self._each(node, path, {"arguments": lambda value, at: self._each(value, at, known)})

    def _datasets(self, node: Any, path: str) -> None:
        if not isinstance(node, list) or len(node) != 1:
            amount = len(node) if isinstance(node, list) else 0
            raise UserError(
                f"{self.name}: {path} holds {amount} data sets; one is supported.\n"
                "  Several files go into one: dataset=files dataset.path=[a.jsonl,b.jsonl]"
            )
        entry = node[0]
        kind = str(entry.get("type", "huggingface_polars")) if isinstance(entry, Mapping) else ""
        if kind not in DATASET_TYPES:
            raise UserError(
                f"{self.name}: {path}.type '{kind}' is not known.{did_you_mean(kind, DATASET_TYPES)}\n  types: {', '.join(DATASET_TYPES)}"
            )
        self.dataset.append(f"dataset={DATASET_TYPES[kind]}")
        if FILE_KINDS.get(kind, "auto") != "auto":
            self.dataset.append(f"dataset.kind={FILE_KINDS[kind]}")
        names = {
            "path": "path",
            "limit": "limit",
            "validation_split": "eval_fraction",
            "revision": "revision",
            "name": "config",
            "split": "split",
        }
        if DATASET_TYPES[kind] == "files":
            names = {key: names[key] for key in ("path", "limit", "validation_split")}
        known = self._into(self.dataset, "dataset", names)
        known |= {"type": lambda value, at: None, "data_format": self._data_format, "train_format": self._train_format}
        self._each(entry, f"{path}[0]", known)

    def _data_format(self, value: Any, path: str) -> None:
        if value not in FORMATS:
            raise UserError(
                f"{self.name}: {path} '{value}' is not known.{did_you_mean(str(value), FORMATS)}\n  formats: {', '.join(FORMATS)}"
            )
        self.dataset.append(f"dataset.data_format={value}")

    def _train_format(self, node: Any, path: str) -> None:
        kinds = {
            "jinja_messages": "jinja",
            "chat": "chat",
            "chat_template": "chat",
            "completion": "completion",
            "text": "text",
        }
        kind = str(node.get("type")) if isinstance(node, Mapping) else str(node)
        if kind not in kinds:
            raise UserError(
                f"{self.name}: {path}.type '{kind}' is not known.{did_you_mean(kind, kinds)}\n  types: {', '.join(kinds)}"
            )
        self.formatter.append(f"formatter={kinds[kind]}")
        known: dict[str, Handler] = {"type": lambda value, at: None}
        if kind == "jinja_messages":
            known |= self._into(self.formatter, "formatter", {"template": "template"})
        if isinstance(node, Mapping):
            self._each(node, path, known)

    def _validation_split(self, value: Any, path: str) -> None:
        self.dataset.append(f"dataset.eval_fraction={value_text(value)}")

    def _wandb(self, node: Any, path: str) -> None:
        words = self._chosen(node, path, self.trackers, "wandb")
        if words is not None:
            self._each(
                node,
                path,
                self._into(
                    words,
                    "tracker.wandb",
                    {"project": "project", "entity": "entity", "name": "name", "run_name": "name", "mode": "mode"},
                ),
            )

    def _plugins(self, node: Any, path: str) -> None:
        if not isinstance(node, list):
            raise UserError(f"{self.name}: {path} must be a list of names.")
        for plugin in node:
            if plugin not in PLUGINS:
                raise UserError(
                    f"{self.name}: the plugin '{plugin}' is not known.{did_you_mean(str(plugin), PLUGINS)}\n  plugins: {', '.join(PLUGINS)}"
                )
            if plugin == "liger":
                self.patches.setdefault("liger", [])
            elif plugin in ("peft", "lora"):
                self.patches.setdefault("lora", [])
            elif plugin == "wandb":
                self.trackers.setdefault("wandb", [])
