"""Train only some of a model's own weights.

Pipeline: load -> patch (stage ADAPTER: it decides what trains) -> train.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from dumbo.errors import UserError
from dumbo.interfaces import Stage
from dumbo.patch.modules import last_parts
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """Freezes all parameters but those named, or only those named.

    Args:
        train: regular expressions; parameters whose names match one of them train, all others are frozen.
        freeze: regular expressions; parameters whose names match one of them are frozen, all others train.

    Raises:
        UserError: both or neither is given; an expression that matches nothing; nothing left to train.
    """

    train: list[str] | None = None
    freeze: list[str] | None = None

    stage: ClassVar[Stage] = Stage.ADAPTER
    conflicts: ClassVar[tuple[str, ...]] = ("lora",)

    def __post_init__(self) -> None:
        if (self.train is None) == (self.freeze is None):
            raise UserError(
                "give either train or freeze.\n  Write patch.freeze.train=[lm_head,norm], or patch.freeze.freeze=[embed_tokens]"
            )
        for pattern in self._patterns():
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(f"'{pattern}' is not a regular expression: {error}.") from error

    def _patterns(self) -> list[str]:
        return list(self.train or self.freeze or [])

    def check(self, skeleton: PreTrainedModel) -> None:
        self._trains(skeleton)

    def _trains(self, model: PreTrainedModel) -> dict[str, bool]:
        """Parameter name -> whether it trains."""
        names = [name for name, _ in model.named_parameters()]
        for pattern in self._patterns():
            if not any(re.search(pattern, name) for name in names):
                parts = last_parts(name.removesuffix(".weight").removesuffix(".bias") for name in names)
                raise UserError(
                    f"patch.freeze: '{pattern}' matches no parameter.{did_you_mean(pattern, parts)}{_tied(model, pattern)}\n"
                    f"  parts of names: {', '.join(parts)}"
                )
        named = {name: any(re.search(pattern, name) for pattern in self._patterns()) for name in names}
        trains = named if self.train is not None else {name: not hit for name, hit in named.items()}
        if not any(trains.values()):
            raise UserError("patch.freeze: nothing is left to train.")
        if all(trains.values()):
            raise UserError("patch.freeze: nothing is frozen by it.\n  Leave it out: patch=[…] without freeze.")
        return trains

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        trains = self._trains(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains[name])
        return model

    def should_train(self, name: str) -> bool:
        """Whether a parameter of this name is to train."""
        hit = any(re.search(pattern, name) for pattern in self._patterns())
        return hit if self.train is not None else not hit

    def evidence(self, model: PreTrainedModel) -> str:
        frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
        if not frozen:
            raise RuntimeError("freeze left every parameter trainable")
        return f"{sum(frozen):,} parameters frozen in {len(frozen)} tensors"


def _tied(model: PreTrainedModel, pattern: str) -> str:
    """What to say when the output head was meant and shares the embedding's weight, under the embedding's name."""
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    tied = head is not None and (head.weight is embedding.weight or model.config.get_text_config().tie_word_embeddings)
    named = next((name for name, module in model.named_modules() if module is head), "")
    if not (tied and named and re.search(pattern, f"{named}.weight")):
        return ""
    shared = next(name for name, module in model.named_modules() if module is embedding)
    return f"\n  The output head shares its weight with the embedding here: write {shared.split('.')[-1]}."
