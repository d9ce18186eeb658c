"""Evaluation protocols: what other codes fix on the way from samples to a number.

As their sources have it. Samples x in [-1, 1] become the level 127.5 (x + 1), clipped:

    name            which level of uint8    where                       to 299 x 299
    adm             the one below           image_sample.py             TensorFlow 1's bilinear
    dit             the nearest, .5 up      DiT's, SiT's sample_ddp.py  the same
    edm             the nearest, .5 up      generate.py                 the same
    torch_fidelity  the one below           examples/sngan_cifar10.py   the same
    clean_fid       the nearest, .5 up      torchvision's save_image    Pillow's bicubic, unrounded

    adm, dit        evaluations/evaluator.py of guided-diffusion: FID, sFID, Inception Score of
                    parts of 5,000 samples, precision and recall (k = 3) of samples and all images
                    of the reference batch. It takes uint8 images: the rounding is the sampler's.
    edm             fid.py: FID of 50,000 images.
    torch_fidelity  FID, Inception Score of ten parts in the order of RandomState(2020). It takes
                    uint8 images: the rounding is its example's. Its precision and recall are in
                    features of a VGG16, which fewstep has not.
    clean_fid       FID of image files: the rounding is that of whatever writes them.

The last two take kernel distances over random subsets, so no protocol has ``kid``.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewstep.errors import UserError, check_choice
from fewstep.registry import named

WEIGHTS = "{name: inception, weights: PATH/pt_inception-2015-12-05-6726825d.pth}"
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What it fixes.

    Attributes:
        rounding: of samples to uint8, of ``data.ROUNDINGS``. resize: of the extractor inception.
        metrics: that it has, each with all of its settings. samples: N, or None for any.
    """

    rounding: str
    metrics: Mapping[str, Settings] = field(default_factory=lambda: {"fd": {}})
    resize: str = "tf1"
    samples: int | None = None


ADM: dict[str, Settings] = {
    "fd": {},
    "sfid": {},
    "inception_score": {"splits": 10, "order": None},
    "precision": {"k": 3},
    "recall": {"k": 3},
}
TORCH_FIDELITY: dict[str, Settings] = {"fd": {}, "inception_score": {"splits": 10, "order": 2020}}
PROTOCOLS = {
    "adm": Protocol("truncate", ADM, samples=50_000),
    "dit": Protocol("half_up", ADM, samples=50_000),
    "edm": Protocol("half_up", samples=50_000),
    "torch_fidelity": Protocol("truncate", TORCH_FIDELITY),
    "clean_fid": Protocol("half_up", resize="clean"),
}


def check_protocol(
    name: str, samples: int | None, metrics: Sequence[Any], extractors: Sequence[Any]
) -> None:
    """Raise ``UserError`` for what is given beside protocol ``name`` and contradicts it."""
    check_choice("evaluation.protocol", name, PROTOCOLS)
    protocol, it = PROTOCOLS[name], f"evaluation.protocol={name}"
    if protocol.samples not in (None, samples) and samples is not None:
        raise UserError(
            f"{it} takes {protocol.samples} samples, got evaluation.samples={samples}; write "
            f"evaluation.samples={protocol.samples}, or leave out one of the two"
        )
    for metric in metrics:
        given = named("evaluation.metrics", metric)
        fixed = protocol.metrics.get(given.pop("name"))
        if fixed is None:
            choices = f"choices: {', '.join(protocol.metrics)}"
            raise UserError(f"{it} has no evaluation.metrics {metric!r} ({choices})")
        _check(it, "evaluation.metrics", given, fixed)
    for extractor in extractors:
        given = named("evaluation.extractor", extractor)
        where = "evaluation.extractor"
        if given["name"] == "decoded":
            _check(it, where, given, {"rounding": protocol.rounding})
            where += ".extractor"
            given = named(where, given.get("extractor", "inception"))
        if given["name"] != "inception":
            raise UserError(
                f"{it} needs the extractor inception, got {where}={given['name']}; "
                f"write {where}={WEIGHTS}"
            )
        _check(it, where, given, {"resize": protocol.resize})


def _check(it: str, where: str, given: Settings, fixed: Settings) -> None:
    for name, value in given.items():
        if name in fixed and value != fixed[name]:
            wants = f"{where} with {name}={fixed[name]}".replace("None", "null")
            raise UserError(f"{it} takes {wants}, got {value!r}; leave out one of the two")


def with_settings(name: str | None, metric: Any) -> Any:
    """``metric`` with all settings that protocol ``name`` gives it."""
    given = named("evaluation.metrics", metric)
    return metric if name is None else {**given, **PROTOCOLS[name].metrics[given["name"]]}


def seen_by(name: str | None, extractor: Any) -> Any:
    """``extractor`` as protocol ``name`` has it: its rounding, and its way to 299 pixels."""
    if name is None:
        return extractor
    given, protocol = named("evaluation.extractor", extractor), PROTOCOLS[name]
    if given["name"] != "decoded":
        return {**given, "resize": protocol.resize}
    inner = seen_by(name, given.get("extractor", "inception"))
    return {**given, "rounding": protocol.rounding, "extractor": inner}


def rounding_of(name: str | None) -> str:
    """How samples become uint8."""
    return "nearest" if name is None else PROTOCOLS[name].rounding


def computable(name: str, file: str | None) -> list[str]:
    """The protocol's metrics, without those that a reference file has nothing for.

    Precision and recall need its images, and sFID these or the spatial features' mu and sigma.
    """
    from fewstep.experiments.metrics.frechet_distance import names_in_npz
    from fewstep.files import resolved

    metrics, lacks = PROTOCOLS[name].metrics, set[str]()
    if file is not None and resolved(file).is_file():
        with contextlib.suppress(UserError):  # it is read, and refused, where it is used
            held = names_in_npz(resolved(file))
            if "arr_0" not in held:
                lacks = {"precision", "recall", *(() if {"mu_s", "sigma_s"} <= held else ("sfid",))}
    return [metric for metric in metrics if metric not in lacks]
