"""`model.tokenizer.*`: tokens, template, and the embedding rows of what was added."""

from __future__ import annotations

import pytest
import torch
from models import random_model

from dumbo.errors import UserError
from dumbo.model.pretrained import Pretrained
from dumbo.model.special_tokens import SpecialTokens


@pytest.fixture(scope="module")
def tied(tmp_path_factory, smollm_folder):
    return random_model(tmp_path_factory.mktemp("tied"), "llama", smollm_folder)


@pytest.fixture(scope="module")
def untied(tmp_path_factory, smollm_folder):
    return random_model(tmp_path_factory.mktemp("untied"), "llama", smollm_folder, tie_word_embeddings=False)


def load(folder, **tokens):
    loader = Pretrained(path=str(folder), tokenizer=SpecialTokens(**tokens))
    tokenizer = loader.load_tokenizer()
    return tokenizer, loader.load_model(tokenizer)


def weights(model):
    return model.get_input_embeddings().weight, model.get_output_embeddings().weight


def test_nothing_asked_nothing_changed(tied, smollm_folder):
    from transformers import AutoTokenizer

    tokenizer, model = load(tied)
    own = AutoTokenizer.from_pretrained(smollm_folder)
    assert tokenizer.get_vocab() == own.get_vocab()
    assert tokenizer.chat_template == own.chat_template
    assert weights(model)[0].shape[0] == len(own)
    assert model.added_token_ids == []


def test_tied_grows_and_stays_tied(tied):
    _, before = load(tied)
    tokenizer, model = load(tied, pad_token="<|pad|>", added_tokens=["<tool>", "</tool>"])
    embedding, head = weights(model)
    old = weights(before)[0]
    assert embedding.shape[0] == head.shape[0] == len(tokenizer) == len(old) + 3
    assert model.config.vocab_size == len(tokenizer)
    assert head is embedding
    torch.testing.assert_close(embedding[: len(old)], old, rtol=0, atol=0)
    for row in embedding[len(old) :]:
        torch.testing.assert_close(row, old.mean(0))
    assert model.added_token_ids == [len(old), len(old) + 1, len(old) + 2]
    assert tokenizer.pad_token_id in model.added_token_ids
    assert tokenizer.tokenize("a<tool>b")[1] == "<tool>"


def test_untied_grows_on_both_ends(untied):
    _, before = load(untied)
    _, model = load(untied, added_tokens=["<tool>"])
    assert weights(model)[0] is not weights(model)[1]
    for new, old in zip(weights(model), weights(before), strict=True):
        torch.testing.assert_close(new[: len(old)], old, rtol=0, atol=0)
        torch.testing.assert_close(new[-1], old.mean(0))
        assert len(new) == len(old) + 1


@pytest.mark.parametrize("tie", [True, False])
def test_padded_vocabulary_is_not_shrunk(tie, tmp_path, smollm_folder):
    """Rows beyond the tokenizer's: they stay, added tokens take the first of them, the mean is over real tokens."""
    folder = random_model(tmp_path / "m", "llama", smollm_folder, vocab_size=49152 + 64, tie_word_embeddings=tie)
    _, before = load(folder)
    tokenizer, model = load(folder, added_tokens=["<tool>"])
    assert tokenizer.convert_tokens_to_ids("<tool>") == 49152
    for new, old in zip(weights(model), weights(before), strict=True):
        assert len(new) == len(old) == 49152 + 64
        torch.testing.assert_close(new[49152], old[:49152].mean(0))
        torch.testing.assert_close(new[49153:], old[49153:], rtol=0, atol=0)
    assert (weights(model)[0] is weights(model)[1]) == tie


def test_tokenizer_that_is_longer_by_itself(tmp_path, smollm_folder):
    """Every token gets a row, but nothing was added by the user: adapters leave that row alone."""
    folder = random_model(tmp_path / "m", "llama", smollm_folder, vocab_size=49151)
    tokenizer, model = load(folder)
    assert len(weights(model)[0]) == len(tokenizer) == 49152
    assert model.added_token_ids == []
    _, with_own = load(folder, added_tokens=["<tool>"])
    assert with_own.added_token_ids == [49152]
    _, elsewhere = load(folder, path=str(smollm_folder))
    assert elsewhere.added_token_ids == [49151]


def test_tokens_that_exist_are_not_added(tied):
    tokenizer, model = load(
        tied, pad_token="<|endoftext|>", eos_token="<|im_end|>", added_tokens=["<|im_start|>", "the"]
    )
    assert len(tokenizer) == 49152
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 2)
    assert weights(model)[0].shape[0] == 49152
    assert model.added_token_ids == []


def test_bos_eos_pad_reach_the_tokenizer(tied):
    tokenizer, _ = load(tied, bos_token="<s>", eos_token="</s>", pad_token="<p>")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<p>")
    ids = tokenizer("x<s></s><p>", add_special_tokens=False)["input_ids"]
    assert ids[1:] == [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]


def test_saved_tokenizer_and_model_load_the_same(untied, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    template = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    tokenizer, model = load(untied, pad_token="<|pad|>", added_tokens=["<tool>"], chat_template=template)
    tokenizer.save_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "out")
    again = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a <tool> b<|pad|>"
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.chat_template == template
    assert again.pad_token == "<|pad|>"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    chat = [{"role": "user", "content": "Hi"}]
    assert again.apply_chat_template(chat, tokenize=False) == "[user]Hi"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for new, old in zip(weights(loaded), weights(model), strict=True):
        assert torch.equal(new, old)


def test_templates_by_name_file_or_text(tied, tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    assert load(tied, chat_template="mine.jinja")[0].chat_template == "{{ messages[0].content }}"
    chatml, _ = load(tied, chat_template="chatml")
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text = chatml.apply_chat_template(chat, tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"


def test_wrong_ones_are_named():
    with pytest.raises(UserError, match=r"'chatmll' is neither a shipped template.*Did you mean 'chatml'"):
        SpecialTokens(chat_template="chatmll")
    with pytest.raises(UserError, match="chat_template"):
        SpecialTokens(chat_template="{% for %}")
    with pytest.raises(UserError, match="must not be empty"):
        SpecialTokens(added_tokens=["a", " "])


def test_tokenizer_from_elsewhere(tied, tokenizer_folder):
    loader = Pretrained(path=str(tied), tokenizer=SpecialTokens(path=str(tokenizer_folder("qwen3"))))
    tokenizer = loader.load_tokenizer()
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) > 150_000
    assert loader.load_model(tokenizer).get_input_embeddings().weight.shape[0] == len(tokenizer)
