"""The rate that a known GPU can compute at, which MFU is a share of, and peak memory.

MFU is stated against dense bf16 without sparsity, from the vendors' datasheets; what a step needs of it: `flops.py`.
"""

from __future__ import annotations

import re
import resource
import sys

PEAK_BF16_TFLOPS = (
    # Blackwell data sheets (HGX B200, GB200 NVL72), a GPU. RTX: whitepaper of the RTX Blackwell architecture, appendix A.
    ("GB200", 2500.0), ("B200", 2250.0), ("RTX 5090", 209.5), ("RTX 5080", 112.6),
    # H100, H200 and GH200 data sheets: half of what they state with sparsity.
    ("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H200 NVL", 835.0), ("H100", 989.0), ("H200", 989.0), ("GH200", 989.0), ("H800", 989.0),
    # L4, L40, L40S and RTX 6000 Ada data sheets. GeForce: whitepaper of the Ada architecture, appendix A.
    ("L40S", 362.0), ("L40", 181.0), ("L4", 121.0), ("RTX 6000 Ada Generation", 364.2), ("RTX 4090", 165.2), ("RTX 4080", 97.5),
    # A100, A800, A40, A30 and A10 data sheets, EC2's G5 for A10G; RTX A cards: half of what they state with sparsity.
    # GeForce: whitepaper of the GA102, appendix A.
    ("A100", 312.0), ("A800", 312.0), ("A40", 149.7), ("A30", 165.0), ("A10G", 70.0), ("A10", 125.0), ("RTX A6000", 154.8),
    ("RTX A5000", 111.1), ("RTX A4000", 76.7), ("RTX 3090", 71.0),
    # CDNA 3 data sheet.
    ("MI300X", 1307.4),
)  # fmt: skip
"""Dense bf16 tensor rate with fp32 accumulation, in TFLOP/s, by words of the device's name; the first that matches."""

ANOTHER_CHIP = re.compile(r"\b(MIG|Laptop|Max-Q|Ti|SUPER|D)\b|-\d+[ABCQ]\b")
"""With one of these words (the last: a virtual GPU) it is a part of the named one, or a smaller or larger one."""


def peak_flops(device_name: str) -> float | None:
    """FLOP/s of a known GPU, None for others: no MFU is better than a wrong one.

    Args:
        device_name: as torch.cuda.get_device_name gives it ("NVIDIA A100-SXM4-80GB").
    """
    if ANOTHER_CHIP.search(device_name):
        return None
    for name, tflops in PEAK_BF16_TFLOPS:
        if re.search(rf"\b{name}\b", device_name):
            return tflops * 1e12
    return None


def peak_memory_gib() -> float:
    """Most memory held so far: the GPU's where there is one, else this process's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
