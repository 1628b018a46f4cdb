"""Where a GPU's time goes in a training step: kernels by kind, of the normal command's own steps.

    python -m benchmarks.profile --shape llama1b --work lora --variant fused --out benchmarks/results/NAME.json

The same words as a row of `benchmarks.gpu`, run in this process with torch's profiler around a few steps after the
warm-up. `busy` is the share of these steps' time in which kernels ran; what is left over is waiting for Python.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.gpu import VARIANTS, words_of
from benchmarks.made_up import SHAPES, write

KINDS = {
    "attention": r"flash|fmha|attn|attention|queries_backward|keys_backward|bounds_of_tokens",
    "products": r"gemm|nvjet|cutlass|xmma|cublas|splitk|wgmma",
    "optimizer": r"adam|multi_tensor|lpnorm|foreach",
    "compiled": r"triton",
    "copies": r"memcpy|memset|copy",
}
"""Kind -> what its kernels' names hold, the first that fits; all others are "other"."""


def kind_of(name: str) -> str:
    return next((kind for kind, holds in KINDS.items() if re.search(holds, name, re.IGNORECASE)), "other")


class Profiling(TrainerCallback):
    """Profiles `steps` steps after the first `after`."""

    def __init__(self, after: int, steps: int) -> None:
        import torch

        self.after, self.steps = after, steps
        activity = torch.profiler.ProfilerActivity
        self.gpu = torch.cuda.is_available()
        self.profiler = torch.profiler.profile(activities=[activity.CUDA if self.gpu else activity.CPU])
        self.seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            self._wait()
            self.profiler.start()
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after + self.steps:
            self._wait()
            self.seconds = time.perf_counter() - self.began
            self.profiler.stop()

    def _wait(self) -> None:
        import torch

        if self.gpu:
            torch.cuda.synchronize()

    def found(self) -> dict[str, Any]:
        """Milliseconds a step: by kind, and of the twenty longest kernels."""
        kinds: dict[str, float] = defaultdict(float)
        kernels: list[tuple[float, float, str]] = []
        for event in self.profiler.key_averages():
            took = (event.self_device_time_total if self.gpu else event.self_cpu_time_total) / 1000 / self.steps
            if took > 0:
                kinds[kind_of(event.key)] += took
                kernels.append((round(took, 3), event.count / self.steps, event.key[:120]))
        whole = 1000 * self.seconds / self.steps
        return {
            "step_ms": round(whole, 2),
            "busy": round(sum(kinds.values()) / whole, 3),
            "ms_by_kind": {kind: round(took, 2) for kind, took in sorted(kinds.items(), key=lambda one: -one[1])},
            "longest_kernels": [
                dict(zip(("ms", "a_step", "kernel"), one, strict=True)) for one in sorted(kernels, reverse=True)[:20]
            ],
        }


def profiled(words: list[str], after: int, steps: int) -> dict[str, Any]:
    """The command in this process."""
    import dumbo
    from dumbo.trainer.session import Session

    profiling = Profiling(after, steps)
    equipped = Session.equipped

    def with_profiler(self: Session, batch: Any) -> Any:
        trainer = equipped(self, batch)
        trainer.add_callback(profiling)
        return trainer

    Session.equipped = with_profiler  # type: ignore[method-assign]
    try:
        metrics = dumbo.run(words)
    finally:
        Session.equipped = equipped  # type: ignore[method-assign]
    return {**profiling.found(), "tokens": metrics["tokens"]}


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm135", choices=list(SHAPES))
    parser.add_argument("--work", default="full", choices=["full", "lora"])
    parser.add_argument("--variant", default="compiled", choices=list(VARIANTS))
    parser.add_argument("--packs", type=int, default=8, help="packs of max_seq_len tokens a step")
    parser.add_argument("--after", type=int, default=40, help="steps before")
    parser.add_argument("--steps", type=int, default=5, help="steps profiled")
    parser.add_argument("--patches", nargs="*", default=[], help="further patches")
    parser.add_argument("--words", nargs="*", default=[], help="further words for dumbo's command line")
    parser.add_argument("--folder", type=Path, help="where the model lies meanwhile")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    asked = parser.parse_args(words)
    asked.log_every, asked.longest = 1, None
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        os.environ["DUMBO_CACHE"] = str(Path(temporary) / "cache")
        folder = Path(temporary) / asked.shape
        last = asked.after + asked.steps + 1
        write(folder, SHAPES[asked.shape], int(1.05 * (last + 2) * asked.packs * SHAPES[asked.shape].longest))
        own = words_of(folder, asked.shape, asked.work, asked.variant, asked)
        own += [f"trainer.max_steps={last}", f"run_dir={folder / 'run'}"]
        result = profiled(own, asked.after, asked.steps)
        facts = json.loads((folder / "run" / "run.json").read_text())
    kept = {key: facts.get(key) for key in ("patches", "cuda_graphs", "packing", "hardware", "versions")}
    head = {"shape": asked.shape, "work": asked.work, "variant": asked.variant, "packs": asked.packs}
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({**head, **result, **kept}, indent=1, default=str) + "\n")
    print(json.dumps({**head, **{key: result[key] for key in ("step_ms", "busy", "ms_by_kind")}}))


if __name__ == "__main__":
    main()
