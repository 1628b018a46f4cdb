"""Charts for the README, drawn from the results: data preparation and training beside TRL's.

    python -m benchmarks.chart [--results FOLDER]

Written as SVG by hand: bars need no library.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.record import RESULTS

WIDTH, BAR, GAP, LEFT, TOP = 720, 26, 12, 190, 44
COLOURS = {"dumbo": "#2f6f4f", "trl": "#9aa3ad"}
NAMES = {"dumbo": "dumbo", "trl": "TRL SFTTrainer"}
PREPARED, TRAINED = "prepare.json", "h200_tokens_beside_trl.json"
SHAPES = {"smollm135": "SmolLM2-135M", "llama1b": "Llama-3.2-1B", "llama8b": "Llama-3.1-8B"}
WORK = {"full": "all weights", "lora": "LoRA"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    for file, source, draw in (("chart.svg", PREPARED, preparation), ("chart_gpu.svg", TRAINED, training)):
        if (folder / source).exists():
            (folder / file).write_text(draw(json.loads((folder / source).read_text())))
            print(folder / file)


def preparation(found: dict[str, Any]) -> str:
    """Tokens a second of preparing data."""
    bars = []
    for row in found["table"]:
        for who in (who for who in COLOURS if who in row):
            cores, speed = f"{row['cores']} core{'s' * (row['cores'] != 1)}", row[who]["tokens_per_s"]
            bars.append((f"{NAMES[who]}, {cores}", speed, COLOURS[who], _short(speed)))
    title = f"Data preparation, tokens/s ({found['rows_file']}, {found['hardware']['cpu']})"
    return drawn(title, bars)


def training(rows: list[dict[str, Any]]) -> str:
    """Times TRL's tokens a second, packed, at the same work and with the same checkpointing, in one run of the benchmark."""
    rows = [row for row in rows if "failed" not in row]
    bars: list[tuple[str, float, str, str]] = []
    for peer in (row for row in rows if row["variant"] in ("trl", "trl_checkpointed")):
        checkpointed = peer["variant"] == "trl_checkpointed"
        ours = [row for row in rows if "trl" not in row["variant"] and "checkpointed_" not in row["variant"]
                and row.get("run") == peer.get("run")]  # fmt: skip
        same = [row for row in ours if ("checkpointed" in row["variant"]) == checkpointed
                and all(row[key] == peer[key] for key in ("shape", "work", "packs", "max_seq_len", "documents"))]  # fmt: skip
        if not same:
            continue
        best = max(same, key=lambda row: row["tokens_per_s"])
        how = f", rows of {peer['max_seq_len']:,}" if peer["documents"].startswith("all") else ""
        how += ", checkpointed" * checkpointed + ", bf16 and masters" * best["variant"].endswith("masters")
        ratio = best["tokens_per_s"] / peer["tokens_per_s"]
        name = f"{SHAPES[peer['shape']]}, {WORK[peer['work']]}{how}: dumbo"
        bars.append((name, ratio, COLOURS["dumbo"], f"{_short(best['tokens_per_s'])}, {ratio:.2f} x"))
        bars.append(("TRL", 1.0, COLOURS["trl"], _short(peer["tokens_per_s"])))
    hardware = next(row["hardware"]["gpu"] for row in rows)
    return drawn(f"Training on one {hardware}: times the tokens/s of TRL packed with Liger", bars, left=400)


def drawn(title: str, bars: list[tuple[str, float, str, str]], left: int = LEFT) -> str:
    """Horizontal bars: (label, value, colour, what stands beside), the longest as wide as there is room."""
    most = max(value for _, value, _, _ in bars)
    height = TOP + len(bars) * (BAR + GAP) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="26" font-weight="bold">{_escaped(title)}</text>',
    ]
    for number, (label, value, colour, said) in enumerate(bars):
        top = TOP + number * (BAR + GAP)
        wide = (WIDTH - left - 120) * value / most
        lines += [
            f'<text x="{left - 10}" y="{top + 18}" text-anchor="end">{_escaped(label)}</text>',
            f'<rect x="{left}" y="{top}" width="{wide:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{left + wide + 8:.1f}" y="{top + 18}">{_escaped(said)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _short(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


if __name__ == "__main__":
    main()
