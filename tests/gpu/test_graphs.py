"""On a CUDA device: captured and replayed passes give the numbers of passes as written, and a wrong graph is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import model_of, small_run, splits_of
from test_speed import OPTIONS, SHAPE, rows

from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile
from dumbo.patch.lora import LoRA
from dumbo.trainer import graphs, paying

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def fast(adapters: bool = False) -> Any:
    model = ChunkedLoss(chunk_size=256).apply(model_of(**SHAPE, attn_implementation="sdpa"))
    return Compile().apply(LoRA(rank=4, init="gaussian").apply(model) if adapters else model)


def run_of(folder: Path, model: Any, **options: Any) -> Any:
    splits = splits_of(folder, rows(300), rows(12, seed=1))
    return small_run(folder / "run", splits, model=model, **{**OPTIONS, "max_steps": 40, **options})


@pytest.mark.parametrize(
    ("adapters", "more"),
    [(False, {}), (True, {}), (False, {"master_weights": True}), (False, {"prefetch": True, "log_every": 5})],
    ids=["full", "lora", "masters", "prefetch"],
)
def test_replays_are_passes_as_written(adapters: bool, more: dict[str, Any], tmp_path: Path) -> None:
    """40 steps of two micro batches of varying documents: losses within 0.2%, norms within 3%, held-out losses."""
    runs = []
    for name, wanted in (("written", False), ("captured", True)):
        model = fast(adapters)
        if more.get("master_weights"):
            model = model.to(torch.bfloat16)
        runs.append(run_of(tmp_path / name, model, cuda_graphs=wanted, **more))
        torch.compiler.reset()
    written, captured = runs
    said = captured.facts["cuda_graphs"]
    assert said.startswith("on: "), said
    replayed, passes = (int(word.replace(",", "")) for word in (said.split(", ")[1].split()[0], said.split()[-3]))
    assert passes == 80, said
    assert replayed > 40, said
    for key, off in (("loss", 2e-3), ("eval_loss", 2e-3), ("grad_norm", 3e-2)):
        one, other = ([row[key] for row in run.rows if key in row] for run in (captured, written))
        assert one == pytest.approx(other, rel=off), key


@pytest.mark.parametrize("frozen", ["input_ids", "labels", "cu_seq_lens_q", "position_ids"])
def test_a_graph_that_does_not_follow_its_batch_is_found(frozen: str, tmp_path: Path, monkeypatch: Any) -> None:
    """One tensor stays that of the batch that was captured: the proof sees it, and the run goes on as written."""
    replay = graphs.Graphs._replay

    def stale(self: Any, kind: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        return replay(self, kind, {**inputs, frozen: kind.inputs[frozen]}, items)

    monkeypatch.setattr(graphs.Graphs, "_replay", stale)
    broken = run_of(tmp_path / "broken", fast(), cuda_graphs=True, micro_batch_size=4)
    monkeypatch.undo()
    torch.compiler.reset()
    written = run_of(tmp_path / "written", fast(), cuda_graphs=False, micro_batch_size=4)
    assert broken.facts["cuda_graphs"].startswith("off: a graph's gradients are"), broken.facts["cuda_graphs"]
    one, other = ([row["loss"] for row in run.rows if "loss" in row] for run in (broken, written))
    assert one == pytest.approx(other, rel=2e-3)


def test_left_open_they_are_used_where_launching_limits(tmp_path: Path) -> None:
    """Three layers of width 256 are launched for longer than they compute."""
    run = run_of(tmp_path, fast(), cuda_graphs=None)
    assert run.facts["cuda_graphs"].startswith("on, launching takes"), run.facts["cuda_graphs"]


@pytest.mark.parametrize("real", [True, False], ids=["too large a tensor", "raised"])
def test_memory_that_runs_out_in_a_capture(real: bool, tmp_path: Path, monkeypatch: Any) -> None:
    """The step is done again as written, in micro batches of the same size, with the numbers of a run without graphs."""

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            trainer = make(batch)
            loss = trainer.compute_loss

            def full(*arguments: Any, **kwargs: Any) -> Any:
                found = loss(*arguments, **kwargs)
                if torch.cuda.is_current_stream_capturing():
                    if real:
                        torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 is full.")
                return found

            trainer.compute_loss = full
            return trainer

        session._trainer = made

    monkeypatch.setattr(paying, "PAYS", 0.0)  # captured whatever launching takes
    broken = run_of(tmp_path / "broken", fast(), cuda_graphs=None, before=before)
    torch.compiler.reset()
    written = run_of(tmp_path / "written", fast(), cuda_graphs=False)
    assert broken.facts["cuda_graphs"].startswith("off: the memory ran out with them at step"), broken.facts
    assert broken.facts["graphs_given_up"]["text"].startswith("CUDA out of memory. Tried to allocate")
    assert "memory_halvings" not in broken.facts
    assert broken.losses == pytest.approx(written.losses, rel=2e-3)


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path: Path) -> None:
    """In a replayed pass: weights that were made infinite once give such a gradient, and the documents are named."""

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            trainer = make(batch)
            step = trainer.training_step

            def broken(model: Any, inputs: Any, *arguments: Any, **kwargs: Any) -> Any:
                weight = next(p for p in model.parameters() if p.requires_grad)
                kept = weight.detach().clone()
                if trainer.state.global_step == 35:
                    weight.data.fill_(float("nan"))
                found = step(model, inputs, *arguments, **kwargs)
                weight.data.copy_(kept)
                return found

            trainer.training_step = broken
            return trainer

        session._trainer = made

    run = run_of(tmp_path, fast(), cuda_graphs=True, before=before)
    assert [row["step"] for row in run.rows if row.get("skipped_steps")] == [36]
    assert run.losses[-1] < run.losses[0]
