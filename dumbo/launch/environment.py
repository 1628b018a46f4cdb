"""The environment that the ranks inherit: what they need, and nothing that leaks in from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1", "PYTHONUNBUFFERED": "1"}


def for_ranks(here: int, *, cuda: bool, interface: str) -> dict[str, str | None]:
    """What is set for the ranks of this machine; None: taken out.

    Args:
        here: how many they are.
        cuda: one GPU each, else the CPU.
        interface: of the network that leads to the other machines; "": there are none, or it is not known.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # a user's own accelerate configuration must not leak in
    foreign = [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]
    # gloo would take the interface of the host's name, which may be the loopback
    gloo = {"GLOO_SOCKET_IFNAME": interface} if interface and "GLOO_SOCKET_IFNAME" not in os.environ else {}
    return {
        **dict.fromkeys(foreign),
        **QUIET,
        **gloo,
        "DUMBO_LAUNCHER": str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // here)),
        **({} if cuda else {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}),
    }


@contextmanager
def changed_environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Inside, this process's environment has these values (None: not there); afterwards it is as it was."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
