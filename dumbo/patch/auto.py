"""`performance=auto`: the patches that make a step faster and change none of its numbers, where that is proven and pays.

Pipeline: the data is prepared -> here, which of them are added to those that were chosen -> the model is loaded, patched.
On a GPU each one that is not added is named with the reason; without a GPU there is nothing to choose between: one line says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dumbo.cross_check import conflicts, smoothing
from dumbo.errors import UserError
from dumbo.interfaces import Patch
from dumbo.options import FASTER
from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile
from dumbo.patch.fused_lora import FusedLoRA
from dumbo.patch.order import in_order
from dumbo.patch.tile_attention import TileAttention, not_in_cudnn
from dumbo.patch.varlen import Varlen

if TYPE_CHECKING:
    from dumbo.check import Plugins
    from dumbo.outputs.run_dir import RunDir
    from dumbo.patch.flash_race import Raced
    from dumbo.prepare.store import PreparedSplits

KINDS: dict[str, Any] = {
    "compile": Compile,
    "chunked_loss": ChunkedLoss,
    "fused_lora": FusedLoRA,
    "tile_attention": TileAttention,
}
UNASKED = {"compile": {"past_limit": "as_written"}}
"""Options of patches that nobody asked for, where they differ from the defaults."""
PAYS = 7_000
"""Compiling takes half a minute and saves some 4 ms a layer and step (3.9 at 135 M, 4.5 at 1 B, beside Liger's kernels on
an H100 at 16 k tokens): so many layers times steps make up for it."""
MEASURED = 4096
"""Tokens of the document in which a token lies, on average: up to here tiles are faster than torch's kernel (2.2 to 2.6 times
at some 400, 1.13 to 1.21 times at 4,096; on an H200, nowhere else yet). Where longer ones go through cuDNN, so is that."""
FILLED = 0.8
"""Of packs: below, padding takes as much as compiling gains at 1 B (1.3 times the speed, beside Liger's kernels on an H100; at
135 M 3 times)."""
RACED = "flash_raced"
"""In run.json: what came of installed FlashAttention implementations (`flash_race.py`)."""
WITHOUT_PACKS = {
    "compile": "their shapes change (patch=[…,compile] does it)",
    "tile_attention": "it has nothing to do",
}
"""Why a patch that is made for packs is not added without them."""


def added(
    plugins: Plugins, patches: Mapping[str, Patch], tokenizer: Any, data: PreparedSplits, run: RunDir
) -> dict[str, Patch]:
    """The chosen patches and those that `performance` adds, in order."""
    wanted = [
        name
        for name in names(plugins.options.performance)
        if name not in patches and all(needed in patches for needed in getattr(KINDS[name], "only_with", ()))
    ]
    reason = _not_here() if wanted else None
    if reason is not None and isinstance(plugins.options.performance, list):  # by name: as if it had been chosen
        for name in wanted:
            works = getattr(KINDS[name](), "unavailable", lambda: None)() is None
            run.left_out(name, reason + f" (patch=[…,{name}] works on a CPU, too)" * works)
    if not wanted or reason is not None:
        run.update(performance=f"nothing added: {reason}" if reason else "nothing to add")
        if reason is not None and plugins.options.performance == "auto":
            run.console.row("speed", f"performance=auto adds no patch: {reason}")
        return dict(patches)
    skeleton = plugins.model.load_skeleton(tokenizer) if hasattr(plugins.model, "load_skeleton") else None
    found = dict(patches)
    for name in wanted:
        patch = KINDS[name](**UNASKED.get(name, {}))
        reason = _why_not(name, patch, found, skeleton, steps_of(plugins.trainer, data))
        if reason is None:
            reason = next((fault.splitlines()[0] for fault in smoothing(plugins.trainer, {name: patch})), None)
        if reason is None and name in WITHOUT_PACKS and not one_shape(plugins):
            reason = f"batches are not packs on one token axis: {WITHOUT_PACKS[name]}"
        if reason is None and name == "compile":
            reason = _padding(plugins, data)
        if reason is None and name == "tile_attention":
            reason = _no_tiles(plugins, data, skeleton)
        if reason is None and name == "tile_attention":
            faster = _faster_flash(plugins.options.performance, skeleton, data, run)
            if faster is not None:
                found["varlen"], reason = Varlen(flash=faster.name), faster.said
        if not run.left_out(name, reason and f"performance={plugins.options.performance}, {reason}"):
            found[name] = patch
    run.update(performance=[name for name in found if name not in patches])
    return in_order(found)


def names(performance: str | list[str]) -> tuple[str, ...]:
    """What `performance` may add."""
    if isinstance(performance, str):
        return FASTER if performance == "auto" else ()
    return tuple(performance)


def one_shape(plugins: Plugins) -> bool:
    """Whether all batches are to have one shape, where that is known: others can take more graphs than torch makes, and
    layers that go on as they are written.
    """
    asked = str(getattr(plugins.model, "attn_implementation", "auto"))
    axis = asked in ("auto", "isolated") or asked.startswith("flash_attention")
    return bool(getattr(plugins.trainer, "packing", False)) and axis


def steps_of(trainer: Any, data: PreparedSplits) -> int:
    """About how many steps a trainer is going to make."""
    a_step = trainer.global_batch_size * data.max_seq_len if getattr(trainer, "packing", False) else 0
    whole = data.train.tokens / a_step if a_step else len(data.train) / getattr(trainer, "global_batch_size", 1)
    return int(getattr(trainer, "max_steps", None) or whole * getattr(trainer, "num_epochs", 1))


def _padding(plugins: Plugins, data: PreparedSplits) -> str | None:
    """Why compiled packs, which are filled up to one shape, would cost more than they save."""
    from dumbo.prepare.packing import pack

    train = data.train
    filled = pack(train.lengths, train.documents, data.max_seq_len, getattr(plugins.trainer, "seed", 0)).filled
    if filled >= FILLED:
        return None
    return (
        f"packs of {data.max_seq_len:,} tokens are {filled:.0%} full, and compiled ones are filled up with padding "
        "(another trainer.max_seq_len; patch=[…,compile] does it)"
    )


def _no_tiles(plugins: Plugins, data: PreparedSplits, skeleton: Any) -> str | None:
    """Why tiles would not be faster."""
    from dumbo.model.dtype import resolved_precision
    from dumbo.trainer import cudnn

    if resolved_precision(getattr(plugins.trainer, "precision", "auto")) == "fp32":
        return "the arithmetic is fp32, and its kernels take bf16"
    lengths = data.train.lengths.astype(float)
    typical = (lengths**2).sum() / max(lengths.sum(), 1.0)
    if typical > MEASURED and (cudnn.lacking() if skeleton is None else not_in_cudnn(skeleton)) is not None:
        return (
            f"a token's document has {typical:,.0f} tokens on average; it is measured up to {MEASURED:,} "
            "(patch=[…,tile_attention] does it)"
        )
    return None


def _faster_flash(performance: str | list[str], skeleton: Any, data: PreparedSplits, run: RunDir) -> Raced | None:
    """The fastest FlashAttention that is installed and faster than tiles, which nobody asked for by name. Rank 0 finds it out."""
    if performance != "auto":
        return None
    from dumbo.patch.flash_race import Raced

    with run.world.main_first():
        found_out = _raced(skeleton, data, run) if run.world.main else None
    told = run.world.share(found_out)
    if told is None:
        return None
    run.update(**{RACED: told})
    found = [Raced(**one) for one in told["found"]]
    best = min((one for one in found if one.faster), key=lambda one: one.ms or 0.0, default=None)
    if best is None:
        run.left_out("varlen", "; ".join(one.said for one in found))
    return best


def _raced(skeleton: Any, data: PreparedSplits, run: RunDir) -> dict[str, Any] | None:
    """As run.json has it: a run that is taken up again where the race would be the same has the same kernels, and one that had
    none to race stays with tiles."""
    from dumbo.patch.flash_race import Race, installed

    files, before = installed(), run.facts.get(RACED)
    if not files or (before is None and run.resuming):
        return None
    race = Race.of(skeleton, data.train.lengths, files)
    if before is not None and before["of"] == race.key:
        return dict(before)
    return {"of": race.key, "found": [asdict(one) for one in race.result()]}


def _not_here() -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _why_not(name: str, patch: Any, others: Mapping[str, Patch], skeleton: Any, steps: int) -> str | None:
    """Why a patch is not added, on one line."""
    reason = patch.unavailable() if hasattr(patch, "unavailable") else None
    if reason is None and skeleton is None:
        reason = "the model's plugin has no load_skeleton, which it is checked on (patch=[…] does it)"
    clash = conflicts({**others, name: patch})
    if reason is None and clash:
        reason = clash[0].splitlines()[0]
    if reason is None and skeleton is not None:
        try:
            if hasattr(patch, "check"):
                patch.check(skeleton)
        except UserError as error:
            reason = str(error).splitlines()[0]
        if reason is None and hasattr(patch, "idle_beside"):
            reason = patch.idle_beside(others["lora"], skeleton)
        layers = getattr(skeleton.config.get_text_config(), "num_hidden_layers", 0)
        if reason is None and name == "compile" and layers * steps < PAYS:
            reason = (
                f"{steps:,} steps of {layers} layers are too few to make up for compiling (patch=[…,compile] does it)"
            )
    return reason
