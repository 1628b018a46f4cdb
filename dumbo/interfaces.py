"""What the plugins are to each other: the Protocols and the few data types they pass.

No base class, no registry: a plugin is any class with its group's method. Construction is cheap and imports
nothing heavy; the one method does the work. A plugin may also have

    problems(self) -> Iterable[str]
        what the disk or the installation lacks (a missing file, an extra that is not installed), found before
        anything heavy is imported; each becomes part of the one report of `check.py`.
    conflicts_with(self, others: Mapping[str, Patch]) -> Iterable[str]
        of a patch: what it cannot do beside the other patches as they are set; each is part of the same report.
    starts_elsewhere(self) -> str | None
        of a patch: why the model with it is another one than without it, where that is meant so (an adapter that goes
        on from an earlier one); None: it must compute the same, which is proven.
    approximates(self) -> str | None
        of a patch: what it holds or computes more coarsely, where that is meant so (weights in 4 bits): how far the model
        with it is from the one without is then reported and not judged; None: it must compute the same.
    first_examples(self, data: PreparedSplits, ranks: int) -> list[NDArray]
        of a trainer: the documents of each example of its first micro batch, for the proofs at the start.
    check_data(self, data: PreparedSplits, run: RunDir) -> None
        of a trainer: raises a UserError for what the prepared data does not allow, before any weights are loaded.
    check_model(self, model: PreTrainedModel, run: RunDir) -> None
        of a trainer: raises a UserError for what it cannot do with the patched model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.launch.job import Job
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits

IGNORE = -100
"""The label of a token that bears no loss (torch's cross_entropy ignores it)."""


class Message(TypedDict, total=False):
    """One turn, in the form chat templates take. Keys are absent rather than None (templates test `is defined`)."""

    role: str
    content: str
    reasoning_content: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str
    name: str
    train: bool


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row comes from, for errors, preview and reports: a file (or hub id) and a line or row, from 1."""

    file: str
    row: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.row}"


@dataclass(slots=True)
class Row:
    """One row of data: a conversation (`messages`) or plain `text`; never both."""

    source: Source
    messages: list[Message] = field(default_factory=list)
    text: str | None = None
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be trained on, and why. `dataset.on_bad_row` decides: stop, or skip and count."""

    source: Source
    problem: str
    start: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.problem}"]
        if self.start:
            lines.append(f"  {self.start}")
        lines.append(f"  {self.remedy or 'Mend it'}, or skip such rows: dataset.on_bad_row=skip")
        return "\n".join(lines)


@dataclass(slots=True)
class Example:
    """A tokenised row.

    Attributes:
        input_ids: (T,) token ids.
        labels: (T,) unshifted: the id where the token is trained, -100 elsewhere and always at position 0, so
            that in a pack no document predicts the next one's first token.
        source: where it came from.
        reply: [start, end) of the last assistant turn in tokens, for samples and exact match; None where the
            row has no such turn.
        counts: what the formatter noticed, by name, for the audit.
    """

    input_ids: Sequence[int] | NDArray[np.int32]
    labels: Sequence[int] | NDArray[np.int32]
    source: Source
    reply: tuple[int, int] | None = None
    counts: dict[str, int] = field(default_factory=dict)


RowBatches = Iterable[list[Row | BadRow]]
"""May also have `in_parts()`: the same batches, some as objects with `rows()`, which makes the rows where they are needed
(prepare/documents.py: in several processes)."""


@dataclass(frozen=True, slots=True)
class Splits:
    """What a dataset offers: batches of rows, read lazily, each split readable more than once.

    Attributes:
        train: batches of rows.
        eval: batches of held-out rows; None when a fraction of `train` is to be held out instead.
        eval_fraction: share of the rows of `train` to hold out when `eval` is None; 0: none.
        split_seed: which rows that share is.
        eval_limit: at most so many held-out rows; None: all.
        on_bad_row: "stop" or "skip".
        fingerprint: changes whenever the rows do, for the key of the prepared store.
        name: for the start panel.
        answer_pattern: a regular expression whose last match's first group is the answer within a reply, for
            exact match; None where replies are not answers.
    """

    train: RowBatches
    eval: RowBatches | None
    fingerprint: str
    name: str
    eval_fraction: float = 0.0
    split_seed: int = 0
    eval_limit: int | None = None
    on_bad_row: str = "stop"
    answer_pattern: str | None = None


class Stage(IntEnum):
    """When a patch is applied. The order comes from here, not from how patches were typed."""

    LOAD = 0
    KERNELS = 1
    ADAPTER = 2
    MEMORY = 3
    COMPILE = 4


@runtime_checkable
class ModelLoader(Protocol):
    """Group `model`."""

    def load_tokenizer(self) -> PreTrainedTokenizerBase: ...

    def load_model(self, tokenizer: PreTrainedTokenizerBase, **load_kwargs: Any) -> PreTrainedModel:
        """The model with its weights, embeddings resized for added tokens. `device="meta"`: without weights."""
        ...


@runtime_checkable
class Patch(Protocol):
    """Group `patch`. Required: `stage` and `apply`; the others have defaults in `patch/order.py`."""

    stage: ClassVar[Stage]

    def apply(self, model: PreTrainedModel) -> PreTrainedModel:
        """Returns the patched model; raises if it did not take."""
        ...


@runtime_checkable
class DatasetLoader(Protocol):
    """Group `dataset`."""

    def load(self) -> Splits: ...


@runtime_checkable
class Formatter(Protocol):
    """Group `formatter`. Rows come in batches because tokenisers are fast in batches."""

    def format(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Sequence[Example | BadRow]: ...


@runtime_checkable
class Trainer(Protocol):
    """Group `trainer`."""

    def train(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: PreparedSplits, run: RunDir
    ) -> dict[str, Any]: ...


@runtime_checkable
class Launch(Protocol):
    """Group `launch`: in how many processes a job runs. `ranks` says how many (absent: one); `many` (`launch/many.py`)
    is there where torchrun may start them.
    """

    def launch(self, job: Job) -> dict[str, Any]:
        """Runs the job (`job.here()`, in this process) and returns its metrics."""
        ...


@runtime_checkable
class Tracker(Protocol):
    """Group `tracker`: a copy of the numbers for a service or viewer. metrics.jsonl is always written."""

    def start(self, run_dir: Path, name: str, config: dict[str, Any]) -> None: ...

    def log(self, row: dict[str, float], step: int) -> None: ...

    def finish(self, status: str, metrics: dict[str, float]) -> None: ...


Batch = dict[str, "torch.Tensor"]
BatchIterator = Iterator[Batch]
