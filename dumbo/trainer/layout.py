"""How documents share a batch on this model: chosen, then proven on its loaded weights.

tokens   one token axis, attention isolates documents by their lengths (`attention.py`, or flash-attention)
rows     (B, T) packs, the model's own attention isolates documents by restarting position_ids
padded   one document a row
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dumbo.errors import ProofFailed, UserError
from dumbo.patch.compile import as_written
from dumbo.patch.modules import base_of
from dumbo.trainer import attention
from dumbo.trainer.collate import Layout, Room
from dumbo.trainer.memory import ran_out
from dumbo.verify.experts import allowed_by_experts, has_experts, root_mean_square
from dumbo.verify.pack_leak import Leak, lengths_past, probe_alone, probe_experts, probe_packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 2e-2}
"""How far packed may be from alone, relative to the largest logit: sums in another order, nothing else. In bf16 as much as
`proof.rms_tolerance` allows a model of 30 layers. Seen on random Mixtral and Qwen3-MoE: 4e-7 in float32; 1.5 where packs are
attended to without borders.
"""


def choose_layout(
    model: PreTrainedModel,
    packing: bool,
    attn_implementation: str,
    *,
    bf16: bool = False,
    longest: int = 1 << 30,
    room: Room | None = None,
    as_training: bool = False,
) -> tuple[Layout, str]:
    """The layout for a model, and its proof in words.

    Args:
        packing: `trainer.packing`.
        attn_implementation: `model.attn_implementation`; auto lets dumbo choose.
        bf16: whether training computes in bf16: probed is what will run.
        longest: tokens of the longest document; a window or chunk of attention shorter than that is probed too.
        room: of the token axis in training, where layers are compiled; None: no fixed one.
        as_training: packs are probed in the graphs that train, where the memory has room for them.

    Raises:
        ProofFailed: packed documents would see each other, in every layout this model can take.
    """
    if not packing:
        return "padded", "not packed"
    base = base_of(model)
    before = base.config._attn_implementation
    vocab_size = base.config.get_text_config().vocab_size
    sizes = lengths_past(base.config.get_text_config(), longest)
    dtype = torch.bfloat16 if bf16 else model.dtype
    alone, allowed = _alone(model, vocab_size, bf16, sizes, dtype)
    tried: list[str] = []
    refused = ""
    for layout, implementation in _candidates(attn_implementation, before):
        if not _set(base, implementation):
            continue
        try:
            found = _probed(model, layout, vocab_size, alone, bf16, sizes, room, as_training)
        except UserError:
            raise
        except ValueError as error:  # CannotIsolate, or the model's own word: its layers cannot keep documents apart
            tried.append(f"{implementation}: {(str(error) or type(error).__name__).splitlines()[0]}")
            if not isinstance(error, attention.CannotIsolate):
                refused = f"; {tried[-1]}"
            continue
        if _isolated(found, dtype, allowed):
            beside = f", experts may make {allowed:.0e}" if allowed else ""
            said = f"pack leak {found.spread:.1g} ({base.config._attn_implementation} attention{beside}){refused}"
            return layout, said
        tried.append(f"{implementation}: leak {found.leak:.2g}, {found.against_alone:.1g} from alone")
    if base._can_set_attn_implementation():
        base.set_attn_implementation(before)
    raise ProofFailed(
        f"{type(base).__name__} cannot keep packed documents apart here ({'; '.join(tried) or 'no attention to try'}).\n"
        "  Write trainer.packing=false"
    )


def _alone(
    model: PreTrainedModel, vocab_size: int, bf16: bool, sizes: tuple[int, int, int], dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    """Logits of a document by itself, by the model's own attention: any other must give the same. And by how much others may move
    them: not by a bit, but for what experts do.
    """
    with as_written(model):
        alone = probe_alone(model, vocab_size, bf16, sizes)
        if not has_experts(model):
            return alone, 0.0
        noise = probe_experts(model, vocab_size, bf16, sizes)
    return alone, allowed_by_experts(noise, dtype, root_mean_square(alone)).value


def _set(base: PreTrainedModel, implementation: str) -> bool:
    """Gives a model this attention; False: it takes none but its own."""
    if implementation == attention.NAME:
        attention.register()
    if implementation != base.config._attn_implementation:
        if not base._can_set_attn_implementation():
            return False
        base.set_attn_implementation(implementation)
    return True


def _probed(
    model: PreTrainedModel,
    layout: Layout,
    vocab_size: int,
    alone: torch.Tensor,
    bf16: bool,
    sizes: tuple[int, int, int],
    room: Room | None,
    as_training: bool,
) -> Leak:
    """One token axis is probed with the room and the layers of training, other layouts without compiling their shapes."""
    if layout == "tokens":
        if as_training:
            try:
                return probe_packing(model, layout, vocab_size, alone, bf16, sizes, room, as_training=True)
            except Exception as error:
                if not ran_out(error):
                    raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            # where a batch does not fit either, the proofs that follow say so, and the micro batch is halved
        return probe_packing(model, layout, vocab_size, alone, bf16, sizes, room)
    with as_written(model):
        return probe_packing(model, layout, vocab_size, alone, bf16, sizes)


def _candidates(asked: str, own: str) -> list[tuple[Layout, str]]:
    """(layout, attention) to try, best first."""
    if asked == "auto":
        return [("tokens", attention.NAME), ("rows", own), ("rows", "eager")]
    if asked.startswith("flash_attention") or asked == attention.NAME:
        return [("tokens", asked)]
    return [("rows", asked)]


def _isolated(found: Leak, dtype: torch.dtype, allowed: float) -> bool:
    return found.spread <= allowed and found.against_alone <= TOLERANCE.get(dtype, 2e-2)
