"""On a CUDA device: compiled layers and the chunked loss change no number, and compile once for all batches."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import Document, model_of, small_run, splits_of

from dumbo.patch.chunked_loss import ChunkedLoss
from dumbo.patch.compile import Compile
from dumbo.patch.fused_lora import FusedLoRA
from dumbo.patch.gradient_checkpointing import GradientCheckpointing
from dumbo.patch.lora import LoRA
from dumbo.trainer.low_rank import low_rank_linear

pytestmark = pytest.mark.gpu

SHAPE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3,
    "vocab_size": 512, "initializer_range": 0.05,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "precision": "bf16", "max_steps": 12, "global_batch_size": 4, "micro_batch_size": 2, "eval_every": 6, "lr": 1e-3,
    "warmup_steps": 0,
}  # fmt: skip


def rows(amount: int, seed: int = 0) -> list[Document]:
    """Documents of widely varying lengths and prompts."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(4.0, 0.8, amount).astype(int), 4, 250)
    return [(generator.integers(0, 512, n).astype(np.int32), np.arange(n) >= generator.integers(1, n)) for n in lengths]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def with_lora(model: Any) -> Any:
    return LoRA(rank=4, init="gaussian").apply(model)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
def test_losses_are_those_of_the_plain_model(adapters: bool, tmp_path: Path) -> None:
    """Twelve steps in bf16: each loss within 0.5% and gradient norm within 5% of the run without patches (bf16 has 8 bits
    of mantissa, and the compiler keeps more of them between operations), all proofs, held-out losses."""
    splits = splits_of(tmp_path, rows(200), rows(12, seed=1))
    runs = []
    for name in ("plain", "fast"):
        model = model_of(**SHAPE, attn_implementation="sdpa")
        if name == "fast":
            model = ChunkedLoss(chunk_size=256).apply(model)
        if adapters:
            model = with_lora(model)
        if name == "fast":
            model = Compile().apply(model)
        runs.append(small_run(tmp_path / name, splits, model=model, verify=True, **OPTIONS))
    plain, fast = runs
    for key, off in (("loss", 5e-3), ("eval_loss", 5e-3), ("grad_norm", 5e-2)):
        one, other = ([row[key] for row in run.rows if key in row] for run in (fast, plain))
        assert one == pytest.approx(other, rel=off), key
    assert [row["tokens"] for row in fast.rows] == [row["tokens"] for row in plain.rows]
    for proof in ("pack leak 0 (isolated attention)", "accumulation 1 = 2", "fused loss = loss from logits"):
        assert proof in fast.said


def test_nothing_is_compiled_after_the_first_steps(tmp_path: Path) -> None:
    """Over batches with another number of documents and of trained tokens each, and an evaluation in between."""
    from torch._dynamo.utils import counters

    counters.clear()
    graphs: list[int] = []
    documents_there: set[int] = set()

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            trainer = make(batch)
            step = trainer.training_step

            def counted(model: Any, inputs: Any, *arguments: Any, **kwargs: Any) -> Any:
                documents_there.add(int((inputs["cu_seq_lens_q"].diff() > 0).sum()))
                out = step(model, inputs, *arguments, **kwargs)
                graphs.append(counters["stats"]["unique_graphs"])
                return out

            trainer.training_step = counted
            return trainer

        session._trainer = made

    model = ChunkedLoss(chunk_size=256).apply(model_of(**SHAPE, attn_implementation="sdpa"))
    splits = splits_of(tmp_path, rows(300), rows(12, seed=1))
    small_run(tmp_path / "run", splits, model=Compile().apply(model), before=before, verify=True, **OPTIONS)
    assert len(documents_there) > 4, "the batches were to differ"
    steps = graphs[-24:]  # two micro batches a step; the proofs' come before them
    assert steps[4] == steps[-1], steps
    assert not counters["graph_break"], dict(counters["graph_break"])


@pytest.mark.parametrize(
    ("bf16", "loss_off", "gradient_off"), [(False, 1e-5, 1e-3), (True, 5e-3, 5e-2)], ids=["fp32", "bf16"]
)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kernel", [False, True], ids=["compiled", "kernel"])
def test_the_chunked_loss_is_the_plain_one(
    kernel: bool, bf16: bool, loss_off: float, gradient_off: float, tied: bool
) -> None:
    """Compiled, on trained places only; every gradient, relative to its norm, against fp32 logits."""
    generator = torch.Generator("cuda").manual_seed(1)
    ids = torch.randint(0, 512, (3, 300), device="cuda", generator=generator)
    labels = torch.where(torch.rand(ids.shape, device="cuda", generator=generator) < 0.4, ids, -100)
    places = torch.nonzero(torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten() != -100).flatten()
    items = torch.tensor(1234, device="cuda")

    def numbers(model: Any, half: bool, **more: Any) -> tuple[float, dict[str, torch.Tensor]]:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            out = model(input_ids=ids, labels=labels, use_cache=False, num_items_in_batch=items, **more)
        out.loss.backward()
        return float(out.loss.detach()), {name: p.grad.double() for name, p in model.named_parameters()}

    made = {**SHAPE, "tie_word_embeddings": tied, "attn_implementation": "sdpa"}
    wanted, gradients = numbers(model_of(**made).cuda().train(), False)
    patch = ChunkedLoss(chunk_size=256, kernel=kernel)
    chunked = patch.apply(model_of(**made).cuda().train())
    assert patch.evidence(chunked).endswith("in a kernel of our own" if kernel else "compiled")
    found, theirs = numbers(chunked, bf16, skip_logits=True, loss_at=places)
    assert found == pytest.approx(wanted, rel=loss_off)
    for name, gradient in gradients.items():
        assert (theirs[name] - gradient).norm() <= gradient_off * gradient.norm(), name


def test_through_the_command(tmp_path: Path) -> None:
    words = ["patch=[compile,chunked_loss,lora]", "trainer.max_steps=12", "trainer.lr=1e-3", "trainer.num_answers=4",
             "dataset.limit=400", "dataset.eval_limit=20", "trainer.eval_every=null"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", *words, f"run_dir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["patches"]["compile"].endswith("layers compiled (inductor)"), facts["patches"]
    assert facts["patches"]["chunked_loss"].endswith("in a kernel of our own")
    assert facts["metrics"]["train_loss"] < facts["metrics"]["first_loss"]


@pytest.mark.parametrize("compiled", [False, True])
def test_an_update_stays_beside_a_large_bias(compiled: bool) -> None:
    """The layer's product takes a bias of 256 back to the last bit: what is left is the rest and the update, in bf16."""
    torch.manual_seed(0)
    rows, weight, down, up = (
        torch.randn(shape, device="cuda").bfloat16() for shape in ((512, 256), (512, 256), (16, 256), (512, 16))
    )
    rows[:, 0], weight[:, 0] = 1.0, -256.0
    weight[:, 1:] *= 0.01
    bias = torch.full((512,), 256.0, device="cuda").bfloat16()
    layer = torch.compile(low_rank_linear) if compiled else low_rank_linear
    found = layer(rows, weight, bias, down, up, 0.01).double()
    update = ((rows @ down.t()) * 0.01).double() @ up.double().t()
    wanted = rows[:, 1:].double() @ weight[:, 1:].double().t() + update
    assert (found - wanted).norm() < 0.01 * update.norm()


@pytest.mark.parametrize("fused", [None, FusedLoRA()], ids=["lora", "fused_lora"])
def test_checkpointed_layers_keep_their_input_alone(fused: FusedLoRA | None) -> None:
    """Compiled, 4,096 tokens of width 512 in bf16: 4 MiB a layer, where without checkpointing more than ten times that is kept.

    torch 2.11 kept what `low_rank.py` saves where checkpointing was inside of the graph.
    """
    shape = {**SHAPE, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4}
    ids = torch.randint(0, 512, (2, 2048), device="cuda")
    kept = {}
    gradients = {}
    for checkpointed in (False, True):
        torch.compiler.reset()
        torch.manual_seed(0)
        model = LoRA(rank=4, init="gaussian").apply(model_of(**shape, attn_implementation="sdpa").to("cuda"))
        model = fused.apply(model) if fused else model
        model = Compile().apply(GradientCheckpointing().apply(model) if checkpointed else model)
        decoder = model.get_base_model().model.train()
        for _ in range(2):
            model.zero_grad()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
            kept[checkpointed] = (torch.cuda.memory_allocated() - before) / 4
            hidden.float().square().mean().backward()
        gradients[checkpointed] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert kept[True] < 0.35 * kept[False], kept
    assert kept[True] < 16 * 2**20, kept
    apart = torch.linalg.vector_norm(gradients[True] - gradients[False]) / torch.linalg.vector_norm(gradients[False])
    assert apart < 2e-2, apart


def test_step_overhead_has_its_patches_on_both_sides(tmp_path: Path) -> None:
    words = ["--small", "--patches", "chunked_loss", "compile", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.step_overhead", *words]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [row] = json.loads(Path(done.stdout.strip().splitlines()[-1]).read_text())["table"]
    assert row["weights_apart"] < 0.05
