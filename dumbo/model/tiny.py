"""`model=tiny`: a small Llama with random weights and a tokenizer that ships with dumbo.

What the embedded default trains: nothing to download, a minute on two cores. The tokenizer was made by
tools/make_tiny_tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dumbo.errors import UserError
from dumbo.model.attention_names import AttentionName, attention_problems
from dumbo.model.sizes import require_seed, require_sizes

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Builds the model.

    Args:
        hidden_size: width H of the residual stream.
        num_hidden_layers: decoder layers.
        num_attention_heads: heads, each H / num_attention_heads wide.
        intermediate_size: width of the MLP.
        context_length: longest row, in tokens.
        seed: of the initial weights.
        dtype: auto (float32), float32, bfloat16 or float16.
        attn_implementation: as for `Pretrained`.
    """

    hidden_size: int = 128
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    intermediate_size: int = 384
    context_length: int = 1024
    seed: int = 0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: AttentionName = "auto"

    def __post_init__(self) -> None:
        require_sizes(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            context_length=self.context_length,
        )
        require_seed(self.seed)
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} does not divide into {self.num_attention_heads} heads of an even width."
            )

    def problems(self) -> Iterable[str]:
        """An attention whose package is not installed."""
        yield from attention_problems(self.attn_implementation)

    @property
    def name(self) -> str:
        return "tiny"

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(HERE / "tiny_tokenizer")
        tokenizer.chat_template = (HERE / "templates" / "chatml.jinja").read_text(encoding="utf-8")
        tokenizer.model_max_length = self.context_length
        return tokenizer

    def load_skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model on the meta device: names and shapes, no weights."""
        import torch
        from transformers import LlamaForCausalLM

        with torch.device("meta"):
            return LlamaForCausalLM(self._config(tokenizer))

    def load_model(self, tokenizer: PreTrainedTokenizerBase, **load_kwargs: Any) -> PreTrainedModel:
        import torch
        from transformers import LlamaForCausalLM

        from dumbo.model.dtype import torch_dtype

        if "quantization_config" in load_kwargs:
            raise UserError("model=tiny has no stored weights to quantise: leave that patch out.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model: Any = LlamaForCausalLM(self._config(tokenizer))
        if self.attn_implementation != "auto":
            model.set_attn_implementation(self.attn_implementation)
        return model.to(torch_dtype(load_kwargs.get("dtype", self.dtype)))

    def _config(self, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_attention_heads,
            intermediate_size=self.intermediate_size,
            max_position_embeddings=self.context_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
