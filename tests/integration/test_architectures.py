"""Every model choice, through the product, on a random-weight model of its architecture class: two packed steps,
full and with LoRA. The losses are those of the documents alone, computed here with plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from models import random_model

import dumbo

CHOICES = {
    # choice: (architecture class, tokenizer)
    "smollm": ("llama", "smollm"),
    "smollm_360m": ("llama", "smollm"),
    "smollm_1_7b": ("llama", "smollm"),
    "smollm3_3b": ("smollm3", "smollm"),
    "tinystories_1m": ("gpt_neo", "smollm"),
    "llama3_1b": ("llama", "llama3"),
    "llama3_8b": ("llama", "llama3"),
    "qwen3_0_6b": ("qwen3", "qwen3"),
    "qwen3_8b": ("qwen3", "qwen3"),
    "gemma3_1b": ("gemma3", "gemma3"),
    "mistral_7b": ("mistral", "smollm"),
    "pretrained": ("llama", "smollm"),
}
SAME_AS_ANOTHER = {"smollm_360m", "smollm_1_7b", "llama3_8b", "qwen3_8b", "pretrained"}
"""Architecture and tokenizer of a choice that is tested anyway: only in .ci/full."""

TRAIN = [
    ("What is the capital of Peru?", "Lima is the capital of Peru, on the coast of the Pacific."),
    ("Spell house.", "h-o-u-s-e"),
    ("Which is larger, 12 or 7?", "12 is larger than 7."),
    ("Name three colours of the rainbow.", "Red, green and blue are three of its colours; there are four more."),
    ("What is 17 plus 25?", "17 plus 25 is 42."),
    ("Who wrote Faust?", "Goethe."),
]
EVAL = [
    ("What is the capital of Chile?", "Santiago, in the middle of the country, is the capital of Chile."),
    ("Spell tree.", "t-r-e-e"),
    ("What is 30 plus 12?", "30 plus 12 is 42, which is also 6 times 7."),
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Matrices this small are slower on several threads, much slower on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def make(tmp_path_factory, tokenizer_folder, smollm_folder):
    """(architecture, tokenizer) -> a random-weight folder, made once."""
    made = {}

    def folder(architecture: str, tokenizer: str) -> Path:
        key = (architecture, tokenizer)
        if key not in made:
            source = smollm_folder if tokenizer == "smollm" else tokenizer_folder(tokenizer)
            made[key] = random_model(tmp_path_factory.mktemp("-".join(key)), architecture, source)
        return made[key]

    return folder


def write_rows(path: Path, pairs: list[tuple[str, str]], as_text: bool) -> None:
    rows = [
        {"text": f"{question}\n{answer}"}
        if as_text
        else {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def documents(tokenizer, as_text: bool) -> list[list[int]]:
    """The held-out rows as token ids, made without dumbo; every token but the first bears loss."""
    if as_text:
        return [
            tokenizer(f"{question}\n{answer}", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            for question, answer in EVAL
        ]
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in EVAL
    ]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def loss_alone(model, rows: list[list[int]]) -> float:
    """Mean loss over all predicted tokens, each document in a forward pass of its own."""
    total, tokens = 0.0, 0
    model.eval()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="sum"))
            tokens += len(row) - 1
    return total / tokens


def logits_of(model) -> torch.Tensor:
    """(1, 40, V) for 40 tokens, longer than the sliding windows."""
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def cases():
    for choice in CHOICES:
        for patch in ("", "lora"):
            large = (choice, patch) in (("gemma3_1b", "lora"), ("qwen3_0_6b", "lora"))  # their vocabularies
            marks = [pytest.mark.full] if choice in SAME_AS_ANOTHER or large else []
            yield pytest.param(choice, patch, id=f"{choice}-{patch or 'full'}", marks=marks)


@pytest.mark.parametrize(("choice", "patch"), list(cases()))
def test_two_packed_steps(choice, patch, make, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dumbo.trainer import into_model

    folder = make(*CHOICES[choice])
    as_text = choice == "tinystories_1m"
    write_rows(tmp_path / "train.jsonl", TRAIN, as_text)
    write_rows(tmp_path / "eval.jsonl", EVAL, as_text)
    seen = {}
    save = into_model.save_weights

    def saving(model, where, weights=None):
        seen["logits"] = logits_of(model)
        save(model, where, weights)

    monkeypatch.setattr(into_model, "save_weights", saving)
    words = [
        f"model={choice}",
        f"model.path={folder}",
        "model.context_length=256",
        "patch=[lora]" if patch else "patch=[]",
        "formatter=text" if as_text else "formatter=chat",
        *([] if as_text else ["formatter.loss_on=all"]),
        "dataset=files",
        "dataset.path=train.jsonl",
        "dataset.eval_path=eval.jsonl",
        "trainer.max_seq_len=96",
        "trainer.max_steps=2",
        "trainer.global_batch_size=2",
        "trainer.micro_batch_size=1",
        "trainer.lr=1e-2",
        "trainer.precision=fp32",
        "trainer.num_samples=1",
        "trainer.max_new_tokens=4",
        "trainer.save_every=null",
        "trainer.eval_every=2",
        "run_dir=run",
    ]
    if choice == "tinystories_1m":
        words.append(f"model.tokenizer.path={folder}")
    metrics = dumbo.run(words)
    run = tmp_path / "run"
    facts = json.loads((run / "run.json").read_text())

    assert facts["status"] == "finished"
    assert metrics["steps"] == 2
    assert facts["packing"]["packs"] < len(TRAIN)
    assert any("pack leak 0" in proof for proof in facts["proofs"]), facts["proofs"]
    assert facts["model"]["class"] == type(AutoModelForCausalLM.from_pretrained(folder)).__name__
    assert ("lora" in facts["patches"]) == bool(patch)

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    held_out = documents(tokenizer, as_text)
    losses = [
        row["eval_loss"]
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "eval_loss" in row
    ]
    before = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if len(tokenizer) > before.config.vocab_size:  # the choice's own pad token was new to this tokenizer
        mean = before.get_input_embeddings().weight.detach().mean(0)
        before.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            before.get_input_embeddings().weight[-1] = mean
    assert losses[0] == pytest.approx(loss_alone(before, held_out), abs=1e-5)

    if patch:
        from peft import PeftModel

        after = PeftModel.from_pretrained(before, run / "model")
    else:
        after = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert losses[-1] == pytest.approx(loss_alone(after, held_out), abs=1e-5)
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3), "two steps changed nothing"
    torch.testing.assert_close(logits_of(after), seen["logits"], atol=1e-4, rtol=1e-5)
