"""Verbs that are one process's, started as one of several."""

from __future__ import annotations

import pytest

from dumbo.cli import IN_RANKS
from dumbo.command import VERBS


@pytest.mark.parametrize(
    "words", [[verb] for verb in VERBS if verb not in (*IN_RANKS, "sweep")] + [["sweep", "status", "last"], ["-m"]]
)
def test_what_is_one_process_says_so_to_torchrun(words, monkeypatch, capsys):
    """Before the run that it reads or the batch of the config is looked at."""
    from dumbo import cli

    ended = []
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(words) == 2
    assert ended == [2]  # at once: the others may never answer a goodbye
    what, how = ("a sweep", "-m …") if words == ["-m"] else (words[0], words[0])
    said = capsys.readouterr().err
    assert said.startswith(
        f"{what} runs in one process, but WORLD_SIZE is above 1.\n  Start it with python -m dumbo {how}, without"
    )
