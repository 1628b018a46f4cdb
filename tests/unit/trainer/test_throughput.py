"""The rate that MFU is a share of, by the names that devices really have."""

from __future__ import annotations

import pytest

from dumbo.trainer.throughput import peak_flops

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
