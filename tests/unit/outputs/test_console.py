"""The terminal: plain in a pipe, drawn on a terminal, and nothing from outside is obeyed by it."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from dumbo.outputs.console import Console, clock, numbers

ROW = {
    "step": 3,
    "loss": 1.2345,
    "grad_norm": 0.5,
    "lr": 1e-4,
    "tokens_per_s": 11234.0,
    "mfu": None,
    "peak_memory_gib": 2.62,
}


def test_a_pipe_gets_plain_lines() -> None:
    stream = io.StringIO()
    console = Console(stream)
    console.row("data", "first\nsecond \x1b[31m")
    with console.training(10, 0) as bar:
        bar.step(1, ROW)
        bar.step(2, ROW)
        bar.step(10, ROW)
    text = stream.getvalue()
    assert "\x1b" not in text
    assert text.startswith("data      first\n          second \\e[31m\n")
    assert [line.split()[1] for line in text.splitlines() if line.startswith("training")] == ["1/10", "10/10"]


def test_the_log_holds_every_row(tmp_path: Path) -> None:
    console = Console(io.StringIO())
    console.log_to(tmp_path / "log")
    with console.training(10, 0) as bar:
        for step in range(1, 11):
            bar.step(step, {**ROW, "step": step})
    console.close()
    assert len([line for line in (tmp_path / "log").read_text().splitlines() if " step " in line]) == 10


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    """In a real pseudo-terminal: the bar moves, labels are there, escape sequences of data are not obeyed."""
    code = (
        "from dumbo.outputs.console import Console;import time;c=Console();c.row('data','evil \\x1b]0;title\\x07 [red]x[/red]')\n"
        "with c.training(4,0) as bar:\n"
        f" for s in range(1,5): bar.step(s,{ROW!r}); time.sleep(0.3)"
    )
    read, write = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key not in ("CI", "NO_COLOR")} | {
        "TERM": "xterm-256color",
        "COLUMNS": "140",
    }
    process = subprocess.Popen([sys.executable, "-c", code], stdout=write, stderr=write, stdin=write, env=env)
    os.close(write)
    seen = b""
    while True:
        try:
            block = os.read(read, 4096)
        except OSError:
            break
        if not block:
            break
        seen += block
    assert process.wait() == 0, seen
    text = seen.decode()
    assert "4/4" in text
    assert "loss 1.234" in text or "loss 1.235" in text
    assert "\x1b]0;title" not in text
    assert "[red]x[/red]" in text


def test_ci_is_plain_even_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("CI", "true")
    assert not Console(Terminal()).fancy
    monkeypatch.delenv("CI")
    monkeypatch.setenv("TERM", "xterm")
    assert Console(Terminal()).fancy


def test_numbers_and_clock() -> None:
    assert numbers(ROW) == "loss 1.234  grad 0.50  lr 1.0e-04  11.2k tok/s  2.6 GiB"
    assert numbers({"loss": None, "mfu": 0.415}) == "loss not finite  MFU 41.5%"
    assert (clock(252), clock(3723)) == ("4:12", "1:02:03")


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    """As with `python -m dumbo | head -1`: the reader goes, the log goes on."""
    code = (
        "import sys, time; from pathlib import Path; from dumbo.outputs.console import Console; c = Console(); c.log_to(Path(sys.argv[1]))\n"
        "for n in range(5): c.plain(f'line {n}'); time.sleep(0.2)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "line 0\n"
    child.stdout.close()
    assert child.wait() == 0
    assert "line 4" in (tmp_path / "log").read_text()
