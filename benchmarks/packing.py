"""Packing: a million documents into packs of 2,048 tokens. Seconds of one core, and how full the packs are.

    python -m benchmarks.packing
    python -m benchmarks.packing --small

Two kinds of lengths: lognormal as long texts have them (median 245, many over 1,000), and as gsm8k has them under
SmolLM2's template (lognormal fits them: mean 217, 97 to 570).
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import Record, in_turn, middle
from dumbo.prepare.packing import pack

KINDS = {"lognormal": (5.5, 1.0, 2), "gsm8k-like": (5.333, 0.301, 97)}
"""Mean and deviation of the lengths' logarithms, and the shortest document."""
LONGEST = {"lognormal": None, "gsm8k-like": 570}


def lengths_of(kind: str, amount: int, capacity: int) -> NDArray[np.int64]:
    """(amount,) tokens of each document."""
    mean, deviation, shortest = KINDS[kind]
    drawn = np.random.default_rng(0).lognormal(mean, deviation, amount).astype(np.int64)
    return np.clip(drawn, shortest, min(LONGEST[kind] or capacity, capacity))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--capacity", type=int, nargs="+", default=[1024, 2048, 4096, 16384])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="5,000 documents, one round")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    asked = parser.parse_args()
    amount, rounds = (5_000, 1) if asked.small else (asked.documents, asked.rounds)
    record = Record("packing", f"{amount:,} documents into packs; seconds on one core, median of rounds")
    if asked.out:
        record.folder = asked.out
    measures = {
        f"{kind} {capacity}": partial(packed, kind, amount, capacity) for kind in KINDS for capacity in asked.capacity
    }
    found = in_turn(measures, rounds)
    record.facts["table"] = [
        {**one[0], "seconds": round(middle(one, "seconds"), 3), "cpu_seconds": round(middle(one, "cpu_seconds"), 3)}
        for one in found.values()
    ]
    print(record.write())


def packed(kind: str, amount: int, capacity: int) -> dict[str, Any]:
    lengths = lengths_of(kind, amount, capacity)
    numbers = np.arange(amount)
    began, cpu = time.perf_counter(), time.process_time()
    packs = pack(lengths, numbers, capacity, 0)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert np.array_equal(np.sort(packs.members), numbers), "every document once"
    assert int(packs.tokens.max()) <= capacity
    return {
        "lengths": kind,
        "documents": amount,
        "capacity": capacity,
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu, 4),
        "packs": len(packs),
        "percent_filled": round(100 * packs.filled, 3),
    }


if __name__ == "__main__":
    main()
