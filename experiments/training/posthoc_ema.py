"""Post-hoc EMA (Karras et al. 2024, section 3.2): any width of averaging, after the training.

::

    averages/step-00000500.safetensors    the averages of training.posthoc_ema after 500 updates

The profile of another width is fitted by those of all stored averages (config/posthoc_fit.py), and
the same combination of the stored averages is its average of the weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.averages import WIDTH
from fewstep.experiments.config.posthoc_fit import Fit, Profile, check_fit
from fewstep.files import replacing


def store(folder: Path, step: int, averages: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the parameters of ``averages``, by name, as they are after ``step`` updates."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"{name}/{parameter}": tensor.detach().cpu().contiguous()
        for name, parameters in averages.items()
        for parameter, tensor in parameters.items()
    }
    with replacing(folder / f"step-{step:08d}.safetensors") as other:
        save_file(tensors, other)


def reconstruct(folder: Path, sigma_rel: float, step: int) -> dict[str, Tensor]:
    """The parameters averaged with width ``sigma_rel`` up to ``step``, from what is in ``folder``.

    ``UserError`` where the stored averages lack the last step, or give no such profile.
    """
    files = {
        int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.safetensors")
    }
    files = {at: path for at, path in sorted(files.items()) if at <= step}
    if step not in files:
        raise UserError(f"no averages of step {step} in {folder}: they were removed, train anew")
    kept = [Profile(at, width) for at, path in files.items() for width in _widths(path)]
    fit = Fit(kept, Profile(step, sigma_rel))
    check_fit(fit, f"what is stored in {folder}")
    total: dict[str, Tensor] = {}
    for profile, coefficient in zip(kept, fit.coefficients, strict=True):
        for name, tensor in _average(files[profile.step], profile.sigma_rel).items():
            added = tensor.double() * float(coefficient)
            total[name] = total[name] + added if name in total else added
    dtypes = {
        name: tensor.dtype for name, tensor in _average(files[step], kept[-1].sigma_rel).items()
    }
    return {name: tensor.to(dtypes[name]) for name, tensor in total.items()}


def _widths(path: Path) -> list[float]:
    with _opened(path) as file:
        names = {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
    return sorted(float(name.removeprefix(f"{WIDTH}-")) for name in names)


def _average(path: Path, sigma_rel: float) -> dict[str, Tensor]:
    start = f"{WIDTH}-{sigma_rel!r}/"
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(start)]  # noqa: SIM118
        return {name.removeprefix(start): file.get_tensor(name) for name in names}


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): remove the run and train it anew") from None
