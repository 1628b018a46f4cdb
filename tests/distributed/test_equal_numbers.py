"""1, 2 and 4 ranks train the same: losses, gradient norms, held-out losses and final weights at equal global batch.

Real processes over gloo. The data does not divide: in the last step of an epoch some ranks have nothing left.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from ranks import SMALL, curve, facts, rows, run_cases
from safetensors.torch import load_file

DATA = {"packed": ("trainer.global_batch_size=8",), "padded": ("trainer.packing=false", "trainer.global_batch_size=32")}
LORA, CHUNKS = ("patch.lora.dropout=0",), ("patch.chunked_loss.chunk_size=100",)
WEIGHTS = {
    "full": (),
    "lora": ("patch=lora", *LORA),
    "chunked": ("patch=chunked_loss", *CHUNKS),
    "chunked lora": ("patch=[lora,chunked_loss]", *LORA, *CHUNKS),
}
PLAIN = {"chunked": "full", "chunked lora": "lora"}
"""What one process has in place of a patch that changes no number."""
ALL = list(product(("ddp", "fsdp"), DATA, WEIGHTS))
PAIRWISE = [
    ("ddp", "packed", "full"),
    ("ddp", "padded", "lora"),
    ("fsdp", "packed", "lora"),
    ("fsdp", "padded", "full"),
    ("fsdp", "packed", "chunked"),
    ("fsdp", "padded", "chunked lora"),
]
"""Every two of launch, data and weights together once, sharded heads with the loss in chunks; all sixteen run in .ci/full."""
MICRO = {1: {"packed": 4, "padded": 16}, 2: {"packed": 2, "padded": 16}, 4: {"packed": 2, "padded": 4}}
"""Of 1, 2 and 4 ranks: accumulation 2, 2 and 1 (packed), 2, 1 and 2 (padded)."""


def words(ranks: int, launch: str, data: str, weights: str) -> list[str]:
    micro = f"trainer.micro_batch_size={MICRO[ranks][data]}"
    return [*SMALL, *DATA[data], *WEIGHTS[weights], micro, f"launch={launch}"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process."""
    import dumbo

    folder = tmp_path_factory.mktemp("alone")
    for data, weights in product(DATA, WEIGHTS.keys() - PLAIN.keys()):
        dumbo.run([*words(1, "single", data, weights), f"run_dir={folder / f'{data}-{weights}'}"])
    return folder


@pytest.mark.parametrize(
    ("ranks", "chosen"),
    [
        pytest.param(2, PAIRWISE, id="2-pairwise"),
        pytest.param(2, [case for case in ALL if case not in PAIRWISE], id="2-others", marks=pytest.mark.full),
        pytest.param(4, ALL, id="4-all", marks=pytest.mark.full),
    ],
)
def test_many_ranks_are_one(ranks: int, chosen: list[tuple[str, str, str]], alone: Path, tmp_path: Path) -> None:
    cases = {
        (run := str(tmp_path / f"{launch}-{data}-{weights}")): [*words(ranks, launch, data, weights), f"run_dir={run}"]
        for launch, data, weights in chosen
    }
    run_cases(ranks, cases, tmp_path)
    for launch, data, weights in chosen:
        run, one = tmp_path / f"{launch}-{data}-{weights}", alone / f"{data}-{PLAIN.get(weights, weights)}"
        assert facts(run)["parallel"] == {"ddp": "DDP", "fsdp": "FSDP2"}[launch]
        assert facts(run)["batch"]["ranks"] == ranks
        found, wanted = curve(run), curve(one)
        assert [place for place, *_ in found] == [place for place, *_ in wanted]
        assert len(found) > 10
        for (step, loss, norm), (_, loss_alone, norm_alone) in zip(found, wanted, strict=True):
            assert loss == pytest.approx(loss_alone, abs=1e-5), (launch, data, weights, step)
            if norm is not None:
                assert norm == pytest.approx(norm_alone, rel=1e-3), (launch, data, weights, step)
        counted = [(row["tokens"], row.get("loss") is None) for row in rows(run)]
        assert counted == [(row["tokens"], row.get("loss") is None) for row in rows(one)]
        name = "adapter_model.safetensors" if weights.endswith("lora") else "model.safetensors"
        trained, trained_alone = load_file(run / "model" / name), load_file(one / "model" / name)
        assert trained.keys() == trained_alone.keys()
        for key, tensor in trained.items():
            assert (tensor - trained_alone[key]).abs().max() < 2e-4, (launch, data, weights, key)
