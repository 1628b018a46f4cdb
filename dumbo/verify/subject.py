"""What is proven: the experiment as it would train, on a sample of its data. Everything comes from the code that trains.

Built once from the plugins, in a temporary folder; no run's folder is touched. Proofs that leave the weights alone share
one model and its trainer (`trainer`); those that do not take a model of their own (`fresh_model`).
"""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dumbo.errors import ProofFailed, UserError
from dumbo.interfaces import BadRow, Row, RowBatches, Splits
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch import auto, order
from dumbo.patch.applied import patched_model
from dumbo.verify.proof import DoesNotApplyError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.check import Plugins
    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.prepare.store import PreparedSplits
    from dumbo.trainer.session import SftTrainer
    from dumbo.verify.passes import Alone

FEW = 4
"""Documents that the proofs with a forward pass look at."""


class RefusedError(UserError):
    """What `train` would refuse when it loads or patches the model: there is nothing to be proven then."""


@dataclass(frozen=True)
class FirstRows:
    """The first `limit` rows of some batches, read as lazily as they are."""

    batches: RowBatches
    limit: int

    @property
    def files(self) -> Sequence[Path]:
        return getattr(self.batches, "files", ())

    def __iter__(self) -> Iterator[list[Row | BadRow]]:
        left = self.limit
        for batch in self.batches:
            yield batch[:left]
            left -= len(batch)
            if left <= 0:
                return


@dataclass
class Subject:
    """One experiment, to be proven.

    Args:
        plugins: of the composed config.
        scratch: a folder that is deleted afterwards.
        composed, command: what was composed and typed, for proofs that start a process of their own.
    """

    plugins: Plugins
    scratch: Path
    composed: Composed | None = None
    command: Command | None = None
    not_isolated: str | None = None
    """Why documents cannot be packed on this model, once `trainer` was made."""
    alone: dict[int, Alone] = field(default_factory=dict)
    """Documents by themselves, as far as they were looked at (`passes.alone`)."""
    shared: dict[str, Any] = field(default_factory=dict)
    """What one proof has computed and another one needs, by name."""

    # ---- data -------------------------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = self.plugins.model.load_tokenizer()
        return tokenizer

    @cached_property
    def splits(self) -> Splits:
        """The first rows of the data (`verify.num_examples` of each split)."""
        whole, limit = self.plugins.dataset.load(), self.plugins.verify.num_examples
        return replace(
            whole,
            train=FirstRows(whole.train, limit),
            eval=FirstRows(whole.eval, limit) if whole.eval is not None else None,
            fingerprint=f"{whole.fingerprint}, the first {limit}",
        )

    @cached_property
    def data(self) -> PreparedSplits:
        """Those rows, prepared as for training."""
        from dumbo.prepare.plan import plan_length, prepare_for

        length = plan_length(self.plugins.trainer, self.tokenizer)
        return prepare_for(
            self.plugins.trainer, self.splits, self.plugins.formatter, self.tokenizer, length, self.run.console
        )

    @cached_property
    def documents(self) -> list[int]:
        """FEW short documents of the training split, fewest trained tokens first; fewer where there are fewer.

        Of the shortest sixth: the shortest and the longest, those with the fewest and the most trained tokens.
        """
        store = self.data.train.store

        def length(document: int) -> tuple[int, int]:
            return int(store.lengths[document]), document

        def labelled(document: int) -> tuple[int, int]:
            return int(store.labelled[document]), document

        usable = sorted((int(d) for d in self.data.train.documents if store.labelled[d] > 0), key=length)
        short = usable[: max(FEW, len(usable) // 6)]
        if not short:
            return []
        extremes = [short[0], short[-1], min(short, key=labelled), max(short, key=labelled)]
        chosen = list(dict.fromkeys([*extremes, *short]))[:FEW]
        return sorted(chosen, key=labelled)

    def need_documents(self, amount: int) -> list[int]:
        """`documents`, where there are so many.

        Raises:
            DoesNotApplyError: the sample has fewer that are trained on.
        """
        if len(self.documents) < amount:
            raise DoesNotApplyError(
                f"it takes {amount} documents with trained tokens, and the sample has {len(self.documents)}"
            )
        return self.documents

    def only(self, documents: Sequence[int]) -> PreparedSplits:
        """The data cut down to these training documents, nothing held out."""
        return replace(self.data, train=replace(self.data.train, documents=np.asarray(documents, np.int64)), eval=None)

    # ---- model and trainer ------------------------------------------------------------------------------------

    @cached_property
    def run(self) -> RunDir:
        """A folder for those who write into one, and nobody listening."""
        folder = self.scratch / "run"
        folder.mkdir(parents=True, exist_ok=True)
        return RunDir(
            path=folder,
            console=Console(io.StringIO()),
            started=time.time(),
            attn_implementation=str(getattr(self.plugins.model, "attn_implementation", "auto")),
        )

    @cached_property
    def patches(self) -> dict[str, Any]:
        """Those that are usable here, in order, with what `performance` adds; the others are in `run.facts["patches"]`."""
        chosen = order.in_order(self.plugins.patches)
        order.check_skeleton(chosen, self.plugins.model, self.tokenizer)
        added = auto.added(self.plugins, chosen, self.tokenizer, self.data, self.run)
        return {
            name: patch
            for name, patch in added.items()
            if not self.run.left_out(name, order.why_unavailable(name, patch))
        }

    def fresh_model(self, patched: bool = True) -> PreTrainedModel:
        """A model as `train` has it before the first step; the same weights each time.

        Args:
            patched: False: the same loader, dtype and seed, without any patch.

        Raises:
            RefusedError: `train` would refuse it.
        """
        try:
            return patched_model(self.plugins, self.patches, self.tokenizer, apply=patched)
        except UserError as error:
            raise RefusedError(str(error)) from error

    def trainer_of(self, model: PreTrainedModel, data: PreparedSplits | None = None, **options: Any) -> SftTrainer:
        """The trainer that would train this model, ready to.

        Args:
            data: what it trains on; None: the sample.
            options: of the trainer plugin, in place of those chosen.

        Raises:
            DoesNotApplyError: the trainer plugin has none that a proof could look into (`session`).
            ProofFailed: packed documents are not isolated.
        """
        plugin = replace(self.plugins.trainer, **options) if options else self.plugins.trainer
        if not hasattr(plugin, "session"):
            raise DoesNotApplyError(f"{type(plugin).__name__} does not show its steps (it has no `session`)")
        session = plugin.session(model, self.tokenizer, data or self.data, self.run)
        trainer: SftTrainer = session.equipped(plugin.batch(1))
        trainer.on_row, trainer.on_bad, trainer.on_unsaved = (lambda said: None,) * 3  # there is no bar to tell
        return trainer

    @cached_property
    def trainer(self) -> SftTrainer:
        """With a model that all proofs share: none of them changes its weights.

        Where packing cannot be isolated on this model, which the proofs of packing say, the others see it unpacked.
        """
        model = self.fresh_model()
        try:
            return self.trainer_of(model)
        except UserError as error:
            raise RefusedError(str(error)) from error
        except ProofFailed as error:
            self.not_isolated = str(error)
            return self.trainer_of(model, packing=False)

    @property
    def packed(self) -> bool:
        """Whether documents are to share a row in training."""
        return bool(getattr(self.plugins.trainer, "packing", False))

    @property
    def trainer_is_isolated(self) -> bool:
        """Whether they can."""
        return self.trainer is not None and self.not_isolated is None

    @property
    def dtype(self) -> torch.dtype:
        """What products are computed in: under bf16's autocast bfloat16, else the weights' own."""
        model: Any = self.trainer.model
        dtype: torch.dtype = torch.bfloat16 if self.trainer.args.bf16 else model.dtype
        return dtype

    def source_rows(self) -> dict[str, Row | None]:
        """Source -> row of the sample as the dataset gave it; None where a source gave several."""
        found: dict[str, Row | None] = {}
        for row in islice((row for batch in self.splits.train for row in batch), None):
            if not isinstance(row, BadRow):
                key = str(row.source)
                found[key] = None if key in found else row
        return found

    def release(self) -> None:
        """Lets go of the shared model, before other processes take its place on the device; it is made again when asked for."""
        self.__dict__.pop("trainer", None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
