"""TRL's SFTTrainer on the same documents, with Liger's kernels.

    python -m benchmarks.peer_trl FOLDER full|lora STEPS WARMUP PACKS LONGEST packed|checkpointed|default

packed        its fastest settings: packs cut from one stream of tokens ("wrapped"), in which documents see each other and
              are cut anywhere, so that none of its tokens is padding
checkpointed  the same with gradient checkpointing, where a GPU has no room for it otherwise
default       a document a row, padded to the longest of its batch of 16, with the gradient checkpointing that it comes with

Started by `benchmarks.gpu` in a process of its own. Only real tokens count. Prints one line of JSON.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROWS = 16
"""Documents a batch where they are not packed."""


def measured(folder: Path, work: str, steps: int, warmup: int, packs: int, longest: int, mode: str) -> dict[str, Any]:
    """Tokens a second of the steps after the warm-up (median and mean), losses, and the most memory that was allocated."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from benchmarks.made_up import read
    from dumbo.outputs.surroundings import hardware

    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if work == "lora" and gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
    assert mode in ("packed", "checkpointed", "default"), mode
    packed: dict[str, Any] = {"packing": True, "packing_strategy": "wrapped", "per_device_train_batch_size": packs}
    arguments = SFTConfig(
        output_dir=str(folder / "trl"), max_length=longest, max_steps=steps, bf16=gpu, report_to="none", save_strategy="no",
        logging_steps=min(10, steps), learning_rate=1e-4, lr_scheduler_type="constant", optim="adamw_torch_fused",
        gradient_checkpointing=mode != "packed",
        use_liger_kernel=gpu, use_cpu=not gpu, **({"per_device_train_batch_size": ROWS} if mode == "default" else packed),
    )  # fmt: skip
    ends: list[Any] = []
    counts: list[torch.Tensor] = []

    class Counting(SFTTrainer):
        def training_step(self, model: Any, inputs: Any, *others: Any, **more: Any) -> Any:
            counts.append((inputs["labels"] != -100).sum())
            return super().training_step(model, inputs, *others, **more)

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if gpu:  # its time on the GPU: nobody waits for it
                ends.append(torch.cuda.Event(enable_timing=True))
                ends[-1].record()
            else:
                ends.append(time.perf_counter())

    trainer = Counting(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": read(folder)}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if work == "lora" else None,
        callbacks=[Clock()],
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    if gpu:
        ends[-1].synchronize()
    between = itertools.pairwise(ends[max(0, warmup - 1) :])
    seconds = [one.elapsed_time(other) / 1000 if gpu else other - one for one, other in between]
    tokens = [int(count) for count in counts[max(1, warmup) :]]
    speeds = [count / took for count, took in zip(tokens, seconds, strict=True)]
    return {
        "tokens_per_s": round(statistics.median(speeds), 1) if speeds else None,
        "mean_tokens_per_s": round(sum(tokens) / sum(seconds), 1) if speeds else None,
        "rows_a_batch": arguments.per_device_train_batch_size,
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "liger-kernel")},
        "hardware": hardware(),
        "losses": [round(loss, 4) for loss in losses],
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if gpu else None,
    }


if __name__ == "__main__":
    print(json.dumps(measured(Path(sys.argv[1]), sys.argv[2], *(int(word) for word in sys.argv[3:7]), sys.argv[7])))
