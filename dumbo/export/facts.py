"""export.json and README.md of an exported folder: where it comes from, and what was proven of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dumbo.outputs.model_card import card

if TYPE_CHECKING:
    from dumbo.export.parity import Distance, Parity
    from dumbo.export.rendering import Template
    from dumbo.export.rows import Rows
    from dumbo.export.trained import Trained


def export_facts(
    run: dict[str, Any], trained: Trained, dtype: str, parity: Parity, rows: Rows, template: Template
) -> dict[str, Any]:
    """What export.json holds: no paths of this machine.

    Args:
        run: run.json.
    """
    return {
        "run": {key: run.get(key) for key in ("name", "config_hash", "data_fingerprint", "started", "ended")},
        "base": {key: run.get("model", {}).get(key) for key in ("name", "commit", "sha256")},
        "model": {"class": trained.kind, "parameters": trained.parameters, "dtype": dtype, "merged": trained.adapters},
        "parity": {
            "texts": len(parity.prompts),
            "came_from": rows.came_from,
            "merged": _figures(parity.merge),
            "rounded": _figures(parity.rounding),
            "written": _figures(parity.written),
            "effect_of_training": parity.effect.relative if parity.effect else None,
            "told": parity.told(),
        },
        "template": {
            "sha256": _sha256(template.text),
            "trained_with": template.renders,
            "patched": template.patched,
            "rows_compared": template.rows,
            "generation_prompt_as_trained": template.generation_prompt,
            "told": template.told(rows).splitlines(),
        },
        "versions": run.get("versions", {}),
    }


def _sha256(template: str | dict[str, str] | None) -> str | None:
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _figures(distance: Distance | None) -> dict[str, float] | None:
    return asdict(distance) if distance is not None else None


def write_papers(folder: Path, run: Path, run_facts: dict[str, Any], facts: dict[str, Any]) -> None:
    """export.json, and the card."""
    (folder / "export.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    typed = yaml.safe_load((run / "overrides.yaml").read_text(encoding="utf-8")) or []
    model = facts["model"]
    how = f"{', '.join(model['merged'])} merged into the base" if model["merged"] else "all weights"
    told = [f"Written in {model['dtype']}, {how}.", *facts["parity"]["told"], *facts["template"]["told"]]
    text = card(run_facts, [str(word) for word in typed], exported=told)
    (folder / "README.md").write_text(text, encoding="utf-8")
