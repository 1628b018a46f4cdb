"""`dumbo evaluate`'s loss of each source against plain torch: one row at a time, no code of dumbo's computes it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from dumbo.cli import main

ROWS = {
    "short.jsonl": [("What is 2 + 3?", "5"), ("Capital of France?", "Paris"), ("Spell cat.", "c a t")],
    "long.jsonl": [
        ("Tell me of rivers. " * n, "They run down to the sea, all of them. " * (n % 3 + 1)) for n in range(1, 6)
    ],
}


def written(folder: Path) -> list[Path]:
    files = []
    for name, rows in ROWS.items():
        (folder / name).write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
        files.append(folder / name)
    return files


def plain_nats(model, tokenizer, question: str, answer: str) -> tuple[float, int]:
    """The negative log likelihood of an answer and its end token after a chatml prompt, token by token."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    before = tokenizer.encode(prompt, add_special_tokens=False)
    after = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
    ids = torch.tensor([[*before, *after]])
    assert tokenizer.encode(f"{prompt}{answer}<|im_end|>", add_special_tokens=False) == ids[0].tolist()
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0].double(), -1)
    return -sum(logprobs[len(before) + n - 1, token].item() for n, token in enumerate(after)), len(after)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_loss_and_perplexity_of_each_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], batch_size: int
) -> None:
    from dumbo.model.tiny import Tiny

    files = written(tmp_path)
    held_out = f"[{','.join(map(str, files))}]"
    words = ["model=tiny", "dataset=files", f"dataset.path={files[0]}", f"dataset.eval_path={held_out}"]
    assert main(["evaluate", *words, f"evaluate.batch_size={batch_size}", "evaluate.format=json"]) == 0
    found = json.loads(capsys.readouterr().out)

    loader = Tiny()
    tokenizer = loader.load_tokenizer()
    model = loader.load_model(tokenizer).eval()
    all_nats, all_tokens = 0.0, 0
    for file in files:
        losses = [plain_nats(model, tokenizer, question, answer) for question, answer in ROWS[file.name]]
        nats, tokens = sum(loss for loss, _ in losses), sum(count for _, count in losses)
        source = next(facts for name, facts in found["sources"].items() if name.endswith(file.name))
        assert (source["trained_tokens"], source["rows"]) == (tokens, len(ROWS[file.name]))
        assert source["loss"] == pytest.approx(nats / tokens, abs=1e-5)
        assert source["perplexity"] == pytest.approx(math.exp(source["loss"]), rel=1e-12)
        all_nats, all_tokens = all_nats + nats, all_tokens + tokens
    assert found["loss"] == pytest.approx(all_nats / all_tokens, abs=1e-5)
    assert found["loss"] != pytest.approx(sum(s["loss"] for s in found["sources"].values()) / 2, abs=1e-3), (
        "over tokens"
    )
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]), rel=1e-12)
