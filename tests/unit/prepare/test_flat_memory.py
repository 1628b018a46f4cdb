"""Memory does not grow with the data: a child process prepares gsm8k once and many times over, peaks compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = '''
import resource, sys
from dataclasses import dataclass
import numpy as np
from dumbo.dataset.files import Files
from dumbo.formatter.chat import Chat
from dumbo.interfaces import Example
from dumbo.model.tiny import Tiny
from dumbo.prepare.packing import pack
from dumbo.prepare.prepare import prepare

@dataclass(frozen=True, kw_only=True)
class Bytes:
    """A token a byte: as fast as reading and storing allow."""

    def format(self, rows, tokenizer):
        done = []
        for row in rows:
            ids = np.frombuffer((row.messages[0]["content"] + row.messages[1]["content"]).encode(), np.uint8).astype(np.int32)
            labels = ids.copy()
            labels[0] = -100
            done.append(Example(ids, labels, row.source, (5, len(ids))))
        return done

path, formatter = sys.argv[1:]
data = prepare(Files(path=path).load(), {"Bytes": Bytes, "Chat": Chat}[formatter](), Tiny().load_tokenizer(), max_seq_len=2048, too_long="split")
assert data.train.trained_tokens > 0
pack(data.train.lengths, np.arange(len(data.train)), 2048, 0)
print(data.audit["rows"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
'''


def peak_mib(source: Path, times: int, formatter: str, tmp_path: Path) -> tuple[int, float]:
    """(rows, peak resident memory in MiB) of preparing `source`, `times` over."""
    file = tmp_path / f"{times}.jsonl"
    with file.open("wb") as out:
        for _ in range(times):
            out.write(source.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(file), formatter],
        env={**os.environ, "DUMBO_CACHE": str(tmp_path / f"cache-{times}-{formatter}"), "RAYON_NUM_THREADS": "2"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows, peak_kib = done.stdout.split()
    return int(rows), int(peak_kib) / 1024


@pytest.mark.full
def test_four_times_the_data(data, tmp_path):
    """16.7 MB of JSON lines against 4.2 MB; kept rows or tokens would add 140 MiB (12.5 M tokens, 22,419 rows)."""
    source = data / "gsm8k" / "train.jsonl"
    rows, once = peak_mib(source, 1, "Bytes", tmp_path)
    more_rows, four_times = peak_mib(source, 4, "Bytes", tmp_path)
    assert (rows, more_rows) == (7473, 29892)
    assert four_times - once < 40, f"{once:.0f} MiB, then {four_times:.0f}"


@pytest.mark.full
@pytest.mark.parametrize("formatter", ["Bytes", "Chat"])
def test_sixteen_times_the_data(formatter, data, tmp_path):
    """133 MB against 8 MB. Reading ahead takes some 150 MiB and then no more (2 GB, 3.6 million rows: 380 MiB above the
    start, 200 of them the index); kept tokens and labels alone would add 900 MiB here, or 400 with the template."""
    source = data / "gsm8k" / "train.jsonl"
    _, once = peak_mib(source, 2, formatter, tmp_path)
    _, more = peak_mib(source, 32, formatter, tmp_path)
    assert more - once < 200, f"{once:.0f} MiB, then {more:.0f}"
