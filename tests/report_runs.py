"""Made-up folders of runs for tests of the report, and a look at pages with nothing but the standard library's parser."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

FACTS: dict[str, Any] = {
    "config_hash": "b0ee", "status": "finished", "tracker_failures": [], "run_dir": "/somewhere/outputs/a-run",
    "name": "smollm-lora", "error": None,
    "patches": {"liger": "left out: no CUDA device", "lora": "applied: 2,442,240 trainable parameters in 420 tensors"},
    "versions": {"dumbo": "0.1.0", "torch": "2.13.0"}, "git": {"commit": "c0ffee", "changed": True},
    "started": "2026-11-29T03:37:01.255+00:00",
    "ended": "2026-11-29T03:38:01.255+00:00", "seed": 42, "data_fingerprint": "6efad", "planned_steps": 200,
    "proofs": ["pack leak 0 (isolated attention)"],
    "data": {"name": "quiz", "rows": 2673, "tokens": 58136, "trained_tokens": 8900, "trained_share": 0.1531, "truncated": 12, "doubled_bos": 0,
             "rows_by_source": {"quiz train": 2573}},
    "audit": {"mode": "stop", "fail_on": {"doubled_bos": 0}, "over": []},
    "model": {"name": "tiny", "class": "LlamaForCausalLM", "parameters": 492160, "trainable": 2160, "dtype": "float32"},
    "hardware": {"cpu": "AMD EPYC", "cpu_cores": 2}, "batch": {"global": 16, "micro": 2, "ranks": 4, "accumulation": 2},
    "packing": {"layout": "tokens", "packs": 110, "filled": 0.9933}, "parallel": "DDP",
    "plan": {"memory": {"peak": 2**31, "parts": {"weights": 2**29}}, "time": {"seconds": 60.0}, "batch": {"global": 16}},
    "micro_batch": {"micro": 2, "how": "measured", "tried": {"2": 2**31, "4": None}, "limit": 2**32},
    "memory_halvings": [{"step": 12, "from": 4, "to": 2, "asked": 4}],
    "metrics": {"steps": 200, "train_loss": 0.0781, "first_loss": 6.178, "eval_loss": 0.273, "eval_loss_before": 6.145, "tokens": 727272,
                "trained_tokens": 110734, "tokens_per_s": 16879.25, "peak_memory_gib": 0.589, "seconds": 53.9, "exact_match": 0.77, "questions": 100},
}  # fmt: skip
EVALUATION: dict[str, Any] = {
    "loss": 0.27, "perplexity": 1.31, "exact_match": 0.77, "questions": 100, "extractor": "text", "data": {"as_in_training": True},
    "sources": {"quiz held out": {"loss": 0.27, "perplexity": 1.31, "rows": 100}}, "tasks": {"arc": {"acc": 0.31}},
}  # fmt: skip
VERIFICATION: dict[str, Any] = {
    "passed": False, "config_hash": "b0ee",
    "proofs": [{"name": "packed = unpacked", "compared": "24 documents", "difference": 2.1e-7, "tolerance": 1e-5,
                "source": "eps", "passed": True, "detail": ""},
               {"name": "resume", "compared": "3 + 3 steps", "difference": None, "tolerance": None,
                "source": "exact", "passed": False, "detail": "state lost"}],
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "model": {"_target_": "dumbo.model.tiny.Tiny", "hidden_size": 64},
    "trainer": {"_target_": "dumbo.trainer.sft.Sft", "lr": 0.003, "extra": {"adam_beta2": 0.99}},
    "patch": {"lora": {"_target_": "dumbo.patch.lora.LoRA", "rank": 8}},
    "verify": {"mode": "off"},
}
SAMPLES = "# Samples\n\n## 1. quiz held out, row 1\n\nPrompt\n\n```text\nWhat is 7 + 10?\n```\n\nBefore training\n\n```text\n\n```\n\n"
SAMPLES += "After training\n\n```text\n17\n```\n\nIn the data\n\n```text\n17\n```\n"


def loss_at(step: int) -> float:
    return 6 * math.exp(-step / 60) + 1


def metrics_rows(steps: int, spikes: tuple[int, ...] = (), skipped: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """As a run logs them, an evaluation every fiftieth step."""
    noise = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        row = {"step": step, "tokens": 1000 * step, "loss": loss_at(step) + noise.gauss(0, 0.05), "grad_norm": 1 + noise.random(),
               "lr": 1e-3, "tokens_per_s": 50_000 + noise.gauss(0, 900), "mfu": None, "peak_memory_gib": 11.3,
               "data_wait_ms": noise.random(), "step_ms": 80.0}  # fmt: skip
        if step in spikes:
            row |= {"loss": 40.0 + step / steps, "spike": True}
        if step in skipped:
            row |= {"loss": None, "grad_norm": None, "skipped_steps": 1, "not_finite": ["loss"]}
        rows.append(row)
        if step % 50 == 0:
            rows.append({"step": step, "eval_loss": loss_at(step) + 0.1, "tokens": 1000 * step})
    return rows


def made_up(folder: Path, rows: list[dict[str, Any]] | None = None, **facts: Any) -> Path:
    """A run's folder with everything that the page tells of."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({**FACTS, **facts}))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "verify.json").write_text(json.dumps(VERIFICATION))
    (folder / "config.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    (folder / "overrides.yaml").write_text(json.dumps(["patch=lora", "trainer.lr=3e-3"]))
    (folder / "samples.md").write_text(SAMPLES)
    rows = metrics_rows(200, spikes=(120,), skipped=(150,)) if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page_of(folder: Path) -> str:
    from dumbo.outputs.report.folder import read
    from dumbo.outputs.report.page import page

    return page(read(folder))


@dataclass
class Parsed(HTMLParser):
    """A page as a parser sees it: (tag, attributes) in order, the texts of scripts and styles, and what is read."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: list[tuple[dict[str, str | None], str]] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append((self.tags[-1][1], data))
        elif self._inside == "style":
            self.styles.append(data)
        else:
            self.text += data


def parsed(page: str) -> Parsed:
    found = Parsed()
    found.feed(page)
    found.close()
    return found
