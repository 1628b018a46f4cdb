"""How many ranks `launch=auto` takes: read from the environment, without torch, and fitted to the batch."""

from __future__ import annotations

import pytest

from dumbo.launch import auto, gpus, many
from dumbo.launch.auto import Auto
from dumbo.launch.gpus import visible_gpus


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 0), ("0", 1), ("0,1", 2), ("2,3,5", 3), ("0,-1,1", 1), ("-1", 0), ("GPU-8932f937,MIG-aa", 2), (" 0 , 1 ", 2)],
)
def test_named_gpus(text: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert visible_gpus() == number


@pytest.mark.parametrize(
    ("there", "sizes", "ranks"),
    [(8, (16, 2), 8), (8, (2, 2), 1), (8, (2, 1), 2), (6, (16, 2), 4), (1, (2, 2), 1), (3, (7, 7), 1)],
)
def test_auto_takes_as_many_as_the_batch_divides_over(
    there: int, sizes: tuple[int, int], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dumbo.batch import Batch
    from dumbo.errors import UserError

    for module in (auto, many, gpus):
        monkeypatch.setattr(module, "visible_gpus", lambda: there)

    def divides(number: int) -> bool:
        try:
            Batch.of(*sizes, number)
        except UserError:
            return False
        return True

    fitted = Auto().fitting(divides)
    assert fitted.ranks == ranks
    assert fitted.wrapper == ("DDP" if ranks > 1 else "none")


def test_what_is_typed_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "visible_gpus", lambda: 8)
    typed = Auto(num_processes=3)
    assert typed.fitting(lambda ranks: False) is typed


def test_the_default_composes_on_a_machine_of_eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m dumbo` has a global batch of 2: it must not be refused there."""
    from dumbo.check import check
    from dumbo.compose import compose, prepare_hydra

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")
    composed = compose(prepare_hydra([], None))
    assert check(composed.cfg, composed.choices).launch.ranks == 1
    composed = compose([*prepare_hydra([], None), "trainer.global_batch_size=16"])
    assert check(composed.cfg, composed.choices).launch.ranks == 8
