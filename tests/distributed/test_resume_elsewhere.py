"""A run goes on with another launch, on another number of ranks: the joined curve is the uninterrupted one to 1e-5."""

from __future__ import annotations

import json
import shutil
from itertools import product
from pathlib import Path

import pytest
from ranks import SMALL, curve, facts, run_cases

SAVED, STEPS = 4, 10
COMMON = (
    *SMALL,
    "trainer.global_batch_size=8",
    "trainer.save_every=4",
    "trainer.save_total_limit=9",
    "trainer.eval_every=4",
)
WAYS = {"single": (1, "launch=single", "trainer.micro_batch_size=4"), "ddp": (2, "launch=ddp", "trainer.micro_batch_size=2"),
        "fsdp": (2, "launch=fsdp", "trainer.micro_batch_size=4"), "fsdp4": (4, "launch=fsdp", "trainer.micro_batch_size=1")}  # fmt: skip


def as_if_killed(run: Path, to: Path) -> None:
    """A copy of a run as it was just after its checkpoint of step SAVED."""
    shutil.copytree(run, to)
    for checkpoint in (to / "checkpoints").iterdir():
        if checkpoint.name != f"step-{SAVED:06d}":
            shutil.rmtree(checkpoint)
    rows = [json.loads(line) for line in (to / "metrics.jsonl").read_text().splitlines()]
    kept = [row for row in rows if not ("eval_loss" in row and row["step"] == SAVED)]  # a stop leaves it out
    (to / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    facts = json.loads((to / "run.json").read_text())
    facts |= {"status": "running", "run_dir": str(to)}
    (to / "run.json").write_text(json.dumps(facts))


def go(cases: dict[str, tuple[int, list[str]]], folder: Path) -> None:
    """Runs each case on its number of ranks."""
    import dumbo

    for ranks in {ranks for ranks, _ in cases.values()}:
        own = {name: words for name, (number, words) in cases.items() if number == ranks}
        if ranks == 1:
            for words in own.values():
                dumbo.run(words)
        else:
            run_cases(ranks, own, folder)


PAIRS = [("ddp", "single"), ("single", "fsdp"), ("fsdp", "single")]


@pytest.mark.parametrize(
    "weights",
    [
        (),
        pytest.param(("trainer.async_save=true",), marks=pytest.mark.full),
        pytest.param(("patch=lora", "patch.lora.dropout=0"), marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize(
    "pairs", [PAIRS, pytest.param(list(product(WAYS, WAYS)), marks=pytest.mark.full)], ids=["some", "all"]
)
def test_goes_on_elsewhere(pairs: list[tuple[str, str]], weights: tuple[str, ...], tmp_path: Path) -> None:
    first = {}
    for way in {way for way, _ in pairs} | {"single"}:
        ranks, *own = WAYS[way]
        first[f"{tmp_path}/{way}"] = (ranks, [*COMMON, *weights, *own, f"run_dir={tmp_path}/{way}"])
    go(first, tmp_path)
    second = {}
    for way, then in pairs:
        ranks, *own = WAYS[then]
        run = tmp_path / f"{way}-{then}"
        as_if_killed(tmp_path / way, run)
        second[str(run)] = (ranks, [f"resume={run}", *own])
    go(second, tmp_path)
    wanted = curve(tmp_path / "single")
    assert len(wanted) > STEPS
    for way, then in pairs:
        run = tmp_path / f"{way}-{then}"
        assert facts(run)["batch"]["ranks"] == WAYS[then][0]
        found = curve(run)
        assert [place for place, *_ in found] == [place for place, *_ in wanted]
        for (step, loss, _), (_, uninterrupted, _) in zip(found, wanted, strict=True):
            assert loss == pytest.approx(uninterrupted, abs=1e-5), (way, then, step)
