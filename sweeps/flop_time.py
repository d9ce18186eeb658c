"""How long a run takes by its FLOPs, where no finished run tells it.

The time is FLOPs over the device's peak times the share of it that is assumed to be reached
(``experiments/cost/devices.py``). Samples and pairs are drawn in float32, whatever the precision of
training. A run on several GPUs is assumed to use each as well as one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fewstep.errors import UserError
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.cost import devices
from fewstep.experiments.cost.devices import CPU, DEVICES
from fewstep.experiments.cost.flops import (
    pairs_flops,
    recomputed_flops,
    sampling_flops,
    step_flops,
    validation_flops,
)
from fewstep.experiments.data import Dataset
from fewstep.experiments.evaluation.evaluate import cells_to_come
from fewstep.experiments.run import read_spec
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.experiments.training.teacher import teacher_directory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.throughput import steps_done


@dataclass(frozen=True)
class Unknown:
    """Why the time of a run is not known."""

    reason: str


@dataclass(frozen=True)
class FlopTime:
    """Seconds that a run still takes on so many ``gpus``, and ``source``: how they were computed.

    ``at_least``: its steps are too small to use the device as assumed.
    """

    training: float
    evaluation: float
    gpus: float
    source: str
    at_least: bool


def device_of(config: RunConfig, resources: Resources) -> str | None:
    """What a run will be on, one of ``devices.NAMES``; None if nothing says which.

    Where ``resources.device`` does not, a run that asks for no GPU is on what this machine has.
    """
    if resources.device is not None:
        return resources.device
    asked = config.training.device
    on_gpu = asked.startswith("cuda") or (asked == "auto" and torch.cuda.is_available())
    if on_gpu or resources.gpus:
        here = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
        return devices.known(here)
    return None if asked == "mps" else CPU


def gpus_of(device: str | None, resources: Resources) -> float:
    """How many GPUs a run uses: one at least, where its device is one."""
    return resources.nodes * resources.gpus or float(device in DEVICES)


def flop_time(
    config: RunConfig,
    directory: RunDirectory,
    resources: Resources,
    dataset: Dataset,
    threads: int,
    members: Mapping[str, RunConfig],
) -> FlopTime | Unknown:
    """The time of the rest of a run; ``members``: those of its sweep, by key.

    ``threads``: what the run computes with on a CPU.
    """
    device = device_of(config, resources)
    if device is None:
        choices = ", ".join(devices.NAMES)
        return Unknown(f"name the GPU with resources.device (choices: {choices})")
    done, steps = steps_done(directory, config.training.steps), config.training.steps
    step, validation = step_flops(config, dataset), validation_flops(config, dataset)
    sampling = sampling_flops(config, dataset, cells_to_come(config, directory))
    pairs = 0.0 if done else _pairs(config, dataset, members)
    recomputed = recomputed_flops(config, dataset)
    if (
        step is None
        or recomputed is None
        or validation is None
        or sampling is None
        or pairs is None
    ):
        name = config.values["objective"]["name"]
        return Unknown(f"objective {name} states no cost of a step, or a network needs real data")
    every = config.training.validate_every
    validations = 0 if done == steps else -(-(steps - done) // every) if every else 1
    half, full = (_rate(device, p, threads) for p in (config.training.precision, "float32"))
    gpus = gpus_of(device, resources)
    count = gpus or 1.0
    step += recomputed
    training = (steps - done) * step + validations * validation
    return FlopTime(
        (training / half + pairs / full) / count,
        sampling / full / count,
        gpus,
        _source(device, config.training.precision, threads),
        device != CPU and step / half / count < devices.SHORT_STEP,
    )


def _pairs(config: RunConfig, dataset: Dataset, members: Mapping[str, RunConfig]) -> float | None:
    directory = teacher_directory(config)
    if directory is None:
        return 0.0
    try:
        teacher = members.get(directory.key) or read_spec(directory)
    except UserError:
        return None
    return pairs_flops(config, teacher, dataset)


def _rate(device: str, precision: str, threads: int) -> float:
    """FLOP/s that are assumed to be reached."""
    if device == CPU:
        return devices.CPU_SHARE * devices.cpu_peak(precision, threads)
    return devices.SHARE[precision] * DEVICES[device].peak(precision)


def _source(device: str, precision: str, threads: int) -> str:
    """As in ``from FLOPs at 35% of H100's 989 TFLOP/s (bfloat16), ...``."""
    if device == CPU:
        peak = f"{devices.cpu_peak(precision, threads) / 1e9:.3g} GFLOP/s"
        on = "1 thread" if threads == 1 else f"{threads} threads"
        return f"from FLOPs at {devices.CPU_SHARE:.0%} of this CPU's {peak} ({on})"
    of = DEVICES[device]

    def at(precision: str) -> tuple[str, str]:
        return f"{devices.SHARE[precision]:.0%}", f"{of.peak(precision) / 1e12:.3g}"

    share, peak = at(precision)
    text = f"from FLOPs at {share} of {of.title}'s {peak} TFLOP/s ({precision})"
    if precision == "float32":
        return text
    share, peak = at("float32")
    return f"{text}, sampling at {share} of {peak} (float32)"
