"""``fewstep measure``: the metrics of images that are in a file, whoever made them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.cli import options as opt
from fewstep.cli.views.console import new_table, out
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.experiments.data import Dataset

Images = Annotated[Path, typer.Argument(help="An npz with uint8 images arr_0 (N, H, W, C).")]


def measure(
    images: Images,
    overrides: opt.Overrides = None,
    json: opt.JsonFile = None,
    runs: opt.Runs = None,
) -> None:
    """Measure the images of a file, whoever made them, against a reference file.

    Of samples whose FID is known it shows whether weights, reference and protocol are the right
    ones. Settings are those of evaluation.

    Example: [bold]fewstep measure samples.npz evaluation.protocol=adm
    evaluation.reference_file=batch.npz "evaluation.extractor={name: inception, weights: W.pth}"[/]
    """
    from fewstep.experiments.config.run_config import compose
    from fewstep.experiments.evaluation.measurement import features_of, metric_instances
    from fewstep.experiments.store.json_files import write_json
    from fewstep.experiments.store.run_directory import CACHE
    from fewstep.experiments.validation import check_measures, note_left_out

    opt.check_writable("--json", json)
    root, rest = opt.root_and_rest(overrides, runs)
    config = compose(opt.pairs("measure", rest, ("evaluation",)))
    settings, dataset = config.evaluation, _dataset(images)
    if settings.reference_file is None:
        raise UserError("measure needs evaluation.reference_file=FILE, an npz of references")
    if settings.samples not in (None, n := len(dataset.test)):
        raise UserError(f"{images} holds {n} images, and N is {settings.samples}")
    check_measures(config, dataset)
    note_left_out([config])
    wanted = metric_instances(settings, dataset, root / CACHE)
    if lost := [m.metric.name for m in wanted if m.metric.against == "train"]:
        raise UserError(f"{lost[0]} looks at a training split, which measure has not")
    identities = [m.identity for m in wanted]  # an unreadable reference is found before the work
    with out.status(f"measuring {n:,} images"):
        features = features_of(wanted, dataset.test.x)
        values = [m.of(features[m.reference]) for m in wanted]
    rows = [
        {"metric": about["label"], "value": f"{found.value:.6g}", "id": about["id"]}
        for about, found in zip(identities, values, strict=True)
    ]
    out.print(new_table(rows, right=["value"]))
    if json is not None:
        found = [{"value": v.value, "error": v.error} for v in values]
        both = zip(identities, found, strict=True)
        write_json(json, {"metrics": [{"metric": m, **value} for m, value in both]})


def _dataset(file: Path) -> Dataset:
    """The images as the held-out split of a data set that has no other.

    Its name, which the metric's id contains, is not the file's: of equal images the ids are equal.
    """
    import numpy as np
    import torch

    from fewstep.experiments.data import Dataset, Split
    from fewstep.experiments.metrics.frechet_distance import read_npz

    held = read_npz(file, ("arr_0",))
    x = held.get("arr_0", np.zeros(0))
    if x.ndim != 4 or x.dtype != np.uint8 or not x.size:
        raise UserError(f"{file} holds no uint8 images arr_0 (N, H, W, C)")
    images = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    return Dataset("images", Split(images[:1]), Split(images), 0)
