"""model/README.md: how this model was made, enough to judge it and to make it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import yaml

from dumbo.outputs.printable import printable

if TYPE_CHECKING:
    from dumbo.outputs.run_dir import RunDir

HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
SHOWN = (
    "steps",
    "train_loss",
    "eval_loss_before",
    "eval_loss",
    "exact_match",
    "tokens",
    "trained_tokens",
    "tokens_per_s",
    "seconds",
)


def write_model_card(run: RunDir) -> None:
    """Writes the card beside the weights, from run.json."""
    if not run.writes:
        return
    (run.path / "model" / "README.md").write_text(card(run.facts, _typed(run)), encoding="utf-8")


def _typed(run: RunDir) -> list[str]:
    words = yaml.safe_load((run.path / "overrides.yaml").read_text(encoding="utf-8")) or []
    return [str(word) for word in words]


def card(facts: dict[str, Any], typed: list[str], exported: Sequence[str] = ()) -> str:
    """The card's text.

    Args:
        facts: run.json.
        typed: the command line.
        exported: of an exported folder: what was done and proven. Adapters are merged there.
    """
    model, data, metrics = facts.get("model", {}), facts.get("data", {}), facts.get("metrics", {})
    adapter = "lora" in facts.get("patches", {}) and not exported
    head: dict[str, Any] = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dumbo"],
    }
    if model.get("commit") and HUB_ID.fullmatch(str(model.get("path"))):  # the hub refuses a card that names a folder
        head["base_model"] = str(model["path"])
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        "",
        f"# {_cell(facts.get('name', 'model'))}",
        "",
    ]
    kind = "An adapter for" if adapter else "Fine-tuned from"
    lines += [
        f"{kind} `{_cell(model.get('path', model.get('name', '?')))}`, made with dumbo {_cell(facts['versions']['dumbo'])}.",
        "",
    ]
    lines += ["```bash", "python -m dumbo " + " ".join(shlex.quote(printable(word)) for word in typed), "```", ""]
    lines += ["| | |", "|---|---|"]
    rows = {
        "data": f"{data.get('name')}, {data.get('rows', 0):,} rows, {data.get('tokens', 0):,} tokens",
        "trained share": f"{100 * data.get('trained_share', 0):.1f}% of the tokens",
        "data fingerprint": facts.get("data_fingerprint"),
        "batch": _batch(facts.get("batch", {})),
        "patches": "; ".join(f"{name}: {state}" for name, state in facts.get("patches", {}).items()) or "none",
        "parameters": f"{model.get('parameters', 0):,}, {model.get('trainable', 0):,} trained",
        "config hash": facts.get("config_hash"),
        "commit of the base": model.get("commit") or model.get("sha256") or "-",
        "hardware": facts.get("hardware", {}).get("gpu") or facts.get("hardware", {}).get("cpu"),
        "proofs": "; ".join(facts.get("proofs", [])) or "none asked for",
    }
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    lines += [f"| {name} | {_number(metrics[name])} |" for name in SHOWN if name in metrics]
    lines += ["", "## Export", "", *(f"- {_cell(line)}" for line in exported)] if exported else []
    lines += [
        "",
        "Versions: " + _cell(", ".join(f"{name} {number}" for name, number in facts.get("versions", {}).items())) + ".",
        "",
    ]
    return "\n".join(lines)


def _batch(batch: dict[str, Any]) -> str:
    if not batch:
        return "-"
    return f"global {batch['global']} = micro {batch['micro']} x ranks {batch['ranks']} x accumulation {batch['accumulation']}"


def _cell(value: Any) -> str:
    """A value as text that is neither markup nor HTML."""
    text = printable(str(value))
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;").replace("`", "'")


def _number(value: Any) -> str:
    return json.dumps(round(value, 4) if isinstance(value, float) else value)
