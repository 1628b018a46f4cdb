"""What the prepared data or transformers itself would refuse later: exit code 2 before any weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dumbo.cli import main
from dumbo.model.tiny import Tiny

ROWS = "".join(f'{{"question": "How much is {n} and 1?", "answer": "{n + 1}"}}\n' for n in range(8))
SHORT = ["trainer.max_steps=1", "trainer.num_samples=0", "trainer.num_answers=0", "verify.mode=off", "run_dir=run"]
ALONE = "dataset=files dataset.path=rows.jsonl dataset.eval_fraction=0"
CASES: dict[str, tuple[str, ...]] = {
    f"{ALONE} trainer.load_best_at_end=true": ("trainer.load_best_at_end needs", "nothing is held out", "dataset.eval_fraction=0.05"),
    f"{ALONE} trainer.lr_scheduler=reduce_lr_on_plateau": ("nothing is held out", "trainer.lr_scheduler=cosine"),
    "trainer.lr_scheduler=warmup_stable_decay": ("trainer.lr_scheduler=warmup_stable_decay cannot be made", "lr_scheduler_kwargs"),
    "trainer.lr_scheduler=polynomial trainer.extra.lr_scheduler_kwargs={lr_end:1}": ("trainer.lr_scheduler=polynomial cannot be made",),
    "trainer.extra.lr_scheduler_kwargs={min_lrr:0.1}": ("trainer.lr_scheduler=cosine cannot be made", "min_lrr"),
    "trainer.extra.dataloader_prefetch_factor=2": ("trainer.extra: transformers refuses it", "prefetch_factor"),
    "trainer.extra.adam_beta1=fast": ("trainer.extra.adam_beta1 must be a number, got 'fast'",),
    "trainer.extra.dataloader_num_workers=many": ("trainer.extra.dataloader_num_workers must be a whole number, got 'many'",),
    "trainer.extra.adam_beta1=2": ("trainer.optimizer=adamw_torch_fused cannot be made", "beta"),
    "trainer.optimizer=lomo": ("trainer.optimizer=lomo cannot be made", "lomo_optim", "trainer.optimizer=adamw_torch_fused"),
    "trainer.optimizer=adamw_torch_xla": ("trainer.optimizer=adamw_torch_xla cannot be made", "torch_xla"),
    "trainer.optimizer=sgd trainer.extra.optim_args=momentum": ("trainer.optimizer=sgd cannot be made", "trainer.extra.optim_args"),
}  # fmt: skip


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every model that is made while the test runs."""
    seen: list[str] = []
    real = Tiny.load_model

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self).__name__)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tiny, "load_model", spy)
    return seen


@pytest.mark.parametrize("words", CASES)
def test_refused(words: str, loaded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("rows.jsonl").write_text(ROWS)
    code = main([*words.split(" "), *SHORT])
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    for text in CASES[words]:
        assert text in said
    assert len(said.splitlines()) <= 12
    assert loaded == []


@pytest.mark.parametrize("words", [
    "trainer.optimizer=sgd trainer.extra.optim_args='momentum=0.9'",
    "trainer.optimizer=adafactor",
    "trainer.lr_scheduler=cosine_with_min_lr trainer.extra.lr_scheduler_kwargs={min_lr:0.00001}",
    "trainer.load_best_at_end=true trainer.extra.adam_beta1=0.8",
])  # fmt: skip
def test_what_can_be_made_is_let_through(words: str, loaded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = main([*words.split(" "), "dataset.limit=60", "dataset.eval_limit=10", *SHORT])
    assert code == 0, capsys.readouterr().err
    assert loaded == ["Tiny"]


def test_held_out_rows_without_a_trained_token_are_no_held_out_loss() -> None:
    """What the best checkpoint is chosen by is a loss, not that there are rows."""
    from dumbo.trainer.schedule import measurable

    class Rows(list[int]):
        trained_tokens = 0

    silent: Any = Rows([1, 2])
    assert not measurable(silent)
    assert not measurable(None)
    silent.trained_tokens = 3
    assert measurable(silent)
