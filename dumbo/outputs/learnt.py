"""What a run learns of its data and its model: said on the start panel, kept in run.json, and the same when it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.outputs.numbers import millions
from dumbo.outputs.repeated import require_same_data, require_same_model
from dumbo.outputs.surroundings import hardware

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits


def note_data(run: RunDir, data: PreparedSplits) -> None:
    """The data, on the panel and in run.json.

    Raises:
        UserError: a resumed run would go on with other data.
    """
    before = run.facts.get("data_fingerprint")
    if run.resuming and before not in (None, data.fingerprint):
        raise UserError(
            f"resume: the data, tokenizer or template is no longer what the run in {run.path} was trained on "
            f"(fingerprint {before} then, {data.fingerprint} now).\n  Restore it, or start a new run."
        )
    require_same_data(run, data)
    run.world.agree("data, tokenizer or template", data.fingerprint)
    audit = data.audit
    parts = [
        f"{data.name}  {data.train.rows:,} train"
        + (f", {data.eval.rows:,} held out" if data.eval else ", none held out")
    ]
    parts.append(f"{audit['tokens']:,} tokens, {100 * audit['trained_share']:.0f}% trained")
    for name in ("truncated", "dropped", "split", "skipped", "control_tokens_in_text", "duplicates"):
        if audit[name]:
            parts.append(f"{audit[name]:,} {name.replace('_', ' ')}")
    if shared := audit["eval_rows_in_train"]:
        parts.append(f"{shared:,} held-out rows are in train too")
    run.console.row("data", "   ".join(parts))
    run.update(data_fingerprint=data.fingerprint, data={"name": data.name, **audit, **data.origin})


def note_model(run: RunDir, plugin: Any, model: Any, trainer: Any) -> None:
    """Size, dtype and origin of the model, the arithmetic it trains in, and the hardware it is on.

    Args:
        plugin, trainer: those of the model and of the training.
    """
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    origin = plugin.provenance() if hasattr(plugin, "provenance") else {}
    before = run.facts.get("model", {})
    for key in ("commit", "sha256"):
        if run.resuming and before.get(key) and origin.get(key) != before[key]:
            raise UserError(
                f"resume: the base model is another one now ({key} {before[key]} then, {origin.get(key)} now).\n  "
                + (
                    f"Write model.revision={before[key]}"
                    if key == "commit"
                    else "Restore the file, or start a new run."
                )
            )
    name = str(getattr(plugin, "name", type(plugin).__name__))
    machine = hardware()
    require_same_model(run, origin, machine)
    dtype = str(model.dtype).removeprefix("torch.")
    share = (
        "all trainable" if trainable == total else f"{millions(trainable)} trainable ({100 * trainable / total:.1f}%)"
    )
    precision = arithmetic_of(trainer)
    masters = bool(getattr(trainer, "master_weights", False))
    kept = dtype + " with float32 masters" * masters + f"   {precision} arithmetic" * (precision is not None)
    run.console.row(
        "model", f"{name}   {millions(total)} parameters, {share}   {kept}   on {machine.get('gpu', 'CPU')}"
    )
    facts = {
        "name": name,
        "class": _class_name(model),
        "parameters": total,
        "trainable": trainable,
        "dtype": dtype,
        **origin,
    }
    run.update(model=facts, precision=precision, master_weights=masters, hardware=machine)


def arithmetic_of(trainer: Any) -> str | None:
    """bf16 or fp32; None for a trainer that has no `precision`."""
    from dumbo.model.dtype import resolved_precision

    asked = getattr(trainer, "precision", None)
    return resolved_precision(asked) if isinstance(asked, str) else None


def _class_name(model: Any) -> str:
    from dumbo.patch.modules import base_of

    return type(base_of(model)).__name__
