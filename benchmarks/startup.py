"""Start-up: how long until `--help`, the composed config, a refused config, and the second preparation of a data set.

    python -m benchmarks.startup
    python -m benchmarks.startup --small

Commands are timed from outside, a process each, in turn. The second start is measured inside a process whose
libraries are loaded: `Files.load`, `prepare` and packing of rows that another process has prepared before, the tiny
tokenizer and made-up rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import Record, child, in_turn, middle

COMMANDS = {
    "--help": (["--help"], 0),
    "--cfg job": (["--cfg", "job"], 0),
    "--info trainer": (["--info", "trainer"], 0),
    "a refused config": (["trainer.lrr=1"], 2),
}
"""What is typed, and the exit code it must end with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=50_000, help="of the data set that is prepared twice")
    parser.add_argument("--small", action="store_true", help="one round, 200 rows")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(_prepared(asked.child)))
        return
    rounds, rows = (1, 200) if asked.small else (asked.rounds, asked.rows)
    record = Record("startup", "seconds until a command has ended, medians of rounds taken in turn")
    if asked.out:
        record.folder = asked.out
    found = in_turn({name: partial(_command, *COMMANDS[name]) for name in COMMANDS}, rounds)
    record.facts["table"] = [
        {"command": f"dumbo {name}" if name.startswith("--") else name, "seconds": round(middle(one, "seconds"), 3),
         "cpu_seconds": round(middle(one, "cpu_seconds"), 3)}
        for name, one in found.items()
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = _made_up(Path(folder) / "rows.jsonl", rows)
        env = {"DUMBO_CACHE": f"{folder}/cache"}
        first = child("benchmarks.startup", "--child", file, env=env)
        again = in_turn({"second start": lambda: child("benchmarks.startup", "--child", file, env=env)}, min(rounds, 5))
    record.facts["second_start"] = {
        "rows": rows,
        "tokens": first["tokens"],
        "first_s": round(first["seconds"], 3),
        "second_s": round(middle(again["second start"], "seconds"), 3),
    }
    print(record.write())


def _command(words: list[str], code: int) -> dict[str, Any]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CI": "true"},
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise RuntimeError(f"dumbo {' '.join(words)} ended with {done.returncode}, not {code}:\n{done.stderr[-2000:]}")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu}


def _made_up(file: Path, rows: int) -> Path:
    with file.open("w") as out:
        for number in range(rows):
            answer = " ".join(f"{number} times {factor} is {number * factor}." for factor in range(2, 12))
            out.write(json.dumps({"question": f"Count in steps of {number}.", "answer": answer}) + "\n")
    return file


def _prepared(file: Path) -> dict[str, Any]:
    import numpy as np
    import polars  # noqa: F401  (imports are not timed)

    from dumbo.dataset.files import Files
    from dumbo.formatter.chat import Chat
    from dumbo.model.tiny import Tiny
    from dumbo.prepare.packing import pack
    from dumbo.prepare.prepare import prepare

    tokenizer = Tiny().load_tokenizer()
    Chat().format([], tokenizer)
    began = time.perf_counter()
    splits = Files(path=str(file)).load()
    data = prepare(splits, Chat(), tokenizer, max_seq_len=1024, too_long="split").train
    pack(data.lengths, np.arange(len(data)), 1024, 0)
    return {"seconds": time.perf_counter() - began, "tokens": data.tokens}


if __name__ == "__main__":
    main()
