"""Whether a run's passes can be captured as CUDA graphs (`graphs.py`), and what is said where they cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.outputs.halvings import graphs_given_up
from dumbo.patch.chunked_loss import takes_places
from dumbo.patch.compile import compiled_layers, past_limit
from dumbo.trainer.attention import GROUPED
from dumbo.verify.no_dropout import has_dropout

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir
    from dumbo.trainer.collate import Layout, Room
    from dumbo.trainer.sft import Sft


def wanted(sft: Sft, model: Any, args: Any, room: Room | None, layout: Layout, run: RunDir) -> bool | None:
    """`trainer.cuda_graphs` on this machine: None where it is left to what launching takes.

    Args:
        sft: the trainer's options.
        args: transformers' TrainingArguments.
        room, layout: of the batches.

    Raises:
        UserError: they were asked for, and cannot be on this GPU.
    """
    option = sft.cuda_graphs
    if option is False:
        return False
    reason: str | None = "no CUDA device"
    if args.device.type == "cuda":
        reason = why_not(
            compiled=bool(compiled_layers(model)),
            all_compiled=not past_limit(model),
            chunked=takes_places(model),
            fixed_room=room is not None and layout == "tokens",
            bf16=args.bf16,
            grouped=any(getattr(module, GROUPED, False) for module in model.modules()),
            wrapped_in="none" if run.wrapped_in == "DDP" and run.ranks == 1 else run.wrapped_in,
            checkpointing=any(getattr(module, "gradient_checkpointing", False) for module in model.modules()),
            random=has_dropout(model),
        )
        if option and reason is not None:
            raise UserError(
                f"trainer.cuda_graphs=true: {reason}.\n  Write trainer.cuda_graphs=null to leave them out here"
            )
        if option is None and reason is None:
            reason = graphs_given_up(run, sft.micro_batch_size)
    elif option:
        run.console.row("", f"cuda_graphs are left out: {reason}")
    run.update(cuda_graphs=f"off: {reason}" if reason else "on where it pays")
    return option if reason is None else False


def why_not(
    *,
    compiled: bool,
    all_compiled: bool,
    chunked: bool,
    fixed_room: bool,
    bf16: bool,
    grouped: bool,
    wrapped_in: str,
    checkpointing: bool,
    random: bool,
) -> str | None:
    """Why this run's passes cannot be captured, with what to write; None: they can.

    Args:
        compiled, chunked: the patches compile and chunked_loss are in the model.
        all_compiled: no layer had to go on as it is written.
        fixed_room: packs on one token axis of fixed length.
        bf16: the arithmetic.
        grouped: packs of some layers went document by document when they were probed.
        wrapped_in: none, DDP or FSDP2.
        checkpointing: gradient checkpointing is on.
        random: some dropout is above 0.
    """
    if not compiled or not chunked:
        lacking = ",".join(name for name, there in (("compile", compiled), ("chunked_loss", chunked)) if not there)
        return f"they need patch=[…,{lacking}]"
    if not all_compiled:
        return "some layers need more graphs than torch makes, and go on as they are written"
    if not fixed_room:
        return "they need packs on one token axis (trainer.packing=true)"
    if not bf16:
        return "they need trainer.precision=bf16 (attention in float32 goes document by document)"
    if grouped:
        return "no attention kernel takes heads as wide as some layers', which go document by document"
    if wrapped_in != "none":
        return f"they are for one process, and the model is in {wrapped_in}"
    if checkpointing:
        return "gradient checkpointing restores random states in every pass (leave gradient_checkpointing out of patch=[…])"
    return "dropout draws new numbers in every pass (patch.lora.dropout=0)" if random else None
