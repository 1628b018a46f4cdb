"""torch.compile for each decoder layer: elementwise work fuses into few kernels, and Python launches them once a graph.

Pipeline: load -> patch (last stage: what is compiled is the layer with its adapters and checkpointing) -> train.
Layers of one kind share their graphs, so that compiling takes as long as one layer and not as the whole model. The
shapes must not change from batch to batch: packs on one token axis are padded to a fixed room (`trainer/collate.py`);
other layouts compile anew once and then take graphs with free sizes. What has free shapes by nature, generating, runs
`as_written`. What is around the graph of each layer: `compiled_call.py`.
https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.compile
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.compiled_call import PAST_LIMIT, around, below
from dumbo.patch.modules import base_of, keep_cache

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

LIGERS_MODULES = ("rope", "rms_norm", "swiglu")
"""Kernels of Liger inside a layer: they fail to build within a compiled graph (triton 3.6)."""
OLDEST_GPU = (7, 0)
"""Compute capability that Triton's kernels need."""


@dataclass(frozen=True, kw_only=True)
class Compile:
    """Compiles every decoder layer. Needs a CUDA device and Triton; elsewhere it is left out, and that is said.

    Args:
        backend: torch.compile's; inductor makes Triton kernels.
        required: a machine that cannot run it is an error.
        past_limit: where layers of one kind need more graphs than torch makes of them (8): an error, or "as_written": those
            that would need another one go on uncompiled, and that is said. `performance` takes the latter.

    Raises:
        UserError: the model has no list of decoder layers; Liger's modules would be inside them; its router has a loss.
    """

    backend: str = "inductor"
    required: bool = False
    past_limit: Literal["error", "as_written"] = "error"

    stage: ClassVar[Stage] = Stage.COMPILE
    conflicts: ClassVar[tuple[str, ...]] = ()

    def conflicts_with(self, others: Mapping[str, Any]) -> Iterable[str]:
        """Liger's modules inside the layers. Its loss is outside of them and may stay."""
        inside = [name for name in LIGERS_MODULES if getattr(others.get("liger"), name, False)]
        if inside:
            off = " ".join(f"patch.liger.{name}=false" for name in inside)
            yield (
                f"patch.liger's {', '.join(inside)} cannot be built inside the layers that patch.compile compiles.\n"
                f"  Leave liger out of patch=[…] (the compiler fuses these itself), or write {off}"
            )

    def unavailable(self) -> str | None:
        """The kernels it makes run on a GPU only, and are built with a C compiler."""
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
        if torch.cuda.get_device_capability() < OLDEST_GPU:
            return f"{torch.cuda.get_device_name()} is too old for Triton"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "clang", "cc") if name):
            return "no C compiler, which triton needs"
        if not _python_headers().is_file():
            return f"no {_python_headers()} (python3-dev), which triton needs"
        return None

    def check(self, skeleton: PreTrainedModel) -> None:
        decoder_layers(skeleton)
        if getattr(base_of(skeleton).config.get_text_config(), "output_router_logits", False):
            raise UserError(
                "patch.compile: with output_router_logits=true the router's loss would be taken over the room that compiled packs are padded to.\n"
                "  Leave compile out of patch=[…], or set output_router_logits to false in the model's config.json."
            )

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        import torch

        torch.compiler.reset()  # graphs of an earlier run in this process would count against the limit of variants
        keep_cache(model, False)  # writing into a cache by number would make every layer another graph
        layers = decoder_layers(model)
        for number, layer in enumerate(layers):
            layer.compile(backend=self.backend)
            compiled: Any = layer._compiled_call_impl
            layer._compiled_call_impl = around(
                layer, compiled, partial(below, model, layers[number:]), as_written=self.past_limit == "as_written"
            )
        self.evidence(model)
        return model

    def evidence(self, model: PreTrainedModel) -> str:
        """Counts compiled layers.

        Raises:
            RuntimeError: none is.
        """
        layers = compiled_layers(model)
        if not layers:
            raise RuntimeError(f"no layer of {type(model).__name__} is compiled")
        return f"{len(layers)} layers compiled ({self.backend})"


def _python_headers() -> Path:
    """What triton includes in the C code that starts its kernels, where its `runtime/build.py` looks for it."""
    scheme = sysconfig.get_default_scheme()
    return Path(sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]) / "Python.h"


def decoder_layers(model: Any, key: str = "patch.compile") -> list[nn.Module]:
    """A model's decoder layers, first to last: the outermost list of as many modules as the config has layers.

    Args:
        key: what asks for them, for the error.

    Raises:
        UserError: there is none.
    """
    from torch import nn

    base = base_of(model)
    amount = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base
    for module in (decoder if decoder is not None else base).modules():
        if isinstance(module, nn.ModuleList) and len(module) == amount:
            return list(module)
    raise UserError(
        f"{key}: {type(base).__name__} has no list of {amount} decoder layers.\n  Leave it out of patch=[…]."
    )


def compiled_layers(model: nn.Module) -> list[nn.Module]:
    """The modules that `Module.compile` was called on (torch keeps what it made in `_compiled_call_impl`)."""
    return [module for module in model.modules() if module._compiled_call_impl is not None]


def past_limit(model: nn.Module) -> bool:
    """Whether some layers go on as they are written: torch says it of the first one that needs a graph too many."""
    return any(getattr(layer, PAST_LIMIT, False) for layer in compiled_layers(model))


@contextmanager
def as_written(model: nn.Module) -> Iterator[None]:
    """Inside, the layers run uncompiled: for shapes that change with every call."""
    kept = [(layer, layer._compiled_call_impl) for layer in compiled_layers(model)]
    for layer, _ in kept:
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, compiled in kept:
            layer._compiled_call_impl = compiled
