"""On a CUDA device: Liger's kernels take and change no number, packing isolates in bf16, the headline command's patches train.

Run with `pytest -m gpu`; without a device they skip.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dumbo.trainer.collate import Collate

pytestmark = pytest.mark.gpu

TINY = [
    "trainer.max_steps=12",
    "dataset.limit=400",
    "dataset.eval_limit=20",
    "trainer.num_answers=0",
    "trainer.eval_every=null",
]


def small_llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=1024)  # fmt: skip
    return LlamaForCausalLM(config).to("cuda")


def run(folder: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", *TINY, *words, f"run_dir={folder}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "run.json").read_text())


def short_rows() -> torch.Tensor:
    return torch.randint(0, 1024, (2, 128), device="cuda", generator=torch.Generator("cuda").manual_seed(1))


@dataclass(frozen=True)
class Plain:
    """Loss and gradients without Liger."""

    loss: float
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def plain() -> dict[str, Plain]:
    """Of short rows with the mean loss, and of packs divided by items: computed before the patch runs in this process,
    because it replaces functions for all models to come."""
    from transformers.models.llama import modeling_llama

    assert "liger" not in modeling_llama.apply_rotary_pos_emb.__module__, "Liger ran in this process already"
    model = small_llama()
    ids = short_rows()
    inputs, items, _ = packed_batch()
    losses = {"rows": model(input_ids=ids, labels=ids).loss, "packs": document_by_document(model, inputs, items)}
    return {name: Plain(float(loss.detach()), gradients_of(loss, model)) for name, loss in losses.items()}


def test_liger_changes_no_number(plain: dict[str, Plain]) -> None:
    """Loss and gradients of a patched model, rows unpacked, against the unpatched one."""
    from dumbo.patch.liger import Liger

    patch, reference = Liger(), plain["rows"]
    model = patch.apply(small_llama())
    assert "5 norms" in patch.evidence(model)
    ids = short_rows()
    loss = model(input_ids=ids, labels=ids).loss
    assert abs(float(loss) - reference.loss) < 2e-4 * reference.loss
    for name, found in gradients_of(loss, model).items():
        scale = reference.gradients[name].abs().max()
        assert (found - reference.gradients[name]).abs().max() <= 2e-2 * scale, name


def packed_batch(vocab_size: int = 1024) -> tuple[dict[str, Any], torch.Tensor, int]:
    """Four documents of unlike lengths and prompts on one token axis, as training has them, and twice as many items as
    there are trained tokens here (another micro batch has the rest): (inputs, items, trained tokens)."""
    from dumbo.trainer.feeding import trained_tokens

    generator = np.random.default_rng(3)
    documents = [(generator.integers(0, vocab_size, n), asked) for n, asked in ((90, 10), (33, 30), (200, 20), (61, 1))]
    store = Documents([(ids, np.arange(len(ids)) >= asked) for ids, asked in documents])
    batch = Collate(store, "tokens", 0)([np.array([0, 1]), np.array([2, 3])])  # type: ignore[arg-type]
    trained = trained_tokens(batch)
    inputs = {
        key: value.cuda() if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
        if key != "documents"
    }
    return inputs, torch.tensor(2 * trained, device="cuda"), trained


class Documents:
    """What `Collate` needs of a store."""

    def __init__(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.rows, self.lengths = rows, np.array([len(ids) for ids, _ in rows])

    def ids(self, document: int) -> np.ndarray:
        return self.rows[document][0]

    def labels(self, document: int) -> np.ndarray:
        ids, trained = self.rows[document]
        return np.where(trained, ids, -100)


def document_by_document(model: Any, inputs: dict[str, Any], items: torch.Tensor) -> torch.Tensor:
    """Sum of cross entropies from the logits over the items, each document alone."""
    total = torch.zeros((), device="cuda", dtype=torch.float64)
    bounds = inputs["cu_seq_lens_q"].tolist()
    for start, end in itertools.pairwise(bounds):
        logits = model(input_ids=inputs["input_ids"][:, start:end], use_cache=False).logits[0, :-1].double()
        wanted = inputs["labels"][0, start + 1 : end]
        total = total + torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
    return total / items


def gradients_of(loss: torch.Tensor, model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters()}


def isolated(model: Any) -> Any:
    from dumbo.trainer import attention

    attention.register()
    model.set_attn_implementation(attention.NAME)
    return model


@pytest.mark.parametrize(
    ("bf16", "loss_off", "gradient_off"), [(False, 1e-5, 2e-3), (True, 5e-3, 5e-2)], ids=["fp32", "bf16"]
)
def test_ligers_loss_on_packs_is_the_plain_one(
    bf16: bool, loss_off: float, gradient_off: float, plain: dict[str, Plain]
) -> None:
    """Packed, prompts masked, and divided by `num_items_in_batch`: loss and every gradient in fp32 and in bf16 autocast
    against fp64 sums over fp32 logits of each document alone, by the unpatched model. Tolerances are relative, of a
    gradient to its norm: fp32 differs in the order of sums, bf16 has 8 bits of mantissa."""
    from dumbo.patch.liger import Liger

    inputs, items, _ = packed_batch()
    reference = plain["packs"]
    model = isolated(Liger().apply(small_llama())).train()
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16):
        out = model(**inputs, use_cache=False, num_items_in_batch=items)
    assert out.logits is None, "the fused loss did not run"
    assert abs(float(out.loss) - reference.loss) <= loss_off * reference.loss
    for name, found in gradients_of(out.loss, model).items():
        wanted = reference.gradients[name]
        assert (found - wanted).norm() <= gradient_off * wanted.norm(), name


def test_ligers_loss_in_evaluation_is_the_plain_one(plain: dict[str, Plain]) -> None:
    """`skip_logits`, as the engine asks for it: the same number in evaluation mode, and no logits."""
    from dumbo.patch.liger import Liger

    inputs, items, trained = packed_batch()
    one = torch.ones((), device="cuda")
    wanted = plain["packs"].loss * int(items) / trained
    with torch.no_grad():
        model = isolated(Liger().apply(small_llama())).eval()
        fused = model(**inputs, use_cache=False, num_items_in_batch=one, skip_logits=True)
        kept = model(**inputs, use_cache=False, num_items_in_batch=one)
    assert fused.logits is None
    assert kept.logits is not None
    assert float(fused.loss) / trained == pytest.approx(wanted, rel=1e-5)
    assert float(kept.loss) / trained == pytest.approx(wanted, rel=1e-5)


def test_evaluation_never_holds_all_logits(tmp_path: Path) -> None:
    """With a vocabulary that makes logits the most of the memory, evaluating under Liger takes a fraction of them."""
    from small_runs import model_of, small_run, splits_of

    from dumbo.patch.liger import Liger

    vocabulary, length = 128_000, 1_000  # attention in fp32 takes heads x length^2, a small part of the logits
    ids = np.random.default_rng(0).integers(0, 512, length).astype(np.int32)
    rows = [(ids, np.arange(length) > 0)] * 4
    model = Liger().apply(
        model_of(vocab_size=vocabulary, max_position_embeddings=length, attn_implementation="sdpa").cuda()
    )
    peaks: list[int] = []

    def before(session: Any) -> None:
        make = session._trainer

        def made(batch: Any) -> Any:
            trainer = make(batch)
            evaluate = trainer.evaluate

            def measured(*args: Any, **kwargs: Any) -> Any:
                torch.cuda.reset_peak_memory_stats()
                held = torch.cuda.memory_allocated()
                numbers = evaluate(*args, **kwargs)
                peaks.append(torch.cuda.max_memory_allocated() - held)
                return numbers

            trainer.evaluate = measured
            return trainer

        session._trainer = made

    small_run(tmp_path / "run", splits_of(tmp_path, rows[:2], rows[2:], length), model=model, before=before, max_steps=1,
              global_batch_size=1, micro_batch_size=1, max_seq_len=length)  # fmt: skip
    assert peaks
    assert max(peaks) < 0.5 * length * vocabulary * 4, "as much as the logits in fp32 take"


def test_the_accumulation_proof_sees_ligers_fused_loss(tmp_path: Path) -> None:
    """It holds as Liger is; with the count of trained tokens dropped inside the fused loss the run ends with code 4."""
    assert "accumulation 1 = 2" in " ".join(run(tmp_path / "right", "patch=[liger]", "trainer.max_steps=1")["proofs"])
    planted = (
        "import liger_kernel.transformers.model.llama as llama, dumbo.cli, sys\n"
        "right = llama.LigerForCausalLMLoss\n"
        "llama.LigerForCausalLMLoss = lambda *a, num_items_in_batch=None, **k: right(*a, **k)\n"
        "sys.exit(dumbo.cli.main(sys.argv[1:]))"
    )
    words = [*TINY, "patch=[liger]", "trainer.max_steps=1", f"run_dir={tmp_path / 'wrong'}"]
    done = subprocess.run([sys.executable, "-c", planted, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Gradient accumulation changes the numbers" in done.stderr


def test_bf16_losses_are_the_golden_ones(tmp_path: Path) -> None:
    """Every step's loss and gradient norm in bf16 against the same run in fp32: within 0.2% and 2%. bf16 rounds to one
    part in 256, and these are means over many tokens; on a CPU the two are within 0.01% and 0.1%."""
    words = ("trainer.lr=3e-4", "trainer.warmup_steps=0", "trainer.num_samples=0")
    rows = {}
    for precision in ("fp32", "bf16"):
        run(tmp_path / precision, f"trainer.precision={precision}", *words)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        rows[precision] = [row for row in map(json.loads, lines) if "loss" in row]
    pairs = list(zip(rows["bf16"], rows["fp32"], strict=True))
    assert len(pairs) == 12
    for ours, golden in pairs:
        assert ours["loss"] == pytest.approx(golden["loss"], rel=2e-3), golden["step"]
        assert ours["grad_norm"] == pytest.approx(golden["grad_norm"], rel=2e-2), golden["step"]


def test_packing_isolates_in_bf16() -> None:
    from dumbo.trainer.layout import choose_layout

    layout, proof = choose_layout(small_llama().to(torch.bfloat16), True, "auto")
    assert layout == "tokens"
    assert "pack leak 0" in proof


def test_headline_patches_train(tmp_path: Path) -> None:
    facts = run(tmp_path / "run", "patch=[liger,lora]", "trainer.lr=1e-3")
    assert facts["patches"]["liger"].startswith("applied: kernels in"), facts["patches"]
    assert facts["patches"]["lora"].startswith("applied:")
    assert facts["hardware"]["gpu"]
    assert facts["metrics"]["peak_memory_gib"] > 0


def test_same_losses_with_and_without_liger(tmp_path: Path) -> None:
    words = ("trainer.precision=fp32", "trainer.warmup_steps=0", "trainer.lr=1e-3")
    with_liger = run(tmp_path / "with", "patch=[liger]", *words)["metrics"]
    without = run(tmp_path / "without", *words)["metrics"]
    assert abs(with_liger["train_loss"] - without["train_loss"]) < 5e-3 * without["train_loss"]
    assert with_liger["tokens"] == without["tokens"]


def test_bf16_trains_as_well_as_fp32(tmp_path: Path) -> None:
    bf16 = run(tmp_path / "bf16", "trainer.precision=bf16", "trainer.lr=1e-3")["metrics"]
    fp32 = run(tmp_path / "fp32", "trainer.precision=fp32", "trainer.lr=1e-3")["metrics"]
    assert abs(bf16["eval_loss"] - fp32["eval_loss"]) < 0.02 * fp32["eval_loss"]


def test_resume_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = ("trainer.save_every=6", "trainer.lr=1e-3", "trainer.num_samples=0")
    whole = run(tmp_path / "whole", *words)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    run(tmp_path / "parts", *words, "trainer.extra.use_cpu=false")
    again = tmp_path / "parts"
    for newer in sorted((again / "checkpoints").glob("step-*"))[1:]:
        subprocess.run(["rm", "-r", str(newer)], check=True)
    facts = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps({**facts, "status": "preempted"}))
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", f"resume={again}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    joined = [row["loss"] for row in resumed if "loss" in row]
    assert len(losses) == len(joined) == 12
    assert max(abs(a - b) / a for a, b in zip(losses, joined, strict=True)) < 1e-3
    assert whole["metrics"]["tokens"] == json.loads((again / "run.json").read_text())["metrics"]["tokens"]


def test_the_times_of_rows_add_up(tmp_path: Path) -> None:
    """Rows late and at once, evaluations and checkpoints between them: no time counts twice, and none is left out of a row."""
    words = (
        "trainer.max_steps=40",
        "trainer.log_every=1",
        "trainer.eval_every=9",
        "trainer.save_every=7",
        "trainer.num_samples=0",
    )
    facts = run(tmp_path / "run", *words)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    times = [row["step_ms"] for row in map(json.loads, lines) if "loss" in row]
    assert len(times) == 40
    assert sum(times) / 1000 <= facts["metrics"]["seconds"]
    assert min(times[2:]) > 0.3 * float(np.median(times[2:])), times  # steps of one size


def test_doctor_names_the_device(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", "doctor", "doctor.format=json"], capture_output=True, text=True, check=True
    )
    facts = json.loads(done.stdout)
    assert facts["hardware"]["gpu"] == torch.cuda.get_device_name()
    kernels = facts["kernels"]
    assert kernels["bf16"].startswith("usable (ran a matrix product"), kernels
    assert kernels["liger"].startswith("usable (ran RMSNorm and the fused loss"), kernels
    assert kernels["varlen attention"].startswith("usable (ran two documents, forward and backward"), kernels
    assert kernels["tile attention"].startswith("usable (ran two documents, forward and backward"), kernels
    assert kernels["isolated packing"].startswith("usable, pack leak 0"), kernels
    assert kernels["isolated packing"].endswith("ran in bf16"), kernels


@pytest.mark.parametrize(
    "words",
    [
        ["patch=[liger,lora,gradient_checkpointing]", "performance=off"],
        ["patch=[liger]", "trainer.precision=fp32", "performance=off"],
        ["patch=[compile,chunked_loss]"],
        ["patch=[compile,lora]"],
    ],
    ids=" ".join,
)
def test_patches_are_the_reference_and_runs_go_on(words: list[str], tmp_path: Path) -> None:
    """Kernels, varlen attention and compiled layers against a process without them; a stop and another process."""
    only = "verify.only=[references,determinism,resume]"
    done = subprocess.run(
        [sys.executable, "-m", "dumbo", "verify", only, *words, f"run_dir={tmp_path}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    proofs = json.loads((tmp_path / "verify.json").read_text())["proofs"]
    assert [proof["name"] for proof in proofs if proof["passed"] is False] == []
    wanted = {
        "patches took",
        "patches = reference, loss",
        "patches = reference, gradients",
        "determinism",
        "resume, state",
        "resume",
    }
    assert {proof["name"] for proof in proofs if proof["passed"]} == wanted


def test_varlen_by_name(tmp_path: Path) -> None:
    """The numbers of packs that take it by themselves (performance=off leaves tiles out); whose kernel it is is told."""
    words = ("trainer.lr=1e-3", "performance=off", "trainer.num_samples=0")
    chosen, by_itself = run(tmp_path / "chosen", "patch=[varlen]", *words), run(tmp_path / "plain", *words)
    assert chosen["patches"]["varlen"].endswith("by torch's own flash attention")
    assert chosen["metrics"]["train_loss"] == pytest.approx(by_itself["metrics"]["train_loss"], rel=1e-3)
