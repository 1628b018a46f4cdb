"""Proof: every parameter that should train gets a gradient, and none that should not.

Two optimizer steps of the trainer's own loop, on a model that is thrown away: the first batch's gradients are finite, and
within two steps each is more than zero (LoRA's A has none while B is zero). Which parameters should train is asked of the
patches by the names' meaning, not of `requires_grad`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from dumbo.interfaces import Stage
from dumbo.patch.modules import base_of
from dumbo.trainer.masters import stepped_on
from dumbo.verify.first_batch import excused
from dumbo.verify.proof import DoesNotApplyError, Proof, exact

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject

STEPS = 2
SHOWN = 4
"""So many names of each kind are shown."""


class Gradients(TrainerCallback):
    """Looks at every gradient before each optimizer step, and keeps the last step from being saved."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.seen: list[dict[str, tuple[bool, bool]]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Name -> (finite, not zero) of those that have one."""
        self.seen.append(
            {
                name: (bool(torch.isfinite(p.grad).all()), bool((p.grad != 0).any()))
                for name, p in self.model.named_parameters()
                if p.grad is not None
            }
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = False


def gradients(subject: Subject) -> Proof:
    """Trains a fresh model for two steps on a few documents."""
    documents = subject.need_documents(1)
    model = subject.fresh_model()
    trainer = subject.trainer_of(
        model,
        subject.only(documents),
        packing=subject.packed and subject.trainer_is_isolated,
        max_steps=STEPS,
        lr_scheduler="constant",
        warmup_steps=0,
        eval_every=None,
        save_every=None,
        max_time=None,
        load_best_at_end=False,
        async_save=False,
    )
    looks = Gradients(model)
    trainer.add_callback(looks)
    frozen = {name: _sum(p) for name, p in model.named_parameters() if not p.requires_grad}
    trainer.train()
    if len(looks.seen) < STEPS:
        raise DoesNotApplyError(f"the trainer made {len(looks.seen)} of {STEPS} steps")
    wanted = should_train(subject, model)
    held = {id(stepped_on(p)) for group in trainer._plain_optimizer.param_groups for p in group["params"]}
    faults = _faults(model, wanted, looks.seen, held)
    moved = [name for name, p in model.named_parameters() if name in frozen and _sum(p) != frozen[name]]
    if moved:
        faults.append(f"changed though frozen: {_listed(moved)}")
    training = sum(wanted.values())
    return exact(
        "gradient flow",
        f"{training:,} tensors that train and {len(wanted) - training:,} that do not, in {STEPS} optimizer steps on "
        f"{len(documents)} documents: finite at the first, not zero within {STEPS}",
        "\n".join([*faults, "Look at the patches, and at what they say in the start panel of train."])
        if faults
        else None,
    )


def _faults(
    model: torch.nn.Module, wanted: Mapping[str, bool], seen: list[dict[str, tuple[bool, bool]]], held: set[int]
) -> list[str]:
    """What is wrong, each kind on a line."""
    parameters = dict(model.named_parameters())
    trained = [n for n, on in wanted.items() if on and parameters[n].requires_grad]
    still = {n for n in trained if not any(step.get(n, (True, False))[1] for step in seen)}
    kinds: dict[str, list[str]] = {
        "frozen, though they should train": [n for n, on in wanted.items() if on and not parameters[n].requires_grad],
        "train, though they should not": [n for n, on in wanted.items() if not on and parameters[n].requires_grad],
        "not in the optimizer": [
            n for n, on in wanted.items() if on and parameters[n].requires_grad and id(parameters[n]) not in held
        ],
        "not finite on the first batch": [n for n, (finite, _) in seen[0].items() if not finite],
        f"without a gradient in {STEPS} steps": [n for n in trained if n in still - excused(still, trained)],
        "with a gradient, though they should have none": [
            n
            for n, on in wanted.items()
            if not on and not parameters[n].requires_grad and any(n in step for step in seen)
        ],
    }
    return [f"{kind}: {_listed(names)}" for kind, names in kinds.items() if names]


def should_train(subject: Subject, model: Any) -> dict[str, bool]:
    """Parameter name -> whether it should train, of the floating-point ones.

    Without a patch that chooses: as the model's class makes them. A patch that chooses says so by name (`should_train`);
    where one does not, what it left trainable is taken for what should train.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    choosing = [patch for patch in subject.patches.values() if patch.stage == Stage.ADAPTER]
    if not all(hasattr(patch, "should_train") for patch in choosing):
        return {name: p.requires_grad for name, p in parameters.items()}
    if choosing:
        return {name: all(patch.should_train(name) for patch in choosing) for name in parameters}
    loader = subject.plugins.model
    if not hasattr(loader, "load_skeleton"):
        return dict.fromkeys(parameters, True)
    made = {name: p.requires_grad for name, p in base_of(loader.load_skeleton(subject.tokenizer)).named_parameters()}
    return {name: made.get(name, True) for name in parameters}


def _sum(parameter: torch.Tensor) -> float:
    return float(parameter.detach().double().sum()) if parameter.is_floating_point() else 0.0


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
