"""The rate that MFU is a share of, by the names that devices really have; and the arithmetic of a token."""

from __future__ import annotations

import pytest
from small_runs import model_of

from dumbo.trainer.throughput import attention_flops, flops_per_token, peak_flops

KNOWN = {
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "A100-SXM4-80GB": 312.0,
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM-64GB": 312.0,
    "NVIDIA A800-SXM4-80GB": 312.0,
    "NVIDIA H100 80GB HBM3": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H800": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA H200 NVL": 835.0,
    "NVIDIA GH200 480GB": 989.0,
    "NVIDIA B200": 2250.0,
    "NVIDIA GB200": 2500.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA A10": 125.0,
    "NVIDIA A10G": 70.0,
    "NVIDIA A30": 165.0,
    "NVIDIA A40": 149.7,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 4080": 97.5,
    "NVIDIA GeForce RTX 5090": 209.5,
    "NVIDIA RTX A4000": 76.7,
    "NVIDIA RTX A5000": 111.1,
    "NVIDIA RTX A6000": 154.8,
    "NVIDIA RTX 6000 Ada Generation": 364.2,
    "AMD Instinct MI300X": 1307.4,
}
UNKNOWN = (
    "NVIDIA RTX A1000",
    "NVIDIA RTX A1000 Laptop GPU",
    "NVIDIA RTX A400",
    "NVIDIA RTX A4500",
    "NVIDIA RTX 4000 Ada Generation",
    "NVIDIA RTX 4000 SFF Ada Generation",
    "NVIDIA L20",
    "NVIDIA A16",
    "NVIDIA A2",
    "NVIDIA H20",
    "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
    "NVIDIA A40-48Q",
    "GRID A100-10C",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 5090 D",
    "NVIDIA GeForce RTX 3090 Ti",
    "NVIDIA GeForce RTX 4080 SUPER",
    "Quadro RTX 6000",
    "Quadro RTX 4000",
    "Tesla T4",
    "Tesla V100-SXM2-32GB",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    "NVIDIA RTX PRO 4000 Blackwell",
)


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_device(name: str) -> None:
    assert peak_flops(name) == KNOWN[name] * 1e12


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_name_that_only_looks_alike_has_no_mfu(name: str) -> None:
    assert peak_flops(name) is None


def test_a_token_costs_six_times_the_weights_and_four_where_most_are_frozen() -> None:
    model = model_of(tie_word_embeddings=False)
    counted = sum(p.numel() for name, p in model.named_parameters() if name != "model.embed_tokens.weight")
    assert flops_per_token(model) == 6.0 * counted
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name == "model.norm.weight"
    assert flops_per_token(model) == 4.0 * counted


def test_attention_by_the_lengths_of_documents() -> None:
    """Two matrix products of 2 T T width each a layer, halved for causality, and twice that backward."""
    model = model_of()
    lengths = (3, 5)
    forward = sum(2 * 2 * n * n * 32 / 2 for n in lengths) * 2  # width 32, two layers
    assert attention_flops(model, float(sum(n * n for n in lengths))) == pytest.approx(3 * forward)
