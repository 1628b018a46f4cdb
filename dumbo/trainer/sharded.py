"""FSDP2 around a model: putting it on where accelerate does not, telling it from DDP, and gathering whole weights.

accelerate (1.15) prepares FSDP2 for GPU ranks only; on CPU ranks it ignores the plugin and wraps in DDP. Its state is
told otherwise here, and the same code of accelerate (torch's fully_shard) then runs on gloo, so that what is tested on
the CPU is what runs on GPUs. https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.nn.parallel import DistributedDataParallel

from dumbo.errors import UserError


def shard_on_cpu(accelerator: Accelerator, options: Mapping[str, Any]) -> None:
    """Makes accelerate prepare models with FSDP2 on CPU ranks.

    Args:
        options: of its plugin, as transformers derives them from `fsdp_config`.
    """
    state: Any = accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**dict(options))
    state.distributed_type = DistributedType.FSDP


def forget_sharding() -> None:
    """accelerate remembers FSDP in the environment: a later run of this process would be sharded without being asked."""
    for name in [name for name in os.environ if name == "ACCELERATE_USE_FSDP" or name.startswith("FSDP_")]:
        del os.environ[name]


def compute_in_bf16(accelerator: Accelerator) -> None:
    """bf16 for what layers compute, float32 for gradients and for what the model returns.

    accelerate's own choice rounds the loss that the model computes, and sums gradients over ranks in bf16.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    state: Any = accelerator.state
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None
    )


def place_whole(model: torch.nn.Module, device: torch.device) -> None:
    """Puts a model on its device before it is sharded: the proofs and the answers before training use it whole.

    Raises:
        UserError: its weights alone do not fit.
    """
    if device.type == "cuda":
        needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        free, _ = torch.cuda.mem_get_info(device)
        if needed > free:
            raise UserError(
                f"The model's weights take {needed / 2**30:.1f} GiB, and one GPU has {free / 2**30:.1f} GiB free. Before it is "
                "sharded the model is proven whole, on every GPU.\n  Write model.dtype=bfloat16, or take a larger GPU."
            )
    model.to(device)


def hides_a_tie(model: torch.nn.Module) -> bool:
    """Whether embeddings and head share a weight that is not the `weight` of both, as beneath peft's wrappers of added tokens."""
    embeddings, head = (getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output"))
    if embeddings is None or head is None or getattr(embeddings, "weight", None) is getattr(head, "weight", None):
        return False
    return bool({id(p) for p in embeddings.parameters()} & {id(p) for p in head.parameters()})


def require_shardable(model: torch.nn.Module) -> None:
    """accelerate (1.15) puts embeddings and head into one unit where they have one `weight`, else each into its own.

    Raises:
        UserError: the two would be sharded apart, and share a weight.
    """
    if hides_a_tie(model):
        raise UserError(
            "launch=fsdp cannot shard this model: rows of added tokens train beside frozen embeddings, which the output head shares.\n"
            "  Write launch=ddp, train all weights (patch without lora), or leave model.tokenizer.added_tokens out."
        )


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether fully_shard was applied to this model."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def wrapper_of(model: torch.nn.Module) -> str:
    """none, DDP or FSDP2: what is really around a model."""
    if isinstance(model, DistributedDataParallel):
        return "DDP"
    if is_sharded(model):
        from torch.distributed.tensor import DTensor

        reshard(model)

        loose = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
        assert not loose, f"FSDP2 left these parameters whole: {loose[:5]}"
        return "FSDP2"
    return "none"


def is_dtensor(value: Any) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def reshard(model: torch.nn.Module) -> None:
    """Lets go of what a forward pass without a backward one (evaluating, answering) left gathered."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Name -> the whole tensor on the CPU, gathered by all ranks; empty on every rank but 0. Tied tensors stand once."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    reshard(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    once = {name for name, _ in model.named_parameters()}
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - once
    return {name: tensor for name, tensor in weights.items() if name not in again}
