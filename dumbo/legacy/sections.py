"""The sections of the older plugin format, key by key, as overrides.

    model, transformers, peft, liger     -> model=…, patch=[…]
    datasets, dataset, validation_split  -> dataset=…, formatter=…
    trainer.arguments                    -> trainer.…; TrainingArguments of no other name -> ++trainer.extra.…
    plugins, wandb                       -> patch=[…], tracker=[…]

Each function takes a section's node and its full name, and adds to `words`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dumbo.errors import UserError
from dumbo.legacy.names import (
    DATASET_TYPES,
    FILE_KINDS,
    FORMATS,
    LIGER_KEYS,
    LORA_KEYS,
    PLUGINS,
    TOKENIZER_KEYS,
    TRAINER_KEYS,
)
from dumbo.legacy.overrides import Handler, Overrides
from dumbo.override_text import value_text
from dumbo.suggest import did_you_mean
from dumbo.trainer.extra import refusal
from dumbo.trainer.names import training_argument_names


def handlers(words: Overrides) -> dict[str, Handler]:
    """What handles each key at the top of a file."""
    return {
        "model": partial(_model, words),
        "datasets": partial(_datasets, words),
        "dataset": lambda value, at: _datasets(words, [value], at),
        "trainer": partial(_trainer, words),
        "plugins": partial(_plugins, words),
        "liger": partial(_liger, words),
        "peft": partial(_peft, words),
        "transformers": partial(_transformers, words),
        "wandb": partial(_wandb, words),
        "validation_split": partial(_validation_split, words),
    }


def _model(words: Overrides, node: Any, path: str) -> None:
    plain = words.into(
        words.model,
        "model",
        {
            "revision": "revision",
            "attn_implementation": "attn_implementation",
            "torch_dtype": "dtype",
            "dtype": "dtype",
        },
    )
    tokens = words.into(words.model, "model.tokenizer", {key: key for key in TOKENIZER_KEYS})
    words.model.append("model=pretrained")
    words.each(
        node,
        path,
        {
            **plain,
            "base_model": lambda value, at: words.model.append(f"model.path={value_text(value)}"),
            "tokenizer": lambda value, at: words.each(value, at, tokens),
            "liger": partial(_liger, words),
            "peft": partial(_peft, words),
        },
    )


def _liger(words: Overrides, node: Any, path: str) -> None:
    own = words.chosen(node, words.patches, "liger")
    if own is None:
        return
    words.each(node, path, words.into(own, "patch.liger", {key: key for key in LIGER_KEYS}))


def _peft(words: Overrides, node: Any, path: str) -> None:
    words.each(node, path, {"lora": partial(_lora, words)})


def _lora(words: Overrides, node: Any, path: str) -> None:
    own = words.chosen(node, words.patches, "lora")
    if own is not None:
        words.each(node, path, words.into(own, "patch.lora", LORA_KEYS))


def _transformers(words: Overrides, node: Any, path: str) -> None:
    words.each(node, path, {"trainer": partial(_trainer, words), "model": partial(_model, words)})


def _trainer(words: Overrides, node: Any, path: str) -> None:
    known = words.into(words.trainer, "trainer", TRAINER_KEYS)
    known["bf16"] = lambda value, at: words.trainer.append(f"trainer.precision={'bf16' if value else 'fp32'}")
    known["gradient_checkpointing"] = lambda value, at: (
        words.patches.setdefault("gradient_checkpointing", []) if value else None
    )
    known["output_dir"] = lambda value, at: words.trainer.append(f"run_dir={value_text(value)}")
    extra = [key for key in training_argument_names() if key not in known and refusal(key) is None]
    known |= words.into(words.trainer, "++trainer.extra", {key: key for key in extra})
    words.each(node, path, {"arguments": lambda value, at: words.each(value, at, known)})


def _datasets(words: Overrides, node: Any, path: str) -> None:
    if not isinstance(node, list) or len(node) != 1:
        amount = len(node) if isinstance(node, list) else 0
        raise UserError(
            f"{words.name}: {path} holds {amount} data sets; one is supported.\n"
            "  Several files go into one: dataset=files dataset.path=[a.jsonl,b.jsonl]"
        )
    entry = node[0]
    kind = str(entry.get("type", "huggingface_polars")) if isinstance(entry, Mapping) else ""
    if kind not in DATASET_TYPES:
        raise UserError(
            f"{words.name}: {path}.type '{kind}' is not known.{did_you_mean(kind, DATASET_TYPES)}\n  types: {', '.join(DATASET_TYPES)}"
        )
    words.dataset.append(f"dataset={DATASET_TYPES[kind]}")
    if FILE_KINDS.get(kind, "auto") != "auto":
        words.dataset.append(f"dataset.kind={FILE_KINDS[kind]}")
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
    known = words.into(words.dataset, "dataset", names)
    known |= {
        "type": lambda value, at: None,
        "data_format": partial(_data_format, words),
        "train_format": partial(_train_format, words),
    }
    words.each(entry, f"{path}[0]", known)


def _data_format(words: Overrides, value: Any, path: str) -> None:
    if value not in FORMATS:
        raise UserError(
            f"{words.name}: {path} '{value}' is not known.{did_you_mean(str(value), FORMATS)}\n  formats: {', '.join(FORMATS)}"
        )
    words.dataset.append(f"dataset.data_format={value}")


def _train_format(words: Overrides, node: Any, path: str) -> None:
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
            f"{words.name}: {path}.type '{kind}' is not known.{did_you_mean(kind, kinds)}\n  types: {', '.join(kinds)}"
        )
    words.formatter.append(f"formatter={kinds[kind]}")
    known: dict[str, Handler] = {"type": lambda value, at: None}
    if kind == "jinja_messages":
        known |= words.into(words.formatter, "formatter", {"template": "template"})
    if isinstance(node, Mapping):
        words.each(node, path, known)


def _validation_split(words: Overrides, value: Any, path: str) -> None:
    words.dataset.append(f"dataset.eval_fraction={value_text(value)}")


def _wandb(words: Overrides, node: Any, path: str) -> None:
    own = words.chosen(node, words.trackers, "wandb")
    if own is not None:
        words.each(
            node,
            path,
            words.into(
                own,
                "tracker.wandb",
                {"project": "project", "entity": "entity", "name": "name", "run_name": "name", "mode": "mode"},
            ),
        )


def _plugins(words: Overrides, node: Any, path: str) -> None:
    if not isinstance(node, list):
        raise UserError(f"{words.name}: {path} must be a list of names.")
    for plugin in node:
        if plugin not in PLUGINS:
            raise UserError(
                f"{words.name}: the plugin '{plugin}' is not known.{did_you_mean(str(plugin), PLUGINS)}\n  plugins: {', '.join(PLUGINS)}"
            )
        if plugin == "liger":
            words.patches.setdefault("liger", [])
        elif plugin in ("peft", "lora"):
            words.patches.setdefault("lora", [])
        elif plugin == "wandb":
            words.trackers.setdefault("wandb", [])
