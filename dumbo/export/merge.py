"""Adapters into the weights they stand beside, and the model as files.

W + scale B A is added up in float32, whatever the weights are saved in: merged in bfloat16, small updates vanish in
the rounding of a sum.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import ProofFailed
from dumbo.model.dtype import torch_dtype
from dumbo.patch.modules import keep_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dumbo.export.trained import Trained


def merged(model: Any) -> PreTrainedModel:
    """The plain model, its adapters merged in place; a model without adapters as it is.

    Raises:
        ProofFailed: an adapter holds numbers that are not finite.
    """
    plain = model
    if hasattr(model, "peft_config"):
        try:
            plain = model.merge_and_unload(safe_merge=True)
        except ValueError as error:
            raise ProofFailed(f"The adapters cannot be merged, nothing was written: {error}") from error
    _untie_what_differs(plain)
    return plain


def _untie_what_differs(model: Any) -> None:
    """A head that training made another matrix than the embedding must be saved as its own."""
    import torch

    config = model.config.get_text_config()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if not getattr(config, "tie_word_embeddings", False) or head is None or head.weight is embedding.weight:
        return
    if not torch.equal(head.weight, embedding.weight):
        config.tie_word_embeddings = model.config.tie_word_embeddings = False
        model.all_tied_weights_keys = {}


def save(model: PreTrainedModel, trained: Trained, folder: Path, dtype: str) -> None:
    """Weights as safetensors, config, generation config, tokenizer and chat template."""
    for parameter in model.parameters():  # and no buffers: the frequencies of rotary positions are no weights
        parameter.data = parameter.data.to(torch_dtype(dtype))
    keep_cache(model, True)
    model.save_pretrained(folder)
    trained.tokenizer.save_pretrained(folder)
