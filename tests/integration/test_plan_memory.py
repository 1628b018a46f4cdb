"""The memory that `dumbo plan` predicts, within a fifth of what the same command takes in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.memory import measured, predicted

COMMON = ("trainer.eval_at_start=false", "trainer.num_answers=0", "trainer.num_samples=0", "trainer.max_steps=2", "trainer.eval_every=null",
          "trainer.save_every=null", "verify.mode=off", "launch=single")  # fmt: skip
TINY = ("trainer.max_seq_len=512",)
SMOLLM = ("model=smollm_gguf", "trainer.max_seq_len=256", "trainer.global_batch_size=4", "trainer.micro_batch_size=2")
CASES = {
    "tiny full": (*TINY, "trainer.global_batch_size=8", "trainer.micro_batch_size=8"),
    "tiny lora padded": (*TINY, "patch=lora", "trainer.packing=false", "trainer.global_batch_size=256", "trainer.micro_batch_size=256"),
    "smollm full": SMOLLM,
    "smollm lora": (*SMOLLM, "patch=lora"),
    "smollm lora checkpointed": (*SMOLLM, "patch=[lora,gradient_checkpointing]"),
    "smollm lora checkpointed padded": (*SMOLLM, "patch=[lora,gradient_checkpointing]", "trainer.packing=false"),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("case", CASES)
def test_predicted_is_what_is_taken(case: str, data: Path, request: pytest.FixtureRequest) -> None:
    words = [*CASES[case], *COMMON]
    if "smollm" in case:
        request.getfixturevalue("smollm_folder")
        words += [
            "dataset=gsm8k",
            f"dataset.path={data / 'gsm8k' / 'train.jsonl'}",
            "dataset.limit=200",
            "dataset.eval_fraction=0",
        ]
    runs = 1 if "smollm" in case else 3  # 301 to 346 MiB were seen of one command: a plan has to hold for the most
    wanted, found = predicted(words)["peak"], max(measured(words) for _ in range(runs))
    print(
        f"{case}: predicted {wanted / 2**20:,.0f} MiB, measured {found / 2**20:,.0f} MiB, {100 * (wanted / found - 1):+.1f}%"
    )
    assert abs(wanted / found - 1) <= 0.2


def test_a_tiny_run(tmp_path: Path) -> None:
    """The same for one that takes seconds."""
    words = ["trainer.max_seq_len=256", "trainer.global_batch_size=8", "trainer.micro_batch_size=8", *COMMON]
    wanted, found = predicted(words)["peak"], measured(words)
    assert abs(wanted / found - 1) <= 0.3
