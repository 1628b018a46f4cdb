"""The model that is evaluated: as a run saved it, or as its loader gives it; in the arithmetic that training had."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.chat import refuse_code, require_safetensors
from dumbo.model.dtype import resolved_precision
from dumbo.outputs.console import Console
from dumbo.outputs.runs import read_facts
from dumbo.patch import order
from dumbo.patch.modules import base_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.check import Plugins

TRUST = "  Type model.trust_remote_code=true if you trust it."


def quiet() -> None:
    """Libraries say nothing on the terminal, also not what they are going to change for whoever calls them."""
    import transformers.utils.logging as library

    warnings.simplefilter("ignore", FutureWarning)
    library.set_verbosity_error()
    library.disable_progress_bar()


def loader_of(plugins: Plugins, run: Path | None) -> Plugins:
    """The plugins with a loader of what the run saved, where it saved a whole model. Adapters need the base's own loader.

    Raises:
        UserError: what was saved brings code, and nobody typed that it may run; its weights are no safetensors.
    """
    if run is None:
        return plugins
    trusts_code = bool(getattr(plugins.model, "trust_remote_code", False))
    if not trusts_code:
        refuse_code(run / "model", TRUST)
    require_safetensors(run / "model")
    if _is_adapter(run):
        return plugins
    from dumbo.model.pretrained import Pretrained

    saved = Pretrained(
        path=str(run / "model"),
        dtype=getattr(plugins.model, "dtype", "auto"),
        attn_implementation=getattr(plugins.model, "attn_implementation", "auto"),
        context_length=getattr(plugins.model, "context_length", None),
        trust_remote_code=trusts_code,
    )
    return replace(plugins, model=saved)


def _is_adapter(run: Path) -> bool:
    return (run / "model" / "adapter_config.json").is_file()


@dataclass(frozen=True)
class Subject:
    """A model on its device, its tokenizer, and what is to be said of it.

    Attributes:
        bf16: whether the arithmetic is bf16 (`trainer.precision`).
        facts: name, path, class, size and dtype, for evaluation.json.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    bf16: bool
    facts: dict[str, Any]

    @classmethod
    def load(cls, plugins: Plugins, tokenizer: PreTrainedTokenizerBase, run: Path | None) -> Subject:
        """Loads the weights, adapters on top where the run saved those, and moves them to the GPU, if there is one."""
        import torch

        from dumbo.trainer.precision import dtype_for

        precision = resolved_precision(getattr(plugins.trainer, "precision", "auto"))
        patches = order.in_order(plugins.patches)
        kwargs = {"dtype": dtype_for(plugins, patches)}
        if run is not None and "quantization_config" in (asked := order.load_kwargs(patches)):
            kwargs["quantization_config"] = asked["quantization_config"]  # adapters were trained on such a base
        model = plugins.model.load_model(tokenizer, **kwargs)
        origin = plugins.model.provenance() if hasattr(plugins.model, "provenance") else {}
        if run is not None and _is_adapter(run):
            model = _with_adapters(model, run / "model")
            origin = {**origin, "adapters": str(run / "model")}
        if torch.cuda.is_available():
            model = model.to("cuda")
        model.eval()
        facts = {
            "name": _name(plugins, run),
            "run": str(run) if run else None,
            **origin,
            "class": type(base_of(model)).__name__,
            "parameters": sum(weights.numel() for weights in model.parameters()),
            "dtype": str(base_of(model).dtype).removeprefix("torch."),
        }
        return cls(model, tokenizer, precision == "bf16", facts)

    def show(self, console: Console) -> None:
        """A row of the model."""
        from dumbo.outputs.surroundings import hardware

        what = "adapters on " if "adapters" in self.facts else ""
        console.row(
            "model",
            f"{what}{self.facts['name']}   {self.facts['parameters'] / 1e6:,.1f} M parameters   {self.facts['dtype']}   "
            f"{'bf16' if self.bf16 else 'fp32'} arithmetic   on {hardware().get('gpu', 'CPU')}",
        )


def _name(plugins: Plugins, run: Path | None) -> str:
    """The name that the run gave its model."""
    trained = read_facts(run).get("model", {}).get("name") if run is not None else None
    return str(trained or getattr(plugins.model, "name", type(plugins.model).__name__))


def _with_adapters(base: Any, folder: Path) -> Any:
    from peft import PeftModel
    from transformers import GenerationConfig

    model = PeftModel.from_pretrained(base, str(folder))
    if (folder / "generation_config.json").is_file():
        model.generation_config = base.generation_config = GenerationConfig.from_pretrained(folder)  # type: ignore[assignment]
    return model
