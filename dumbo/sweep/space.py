"""What a search may choose from: Hydra's sweep syntax as dimensions. No Optuna here.

trainer.lr=tag(log,interval(1e-5,1e-3))     a number between, evenly over orders of magnitude
trainer.weight_decay=interval(0,0.1)        a number between
patch.lora.rank=int(interval(4,64))         a whole number; `int` may be left out where the config holds one
trainer.warmup_steps=range(10,50,10)        10, 20, 30, 40, in this order
model=smollm,smollm_360m  choice(a,b,c)     one of these; nothing is between them, and they have no order
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from dumbo.errors import UserError
from dumbo.hydra_node import key_of
from dumbo.outputs.secrets import is_secret

EXAMPLE = "trainer.lr=tag(log,interval(1e-5,1e-3))"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One key and its values.

    Args:
        key: as the config has it; word_key: as it was typed (`++trainer.extra.adam_beta2`).
        kind: "choice": one of `choices`, texts as they are typed; "int" or "float": from `low` to `high`, both included.
        step: between values; None: every number.
        log: evenly over orders of magnitude.
    """

    key: str
    word_key: str
    kind: Literal["choice", "int", "float"]
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    def word(self, value: Any) -> str:
        """The override that sets a value."""
        return f"{self.word_key}={value if self.kind == 'choice' else repr(self.exact(value))}"

    def short_word(self, value: Any) -> str:
        """The same for a folder's name: three digits of a number."""
        return f"{self.word_key}={value:.3g}" if self.kind == "float" else self.word(value)

    def exact(self, value: Any) -> int | float:
        """A number without what adding up steps leaves: 0.3, not 0.30000000000000004."""
        if self.kind == "int":
            return int(value)
        if self.step is None:
            return float(value)
        low, step = Decimal(repr(self.low)), Decimal(repr(self.step))
        return float(low + round((Decimal(repr(float(value))) - low) / step) * step)

    @property
    def size(self) -> int | None:
        """How many values there are; None: too many to count."""
        if self.kind == "choice":
            return len(self.choices)
        if self.kind == "int" or self.step is not None:
            return round((self.high - self.low) / (self.step or 1)) + 1
        return None

    @property
    def values(self) -> list[Any]:
        """All of them, where they can be counted."""
        if self.kind == "choice":
            return list(self.choices)
        return [self.exact(self.low + place * (self.step or 1)) for place in range(self.size or 0)]

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.key}: {', '.join(self.choices)}"
        steps = f" in steps of {self.step:g}" if self.step not in (None, 1) else ""
        whole = " (whole numbers)" if self.kind == "int" else ""
        return f"{self.key}: {self.low:g} to {self.high:g}{steps}{whole}{' on a log scale' if self.log else ''}"

    @property
    def samples(self) -> list[Any]:
        """Values that stand for the others: each choice, or a number's ends."""
        return list(self.choices) if self.kind == "choice" else [self.low, self.high]


@dataclass(frozen=True)
class Space:
    """All dimensions, among the words of the command line.

    Args:
        words: in the order typed; a Dimension stands where its word stood.
    """

    words: tuple[str | Dimension, ...]

    @classmethod
    def of(cls, words: Sequence[str], loader: Any, cfg: DictConfig) -> Space:
        """Reads overrides; of several for one key the last counts.

        Args:
            loader: Hydra's, which knows the choices of a group for `glob(…)`.
            cfg: composed from the words that are not swept.

        Raises:
            UserError: nothing is swept, or a word that cannot be searched over.
        """
        found: dict[str, str | Dimension] = {}
        for word, override in zip(
            words, OverridesParser.create(config_loader=loader).parse_overrides(list(words)), strict=True
        ):
            found[key_of(word)] = _dimension(word, override, cfg) if override.is_sweep_override() else word
        space = cls(tuple(found.values()))
        if not space.dimensions:
            raise UserError(f"hydra/sweeper=optuna: there is nothing to search over.\n  Write {EXAMPLE}, say.")
        return space

    @property
    def dimensions(self) -> list[Dimension]:
        return [one for one in self.words if isinstance(one, Dimension)]

    @property
    def size(self) -> int | None:
        """How many combinations there are; None: too many to count."""
        sizes = [one.size for one in self.dimensions]
        return math.prod(size for size in sizes if size is not None) if None not in sizes else None

    def combinations(self) -> Iterator[dict[str, Any]]:
        """All of them, where they can be counted."""
        keys = [one.key for one in self.dimensions]
        for values in itertools.product(*(one.values for one in self.dimensions)):
            yield dict(zip(keys, values, strict=True))

    def own(self, params: Mapping[str, Any]) -> list[str]:
        """The words of the searched keys alone.

        Args:
            params: key -> value, as Optuna has them.
        """
        return [one.word(params[one.key]) for one in self.dimensions]

    def short(self, params: Mapping[str, Any]) -> list[str]:
        """The same for a folder's name."""
        return [one.short_word(params[one.key]) for one in self.dimensions]

    def job(self, own: Sequence[str]) -> list[str]:
        """All words of a job: those that are fixed, and its own in the places of the dimensions."""
        by_key = {key_of(word): word for word in own}
        return [by_key[one.key] if isinstance(one, Dimension) else one for one in self.words]

    def samples(self) -> list[list[str]]:
        """Words of a few jobs, in which each value that stands for others comes up."""
        count = max(len(one.samples) for one in self.dimensions)
        jobs = [{one.key: one.samples[number % len(one.samples)] for one in self.dimensions} for number in range(count)]
        return [self.job(self.own(job)) for job in jobs]


def _dimension(word: str, override: Override, cfg: DictConfig) -> Dimension:
    key, value = key_of(word), override.value()
    if override.is_delete():
        raise UserError(f"{word}: what is taken away has no values to search over.\n  Write KEY=a,b or {EXAMPLE}.")
    if is_secret(key):
        raise UserError(
            f"{key} is named like a secret, and what is searched over is written down.\n  Set it to one value."
        )
    names: dict[str, Any] = {"key": key, "word_key": override.get_key_element()}
    if tags := sorted({*getattr(value, "tags", ())} - {"log"}):
        raise UserError(f"{word}: there is no tag '{tags[0]}'.\n  Write {key}=tag(log,interval(LOW,HIGH)), or no tag.")
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        return _interval(word, value, log, cfg, names)
    if log:
        raise UserError(f"{word}: tag(log,…) goes with an interval.\n  Write {key}=tag(log,interval(LOW,HIGH)).")
    if isinstance(value, RangeSweep) and not value.shuffle:
        return _range(word, value, names)
    assert isinstance(value, ChoiceSweep | Glob | RangeSweep)
    choices = tuple(dict.fromkeys(override.sweep_string_iterator()))
    if not choices:
        raise UserError(f"{word}: there is no value in it.\n  Write {key}=choice(a,b,c).")
    return Dimension(**names, kind="choice", choices=choices)


def _interval(word: str, value: IntervalSweep, log: bool, cfg: DictConfig, names: dict[str, Any]) -> Dimension:
    low, high = value.start, value.end
    assert low is not None
    assert high is not None
    key, whole = names["key"], float(low).is_integer() and float(high).is_integer()
    if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
        raise UserError(f"{word}: an interval goes from a number to a higher one.\n  Write {key}=interval(LOW,HIGH).")
    if log and low <= 0:
        raise UserError(
            f"{word}: tag(log,…) needs an interval above 0.\n  Write {key}=interval({low:g},{high:g}), or a LOW above 0."
        )
    now = OmegaConf.select(cfg, key, throw_on_resolution_failure=False, throw_on_missing=False)
    counts = isinstance(now, int) and not isinstance(now, bool)
    if isinstance(low, int) or (counts and whole):
        return Dimension(**names, kind="int", low=int(low), high=int(high), log=log)
    return Dimension(**names, kind="float", low=float(low), high=float(high), log=log)


def _range(word: str, value: RangeSweep, names: dict[str, Any]) -> Dimension:
    start, stop, step = value.start, value.stop, value.step
    assert start is not None
    assert stop is not None
    exact = [Decimal(repr(one)) for one in (start, stop, step)] if step and math.isfinite(start + stop + step) else []
    count = math.ceil((exact[1] - exact[0]) / exact[2]) if exact else 0
    if count < 1:
        raise UserError(f"{word}: there is no value in it.\n  Write {names['key']}=range(FROM,UP_TO,STEP).")
    ends = sorted((exact[0], exact[0] + (count - 1) * exact[2]))
    if all(isinstance(one, int) for one in (start, stop, step)):
        return Dimension(**names, kind="int", low=int(ends[0]), high=int(ends[1]), step=abs(int(step)))
    return Dimension(**names, kind="float", low=float(ends[0]), high=float(ends[1]), step=abs(float(step)))
