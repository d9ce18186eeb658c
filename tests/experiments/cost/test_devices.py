"""The table of devices: peaks against what the chips are built of, names, the processor here."""

from __future__ import annotations

import pytest
import torch

from fewstep.experiments.cost import devices
from fewstep.experiments.cost.devices import DEVICES

# SMs, and multiply-adds of one in a clock in float32 and (tensor cores) bfloat16, with the boost
# clock in GHz of each: NVIDIA's whitepapers. With sparsity the fourth would be twice as large
BUILT = {
    "a100": (108, 64, 1.41, 1024, 1.41),
    "h100": (132, 128, 1.98, 2048, 1.83),
    "h200": (132, 128, 1.98, 2048, 1.83),
    "l40s": (142, 128, 2.52, 512, 2.49),
    "rtx4090": (128, 128, 2.52, 256, 2.52),
}


@pytest.mark.parametrize("name", DEVICES)
def test_peaks_are_what_the_chips_can_do_without_sparsity(name: str) -> None:
    units, float32, clock, bfloat16, tensor_clock = BUILT[name]
    device = DEVICES[name]
    assert device.peak("float32") == pytest.approx(2e9 * units * float32 * clock, rel=2e-3)
    expected = 2e9 * units * bfloat16 * tensor_clock
    assert device.peak("bfloat16") == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),  # slower
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L40", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("", None),
    ],
)
def test_devices_are_known_by_torchs_names(name: str, key: str | None) -> None:
    assert devices.known(name) == key


def test_the_processor_is_measured_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which each product takes 10 ms: so slow a machine is asked for small ones."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(devices.time, "perf_counter", lambda: next(ticks) * 1e-2)
    devices.cpu_peak.cache_clear()
    before = torch.get_num_threads()
    try:
        peak = devices.cpu_peak("float32", before + 1)
        assert peak == pytest.approx(2 * 128**3 / 1e-2)
        assert devices.cpu_peak("float32", before + 1) == peak
        assert torch.get_num_threads() == before
    finally:
        devices.cpu_peak.cache_clear()
