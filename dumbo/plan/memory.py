"""The memory that a run is going to need on each of its devices, by part, and whether it is there.

    rehearsal (`rehearse.py`) -> as the wrapper spreads it over ranks -> with what libraries take -> against what is free

DDP keeps a gradient of every trained parameter in its buckets all the time (with master weights and several micro batches
beside the float32 sums, which are not in them); FSDP2 keeps a share of weights, gradients
and optimizer, and gathers two layers whole while it computes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dumbo.launch.world import asked_by_environment
from dumbo.plan.longest import examples_of, longest
from dumbo.plan.rehearse import Counted, rehearse
from dumbo.plan.stand_in import StandIn, chosen_patches, stand_in
from dumbo.trainer.host_memory import available_memory
from dumbo.trainer.masters import idle_buckets

if TYPE_CHECKING:
    from dumbo.batch import Batch
    from dumbo.check import Plugins
    from dumbo.prepare.store import PreparedSplits

MIB = 1 << 20
FIXED = {"cpu": 36 * MIB, "cuda": 80 * MIB}
"""What libraries take once: on a CPU code and buffers that are touched first in training, on a GPU cuBLAS' workspaces."""
SCATTERED_FULL, SCATTERED_ADAPTERS = 0.27, 0.6
"""On a CPU glibc gives what is freed back to the system in part, less where small gradients and states lie between: this
share of what comes and goes is held besides (measured, docs/plan.md). Checkpointing turns that off."""
SPARE = {"cpu": 0.2, "cuda": 0.1}
"""A prediction is this far off at most: so much of the free memory is left alone when a micro batch is chosen by it."""


@dataclass(frozen=True)
class Memory:
    """What one rank needs.

    Attributes:
        parts: name -> bytes at the peak, in the order to show them.
        held: name -> bytes of weights, gradients and optimizer, a rank's share, whether they are whole at the peak or not.
        available: bytes free for a rank before it starts; None: not known.
        device: "cpu" or "cuda".
        assumed_optimizer: its state is an assumption.
    """

    parts: Mapping[str, int]
    held: Mapping[str, int]
    available: int | None
    device: str
    assumed_optimizer: bool = False

    @property
    def peak(self) -> int:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.available is None or self.peak <= self.available

    @property
    def surely_fits(self) -> bool:
        """With what a prediction may be off by."""
        return self.available is None or self.peak <= (1 - SPARE[self.device]) * self.available


def predict(
    plugins: Plugins, tokenizer: Any, data: PreparedSplits, batch: Batch, found: StandIn | None = None
) -> Memory:
    """Memory of a rank with this batch.

    Args:
        found: the patched model on the meta device, used up; None: it is made.
    """
    from pathlib import Path

    from dumbo.patch.chunked_loss import takes_places
    from dumbo.trainer.arguments import training_arguments
    from dumbo.trainer.collate import Collate, Room

    trainer, device = plugins.trainer, torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = found if found is not None else stand_in(plugins, tokenizer, chosen_patches(plugins, tokenizer, data))
    model: Any = found.model
    layout: Any = _layout(plugins, model)
    pad = tokenizer.pad_token_id
    room = None
    if "compile" in found.evidence:  # every batch is as long as there is room for, whatever its packs hold
        room = Room(batch.micro * data.max_seq_len, data.max_seq_len)
    collate = Collate(data.train.store, layout, pad if pad is not None else 0, room, takes_places(model))
    inputs = collate(longest(examples_of(trainer, data), data.train, batch.micro))
    inputs.pop("documents")
    wrapper = str(getattr(plugins.launch, "wrapper", "none")) if batch.ranks > 1 else "none"
    beside = trainer.master_weights and wrapper == "DDP" and batch.accumulation > 1
    buckets = idle_buckets(model.parameters()) if beside else 0
    layer, scattered = largest_layer(model), _scattered(model) if device.type == "cpu" else 0.0
    counted = rehearse(
        found,
        inputs,
        training_arguments(trainer, Path(), batch, evaluates=False),
        device,
        layout=layout,
        micro_batches=min(2, batch.accumulation),
        masters=trainer.master_weights,
        added_up_by_ddp=wrapper == "DDP" and batch.accumulation == 1,
    )
    free = free_memory(device, _ranks_here(plugins.launch))
    return spread(counted, wrapper, batch.ranks, layer, device.type, free, scattered, buckets)


def spread(
    counted: Counted,
    wrapper: str,
    ranks: int,
    layer: int,
    device: str,
    available: int | None,
    scattered: float = 0.0,
    buckets: int = 0,
) -> Memory:
    """A rehearsal as one of several ranks has it.

    Args:
        wrapper: none, DDP or FSDP2.
        layer: bytes of the largest layer's weights.
        scattered: share of what comes and goes that is held besides.
        buckets: bytes of DDP's, where the gradients are not in them.
    """
    at_peak = dict(counted.at_peak)
    held = {"weights": counted.weights, "gradients": counted.gradients, "optimizer": counted.optimizer}
    gathered = 0
    if wrapper == "DDP":
        held["gradients"] += buckets
        at_peak["gradients"] = held["gradients"]
    elif wrapper == "FSDP2":
        for name in held:
            at_peak[name] = -(-at_peak[name] // ranks)
            held[name] = -(-held[name] // ranks)
        gathered = 2 * layer
    parts = {
        "weights": at_peak["weights"],
        "gradients": at_peak["gradients"],
        "optimizer": at_peak["optimizer"],
        "activations": at_peak["activations"],
        "logits and loss": at_peak["loss"],
        "backward": at_peak["backward"],
        **({"gathered layers": gathered} if gathered else {}),
    }
    moving = sum(at_peak[name] for name in ("activations", "loss", "backward"))
    parts["libraries"] = FIXED[device] + int(scattered * moving)
    return Memory(parts, held, available, device, counted.assumed)


def largest_layer(model: Any) -> int:
    """Bytes of the weights of the largest decoder layer; of all of them where there is no list of layers."""
    from dumbo.errors import UserError
    from dumbo.patch.compile import decoder_layers

    try:
        layers: list[Any] = decoder_layers(model)
    except UserError:
        layers = [model]
    return max(sum(p.numel() * p.element_size() for p in layer.parameters()) for layer in layers)


def _scattered(model: Any) -> float:
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return 0.0
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(count for count, trains in sizes if trains)
    return SCATTERED_FULL if 2 * trained > sum(count for count, _ in sizes) else SCATTERED_ADAPTERS


def _ranks_here(launch: Any) -> int:
    """Ranks of this machine: what torchrun says where it started them, else what `launch` is going to start."""
    if asked_by_environment():
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(getattr(getattr(launch, "many", None), "here", 1))


def free_memory(device: torch.device, processes: int) -> int | None:
    """Bytes that one of so many processes of this machine can have: its own GPU, or a share of the CPU's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = available_memory()
    return int(free / processes) if free is not None else None


def _layout(plugins: Plugins, model: Any) -> str:
    """How documents share a batch, as `trainer/layout.py` tries it first (which also proves it)."""
    from dumbo.patch.modules import base_of

    if not plugins.trainer.packing:
        return "padded"
    asked = str(getattr(plugins.model, "attn_implementation", "auto"))
    own_attention = asked in ("auto", "isolated") and base_of(model)._can_set_attn_implementation()
    return "tokens" if own_attention else "rows"
