"""A metric with an identity: two values may stand in one table only if it is the same."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config import build_named
from fewstep.experiments.data import Dataset
from fewstep.experiments.extractors import EXTRACTORS, Extractor
from fewstep.experiments.metrics import METRICS, Metric, Value
from fewstep.experiments.reference import Array, Reference, short_hash
from fewstep.experiments.rundir import Json
from fewstep.experiments.settings import Evaluation


class Measure:
    """One metric of ``samples`` samples against one reference. ``asked``: as the settings say."""

    def __init__(self, metric: Metric, reference: Reference, samples: int, asked: Json) -> None:
        self.metric, self.reference, self.samples, self.asked = metric, reference, samples, asked

    @cached_property
    def identity(self) -> Json:
        """Everything that must be equal for two values to be compared, and a label and an id."""
        reference, features = self.reference, self.reference.features
        data, is_fid = reference.dataset, features.is_fid and self.metric.name.startswith("FD")
        if features.decode is not None and reference.file is None:
            is_fid = False  # against what the autoencoder makes of images, not images
        name = self.metric.name.replace("FD", "FID") if is_fid else self.metric.name
        identity: Json = {
            "name": name,
            "extractor": features.name,
            "extractor_sha256": features.sha256,
            "data": data.name,
            "samples": self.samples,
            **reference.identity,
            "resize": features.resize,
            "rounding": reference.preprocess,
        }
        if self.metric.against == "rows" and (known := identity["reference_samples"]):
            identity["reference_samples"] = min(known, self.samples)
        if self.metric.against == "train":
            identity |= {
                "reference": "train",
                "reference_sha256": data.train.sha256,
                "reference_samples": len(data.train),
                "held_out_sha256": data.test.sha256,
            }
        if parameters := asdict(self.metric):  # type: ignore[call-overload]
            identity["parameters"] = parameters
        label = f"{name}-{data.name}{'' if is_fid else f'-{features.name}'}@{self.samples}"
        return {**identity, "label": f"{label}{_against(identity)}", "id": short_hash(identity)}

    def of(self, features: Array) -> Value:
        """Of the features of exactly N samples, (N, D)."""
        n = len(features)
        assert n == self.samples, f"{n} samples where {self.samples} were asked for"
        return self.metric.measure(features, self.reference)

    def of_samples(self, x: Tensor) -> Value:
        """Of raw samples (N, ...)."""
        return self.of(self.reference.features.extract(x))

    @cached_property
    def floor(self) -> float | None:
        """Real against real: N images of the other split; None where it has fewer than N."""
        held_out = self.reference.held_out(self.samples)
        return None if held_out is None else self.of(held_out).value


def _against(identity: Json) -> str:
    """What a label says of references that are not the usual ones: ``-vs-test``, a file's hash."""
    told = {"train": "", "test": "-vs-test"}
    return told.get(identity["reference"], f"-vs-{identity['reference_sha256'][:8]}")


def measures(evaluation: Evaluation, dataset: Dataset, cache: Path) -> list[Measure]:
    """All that ``evaluation`` asks for on ``dataset``; what can be kept is in ``cache``.

    Those of one extractor share a ``Reference``, and come one after the other.
    """
    file = None
    if evaluation.reference_file is not None:
        file = Path(evaluation.reference_file).expanduser()
    references: dict[str, Reference] = {}
    found = []
    for asked in evaluation.asked():
        told = repr(asked["extractor"])
        if told not in references:
            features = extractor(asked["extractor"], dataset).prepare(dataset, cache)
            references[told] = Reference(features, dataset, cache, evaluation.reference, file)
        found.append(
            Measure(
                build_named(METRICS, "evaluation.metrics", asked.get("metric", "fd")),
                references[told],
                evaluation.samples or len(dataset.test),
                asked,
            )
        )
    return found


def main_measure(evaluation: Evaluation, dataset: Dataset, cache: Path) -> Measure:
    """The first one, which a search looks at.

    Raises:
        UserError: one that a search, which minimises, would make worse.
    """
    one = Evaluation(
        samples=evaluation.samples,
        metrics=evaluation.metrics[:1],
        reference=evaluation.reference,
        reference_file=evaluation.reference_file,
        extractor=evaluation.extractors[0],
    )
    (made,) = measures(one, dataset, cache)
    if made.metric.better != "lower":
        raise UserError(
            f"a search minimises the first of evaluation.metrics: {made.metric.name} cannot be it"
        )
    return made


def extractor(asked: Any, dataset: Dataset) -> Extractor:
    """The extractor that is asked for; "auto" is the data set's own."""
    if asked == "auto":
        asked = "cnn" if dataset.is_image and dataset.num_classes else "raw"
    made: Extractor = build_named(EXTRACTORS, "evaluation.extractor", asked)
    return made
