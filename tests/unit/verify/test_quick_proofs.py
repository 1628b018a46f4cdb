"""The proofs at the start of a run can fail: each planted mistake ends it with exit code 4, the right proof named."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dumbo.cli

WORDS = [
    "run_dir=run", "trainer.max_steps=1", "trainer.num_samples=0", "trainer.num_answers=0", "trainer.max_seq_len=256", "dataset.limit=200",
    "trainer.eval_at_start=false",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _own_prepared_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a planted formatter prepares does not go into the session's cache."""
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(*words: str) -> tuple[int, str]:
        code = dumbo.cli.main([*WORDS, *words])
        shown = capsys.readouterr()
        return code, shown.out + shown.err

    return call


def stopped_before_training() -> bool:
    facts = json.loads(Path("run/run.json").read_text())
    return facts["status"] == "failed" and not Path("run/metrics.jsonl").exists()


def test_what_is_right_passes_and_is_shown(train: Any) -> None:
    code, said = train()
    assert code == 0, said
    shown = said[said.index("\nproofs") : said.index("\ntraining")]
    assert "trained tokens are the assistant's turns in 64 rows" in shown
    assert "pack leak 0 (isolated attention)" in shown
    assert "accumulation 1 = 2 to " in shown
    assert len(json.loads(Path("run/run.json").read_text())["proofs"]) == 7


# ---- the mask ----------------------------------------------------------------------------------------------------


def plant_labels(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """The formatter marks other tokens than it should."""
    from dumbo.formatter.chat import Chat

    right = Chat.format

    def wrong(self: Any, rows: Any, tokenizer: Any) -> Any:
        examples = right(self, rows, tokenizer)
        for example in examples:
            if hasattr(example, "labels"):
                ids = np.asarray(example.input_ids)
                trained = change(np.asarray(example.labels) != -100)
                trained[0] = False
                example.labels = np.where(trained, ids, -100)
        return examples

    monkeypatch.setattr(Chat, "format", wrong)


def later(trained: np.ndarray) -> np.ndarray:
    return np.roll(trained, 1)


def earlier(trained: np.ndarray) -> np.ndarray:
    return np.roll(trained, -1)


def reversed_(trained: np.ndarray) -> np.ndarray:
    return ~trained


def everything(trained: np.ndarray) -> np.ndarray:
    return np.ones_like(trained)


def no_end(trained: np.ndarray) -> np.ndarray:
    return trained & np.roll(trained, -1)


@pytest.mark.parametrize("change", [later, earlier, reversed_, everything, no_end])
def test_a_wrong_mask(change: Any, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_labels(monkeypatch, change)
    code, said = train("audit.mode=off")  # which would find some of them first
    assert code == 4, said
    assert "The mask is wrong at " in said
    assert stopped_before_training()


def test_without_the_proofs_it_would_have_trained(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_labels(monkeypatch, later)
    code, said = train("verify.mode=off")
    assert code == 0, said


# ---- packing -----------------------------------------------------------------------------------------------------


@pytest.fixture
def leak(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every attention this model can take sees the whole token axis."""
    from transformers import AttentionInterface
    from transformers.models.llama import modeling_llama

    from dumbo.trainer import attention

    def leaking(module: Any, query: Any, key: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return out.transpose(1, 2), None

    before = AttentionInterface._global_mapping["sdpa"]
    monkeypatch.setattr(attention, "isolated_attention", leaking)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", leaking)
    AttentionInterface.register("sdpa", leaking)
    yield
    AttentionInterface.register("sdpa", before)
    monkeypatch.undo()
    attention.register()


def test_an_attention_that_leaks(leak: None, train: Any) -> None:
    code, said = train()
    assert code == 4, said
    assert "LlamaForCausalLM cannot keep packed documents apart here (isolated: leak " in said
    assert "Write trainer.packing=false" in said
    assert stopped_before_training()


# ---- accumulation ------------------------------------------------------------------------------------------------


def test_a_mean_of_each_micro_batch(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake of many trainers: each micro batch's loss is its own mean."""
    from dumbo.trainer.engine import Engine
    from dumbo.trainer.feeding import trained_tokens

    right = Engine.compute_loss

    def mean(self: Any, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        own = torch.tensor(max(1, trained_tokens(inputs)))
        return right(self, model, inputs, return_outputs, own)

    monkeypatch.setattr(Engine, "compute_loss", mean)
    code, said = train()
    assert code == 4, said
    assert "Gradient accumulation changes the numbers: loss " in said
    assert stopped_before_training()


def test_a_model_that_averages_for_itself(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes `num_items_in_batch` and does not use it."""
    from transformers import LlamaForCausalLM

    right = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return right(self, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    code, said = train()
    assert code == 4, said
    assert "Gradient accumulation changes the numbers" in said


def test_items_counted_for_each_half_alone(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The count of trained tokens forgets all but the last micro batch."""
    from dumbo.trainer.engine import Engine

    right = Engine.items_of

    def last(self: Any, batches: Any, device: Any) -> Any:
        return right(self, batches[-1:], device)

    monkeypatch.setattr(Engine, "items_of", last)
    code, said = train()
    assert code == 4, said
    assert "Gradient accumulation changes the numbers" in said
    assert stopped_before_training()


def test_a_loss_that_averages_only_where_it_trains(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger's fused loss runs in training mode alone: what is proven in evaluation mode says nothing of it."""
    from transformers import LlamaForCausalLM

    right = LlamaForCausalLM.forward

    def forward(self: Any, *args: Any, num_items_in_batch: Any = None, **kwargs: Any) -> Any:
        return right(self, *args, num_items_in_batch=None if self.training else num_items_in_batch, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    code, said = train()
    assert code == 4, said
    assert "Gradient accumulation changes the numbers" in said
    assert stopped_before_training()


@pytest.mark.parametrize("divisor", ["args.gradient_accumulation_steps", "current_gradient_accumulation_steps"])
def test_a_step_that_divides_once_more(divisor: str, train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is right, and what is derived is the loss over the number of micro batches."""
    from dumbo.trainer.engine import Engine

    right = Engine.training_step

    def step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        by = functools.reduce(getattr, divisor.split("."), self)
        backward = self.accelerator.backward
        self.accelerator.backward = lambda loss, **kwargs: backward(loss / by, **kwargs)
        loss = right(self, model, inputs, num_items_in_batch)
        self.accelerator.backward = backward
        return loss

    monkeypatch.setattr(Engine, "training_step", step)
    code, said = train("trainer.global_batch_size=8", "trainer.micro_batch_size=2")
    assert code == 4, said
    assert "Gradient accumulation changes the numbers" in said
    assert stopped_before_training()


def test_trainers_own_division_where_the_model_does_not_divide(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers divides by the accumulation where the model takes no `num_items_in_batch`; the engine undoes that."""
    from transformers import LlamaForCausalLM, Trainer

    from dumbo.trainer.engine import Engine

    def without_mending(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        loss = Trainer.training_step(self, model, inputs, num_items_in_batch)
        self.watch.add(self.state.global_step + 1, self.pending.popleft(), loss)
        return loss

    monkeypatch.setattr(LlamaForCausalLM, "accepts_loss_kwargs", False, raising=False)
    words = ("trainer.global_batch_size=8", "trainer.micro_batch_size=2", "dataset.limit=100")
    code, said = train(*words, "run_dir=right")
    assert code == 0, said
    monkeypatch.setattr(Engine, "training_step", without_mending)
    code, said = train(*words)
    assert code == 4, said
    assert stopped_before_training()


def test_one_document_is_said_to_be_too_few(train: Any, tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"question": "Is it true?", "answer": "Yes."}\n')
    code, said = train("dataset=files", "dataset.path=one.jsonl", "dataset.eval_fraction=0", "dataset.limit=null")
    assert code == 0, said
    assert "accumulation not proven: that takes two documents, and there is one" in said
    assert "accumulation 1 = 2" not in said


def test_the_proofs_leave_no_trace(train: Any) -> None:
    """With and without them: the same training."""
    found = []
    for mode in ("quick", "off"):
        code, said = train(
            "trainer.max_steps=3", f"run_dir={mode}", f"verify.mode={mode}", "patch=[lora]", "patch.lora.dropout=0.2"
        )
        assert code == 0, said
        rows = [json.loads(line) for line in Path(mode, "metrics.jsonl").read_text().splitlines()]
        found.append([(row["loss"], row["grad_norm"]) for row in rows if "loss" in row])
    assert found[0] == found[1]
