"""Proof: the patched model is the model. Its loss and gradients are those of the unpatched one, from another process.

Some patches replace functions for a whole process, so the reference comes from one where none has run (`child.py`): the
model as loaded, each document alone, plain cross-entropy. Against it stands what trains: patched, packed, through the
trainer's loss. An adapter has no counterpart there, but its gradient has: with W's gradient G and the update s B A, B's is
s G A^T; and A's is zero while B is.

When all patches together differ, they are applied one after another, in processes of their own, to name the guilty one.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import RunFailed
from dumbo.model.dtype import resolved_precision
from dumbo.patch.modules import base_of
from dumbo.trainer.feeding import trained_tokens
from dumbo.verify.apart import apart
from dumbo.verify.gradient_files import Kept, compared_gradients, read, written
from dumbo.verify.loss import examples_of
from dumbo.verify.passes import layers_of, training
from dumbo.verify.proof import DoesNotApplyError, Proof, Tolerance, exact, measured, reported, tolerance_for
from dumbo.verify.rounding import error_of_mean, of_mean_loss
from dumbo.verify.took import untaken
from dumbo.verify.unpatched import OnDevice, approximated, smoothing_of, starts_elsewhere, sum_of_losses

if TYPE_CHECKING:
    from dumbo.verify.subject import Subject

NAME = "patches = reference"
FILE = "reference.safetensors"
NOT_A_PATCH = "It is so without any patch: packing, or the trainer's loss."
ALONE = "reference"
"""The folder of the process in which no patch has run."""


def references(subject: Subject) -> list[Proof]:
    """Loss and gradients of a few documents, patched and not; and whether each patch did anything."""
    documents = subject.need_documents(1)
    left_out = [_left_out(name, said) for name, said in _patches_left_out(subject).items()]
    for name, patch in subject.patches.items():
        if (reason := starts_elsewhere(patch)) is not None:
            return [*left_out, _left_out(name, f"it is meant to be another model: {reason}")]
    if getattr(base_of(subject.trainer.model).config.get_text_config(), "output_router_logits", False):
        raise DoesNotApplyError("the router's loss is of a whole batch, and has none for each document alone")
    subject.release()
    told = apart(subject, ALONE, "reference", documents=documents)
    found = compared(subject, documents, told["loss"], read(subject.scratch / ALONE / FILE, told["norms"]))
    dtype, layers, tokens = subject.dtype, layers_of(subject.trainer.model), found["tokens"]
    where = f"{len(documents)} documents, {tokens} trained tokens; the reference from a process without them"
    took = [_took(told["untaken"], list(subject.patches))] if subject.patches else []
    loss_allowed = of_mean_loss(dtype, layers, tokens, told["loss"], told["error"])
    gradient_allowed = gradient_tolerance(dtype, layers)
    judged = list(subject.patches)
    distances: list[Proof] = []
    if (meant := approximated(subject.patches)) is not None:  # those are reported; what is judged goes without them
        distances = _distances(", ".join(subject.patches), where, found, gradient_allowed, meant)
        judged = [name for name, patch in subject.patches.items() if approximated({name: patch}) is None]
        subject.release()
        found = apart(subject, "judged", "compared", documents=documents, only=judged, told=told)
    fault = ""
    if not (found["loss"] <= loss_allowed.value and found["gradients"] <= gradient_allowed.value):
        fault = _guilty(subject, judged, documents, loss_allowed.value, gradient_allowed.value, told)
    what = ", ".join(judged) or "no patch"
    return [
        *left_out,
        *took,
        measured(
            f"{NAME}, loss",
            f"{what}: the trainer's loss of {where}, in nats",
            found["loss"],
            loss_allowed,
            f"The loss is {found['patched']:.6f} with patches, {told['loss']:.6f} without. {fault}",
        ),
        _same_gradients(what, found, gradient_allowed, fault),
        *distances,
    ]


def _distances(what: str, where: str, found: dict[str, Any], allowed: Tolerance, meant: str) -> list[Proof]:
    """How far loss and gradients are with patches that are coarser on purpose."""
    loss = reported("distance, loss", f"{what}: the trainer's loss of {where}, in nats", found["loss"], meant)
    gradients = _same_gradients(what, found, allowed, "")
    if gradients.difference is None:
        return [loss]
    return [loss, reported("distance, gradients", gradients.compared, gradients.difference, meant)]


def _same_gradients(what: str, found: dict[str, Any], allowed: Tolerance, fault: str) -> Proof:
    """Left out where there was nothing to compare: no difference of nothing is a proof."""
    if not found["compared"]:
        return replace(
            _left_out(
                NAME,
                f"none of the {found['trained']} tensors that train has a counterpart in the model without patches",
            ),
            name=f"{NAME}, gradients",
        )
    of = f"{found['compared']} tensors"
    if found["compared"] < found["trained"]:
        of = f"{found['compared']} of {found['trained']} tensors that train (the others have no counterpart)"
    adapters = f", {found['derived']} of them of adapters, from those of their layers" if found["derived"] else ""
    return measured(
        f"{NAME}, gradients",
        f"{what}: gradients of {of}{adapters}",
        found["gradients"],
        allowed,
        f"The gradient of {found['worst']} differs most. {fault}",
    )


def gradient_tolerance(dtype: torch.dtype, layers: int) -> Tolerance:
    """Of one tensor's gradient, the worst of all: forward and backward round, and sums over tokens and widths are taken in
    float32. Seen on SmolLM2 in bf16, with fused LoRA and chunked loss: 0.04 where 0.17 is allowed.
    """
    rounded, summed = tolerance_for(dtype, 2 * layers, factor=2), tolerance_for(torch.float32, 2 * layers, factor=32)
    if dtype == torch.float32:
        return summed
    return Tolerance(rounded.value + summed.value, rounded.source)


def _patches_left_out(subject: Subject) -> dict[str, str]:
    assert subject.patches is not None  # made here, with what is left out
    noted: dict[str, str] = subject.run.facts.get("patches", {})
    return {name: said.removeprefix("left out: ") for name, said in noted.items() if said.startswith("left out: ")}


def _left_out(name: str, reason: str) -> Proof:
    return Proof(
        name=f"{name} = reference", compared="", difference=None, tolerance=None, source="", passed=None, detail=reason
    )


def _took(without: list[str], names: list[str]) -> Proof:
    listed = ", ".join(names)
    fault = f"{', '.join(without)}: applied, and the model is as it was before." if without else None
    return exact("patches took", f"{listed}: modules, parameters, weights and functions before and after each", fault)


# ---- the two sides ------------------------------------------------------------------------------------------------


def reference_task(subject: Subject, folder: Path, documents: list[int]) -> dict[str, Any]:
    """In a fresh process: the unpatched model's loss, gradients into a file; and then, which patches change nothing."""
    model: Any = subject.fresh_model(patched=False)
    plain = OnDevice(model.to(OnDevice(model).device))
    store = subject.data.train.store
    items = store.trained_tokens(np.array(documents))
    pairs = [(store.ids(document), store.trained(document)) for document in documents]
    bf16 = resolved_precision(getattr(subject.plugins.trainer, "precision", "auto")) == "bf16"
    smoothing = smoothing_of(subject.plugins.trainer)
    total = sum_of_losses(plain, pairs, bf16=bf16, smoothing=smoothing, each=lambda loss: (loss / items).backward())
    norms = written({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, folder / FILE)
    if not norms:
        raise RunFailed("The model without patches has no gradient to compare with.")
    error = error_of_mean(plain, pairs, smoothing) if bf16 else None
    del plain, model
    return {"loss": float(total) / items, "error": error, "norms": norms, "untaken": untaken(subject)}


def compared(subject: Subject, documents: list[int], loss: float, reference: dict[str, Kept]) -> dict[str, Any]:
    """What trains, against the reference: the difference of the loss in nats, and the relative one of the worst gradient."""
    engine = subject.trainer
    with training(engine) as model:
        batch = engine.collate(examples_of(engine, documents))
        tokens = trained_tokens(batch)
        inputs = engine._prepare_inputs({name: value for name, value in batch.items() if name != "documents"})
        divisor = torch.tensor(tokens, device=engine.args.device)
        own = engine.compute_loss(model, inputs, num_items_in_batch=divisor)
        own.backward()
        found = compared_gradients(model, reference)
        model.zero_grad()
    patched = float(own.detach())
    return {"tokens": tokens, "patched": patched, "loss": abs(patched - loss), **found}


def compared_task(subject: Subject, folder: Path, documents: list[int], only: list[str], told: Any) -> dict[str, Any]:
    """In a fresh process: some of the patches against the reference."""
    model = subject.fresh_model(patched=False)  # in the dtype that it has with all of them
    for name in only:
        model = subject.patches[name].apply(model)
    subject.trainer = subject.trainer_of(model)
    return compared(subject, documents, told["loss"], read(folder.parent / ALONE / FILE, told["norms"]))


def _guilty(subject: Subject, names: list[str], documents: list[int], loss: float, gradients: float, told: Any) -> str:
    """Which patch makes the difference: the first after which there is one, when they are applied one after another."""
    if not names:
        return NOT_A_PATCH
    subject.release()
    for amount in range(len(names)):
        applied = names[:amount]
        folder = "-".join(["with", *(applied or ["none"])])
        found = apart(subject, folder, "compared", documents=documents, only=applied, told=told)
        if not (found["loss"] <= loss and found["gradients"] <= gradients):
            if not applied:
                return NOT_A_PATCH
            return f"{applied[-1]} makes the difference.\nLeave it out of patch=[…]."
    return f"{names[-1]} makes the difference.\nLeave it out of patch=[…]."
