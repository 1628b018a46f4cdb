"""What a test needs and does not find: a skip for a reader of the code, a failure in CI, which brings everything."""

from __future__ import annotations

import importlib.util
import os
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skips a test that cannot have what it needs; under DUMBO_TEST_STRICT (CI) that is a failure."""
    if os.environ.get("DUMBO_TEST_STRICT"):
        pytest.fail(f"CI must have it: {what}")
    pytest.skip(what, allow_module_level=True)


def needs(module: str, install: str) -> None:
    """A test, or a whole file of them, needs an optional module.

    Args:
        install: what to type to have it.
    """
    if importlib.util.find_spec(module) is None:
        lacking(f"{module} is not installed ({install})")
