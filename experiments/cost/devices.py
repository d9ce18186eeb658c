"""What devices can compute at most, and the share of it that a run is assumed to reach.

Peaks are dense ones: data sheets state tensor cores with 2:4 sparsity, which doubles them and which
no network here has. A float32 run uses no tensor cores: torch allows no TF32 in matrix products by
default, and ``run`` allows none in convolutions.
"""

import re
import time
from dataclasses import dataclass
from functools import lru_cache

CPU = "cpu"
"""The device name of the processor of this machine, which is measured."""

SHARE = {"bfloat16": 0.35, "float32": 0.6}
"""Of a GPU's peak, assumed and not measured here: docs/sweeps.md says why."""

CPU_SHARE = 0.45
"""Of matrix products on the CPU: the studies of digits and MNIST reached 0.3 and 0.65."""

SHORT_STEP = 0.01
"""Seconds. On a GPU a shorter training step waits for kernels to be launched, a thousand or more of
some microseconds each: the FLOPs then give a lower bound."""

MEASURING_SECONDS = 0.2


@dataclass(frozen=True)
class Device:
    """A GPU: its peaks in FLOP/s, without sparsity.

    Attributes:
        float32: without tensor cores. bfloat16: in tensor cores, sums in float32.
        pattern: of torch's name for it, so that speeds of others are not taken for its own.
        source: of both peaks.
    """

    title: str
    float32: float
    bfloat16: float
    pattern: str
    source: str

    def matches(self, name: str) -> bool:
        """Whether ``name``, as torch tells it, is such a device; a MIG slice is none."""
        return re.search(self.pattern, name) is not None and " MIG " not in name

    def peak(self, precision: str) -> float:
        return self.float32 if precision == "float32" else self.bfloat16


DEVICES = {
    "a100": Device(
        "A100", 19.5e12, 312e12, r"\bA100\b", "NVIDIA A100 data sheet (SXM and PCIe, 40 and 80 GB)"
    ),
    "h100": Device(
        "H100", 66.9e12, 989.4e12, r"\bH100\b(?!.*(PCIe|NVL))",
        "NVIDIA H100 architecture whitepaper, H100 SXM5",
    ),
    "h200": Device(
        "H200", 66.9e12, 989.4e12, r"\bH200\b(?!.*NVL)",
        "NVIDIA H200 data sheet, SXM: the H100's processor with other memory",
    ),
    "l40s": Device("L40S", 91.6e12, 362.05e12, r"\bL40S\b", "NVIDIA L40S data sheet"),
    "rtx4090": Device(
        "RTX 4090", 82.6e12, 165.2e12, r"\bRTX 4090$",
        "NVIDIA Ada GPU architecture whitepaper, appendix A",
    ),
}  # fmt: skip
NAMES = (*DEVICES, CPU)


def known(name: str) -> str | None:
    """The key in ``DEVICES`` of the GPU that torch calls ``name``."""
    return next((key for key, device in DEVICES.items() if device.matches(name)), None)


@lru_cache(maxsize=16)
def cpu_peak(precision: str, threads: int) -> float:
    """FLOP/s of square matrix products on so many threads of this machine, the best of some.

    Takes some 0.2 seconds; the number of threads of this process is as before.
    """
    import torch

    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    before, best, size = torch.get_num_threads(), 0.0, 128
    try:
        torch.set_num_threads(threads)
        end = time.perf_counter() + MEASURING_SECONDS
        while time.perf_counter() < end:
            a = torch.ones(size, size, dtype=dtype)
            for _ in range(2):  # the first finds its memory cold
                begun = time.perf_counter()
                a @ a
                seconds = time.perf_counter() - begun
                best = max(best, 2 * size**3 / seconds)
            if seconds < MEASURING_SECONDS / 40 and size < 2048:
                size *= 2
    finally:
        torch.set_num_threads(before)
    return best
