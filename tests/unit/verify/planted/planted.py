"""Bugs that are planted wherever the experiment is built, in processes of their own too: a patch of a `--config-dir`.

    dumbo verify --config-dir=tests/unit/verify/planted patch=[lora,planted] patch.planted.bug=optimizer_dropped

In a test's own process `BUGS[name](monkeypatch.setattr, model)` plants one that is taken out again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dumbo.interfaces import Stage

Set = Callable[[Any, str, Any], None]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """The last patch of all.

    Args:
        bug: what it does.
        meant: what it says of that, as a patch that is coarser on purpose does; null: nothing.
    """

    bug: str
    meant: str | None = None

    stage: ClassVar[Stage] = Stage.COMPILE

    def approximates(self) -> str | None:
        return self.meant

    def apply(self, model: Any) -> Any:
        BUGS[self.bug](setattr, model)
        if self.bug != "nothing_applied":
            model.register_forward_hook(lambda module, given, out: None)  # so that it is a patch that took
        return model


# ---- patches that change what they must not ------------------------------------------------------------------------


def nothing_applied(put: Set, model: Any) -> None:
    """The patch returns the model as it was."""


def adapter_not_zero(put: Set, model: Any) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)


def adapter_scaled_twice(put: Set, model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.scaling["default"] *= 2


def loss_off_by_a_percent(put: Set, model: Any) -> None:
    """As a kernel with another mean would have it."""
    right = model.forward

    def wrong(*args: Any, **kwargs: Any) -> Any:
        out = right(*args, **kwargs)
        if getattr(out, "loss", None) is not None:
            out.loss = out.loss * 1.01
        return out

    model.forward = wrong


def gradient_dropped(put: Set, model: Any) -> None:
    """The loss is right; what is recomputed in the backward pass loses half of a layer's gradient."""
    layer = _layers(model)[0].mlp
    layer.register_forward_hook(lambda module, given, out: 0.5 * out + 0.5 * out.detach())


def gradient_not_finite(put: Set, model: Any) -> None:
    _layers(model)[0].mlp.register_forward_hook(lambda module, given, out: _Broken.apply(out))


def frozen(put: Set, model: Any) -> None:
    _layers(model)[0].mlp.down_proj.weight.requires_grad_(False)


def detached(put: Set, model: Any) -> None:
    """The forward pass is right, and no gradient gets through."""
    _layers(model)[0].mlp.down_proj.register_forward_hook(lambda module, given, out: out.detach())


def gradient_zero(put: Set, model: Any) -> None:
    """A gradient arrives, and is nothing: an adapter never leaves its start."""
    layer = _layers(model)[0].mlp.down_proj
    layer.register_forward_hook(lambda module, given, out: out.detach() + 0.0 * out)


class _Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return grads[0] * float("nan")


def weights_rounded(put: Set, model: Any) -> None:
    """Another precision than was asked for."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())


def _layers(model: Any) -> Any:
    return next(m for name, m in model.named_modules() if name.endswith("layers"))


# ---- what is lost on the way ---------------------------------------------------------------------------------------


def optimizer_dropped(put: Set, model: Any) -> None:
    from dumbo.trainer.engine import Engine

    def wrong(self: Any, checkpoint: Any) -> None:
        if checkpoint is not None:
            self.lr_scheduler.load_state_dict(torch.load(f"{checkpoint}/scheduler.pt", weights_only=True))

    put(Engine, "_load_optimizer_and_scheduler", wrong)


def schedule_reset(put: Set, model: Any) -> None:
    from dumbo.trainer.engine import Engine

    def wrong(self: Any, checkpoint: Any) -> None:
        if checkpoint is not None:
            self.optimizer.load_state_dict(torch.load(f"{checkpoint}/optimizer.pt", weights_only=True))

    put(Engine, "_load_optimizer_and_scheduler", wrong)


def weights_not_loaded(put: Set, model: Any) -> None:
    from dumbo.trainer.engine import Engine

    put(Engine, "_load_from_checkpoint", lambda self, *args, **kwargs: None)


def position_lost(put: Set, model: Any) -> None:
    """The run goes on at its right step, with the first batches of the data."""
    from transformers import TrainingArguments

    right = TrainingArguments.__post_init__

    def wrong(self: Any) -> None:
        right(self)
        self.ignore_data_skip = True

    put(TrainingArguments, "__post_init__", wrong)


def random_state_lost(put: Set, model: Any) -> None:
    """With dropout, another one is drawn."""
    from transformers import Trainer

    put(Trainer, "_load_rng_state", lambda self, checkpoint: None)


def moments_saved_in_half(put: Set, model: Any) -> None:
    """A checkpoint that is smaller, and no longer the same."""
    from dumbo.trainer import saving

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def save(state: Any, file: Any) -> None:
            for one in state.get("state", {}).values():
                one["exp_avg"] = one["exp_avg"].bfloat16().float()
            torch.save(state, file)

    put(saving, "torch", Torch())


# ---- what differs from process to process --------------------------------------------------------------------------


def order_by_chance(put: Set, model: Any) -> None:
    from dumbo.trainer.sampler import GlobalBatches

    right, salt = GlobalBatches.__init__, int.from_bytes(os.urandom(4), "big")

    def wrong(self: Any, size: int, batch: Any, seed: int, *more: Any, **named: Any) -> None:
        right(self, size, batch, seed + salt, *more, **named)

    put(GlobalBatches, "__init__", wrong)


def seed_not_set(put: Set, model: Any) -> None:
    """The adapter's A is drawn from a state that nobody has set."""
    generator = torch.Generator().manual_seed(int.from_bytes(os.urandom(4), "big"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std())


BUGS: dict[str, Callable[[Set, Any], None]] = {
    plant.__name__: plant
    for plant in (
        nothing_applied, adapter_not_zero, adapter_scaled_twice, loss_off_by_a_percent, gradient_dropped, gradient_not_finite, frozen,
        detached, gradient_zero, weights_rounded, optimizer_dropped, schedule_reset, weights_not_loaded, position_lost,
        random_state_lost, moments_saved_in_half, order_by_chance, seed_not_set,
    )
}  # fmt: skip
