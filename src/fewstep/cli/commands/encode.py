"""``fewstep encode``: images to a folder of latents."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from fewstep.cli.options import Overrides, pairs
from fewstep.cli.views.console import err, meter, out
from fewstep.errors import UserError

AUTOENCODER = (str, dict)  # a folder, or a name with settings
OWN: dict[str, type] = {"autoencoder": str, "output": str, "device": str, "download": bool}


def encode(overrides: Overrides = None) -> int:
    """Encode the images of a data set into a folder of latents. Repeated, it resumes.

    Settings: data=NAME and data.*, autoencoder=FOLDER (of diffusers) or "{name: NAME, ...}",
    output=FOLDER, dtype, batch_size, shard, device, download.

    Example: [bold]fewstep encode data=cifar10 autoencoder=sd-vae-ft-mse output=data/latents[/]
    """
    from fewstep.experiments.autoencoders import encode as encoding
    from fewstep.experiments.config.run_config import compose
    from fewstep.experiments.data.latents import SPLITS
    from fewstep.experiments.store.json_files import read_json
    from fewstep.experiments.training.network import choose_device
    from fewstep.experiments.worker import INTERRUPTED, StopFlag

    options = {f.name: type(f.default) for f in fields(encoding.Settings)}
    data, given = _sorted_out(overrides or [], {**OWN, **options})
    for name in ("autoencoder", "output"):
        if not given.get(name):
            raise UserError(f"encode needs {name}=...: fewstep encode --help has an example")
    settings = encoding.Settings(**{name: given[name] for name in options if name in given})
    config = compose(data)
    device = choose_device(str(given.get("device", "auto")), "device")
    dataset = config.data.load()
    if not dataset.is_image:
        raise UserError(f"{dataset.name} is not made of images: nothing can be encoded")
    from fewstep.experiments.autoencoders import Autoencoder, entry_of

    entry = entry_of("autoencoder", given["autoencoder"])
    autoencoder = Autoencoder(entry, device, given.get("download", False))
    output = Path(given["output"]).expanduser()
    source = {k: v for k, v in config.values["data"].items() if k not in ("root", "cache")}
    with meter("encode", "images") as progress:
        complete = encoding.encode(
            dataset, source, autoencoder, output, settings, StopFlag(), progress
        )
    if not complete:
        err.print(f"interrupted; the same command continues {output}")
        return INTERRUPTED
    manifest = read_json(output / "manifest.json") or {}
    shape = "x".join(map(str, manifest["shape"]))
    counts = " + ".join(f"{manifest['splits'][name]['count']:,}" for name in SPLITS)
    out.print(f"{counts} latents of {shape}, {manifest['dtype']}: {output}")
    out.print(f"use: data=latents data.folder={output.resolve()}")
    return 0


def _sorted_out(
    overrides: Sequence[str], kinds: dict[str, type]
) -> tuple[list[Any], dict[str, Any]]:
    """The data set's settings, and the others, of the right types."""
    data: list[Any] = []
    given: dict[str, Any] = {}
    parsed = pairs("encode", overrides, ("data", *kinds))
    for override, (key, value) in zip(overrides, parsed, strict=True):
        if key.split(".")[0] == "data":
            data.append((key, value))
            continue
        if kinds[key] is str and not isinstance(value, str | dict):
            value = override.partition("=")[2]  # text that Hydra took for a number
        if not isinstance(value, AUTOENCODER if key == "autoencoder" else kinds[key]):
            raise UserError(f"{key} takes a {kinds[key].__name__}, got {value!r}")
        given[key] = value
    return data, given
