"""What a session has its model answer: samples before and after, and held-out questions for exact match."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dumbo.generate import Generation
from dumbo.outputs import samples
from dumbo.outputs.extractors import extractor_for
from dumbo.patch.compile import as_written
from dumbo.trainer.sharded import is_sharded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits, Split
    from dumbo.trainer.sft import Sft


@dataclass
class Answers:
    """The questions of a run, and who answers them."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: PreparedSplits
    run: RunDir
    sft: Sft
    bf16: bool
    """The arithmetic of training, in which they are answered too."""

    @property
    def _held_out(self) -> Split:
        return self.data.eval if self.data.eval is not None else self.data.train

    @cached_property
    def asked(self) -> list[samples.Question]:
        """The prompts of samples.md."""
        return samples.questions(self._held_out, self.tokenizer, self.sft.num_samples)

    @cached_property
    def how(self) -> Generation:
        """How they are answered."""
        how = samples.how_to_answer(self._held_out, self.tokenizer, self.asked, self.sft.max_new_tokens)
        return how.but(bf16=self.bf16)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer, as a few of the data's own answers end."""
        few = samples.questions(self._held_out, self.tokenizer, 3)
        return samples.how_to_answer(self._held_out, self.tokenizer, few, None).stop_ids

    def before(self) -> list[str]:
        """Answers of the untrained model; on resuming those of the first start, which are kept aside."""
        kept = self.run.path / ".before.json"
        stored: list[str] | None = None
        if self.run.resuming and self.run.world.main and kept.is_file():
            stored = json.loads(kept.read_text())
        stored = self.run.world.share(stored)
        if stored is not None:
            return stored
        with self._status("answering held-out prompts before training"):
            before = self._ask(self.asked, self.how)
        self.run.write(kept.name, json.dumps(before))
        self.run.write("samples.md", samples.samples_page(self.asked, before, None))
        return before

    def _status(self, text: str) -> AbstractContextManager[Any]:
        """Said while it lasts, where anything is asked (`trainer.num_samples`)."""
        return self.run.console.status(text) if self.asked else nullcontext()

    def _ask(self, asked: list[samples.Question], how: Any) -> list[str]:
        """Answers of the model as it is. Each rank answers its share; where the model is sharded, all answer all of it
        together, because every one of them holds a part of each layer.
        """
        world = self.run.world
        if world.size == 1 or is_sharded(self.model):
            return self._answered(asked, how)
        answered = world.gather(self._answered(asked[world.rank :: world.size], how))
        return [answered[place % world.size][place // world.size] for place in range(len(asked))]

    def _answered(self, asked: list[samples.Question], how: Any) -> list[str]:
        with as_written(self.model):
            return samples.ask(self.model, self.tokenizer, asked, how) if asked else []

    def after(self, before: list[str]) -> dict[str, Any]:
        """Samples, and exact match where the data has answers."""
        with self._status("answering held-out prompts"):
            after = self._ask(self.asked, self.how)
        self.run.write("samples.md", samples.samples_page(self.asked, before, after))
        pairs = zip(self.asked, before, after, strict=True)
        self.run.write("samples.json", json.dumps([{**asdict(q), "before": b, "after": a} for q, b, a in pairs]))
        self.run.samples = list(zip(self.asked, before, after, strict=True))
        pattern = self.data.answer_pattern
        if pattern is None or self.data.eval is None or self.sft.num_answers == 0:
            return {}
        exam = samples.questions(self.data.eval, self.tokenizer, self.sft.num_answers)
        longer = samples.how_to_answer(self.data.eval, self.tokenizer, exam, self.sft.max_new_tokens)
        longer = longer.but(bf16=self.bf16)
        with self.run.console.status(f"answering {len(exam)} held-out questions"):
            replies = self._ask(exam, longer)
        right, total = samples.exact_match(extractor_for(pattern).find, exam, replies)
        cut = samples.left_out(self.data.eval)
        return {
            **({"exact_match": right / total, "questions": total} if total else {}),
            **({"questions_left_out": cut} if cut else {}),
        }
