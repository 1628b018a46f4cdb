"""A run's model as it was trained: adapters on the base that the run's config loads, in the number format it had."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.chat import refuse_code, require_safetensors
from dumbo.errors import UserError
from dumbo.model.dtype import DTYPES, torch_dtype
from dumbo.outputs.runs import read_facts, without_model

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerBase

    from dumbo.export.rendering import Template
    from dumbo.export.rows import Rows

OF_ADAPTERS = ("lora_", ".modules_to_save.", ".trainable_tokens_")
"""In the names of what peft put beside the weights."""
TRUST = "  Type export.trust_remote_code=true if you trust it."


@dataclass
class Trained:
    """A run's model, in float32 and evaluation mode, and its tokenizer.

    Attributes:
        model: with its adapters beside the weights, where it has any.
        dtype: what its weights were kept in while it was trained; they hold no more than that.
        config: of the run.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    config: DictConfig

    @cached_property
    def adapters(self) -> list[str]:
        """What peft calls them: LORA, …"""
        return sorted({str(one.peft_type.value) for one in getattr(self.model, "peft_config", {}).values()})

    @cached_property
    def kind(self) -> str:
        """The class of the plain model."""
        from dumbo.patch.modules import base_of

        return type(base_of(self.model)).__name__

    @cached_property
    def parameters(self) -> int:
        """Of the plain model, those of adapters not counted."""
        from dumbo.patch.modules import base_of

        own = dict(base_of(self.model).named_parameters())
        return sum(p.numel() for name, p in own.items() if not any(part in name for part in OF_ADAPTERS))

    def template(self, rows: Rows) -> Template:
        """The chat template that is saved: the one trained with. The tokenizer has it afterwards."""
        from dumbo.export.rendering import template_of

        return template_of(self, rows)

    def told(self, dtype: str) -> str:
        """The model in words, saved in `dtype`."""
        how = f"{', '.join(self.adapters)} merged into it" if self.adapters else "as it was trained, no adapters"
        return f"{self.kind}   {self.parameters:,} parameters   {dtype}   {how}"

    def forget(self) -> None:
        """Lets go of the weights, before they are read again; what is told of them stays."""
        self.told("")
        self.model = None
        gc.collect()  # modules hold on to each other


def load_trained(run: Path, config_dirs: Sequence[Path], *, trusts_code: bool) -> Trained:
    """Loads what a run left in model/.

    Args:
        run: its folder.
        config_dirs: folders typed now whose plugins may run.
        trusts_code: whether code that comes with the model may run.

    Raises:
        UserError: the run has no model, its base is not to be had, or it brings code that nobody typed may run.
    """
    folder, facts = run / "model", read_facts(run)
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise without_model(run, " to export")
    if not trusts_code:
        refuse_code(folder, TRUST)
    require_safetensors(folder)
    from omegaconf import OmegaConf
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config: Any = OmegaConf.load(run / "config.yaml")
    kept = str(facts.get("model", {}).get("dtype", "float32"))
    dtype = kept if kept in DTYPES else "float32"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code)
    if (folder / "adapter_config.json").is_file():
        model = _with_adapters(folder, config, dtype, config_dirs, trusts_code=trusts_code)
    else:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=trusts_code, dtype="auto", use_safetensors=True
        )
        dtype = str(model.dtype).removeprefix("torch.")
    return Trained(model.float().eval(), tokenizer, dtype, config)


def _with_adapters(
    folder: Path, config: DictConfig, dtype: str, config_dirs: Sequence[Path], *, trusts_code: bool
) -> Any:
    """The base in the number format it was trained in (some adapters begin with a part of its weights), and adapters."""
    from peft import PeftModel
    from transformers import GenerationConfig

    loader = loader_of(config, config_dirs, trusts_code=trusts_code)
    base = loader.load_model(loader.load_tokenizer(), dtype=torch_dtype(dtype))
    model: Any = PeftModel.from_pretrained(base, str(folder))
    if (folder / "generation_config.json").is_file():
        base.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def loader_of(config: DictConfig, config_dirs: Sequence[Path], *, trusts_code: bool) -> Any:
    """The run's model plugin.

    Raises:
        UserError: the run's config lets the base model run its code, and nobody typed that it may.
    """
    from dumbo.check import build_one

    node = node_of(config, "model")
    if node.get("trust_remote_code") and not trusts_code:
        raise UserError(f"run: its model has model.trust_remote_code=true: code that comes with it would run.\n{TRUST}")
    if (node.get("tokenizer") or {}).get("chat_template"):
        node["tokenizer"] = {**node["tokenizer"], "chat_template": None}  # model/ has it; the file may be gone
    return build_one("model", node, config_dirs)


def node_of(config: DictConfig, group: str) -> dict[str, Any]:
    """A group of a run's config, references to the environment followed."""
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(config[group], resolve=True)
    return dict(node)
