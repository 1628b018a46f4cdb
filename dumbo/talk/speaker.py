"""Answers token by token: shown while they are made, stopped by Ctrl-C, on what is kept of the turns before.

The KV cache stays from turn to turn where every layer's can be cut back (no sliding window, no state): the tokens that
the next prompt shares with it are not computed again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from dumbo.generate import Generation, answering

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """What was said.

    Attributes:
        text: without white space around it.
        stopped: whether Ctrl-C ended it.
        computed: tokens of the prompt that were not in the cache.
    """

    text: str
    stopped: bool
    computed: int


class Speaker:
    """A model that answers one prompt after the other."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._cache: DynamicCache | None = None
        self._cached: list[int] = []

    def answer(
        self, ids: Sequence[int], how: Generation, show: Callable[[str], None], *, stoppable: bool = False
    ) -> Answer:
        """Answers a prompt.

        Args:
            ids: (T,) the whole prompt, what was said before in it.
            how: of `at_once` and `bf16` nothing is read.
            show: called with pieces of the answer as they are known.
            stoppable: whether Ctrl-C ends the answer, and nothing else.
        """
        prompt = list(ids)
        cache, known = self._take(prompt)
        stop = _Stop()
        screen = _Screen(self.tokenizer, how.stop_ids, show)
        tensor = torch.tensor([prompt], device=self.model.device)
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else (how.stop_ids or (0,))[0]
        model: Any = self.model
        try:
            with answering(self.model), stop.listening() if stoppable else nullcontext():
                if how.temperature > 0:
                    torch.manual_seed(how.seed)
                out = model.generate(
                    input_ids=tensor,
                    attention_mask=torch.ones_like(tensor),
                    max_new_tokens=how.max_new_tokens,
                    eos_token_id=list(how.stop_ids) or None,
                    pad_token_id=pad,
                    use_cache=True,
                    past_key_values=cache,
                    return_dict_in_generate=True,
                    stopping_criteria=StoppingCriteriaList([stop]),
                    streamer=screen,
                    **how.sampling(),
                )
            sequence = out.sequences[0].tolist()
            self._keep(out.past_key_values, sequence)
        except KeyboardInterrupt:
            if not stop.asked:
                raise
            screen.end()  # a second Ctrl-C, in the middle of a pass: the cache may be half written, and is not kept
        said = screen.said
        text = str(self.tokenizer.decode(said, skip_special_tokens=True)).strip()
        return Answer(text, stop.asked, len(prompt) - known)

    def _take(self, prompt: list[int]) -> tuple[DynamicCache | None, int]:
        """The cache cut back to what the prompt shares with it, and how many tokens that is."""
        cache, cached = self._cache, self._cached
        self._cache, self._cached = None, []  # whatever happens now, it is not what it was
        if cache is None:
            return None, 0
        pairs = zip(cached, prompt, strict=False)
        shared = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(cached), len(prompt)))
        shared = min(shared, len(prompt) - 1)  # one token at least must be computed: its logits are the first answer
        if shared == 0:
            return None, 0
        if len(cached) > shared:
            cache.crop(shared - len(cached))  # a negative number: so many tokens go from the end
        return cache, shared

    def _keep(self, cache: Any, sequence: list[int]) -> None:
        plain = isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers)
        if plain and (length := cache.get_seq_length()) > 0:
            self._cache, self._cached = cache, sequence[:length]


class _Screen(BaseStreamer):
    """Pieces of text as soon as their characters are whole, without stop tokens and white space around the answer.

    Attributes:
        said: the answer's tokens so far.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], show: Callable[[str], None]
    ) -> None:
        self._tokenizer, self._stop_ids, self._show = tokenizer, frozenset(stop_ids), show
        self.said: list[int] = []
        self._prompt_came = self._begun = False
        self._start = self._shown = 0
        self._space = ""

    def put(self, value: torch.Tensor) -> None:
        """First the prompt, then token by token."""
        if not self._prompt_came:
            self._prompt_came = True
            return
        token = int(value.flatten()[0])
        if token not in self._stop_ids:
            self.said.append(token)
            self._look()

    def end(self) -> None:
        """No token comes any more."""
        self._look(last=True)

    def _look(self, last: bool = False) -> None:
        """Shows what the newest tokens add to the text. They are decoded after those before them: tokenizers join them."""
        before, now = self._text(self.said[self._start : self._shown]), self._text(self.said[self._start :])
        if len(now) > len(before) and (last or not now.endswith("\ufffd")):
            self._start, self._shown = self._shown, len(self.said)
            self._piece(now[len(before) :])

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _piece(self, text: str) -> None:
        """White space is held back until something comes after it."""
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if not self._begun:
            shown = shown.lstrip()
        if shown:
            self._begun = True
            self._show(shown)


class _Stop(StoppingCriteria):
    """Ends an answer after the token under way when Ctrl-C is typed; the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((input_ids.shape[0],), self.asked, device=input_ids.device)  # type: ignore[return-value]

    def _on_signal(self, number: int, frame: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While it holds, SIGINT is for the answer."""
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
