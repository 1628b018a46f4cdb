"""One SLURM for the tests of this folder (of each pytest worker)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, install
from lacking import lacking, needs
from watched import Watched


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Runs while the tests of this folder do."""
    needs("submitit", "pip install 'dumbo[slurm]'")
    needs("hydra_plugins.hydra_submitit_launcher", "pip install 'dumbo[slurm]'")
    if (why := install()) is not None:
        lacking(why)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster.start(Path(folder)) as running:
        yield running


@pytest.fixture
def stop_left() -> Iterator[list[Watched]]:
    """Watchers in this list are ended after the test."""
    left: list[Watched] = []
    yield left
    for one in left:
        one.process.kill()
        one.process.wait()
