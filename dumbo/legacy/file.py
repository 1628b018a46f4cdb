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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dumbo.command import Command
from dumbo.errors import UserError
from dumbo.legacy.overrides import Overrides
from dumbo.legacy.sections import handlers
from dumbo.outputs.printable import printable
from dumbo.outputs.secrets import masked_words

MARKS = ("plugins", "datasets")
"""A file with one of these at its top level is in the older format."""


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
    _require_model_and_data(data, name)
    words = Overrides(name)
    words.each(data, "", handlers(words))
    return words.in_order()


def _require_model_and_data(data: Mapping[str, Any], name: str) -> None:
    """An experiment of that format names its model and its data; dumbo's own defaults are not meant."""
    transformers = data.get("transformers")
    places = [data.get("model"), transformers.get("model") if isinstance(transformers, Mapping) else None]
    if not any(isinstance(place, Mapping) and place.get("base_model") for place in places):
        raise UserError(f"{name}: it names no model.\n  Write model: {{base_model: HUB_ID_OR_FOLDER}}")
    if not (data.get("datasets") or data.get("dataset")):
        raise UserError(f"{name}: it names no data set.\n  Write datasets: [{{path: …, type: json_polars}}]")
