"""Is what was written the model that was trained? Its logits on the same texts, beside those of the trained one.

Arithmetic is float32 on both sides, so that what differs is the weights:

- merging (W + scale B A in place of W beside A and B) changes the order of sums: a float32 rounding of each, which a
  wrong scale, a lost adapter or a lost bias exceed by orders of magnitude;
- saving in bfloat16 rounds each weight to 8 bits: half a unit in the last place, 2^-9, of each. Errors of L layers that
  have nothing to do with each other add up as their squares do;
- what plain transformers reads from the folder is held against the rounded model: nothing but float32's order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dumbo.errors import ProofFailed

ROUNDINGS = {"float32": 64.0, "bfloat16": 4.0, "float16": 4.0}
"""How many units in the last place a layer may add, in a number format. In float32 the sums themselves round, over
hundreds of terms; in half precision the weights do. SmolLM2-135M on GSM8K: 8 and 1 of them."""


@dataclass(frozen=True)
class Distance:
    """How far some logits are from the trained model's.

    Attributes:
        relative: the norm of the difference over the norm of the logits' spread, of the worst text.
        largest: the largest difference of one logit.
        allowed: for `relative`.
    """

    relative: float
    largest: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.relative <= self.allowed  # False for nan too


def allowed(dtype: str, layers: int) -> float:
    """The tolerance for weights kept in `dtype`: ROUNDINGS units in the last place a layer, added as squares."""
    return ROUNDINGS[dtype] * torch.finfo(getattr(torch, dtype)).eps * max(1, layers) ** 0.5


@dataclass
class Parity:
    """The proof, as far as it has come.

    Attributes:
        prompts: texts as token ids.
        reference: (T, V) logits of the trained model, a text.
        effect: how far training moved the logits from the base's; None where that is not known.
        merge, rounding, written: how far they are after merging, after rounding to `dtype`, and after writing and reading
            again (from the rounded ones).
    """

    prompts: Sequence[Sequence[int]]
    reference: list[torch.Tensor]
    layers: int
    effect: Distance | None = None
    merge: Distance | None = None
    rounding: Distance | None = None
    written: Distance | None = None
    rounded: list[torch.Tensor] = field(default_factory=list)
    dtype: str = "float32"

    @classmethod
    def of(cls, model: Any, prompts: Sequence[Sequence[int]]) -> Parity:
        """Takes the trained model's logits."""
        layers = int(getattr(model.config.get_text_config(), "num_hidden_layers", 1))
        parity = cls(prompts, logits(model, prompts), layers)
        if _begins_as_base(model):
            with model.disable_adapter():
                parity.effect = _distance(parity.reference, logits(model, prompts), float("inf"))
        return parity

    def hold_merged(self, model: Any) -> None:
        """The merged model, in float32.

        Raises:
            ProofFailed: it is another one.
        """
        self.merge = self._held("merging the adapters", self.reference, logits(model, self.prompts), "float32")

    def hold_rounded(self, model: Any, dtype: str) -> None:
        """The model as it was saved: weights that are rounded to `dtype`, in float32 again.

        Raises:
            ProofFailed: the rounding made it another one.
        """
        self.dtype = dtype
        self.rounded = logits(model, self.prompts)
        self.rounding = self._held(f"rounding to {dtype}", self.reference, self.rounded, dtype)

    def hold_written(self, folder: Path, *, trusts_code: bool) -> None:
        """What plain transformers reads from the folder.

        Raises:
            ProofFailed: it is another model.
        """
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusts_code, dtype=torch.float32)
        self.written = self._held("reading it again", self.rounded, logits(model.eval(), self.prompts), "float32")

    def _held(self, what: str, mine: list[torch.Tensor], found: list[torch.Tensor], dtype: str) -> Distance:
        distance = _distance(mine, found, allowed(dtype, self.layers))
        if not distance.holds:
            raise ProofFailed(_refusal(what, distance, dtype, self.layers))
        return distance

    def told(self) -> list[str]:
        """For the terminal and the card."""
        lines = []
        if self.merge is not None:
            lines.append(f"merged = adapters beside the weights to {_shown(self.merge)} (float32)")
        if self.rounding is not None and self.dtype != "float32":
            lines.append(f"rounded to {self.dtype} = as trained to {_shown(self.rounding)} ({self.dtype})")
        if self.written is not None:
            lines.append(f"written, and read by plain transformers = that to {_shown(self.written)} (float32)")
        if self.effect is not None and self.rounding is not None:
            lines.append(f"training had moved the logits by {self.effect.relative:.1e}")
            if self.rounding.relative > self.effect.relative / 2:
                lines.append(f"! {self.dtype} rounds away much of what was trained: export.dtype=float32 keeps it")
        return lines


def _distance(mine: Sequence[torch.Tensor], found: Sequence[torch.Tensor], most: float) -> Distance:
    pairs = list(zip(mine, found, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return Distance(float("inf"), float("inf"), most)
    worst = max(float((one - other).norm() / (one - one.mean(-1, keepdim=True)).norm()) for one, other in pairs)
    return Distance(worst, max(float((one - other).abs().max()) for one, other in pairs), most)


def _begins_as_base(model: Any) -> bool:
    """Whether without its adapters it is the base: some adapters begin with a part of the base's weights (PiSSA, OLoRA)."""
    inits = [getattr(one, "init_lora_weights", True) for one in getattr(model, "peft_config", {}).values()]
    return bool(inits) and all(isinstance(init, bool) or init in ("gaussian", "orthogonal") for init in inits)


def _shown(distance: Distance) -> str:
    return f"{distance.relative:.1e}, allowed {distance.allowed:.1e}"


def _refusal(what: str, distance: Distance, dtype: str, layers: int) -> str:
    return (
        f"After {what} it is another model; nothing was written.\n"
        f"  Its logits differ by {distance.relative:.2e} of their size (the largest by {distance.largest:.3g}); allowed is "
        f"{distance.allowed:.1e}: {ROUNDINGS[dtype]:g} roundings of {dtype} a layer, over {layers} layers."
    )


@torch.no_grad()
def logits(model: Any, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """(T, V) in float32 of each text, alone."""
    found = []
    for prompt in prompts:
        ids = torch.as_tensor([list(prompt)], device=model.device)
        found.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
    return found
