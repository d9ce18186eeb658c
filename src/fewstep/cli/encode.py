"""``fewstep encode``: images to a folder of latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.cli.console import err, meter, out
from fewstep.errors import UserError, unknown
from fewstep.experiments.config import Override, compose, pair
from fewstep.experiments.data.latents import SPLITS
from fewstep.experiments.encode import Settings
from fewstep.experiments.network import choose_device
from fewstep.experiments.rundir import read_json
from fewstep.experiments.worker import INTERRUPTED, StopFlag

OWN: dict[str, type] = {"autoencoder": str, "output": str, "device": str, "download": bool}
HOW = {f.name: type(f.default) for f in fields(Settings)}


def encode(overrides: Sequence[str]) -> int:
    """Encode, show how far it is, say what there is; the exit code."""
    from fewstep.experiments import encode as encoding

    data, given = sorted_out(overrides)
    for name in ("autoencoder", "output"):
        if not given.get(name):
            raise UserError(f"encode needs {name}=...: fewstep encode --help has an example")
    settings = Settings(**{name: given[name] for name in HOW if name in given})
    config = compose(data)
    device = choose_device(str(given.get("device", "auto")))
    dataset = config.data.load()
    if not dataset.is_image:
        raise UserError(f"{dataset.name} is not made of images: nothing can be encoded")
    from fewstep.experiments.autoencoder import Autoencoder

    autoencoder = Autoencoder(given["autoencoder"], device, given.get("download", False))
    output = Path(given["output"]).expanduser()
    source = {k: v for k, v in config.values["data"].items() if k not in ("root", "cache")}
    with meter("encode", "images") as progress:
        whole = encoding.encode(
            dataset, source, autoencoder, output, settings, StopFlag(), progress
        )
    if not whole:
        err.print(f"interrupted; the same command continues {output}", markup=False)
        return INTERRUPTED
    manifest = read_json(output / "manifest.json") or {}
    shape = "x".join(map(str, manifest["shape"]))
    counts = " + ".join(f"{manifest['splits'][name]['count']:,}" for name in SPLITS)
    out.print(f"{counts} latents of {shape}, {manifest['dtype']}: {output}", markup=False)
    out.print(f"use: data=latents data.folder={output.resolve()}", markup=False)
    return 0


def sorted_out(overrides: Sequence[str]) -> tuple[list[Override], dict[str, Any]]:
    """The data set's settings, and the others, of the right types."""
    data: list[Override] = []
    given: dict[str, Any] = {}
    for override in overrides:
        key, value = pair(override)
        if key.split(".")[0] == "data":
            data.append(override)
            continue
        kinds = {**OWN, **HOW}
        if key not in kinds:
            raise unknown("setting of encode", key, ["data", *kinds])
        if kinds[key] is str and not isinstance(value, str):
            value = override.partition("=")[2]
        if type(value) is not kinds[key]:
            raise UserError(f"{key} takes a {kinds[key].__name__}, got {value!r}")
        given[key] = value
    return data, given
