"""``fewstep extractor train`` and ``fewstep reference``."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.cli.options import TYPER, Overrides, Runs, pairs, root_and_rest
from fewstep.cli.views.console import meter, out
from fewstep.errors import UserError, check_choice

if TYPE_CHECKING:
    from fewstep.experiments.data import Dataset

extractor = typer.Typer(
    no_args_is_help=True, help="Feature extractors that are trained here.", **TYPER
)


def train_extractor(overrides: Overrides = None, runs: Runs = None) -> None:
    """Train the classifier whose features a data set is measured by, unless it exists.

    Runs train it when they first need it; this command shows its accuracy, file and hash.

    Example: [bold]fewstep extractor train data=mnist extractor.steps=1000[/]
    """
    from fewstep.experiments.evaluation.measurement import extractor as chosen_extractor
    from fewstep.experiments.extractors import CNN
    from fewstep.experiments.store.run_directory import CACHE

    root, rest = root_and_rest(overrides, runs)
    dataset, chosen, _ = _choices("extractor train", rest, ())
    features = chosen_extractor(chosen or {"name": "cnn"}, dataset)
    if not isinstance(features, CNN):
        raise UserError(f"extractor train makes a cnn; {chosen['name']} needs no training")
    features.check(dataset)
    with meter(f"extractor cnn on {dataset.name}") as progress:
        file = features.train(
            dataset, root / CACHE, lambda done: progress("train", done, features.steps)
        )
    out.print(f"test accuracy: {features.training_record(file)['test_accuracy']:.2%}")
    out.print(f"file: {file}")
    out.print(f"sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}")
    if set(chosen) - {"name"}:
        settings = ", ".join(f"{k}: {v}" for k, v in chosen.items())
        out.print(f"to use it: evaluation.extractor={{{settings}}}")


extractor.callback()(lambda: None)
extractor.command("train")(train_extractor)


def reference(
    overrides: Overrides = None,
    images: Annotated[
        bool, typer.Option("--images", help="Write the images (arr_0), not their statistics.")
    ] = False,
    runs: Runs = None,
    held_out: Annotated[
        bool,
        typer.Option(
            "--held-out",
            help="Add the features of the other split's images: the floor of runs on latents of "
            "them.",
        ),
    ] = False,
    known: Annotated[
        bool,
        typer.Option(
            "--known",
            help="List the reference files of other projects; NAME=FILE notes that a file of "
            "yours is one of them.",
        ),
    ] = False,
) -> None:
    """Write a split's reference statistics, mu and sigma, as an npz that other codes read too.

    Inception's have those of its spatial features beside them, mu_s and sigma_s, as ADM's have.
    evaluation.reference_file=FILE makes runs use it.

    Example: [bold]fewstep reference data=mnist extractor=cnn split=test output=mnist.npz[/]
    Example: [bold]fewstep reference --known adm_imagenet_256=VIRTUAL_imagenet256_labeled.npz[/]
    """
    if known:
        known_references(overrides, images, runs)
        return
    import numpy as np

    from fewstep.experiments.config.settings import SPLITS
    from fewstep.experiments.evaluation.measurement import extractor as chosen_extractor
    from fewstep.experiments.extractors.base import SPATIAL, prepared
    from fewstep.experiments.metrics.reference import HELD_OUT, Reference
    from fewstep.experiments.store.run_directory import CACHE
    from fewstep.files import replacing

    root, others = root_and_rest(overrides, runs)
    dataset, chosen, rest = _choices("reference", others, ("split", "output"))
    split = str(rest.get("split", "train"))
    check_choice("split", split, SPLITS)
    if "output" not in rest:
        raise UserError("reference needs output=FILE, the npz to write")
    output = Path(str(rest["output"])).expanduser()
    if output.suffix != ".npz" or not output.resolve().parent.is_dir():
        raise UserError(f"output {str(output)!r}: a file ending in .npz in an existing folder")
    features = chosen_extractor(chosen or "auto", dataset)
    features.check(dataset)
    with replacing(output) as temporary:
        if images:
            if not dataset.is_image:
                raise UserError(f"{dataset.name} is not made of images")
            x = (dataset.train if split == "train" else dataset.test).x
            with temporary.open("wb") as file:
                np.savez(file, arr_0=x.permute(0, 2, 3, 1).numpy())
            content = f"{len(x):,} images"
        else:
            cache = root / CACHE
            stats = Reference(prepared(features, dataset, cache), dataset, cache, split)
            spatial = None
            if SPATIAL in getattr(features, "layer_names", ()):
                spatial = stats.of_layer(SPATIAL).moments
            rows = {HELD_OUT: stats.other_features.astype("float32")} if held_out else {}
            stats.moments.write(temporary, spatial, **rows)
            content = f"{stats.moments.n:,} images in {stats.moments.dimension} dimensions"
            content += "" if spatial is None else f", and in {spatial.dimension} spatial ones,"
            content += f" of {stats.features.label}"
            if held_out:
                content += f", with {len(rows[HELD_OUT]):,} held-out images"
    out.print(f"{dataset.name} {split}: {content}: {output}")


def known_references(overrides: Overrides, images: bool, runs: str | None) -> None:
    """List the known reference files, after noting those that ``overrides`` name."""
    from rich.text import Text

    from fewstep.cli.views.console import new_table
    from fewstep.experiments.data.content_hash import known_sha256
    from fewstep.experiments.metrics.frechet_distance import shapes_in_npz
    from fewstep.experiments.store import known_references as store
    from fewstep.public_data import REFERENCES

    if images:
        raise UserError("--known lists files of others, and --images writes one: give one of them")
    root, rest = root_and_rest(overrides, runs)
    for pair in rest:
        name, equals, path = pair.partition("=")
        if not equals or not path:
            raise UserError(f"reference --known takes NAME=FILE, got {pair!r}")
        check_choice("reference file", name, REFERENCES)
        file = Path(path).expanduser()
        shapes = shapes_in_npz(file)
        store.check(name, file, shapes)
        _check_statistics(file, name, shapes)
        store.record(root, name, file, known_sha256(file))
    yours = {name: sha256 for sha256, name in store.names_by_sha256(root).items()}
    rows = [
        {
            "name": name,
            "file": Text(one.file),
            "of": one.data,
            "arrays": Text(", ".join(f"{a} {list(s)}" for a, s in one.arrays.items())),
            "source": Text(one.source),
            "your file's sha256": yours[name][:12] if name in yours else "-",
        }
        for name, one in REFERENCES.items()
    ]
    out.print(new_table(rows, overflow="fold"))


def _check_statistics(file: Path, name: str, arrays: Collection[str]) -> None:
    """Raise ``UserError`` unless what a project has published as statistics are some."""
    from fewstep.experiments.metrics.frechet_distance import GaussianStats, read_npz

    if named := read_npz(file, ["extractor"]):
        own = str(named["extractor"])
        raise UserError(f"{file} is not {name}: fewstep reference wrote it, of {own} features")
    for suffix in ("", "_s"):
        if f"mu{suffix}" in arrays:
            GaussianStats.read(file, "inception", "its own", suffix)


def _choices(
    command: str, overrides: Sequence[str], others: Sequence[str]
) -> tuple[Dataset, dict[str, Any], dict[str, Any]]:
    """The data set, the settings of the extractor (none for the default), and the ``others``."""
    from fewstep.experiments.config.run_config import compose

    data: list[Any] = []
    chosen: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in pairs(command, overrides, ("data", "extractor", *others)):
        group, _, name = key.partition(".")
        if group == "data":
            data.append((key, value))
        elif key == "extractor":
            chosen |= value if isinstance(value, dict) else {"name": value}
        elif group == "extractor":
            chosen[name] = value
        else:
            rest[key] = value
    if chosen:
        chosen = {"name": chosen.pop("name", "cnn"), **chosen}
    return compose(data).data.load(), chosen, rest
