"""Two GPUs against one at equal work per GPU, through the product's own trainer: DDP and FSDP2, full and LoRA.

    python -m benchmarks.scaling --data gsm8k/train.jsonl --tokenizer FOLDER --out benchmarks/results/NAME.json

Shapes: SmolLM2-135M and Llama-3.2-1B with random weights (the speed of a step does not depend on them), made once. A
micro batch is 8 packs of 2,048 tokens of real text on every GPU (`2k`: one pack, `32k`: 16, `64k`: 32), so two GPUs take twice the
global batch. Patches are Liger's, or with `fast` those that `performance=auto` adds. `whole`: layers stay gathered from the
forward to the backward pass. Every case is what `python -m dumbo` does with the words that stand in the result; cases of
one kind run one after another in one group of processes, because starting Python and CUDA for each would take longer than
the steps. Nothing is saved, for the same reason. A case that fails on every rank says so and leaves the others standing.

    tokens_per_s       real tokens a second, all GPUs together, median over the steps after the first `WARM`
    state_memory_gib   weights, gradients and optimizer state on rank 0's GPU: allocated just before an optimizer step
    peak_memory_gib    the most allocated on rank 0's GPU
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.record import nothing_held, nothing_saved

SHAPES: dict[str, dict[str, Any]] = {
    "135m": {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
             "intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
TINY = {**SHAPES["135m"], "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
"""In place of both with --tiny: for trying the script where there is no GPU."""
STEPS, WARM = 28, 8
FAST, LIGERS = "patch=[compile,chunked_loss,tile_attention{lora}]", "patch=[liger{lora}]"
MICRO = {"2k": 1, "32k": 16, "64k": 32}
"""Packs of 2,048 tokens; otherwise 8."""
ONE = {
    0: ["1b full", "1b full fast", "1b lora", "1b lora fast", "135m lora fast", "1b lora 32k", "1b lora 64k"],
    1: [
        "135m full",
        "135m full fast",
        "135m full 64k",
        "135m full 64k fast",
        "135m lora",
        "1b full 2k",
        "1b full 32k",
        "1b full 32k fast",
        "1b lora 64k fast",
    ],
}
"""On each of the two GPUs, side by side."""
TWO = ["ddp 135m full 64k", "ddp 1b full", "fsdp 1b full", "fsdp 1b full 2k", "ddp 135m full", "ddp 135m full 64k fast",
       "ddp 1b full fast", "fsdp 1b full fast", "ddp 1b lora fast", "fsdp 1b lora fast", "ddp 135m full fast",
       "ddp 135m lora fast", "ddp 1b lora", "fsdp 1b lora", "ddp 135m lora", "ddp 1b full 32k", "ddp 1b full 32k fast",
       "fsdp 1b full 32k fast", "fsdp 1b lora 32k", "fsdp 1b lora 64k", "fsdp 1b lora 64k whole", "fsdp 1b lora 64k fast"]  # fmt: skip


def words_of(case: str, data: Path, folder: Path, steps: int, pack: int) -> list[str]:
    """What one would type for a case."""
    launch, shape, kind, *more = case.split() if case.split()[0] in ("ddp", "fsdp") else ("single", *case.split())
    ranks = 1 if launch == "single" else 2
    micro = next((MICRO[word] for word in more if word in MICRO), 8)
    patches = FAST if "fast" in more else LIGERS
    gathered = ["launch.reshard_after_forward=false"] if "whole" in more else []
    adapters = {"full": "", "lora": ",lora,fused_lora" if "fast" in more else ",lora"}[kind]
    return ["model=pretrained", f"model.path={folder / shape}", patches.format(lora=adapters),
            "performance=off", "dataset=files",
            f"dataset.path={data}", "dataset.eval_fraction=0.02", f"launch={launch}", *gathered, f"trainer.max_seq_len={pack}",
            f"trainer.micro_batch_size={micro}", f"trainer.global_batch_size={micro * ranks}", f"trainer.max_steps={steps}", "trainer.num_epochs=9",
            "trainer.lr=1e-5", "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=0",
            "trainer.eval_every=null", "trainer.eval_at_start=false", "trainer.save_every=null", "verify.mode=off",
            f"run_dir={folder / case.replace(' ', '-')}"]  # fmt: skip


def make_model(shape: dict[str, Any], tokenizer: Path, folder: Path) -> None:
    """A folder with random weights and the tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=8192))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)


def work(file: Path) -> None:
    """One rank: the cases of a file in turn; rank 0 adds each result to a file beside it as soon as it is there."""
    import dumbo

    nothing_saved()
    for case, words in json.loads(file.read_text()).items():
        nothing_held()
        began = time.perf_counter()
        try:
            dumbo.run(words)
            found = read(words) if os.environ.get("RANK", "0") == "0" else {}
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        if os.environ.get("RANK", "0") == "0":
            with file.with_suffix(".results").open("a") as results:
                results.write(json.dumps({"case": case, **found, "seconds": time.perf_counter() - began}) + "\n")


def read(words: list[str]) -> dict[str, Any]:
    """The numbers of a run, from what it left."""
    folder = Path(words[-1].partition("=")[2])
    facts = json.loads((folder / "run.json").read_text())
    rows = [row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    warm = rows[min(WARM, len(rows) - 2) :]
    return {
        "words": [re.sub(r"=/.*/", "=", word) for word in words[:-1]],
        "tokens_per_s": round(statistics.median(row["tokens_per_s"] for row in warm)),
        "step_ms": statistics.median(row["step_ms"] for row in warm),
        "data_wait_ms": statistics.median(row["data_wait_ms"] for row in warm),
        "loss_first": rows[0]["loss"],
        "loss_last": rows[-1]["loss"],
        "state_memory_gib": facts["metrics"].get("state_memory_gib"),
        "peak_memory_gib": rows[-1]["peak_memory_gib"],
        "wrapper": facts.get("parallel"),
        "patches": facts.get("patches"),
        "measured": time.strftime("%Y-%m-%d"),
        "hardware": facts["hardware"],
        "versions": facts["versions"],
    }


def start(cases: dict[str, list[str]], file: Path, ranks: int, gpu: int | None) -> subprocess.Popen[bytes]:
    """A group of processes that works through the cases."""
    file.write_text(json.dumps(cases))
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d",
                    "--rdzv-endpoint", "localhost:0", "-m"]  # fmt: skip
    own = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": str(gpu)}
    return subprocess.Popen([*command, "benchmarks.scaling", "--work", str(file)], env={**os.environ, **own})


def chosen(cases: list[str]) -> tuple[dict[int, list[str]], list[str]]:
    """Those for one GPU, spread over the two, and those for both."""
    two = [case for case in cases if case.split()[0] in ("ddp", "fsdp")]
    one = [case for case in cases if case not in two]
    return {gpu: one[gpu::2] for gpu in range(2)}, two


def collected(folder: Path, out: Path) -> list[dict[str, Any]]:
    """What is there so far, written to its file."""
    results = [json.loads(line) for file in sorted(folder.glob("*.results")) for line in file.read_text().splitlines()]
    if results:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Each case of two GPUs beside the one of one GPU."""
    by_name = {result["case"]: result for result in results}
    lines = []
    for name, result in by_name.items():
        if "failed" in result:
            lines.append(f"{name:24} {result['failed'].splitlines()[0]}")
            continue
        one = by_name.get(name.partition(" ")[2].removesuffix(" whole"))
        one = None if one is None or "failed" in one else one
        ratio = f"{result['tokens_per_s'] / one['tokens_per_s']:.2f} x one GPU" if one else ""
        state = result["state_memory_gib"]
        if one and state and one["state_memory_gib"]:
            ratio += f", state {100 * state / one['state_memory_gib']:.0f}%"
        lines.append(f"{name:24} {result['tokens_per_s']:9,} tok/s  {result['step_ms']:7.1f} ms  state {state or 0:6.2f} GiB  "
                     f"peak {result['peak_memory_gib']:6.2f} GiB  loss {result['loss_last']:.4f}  {ratio}")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="rows to train on")
    parser.add_argument("--tokenizer", type=Path, help="a folder with SmolLM2's tokenizer")
    parser.add_argument("--out", type=Path, help="the JSON file to write")
    parser.add_argument("--folder", type=Path, help="where models and runs lie meanwhile: best in memory")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--tiny", action="store_true", help="a small shape instead of both, to try the script")
    parser.add_argument("--cases", nargs="+", help="these alone, such as '1b full 32k' 'ddp 1b full 32k'")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        work(asked.work)
        return
    with tempfile.TemporaryDirectory(dir=asked.folder) as made:
        folder = Path(made)
        for name, shape in SHAPES.items():
            make_model(TINY if asked.tiny else shape, asked.tokenizer.resolve(), folder / name)

        def cases(names: list[str]) -> dict[str, list[str]]:
            return {
                name: words_of(name, asked.data.resolve(), folder, asked.steps, 512 if asked.tiny else 2048)
                for name in names
            }

        one, two = (ONE, TWO) if asked.cases is None else chosen(asked.cases)
        alone = [(cases(names), folder / f"one-{gpu}.json", 1, gpu) for gpu, names in one.items()]
        for group in (alone, [(cases(two), folder / "two.json", 2, None)]):
            started = [start(*arguments) for arguments in group]
            while any(process.poll() is None for process in started):
                time.sleep(2)
                collected(folder, asked.out)  # what is measured stays, whatever comes
            results = collected(folder, asked.out)
    print(table(results))


if __name__ == "__main__":
    main()
