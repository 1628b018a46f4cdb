"""One chart for the README, drawn from the results: data preparation beside TRL's.

    python -m benchmarks.chart [--results FOLDER]

Written as SVG by hand: bars need no library.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.record import RESULTS

WIDTH, BAR, GAP, LEFT, TOP = 720, 26, 12, 190, 44
COLOURS = {"dumbo": "#2f6f4f", "trl": "#9aa3ad"}
NAMES = {"dumbo": "dumbo", "trl": "TRL SFTTrainer"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    folder = parser.parse_args().results
    found = json.loads((folder / "prepare.json").read_text())
    bars = [
        (f"{NAMES[who]}, {row['cores']} core{'s' * (row['cores'] != 1)}", row[who]["tokens_per_s"], COLOURS[who])
        for row in found["table"]
        for who in COLOURS
        if who in row
    ]
    title = f"Data preparation, tokens/s ({found['rows_file']}, {found['hardware']['cpu']})"
    file = folder / "chart.svg"
    file.write_text(drawn(title, bars))
    print(file)


def drawn(title: str, bars: list[tuple[str, float, str]]) -> str:
    """Horizontal bars: (label, value, colour), the longest as wide as there is room."""
    most = max(value for _, value, _ in bars)
    height = TOP + len(bars) * (BAR + GAP) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="26" font-weight="bold">{_escaped(title)}</text>',
    ]
    for number, (label, value, colour) in enumerate(bars):
        top = TOP + number * (BAR + GAP)
        wide = (WIDTH - LEFT - 100) * value / most
        lines += [
            f'<text x="{LEFT - 10}" y="{top + 18}" text-anchor="end">{_escaped(label)}</text>',
            f'<rect x="{LEFT}" y="{top}" width="{wide:.1f}" height="{BAR}" fill="{colour}"/>',
            f'<text x="{LEFT + wide + 8:.1f}" y="{top + 18}">{_short(value)}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _short(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


if __name__ == "__main__":
    main()
