"""The state of a sharded run on disk: every rank writes its shards, any number of ranks reads them.

sharded/shard-*.safetensors   weights that train ("model.NAME") and optimizer state ("optimizer.state.NAME.exp_avg"),
                              each tensor in as many pieces as there were ranks
sharded/scalars.json          the optimizer's numbers that are no tensors (lr, betas, …)

Written and read by torch's distributed checkpointing in its safetensors form: no pickles, and a tensor is put together
again from its pieces whatever the sharding at reading. An unsharded checkpoint's optimizer is read here too, so that a
run may go on with another launch.

Source: https://docs.pytorch.org/docs/stable/distributed.checkpoint.html
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from dumbo.errors import RunFailed
from dumbo.launch.world import World
from dumbo.trainer.masters import stepped_on
from dumbo.trainer.sharded import is_sharded, reshard

FOLDER = "sharded"
SCALARS = "scalars.json"
NAMES = "optimizer_names.json"
"""In an unsharded checkpoint: parameter names in the order in which the optimizer numbers them."""


def is_sharded_checkpoint(checkpoint: Path) -> bool:
    return (checkpoint / FOLDER).is_dir()


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """This rank's tensors, by the names they have on disk, and the numbers that are none."""
    reshard(model)
    return _state(model, optimizer)


def save(tensors: dict[str, Any], scalars: dict[str, Any], checkpoint: Path, world: World) -> None:
    """Writes this rank's shards of what `state_of` found; called on every rank."""
    folder = checkpoint / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    writer = HuggingFaceStorageWriter(path=str(folder), save_distributed=True)
    with _as_exception():
        dcp.save(tensors, storage_writer=writer, process_group=world.group)
    if world.main:
        (folder / SCALARS).write_text(json.dumps(scalars))


def load_weights(model: torch.nn.Module, checkpoint: Path, world: World) -> None:
    """Weights of a sharded checkpoint into a model, sharded or whole."""
    reshard(model)
    own = _weights(model)
    _read({f"model.{name}": tensor for name, tensor in own.items()}, checkpoint, model, world)
    set_model_state_dict(model, own, options=StateDictOptions(strict=False))


def load_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path, world: World) -> None:
    """Optimizer state of a sharded checkpoint into an optimizer, of a sharded or a whole model."""
    tensors, scalars = _state(model, optimizer)
    wanted = {name: tensor for name, tensor in tensors.items() if name.startswith("optimizer.")}
    _read(wanted, checkpoint, model, world)
    stored = json.loads((checkpoint / FOLDER / SCALARS).read_text())
    flat = {name.removeprefix("optimizer."): value for name, value in {**scalars, **stored, **wanted}.items()}
    set_optimizer_state_dict(model, optimizer, flat, options=_FLAT)


def load_whole_weights(model: torch.nn.Module, checkpoint: Path) -> None:
    """Weights of an unsharded checkpoint (a model, or an adapter) into a sharded model: each rank keeps its part.

    Raises:
        RunFailed: a tensor of the checkpoint that the model has no place for.
    """
    reshard(model)
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Any] = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        for key, tensor in load_file(file).items():
            head, _, last = key.rpartition(".")
            name = next(
                (name for name in (key, f"{head}.default.{last}") if name in names), None
            )  # peft adds the adapter's name
            if name is None:
                raise RunFailed(f"{file} holds {key}, which the sharded model does not have; go on with launch=single.")
            found[name] = tensor
    set_model_state_dict(model, found, options=StateDictOptions(full_state_dict=True, strict=False))


def load_whole_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Optimizer state of an unsharded checkpoint into the optimizer of a sharded model: each rank keeps its part."""
    stored = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
    names: list[str] = json.loads((checkpoint / NAMES).read_text())
    by_name: dict[str, Any] = {
        "state": {names[number]: state for number, state in stored["state"].items()},
        "param_groups": [
            {**group, "params": [names[number] for number in group["params"]]} for group in stored["param_groups"]
        ],
    }
    set_optimizer_state_dict(model, optimizer, by_name, options=StateDictOptions(full_state_dict=True))


def names_in_order(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Parameter names as the optimizer numbers them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(stepped_on(parameter))] for group in optimizer.param_groups for parameter in group["params"]]


@contextmanager
def _as_exception() -> Iterator[None]:
    """torch's CheckpointException is no Exception, and tells of every rank: raised is what one of them met first."""
    try:
        yield
    except CheckpointException as failed:
        rank, (first, _) = min(failed.failures.items())
        raise OSError(getattr(first, "errno", None) or 0, f"{first} (rank {rank})") from failed


_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def _weights(model: torch.nn.Module) -> dict[str, Any]:
    """Name -> tensor (a shard, where it is sharded) of the parameters that train; tied ones once."""
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    state = get_model_state_dict(model)
    return {name: tensor for name, tensor in state.items() if name in trains}


def _state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and other numbers, by the names they have on disk."""
    found: Mapping[str, Any] = get_optimizer_state_dict(model, optimizer, options=_FLAT)
    tensors = {f"model.{name}": tensor for name, tensor in _weights(model).items()}
    scalars: dict[str, Any] = {}
    for name, value in found.items():
        target = tensors if isinstance(value, torch.Tensor) else scalars
        target[f"optimizer.{name}"] = value
    return tensors, scalars


def _read(tensors: dict[str, Any], checkpoint: Path, model: torch.nn.Module, world: World) -> None:
    """Fills tensors in place from the shards on disk."""
    alone = not is_sharded(model)  # every rank needs all of it: nothing to agree on
    reader = HuggingFaceStorageReader(path=str(checkpoint / FOLDER))
    with _as_exception():
        dcp.load(tensors, storage_reader=reader, process_group=None if alone else world.group, no_dist=alone)
