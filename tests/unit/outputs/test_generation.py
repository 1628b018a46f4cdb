"""Answers at temperature 0 are the likeliest tokens, whatever a model's own generation config asks for."""

from __future__ import annotations

from typing import Any

import torch
from small_runs import model_of, tiny_tokenizer

from dumbo.generate import Generation, answers


def test_a_models_own_penalties_do_not_act_at_temperature_0() -> None:
    """Beside a loop that takes the largest logit each time."""
    model: Any = model_of(seed=3).eval()
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.num_beams = 3
    prompt = [5, 9, 14, 9, 5]
    (found,) = answers(model, tiny_tokenizer(), [prompt], Generation(max_new_tokens=12, stop_ids=()))
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert found == ids[len(prompt) :]
    assert len(set(found)) < len(found), "the loop repeats itself: a penalty would be seen"
