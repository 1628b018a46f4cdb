"""The nearest valid name, for every error that rejects one."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """`` Did you mean 'lora'?``, or nothing when no valid name is near.

    >>> did_you_mean("lroa", ["lora", "liger"])
    " Did you mean 'lora'?"
    """
    near = nearest(name, valid)
    return f" Did you mean '{near}'?" if near else ""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name most like `name`, case and separators aside; None when none is near."""
    by_plain = {_plain(option): option for option in valid}
    plain_name = _plain(name)
    begins = [option for plain, option in by_plain.items() if len(plain_name) > 2 and plain.startswith(plain_name)]
    if begins:
        return begins[0]
    close = get_close_matches(plain_name, by_plain, n=1, cutoff=0.6)
    return by_plain[close[0]] if close else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_").replace(" ", "_")
