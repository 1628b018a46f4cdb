"""Low-rank adapters beside frozen weights (Hu et al. 2021, arXiv:2106.09685), made by peft.

Pipeline: load -> patch (stage ADAPTER, after kernels, before memory savers) -> train.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.modules import embedding_names, linear_names, require_modules

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Adds a trainable update B A of rank `rank` to linear layers W (out, in); W itself is frozen.

    Args:
        rank: inner width r of A (r, in) and B (out, r). Trainable parameters grow linearly with it.
        alpha: the update is scaled by alpha / rank (with `use_rslora` by alpha / sqrt(rank)).
        dropout: probability of zeroing an input feature of A, in training only.
        target_modules: "all-linear" (all but the output head), or the last parts of module names.
        bias: which biases train too: none, all, or lora_only (those of the adapted layers).
        modules_to_save: modules trained and saved whole, beside the adapters.
        use_dora: magnitude and direction apart (Liu et al. 2024, arXiv:2402.09353).
        use_rslora: scale by sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732).
        init: of A and B: default (B zero), gaussian, orthogonal, pissa (Meng et al. 2024, arXiv:2404.02948), olora,
            or random (B too: the first step then starts from another model; for tests).
        path: an adapter's folder to go on from (its own rank and targets are taken); null: a new one.

    Raises:
        UserError: a name in `target_modules` that matches no linear layer of the model.
    """

    rank: int = 16
    alpha: float = 32
    dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: list[str] | None = None
    use_dora: bool = False
    use_rslora: bool = False
    init: Literal["default", "gaussian", "orthogonal", "pissa", "olora", "random"] = "default"
    path: str | None = None

    stage: ClassVar[Stage] = Stage.ADAPTER
    trains_in_float32: ClassVar[bool] = True
    conflicts: ClassVar[tuple[str, ...]] = ("freeze",)
    freezes_base: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"rank must be at least 1, got {self.rank}.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout is a probability, from 0 to below 1; got {self.dropout}.")
        if self.alpha <= 0:
            raise UserError(f"alpha must be above 0, got {self.alpha}.")
        typed = [option.name for option in fields(self) if getattr(self, option.name) != option.default]
        if self.path is not None and typed != ["path"]:
            other = next(name for name in typed if name != "path")
            raise UserError(f"{other}: the adapter in patch.lora.path has its own.\n  Leave patch.lora.{other} out.")

    def problems(self) -> Iterable[str]:
        if self.path is None:
            return
        folder = Path(self.path).expanduser()
        if not (folder / "adapter_config.json").is_file():
            yield f"path: '{self.path}' holds no adapter (there is no adapter_config.json in it)."
        elif not (folder / "adapter_model.safetensors").is_file():
            yield f"path: '{self.path}' holds no adapter_model.safetensors; pickled weights are not read from there."

    def check(self, skeleton: PreTrainedModel) -> None:
        """Names of modules, before weights are loaded."""
        if self.path is not None:
            targets, key = self._stored_targets(), f"patch.lora.path: the adapter in '{self.path}' is for another model"
        else:
            targets, key = self.target_modules, "patch.lora.target_modules"
        if targets != "all-linear":
            wanted = [targets] if isinstance(targets, str) else targets
            names = linear_names(skeleton) + (embedding_names(skeleton) if self.path is not None else [])
            require_modules(names, wanted, "linear layer", key)
        if self.modules_to_save:
            names = [name for name, _ in skeleton.named_modules() if name]
            require_modules(names, self.modules_to_save, "module", "patch.lora.modules_to_save")

    def starts_elsewhere(self) -> str | None:
        """Why the first loss is not the base model's, where that is asked for."""
        if self.path is not None:
            return f"goes on from the adapter in {self.path}"
        return "init=random" if self.init == "random" else None

    def _stored_targets(self) -> str | list[str]:
        """The target modules of the adapter in `path`; "all-linear" where it names them by a pattern of its own.

        Raises:
            UserError: the adapter is no LoRA.
        """
        stored = json.loads((Path(str(self.path)).expanduser() / "adapter_config.json").read_text(encoding="utf-8"))
        if stored.get("peft_type") != "LORA":
            raise UserError(f"patch.lora.path: '{self.path}' holds a {stored.get('peft_type')} adapter, no LoRA.")
        targets = stored.get("target_modules")
        return sorted(targets) if isinstance(targets, list) else "all-linear"

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Returns peft's wrapper. Rows of tokens that the config added to the vocabulary stay trainable."""
        from peft import LoraConfig, PeftModel, get_peft_model

        self.check(model)
        if self.path is not None:
            wrapped: Any = PeftModel.from_pretrained(model, str(Path(self.path).expanduser()), is_trainable=True)
            if getattr(model, "added_token_ids", None) and not wrapped.peft_config["default"].trainable_token_indices:
                raise UserError(
                    "patch.lora.path: the adapter trains no added tokens, their rows would stay as they are.\n"
                    "  Leave model.tokenizer.added_tokens out, or train a new adapter."
                )
            return _kept_in_float32(wrapped)
        names = {"default": True, "random": False}
        targets = (
            [self.target_modules]
            if isinstance(self.target_modules, str) and self.target_modules != "all-linear"
            else self.target_modules
        )
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=targets,
            bias=self.bias,
            modules_to_save=self.modules_to_save,
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
            init_lora_weights=names.get(self.init, self.init),  # type: ignore[arg-type]
            trainable_token_indices=self._added_tokens(model),
            task_type="CAUSAL_LM",
        )
        try:
            return _kept_in_float32(get_peft_model(model, config))
        except ValueError as error:  # peft's word on what it cannot adapt so: experts in one tensor with dropout, say
            raise UserError(
                f"patch.lora: {type(model).__name__} cannot be adapted so: {error}\n"
                "  Leave that option out, or name layers in patch.lora.target_modules=[…]"
            ) from error

    def _added_tokens(self, model: PreTrainedModel) -> Any:
        """Embedding's (and untied head's) name -> rows that peft keeps trainable; those saved whole need none."""
        added = list(getattr(model, "added_token_ids", []))
        head = model.get_output_embeddings()
        layers = [model.get_input_embeddings()]
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            layers.append(head)
        names = [_name_of(model, layer) for layer in layers]
        whole = [name.split(".")[-1] for name in self.modules_to_save or []]
        return {name: added for name in names if added and name not in whole} or None

    def should_train(self, name: str) -> bool:
        """Whether a parameter of this name, within peft's wrapper, is to train."""
        if name.endswith(".bias") and ".lora_" not in name and self.bias != "none":
            return self.bias == "all" or ".base_layer." in name
        return any(part in name for part in (".lora_", ".modules_to_save.", ".trainable_tokens_delta"))

    def evidence(self, model: PreTrainedModel) -> str:
        """What shows that it took, for the start panel; raises when nothing does."""
        adapters = [p for name, p in model.named_parameters() if p.requires_grad and ".lora_" in name]
        others = [p for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name]
        assert adapters, "peft returned a model without trainable adapters"
        text = f"{sum(p.numel() for p in adapters):,} trainable parameters in {len(adapters)} tensors"
        return text + (f", {sum(p.numel() for p in others):,} beside them" if others else "")


def _kept_in_float32(wrapped: Any) -> Any:
    """Whatever trains beside a base in bf16 (modules saved whole, biases): small steps are lost in half precision."""
    import torch

    for parameter in wrapped.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return wrapped


def _name_of(model: PreTrainedModel, wanted: Any) -> str:
    """The last part of a module's name."""
    return next(name for name, module in model.named_modules() if module is wanted).split(".")[-1]
