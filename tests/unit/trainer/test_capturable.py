"""Which runs are captured as CUDA graphs, what is said of the others, and the few kinds that batches come in."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import documents, small_run, splits_of, store_of

from dumbo.batch import Batch
from dumbo.errors import MemoryFull
from dumbo.outputs.console import Console
from dumbo.outputs.halvings import give_up_graphs
from dumbo.outputs.run_dir import RunDir
from dumbo.trainer import capturable, long_documents
from dumbo.trainer.capturable import why_not
from dumbo.trainer.collate import Collate, Room
from dumbo.trainer.graph_kinds import Kind, copies_of, key_of
from dumbo.trainer.graphs import Graphs
from dumbo.trainer.pace import PACED
from dumbo.trainer.sft import Sft

YES: dict[str, Any] = {
    "compiled": True, "all_compiled": True, "chunked": True, "fixed_room": True, "bf16": True, "grouped": False,
    "wrapped_in": "none", "checkpointing": False, "random": False,
}  # fmt: skip


def test_a_run_that_can_be_captured() -> None:
    assert why_not(**YES) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compiled": False}, "patch=[…,compile]"),
        ({"compiled": False, "chunked": False}, "patch=[…,compile,chunked_loss]"),
        ({"fixed_room": False}, "packs"),
        ({"bf16": False}, "precision=bf16"),
        ({"all_compiled": False}, "as they are written"),
        ({"grouped": True}, "document by document"),
        ({"wrapped_in": "DDP"}, "in DDP"),
        ({"checkpointing": True}, "gradient_checkpointing"),
        ({"random": True}, "dropout"),
    ],
)
def test_the_others_say_why(change: dict[str, Any], said: str) -> None:
    assert said in str(why_not(**{**YES, **change}))


def test_given_up_they_stay_so_until_another_micro_batch_is_asked_for(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(capturable, "why_not", lambda **conditions: None)
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    args: Any = SimpleNamespace(device=torch.device("cuda"), bf16=True)

    def wanted(**options: Any) -> bool | None:
        return capturable.wanted(Sft(**options), torch.nn.Linear(1, 1), args, None, "tokens", run)

    assert wanted(micro_batch_size=4) is None
    assert run.facts["cuda_graphs"] == "on where it pays"
    give_up_graphs(run, MemoryFull("CUDA out of memory", 3, Batch.of(8, 4, 1), 4, graphs=True))
    assert wanted(micro_batch_size=4) is False
    assert run.facts["cuda_graphs"] == "off: the memory ran out with them at step 3 (CUDA out of memory)"
    assert wanted(micro_batch_size=2) is None
    assert wanted(micro_batch_size=4, cuda_graphs=True) is True


@pytest.mark.parametrize(
    ("longest", "told"), [(1, 256), (256, 256), (257, 512), (512, 512), (1025, 2048), (2048, 2048)]
)
def test_the_longest_document_that_attention_is_told_of(longest: int, told: int) -> None:
    """Halves of the longest possible, never less than there is."""
    assert Room(8192, 2048, few_kinds=True).told(longest) == told
    assert Room(8192, 2048).told(longest) == 2048


@pytest.mark.parametrize(("amount", "places"), [(1, 512), (512, 512), (513, 1024), (8191, 8192), (8192, 8192)])
def test_places_that_bear_a_loss_are_rounded_up(amount: int, places: int) -> None:
    assert Room(8192, 2048, few_kinds=True).places(amount) == places
    assert Room(8192, 2048).places(amount) == amount


def test_halved_batches_come_in_few_kinds_too() -> None:
    room = Room(8192, 2048, few_kinds=True).of(2)
    assert (room.tokens, room.longest, room.places(300), room.told(300)) == (4096, 2048, 512, 512)


def test_filled_up_places_bear_no_loss(data: Path, tmp_path: Path) -> None:
    """The last token of the axis: nothing follows it. All that bears a loss is still named, once."""
    store = store_of(tmp_path, documents(data, 8))
    plain = Collate(store, "tokens", 0, Room(2048, 256), places=True)([np.arange(8)])
    batch = Collate(store, "tokens", 0, Room(2048, 256, few_kinds=True), places=True)([np.arange(8)])
    amount = len(plain["loss_at"])
    assert len(batch["loss_at"]) % 128 == 0
    assert batch["loss_at"][:amount].tolist() == plain["loss_at"].tolist()
    assert set(batch["loss_at"][amount:].tolist()) <= {2047}
    assert batch["labels"].equal(plain["labels"])


def test_kinds_differ_in_shapes_and_lengths_and_nothing_else() -> None:
    one = {"input_ids": torch.zeros(1, 8), "max_length_q": 256}
    assert key_of(one) == key_of({"max_length_q": 256, "input_ids": torch.ones(1, 8)})
    assert key_of(one) != key_of({**one, "max_length_q": 512})
    assert key_of(one) != key_of({**one, "input_ids": torch.zeros(1, 9)})


def test_a_tensor_under_two_names_stays_one() -> None:
    bounds = torch.arange(3)
    made = copies_of({"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 4})
    assert made["cu_seq_lens_q"] is made["cu_seq_lens_k"] is not bounds
    assert made["max_length_q"] == 4


def test_without_a_gpu_they_are_left_out_and_that_is_said(data: Path, tmp_path: Path) -> None:
    run = small_run(tmp_path / "run", splits_of(tmp_path, documents(data, 8)), max_steps=1, cuda_graphs=True)
    assert run.facts["cuda_graphs"] == "off: no CUDA device"
    assert "cuda_graphs are left out: no CUDA device" in run.said


class Replayed:
    """What a captured pass is: it reads its inputs where they were, and adds to the gradients."""

    def __init__(self, parameter: torch.Tensor, kind: Kind, wrong: float = 0.0, seconds: float = 0.0) -> None:
        self.parameter, self.kind, self.wrong, self.seconds = parameter, kind, wrong, seconds

    def replay(self) -> None:
        time.sleep(self.seconds)
        self.kind.loss = one_pass(self.parameter, self.kind.inputs, torch.ones(())) + self.wrong


def one_pass(parameter: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
    loss = (parameter * inputs["bears"]).sum()
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(("wrong", "held"), [(0.0, True), (1.0, False)])
def test_a_batch_without_a_loss_proves_nothing(monkeypatch: pytest.MonkeyPatch, wrong: float, held: bool) -> None:
    """The next one does; graphs that differ let go of the gradients that they kept."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data.fill_(1.0)
    graphs = Graphs(layer, one_pass, always=True)
    graphs._settle_gradients()
    kind = graphs._kinds["one"] = Kind(
        2, inputs={"bears": torch.zeros(1, 2)}, items=torch.ones(()), loss=torch.zeros(())
    )
    kind.graph = Replayed(layer.weight, kind, wrong)  # type: ignore[assignment]
    graphs._prove(kind, layer.weight, {"bears": torch.zeros(1, 2)}, torch.ones(()))
    assert graphs.paying.used
    assert not kind.proven
    graphs._prove(kind, layer.weight, {"bears": torch.ones(1, 2)}, torch.ones(()))
    assert kind.proven == graphs.paying.used == graphs.hold_memory == held
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("in_cudnn", [True, False])
def test_cudnns_gradients_alone_may_be_further_away(monkeypatch: pytest.MonkeyPatch, in_cudnn: bool) -> None:
    """The replay's loss is 3% off: between the two limits."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    layer = torch.nn.Linear(2, 1, bias=False)
    layer.weight.data.fill_(1.0)
    graphs = Graphs(layer, one_pass, always=True)
    graphs._settle_gradients()
    kind = Kind(2, in_cudnn=in_cudnn, inputs={"bears": torch.zeros(1, 2)}, items=torch.ones(()), loss=torch.zeros(()))
    kind.graph = Replayed(layer.weight, kind, 0.06)  # type: ignore[assignment]
    graphs._prove(kind, layer.weight, {"bears": torch.ones(1, 2)}, torch.ones(()))
    assert kind.proven is in_cudnn


@pytest.mark.parametrize("in_cudnn", [True, False])
def test_what_graphs_keep_from_cudnn_is_counted(monkeypatch: pytest.MonkeyPatch, in_cudnn: bool) -> None:
    """Three batches: one with a long document somewhere, one with none, one that is a long row. Where the model's do not go
    through cuDNN, nothing is kept from it, and all its kinds are held to the narrower limit."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(Graphs, "_beside", lambda self, work: work())
    monkeypatch.setattr(Graphs, "_capture", lambda *given: None)
    monkeypatch.setattr(long_documents, "_was_moved", lambda bounds, own: own is not bounds)
    layer = torch.nn.Linear(2, 1, bias=False)
    graphs = Graphs(layer, lambda _, *given: one_pass(layer.weight, *given), always=True, in_cudnn=in_cudnn)
    for numbers in ([0, 5000, 6000], [0, 3000, 6000], [0, 6000, 6000]):
        batch = {"cu_seq_lens_q": torch.tensor(numbers)}
        there = {"cu_seq_lens_q": batch["cu_seq_lens_q"].clone()}
        long_documents.tell(batch, there)
        graphs.run(layer, {"bears": torch.ones(1, 2), "input_ids": torch.zeros(1, 6000), **there}, torch.ones(()))
        whole_row = numbers == [0, 6000, 6000]
        assert bool(long_documents.known(there["cu_seq_lens_q"])) is (in_cudnn and whole_row)
    said = "; 1 with long documents in tiles, not in cuDNN" if in_cudnn else ""
    assert graphs.facts().endswith(f"0 of 3 passes replayed{said}")
    assert sorted(kind.in_cudnn for kind in graphs._kinds.values()) == ([False, True] if in_cudnn else [False])


class Event:
    """torch.cuda.Event on a device that is always done."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Event) -> float:
        return 1000 * (other.at - self.at)


@pytest.mark.parametrize(("replay_s", "pays"), [(0.004, True), (0.03, False)])
def test_graphs_that_save_nothing_are_given_up(monkeypatch: pytest.MonkeyPatch, replay_s: float, pays: bool) -> None:
    """Passes as written take 20 ms here. What a replay added to the gradients stays, whatever is decided."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Graphs, "_beside", lambda self, work: work())
    layer = torch.nn.Linear(2, 1, bias=False)

    def slow(parameter: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return one_pass(layer.weight, inputs, items)

    graphs = Graphs(layer, slow, always=False)
    graphs.paying.used = True
    inputs = {"bears": torch.ones(1, 2)}

    def capture(self: Graphs, kind: Any, *others: Any) -> None:
        kind.inputs, kind.items, kind.loss = {"bears": torch.ones(1, 2)}, torch.ones(()), torch.zeros(())
        kind.graph = Replayed(layer.weight, kind, seconds=replay_s)

    monkeypatch.setattr(Graphs, "_capture", capture)
    passes = (
        PACED + 1 + 3 + PACED + 1 + 2
    )  # at their pace as written, towards a graph, at the pace of replays, after it
    for number in range(1, passes + 1):
        graphs.run(layer, inputs, torch.ones(()))
        assert layer.weight.grad is not None
        assert layer.weight.grad.tolist() == [[float(number), float(number)]]
        assert graphs.paying.judged == (number >= passes - 2), "neither earlier nor later"
    assert graphs.paying.used == graphs.hold_memory == pays
    assert graphs.facts().startswith("on, a pass each 2" if pays else "off, a pass each 2"), graphs.facts()
    if pays:
        assert graphs.facts().endswith(f"1 kinds of batch, {PACED + 3} of {PACED + 6} passes replayed")


@pytest.mark.parametrize(("left", "always", "captured"), [(16, False, 2), (15, False, 1), (7, False, 0), (3, True, 2)])
def test_what_hardly_comes_again_is_not_captured(
    monkeypatch: pytest.MonkeyPatch, left: int, always: bool, captured: int
) -> None:
    """Two kinds: one makes up all passes until it has been seen twice, then the other one half of them."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(Graphs, "_beside", lambda self, work: work())
    layer = torch.nn.Linear(2, 1, bias=False)
    made: list[Kind] = []

    def capture(self: Graphs, kind: Kind, *others: Any) -> None:
        made.append(kind)
        kind.inputs, kind.items, kind.loss = {"bears": torch.ones(1, 2)}, torch.ones(()), torch.zeros(())
        kind.graph = Replayed(layer.weight, kind)  # type: ignore[assignment]

    monkeypatch.setattr(Graphs, "_capture", capture)
    graphs = Graphs(layer, lambda _, *given: one_pass(layer.weight, *given), always=always, left=lambda: left)
    graphs.paying.used, graphs.paying.judged = True, True
    for longest in (256, 256, 512, 512):
        graphs.run(layer, {"bears": torch.ones(1, 2), "max_length_q": longest}, torch.ones(()))
    assert len(made) == captured


def test_too_few_passes_are_said_to_be_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    assert Graphs(torch.nn.Linear(2, 1), one_pass, always=False).facts().startswith("off: too few passes")
