"""A metric with an identity: two values may stand in one table only if it is the same."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import UserError
from fewstep.experiments.config.protocols import rounding_of, seen_by
from fewstep.experiments.config.settings import Evaluation
from fewstep.experiments.data import Dataset
from fewstep.experiments.data.content_hash import known_sha256
from fewstep.experiments.extractors import EXTRACTORS, Extractor
from fewstep.experiments.extractors.base import in_one_pass, prepared
from fewstep.experiments.metrics import METRICS, Metric, Value
from fewstep.experiments.metrics.base import layer_of
from fewstep.experiments.metrics.reference import Array, Reference, holds_both, short_hash
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.source_hash import third_party_hash
from fewstep.files import resolved
from fewstep.registry import build_named

# the identity of a reference where there is none
NOTHING: Json = {"reference": None, "reference_sha256": None, "reference_samples": None}


class MetricInstance:
    """One metric of ``samples`` samples against one reference. ``request``: as the settings say."""

    def __init__(self, metric: Metric, reference: Reference, samples: int, request: Json) -> None:
        self.metric, self.reference = metric, reference
        self.samples, self.request = samples, request

    @cached_property
    def identity(self) -> Json:
        """Everything that must be equal for two values to be compared, and a label and an id."""
        reference, features = self.reference, self.reference.features
        protocol = self.request.get("protocol")
        is_distance = self.metric.name.startswith(("FD", "sFD"))
        data, is_fid = reference.dataset, features.is_fid and is_distance
        if features.decode is not None and reference.file is None:
            is_fid = False  # against what the autoencoder makes of images, not images
        name = self.metric.name.replace("FD", "FID") if is_fid else self.metric.name
        identity: Json = {
            "name": name,
            "extractor": features.name,
            "extractor_sha256": features.sha256,
            "data": data.name,
            "samples": self.samples,
            **(NOTHING if self.metric.against == "nothing" else reference.identity),
            "resize": features.resize,
            "rounding": reference.preprocess,
        }
        if features.layer:
            identity["layer"] = features.layer
        if protocol is not None:
            rounding = f"clip-{rounding_of(protocol)}-uint8"
            identity |= {"protocol": protocol, "rounding": rounding}
        if self.metric.against == "moments" and reference.holds_both:
            identity["reference_moments"] = "mu and sigma" if reference.stored else "of arr_0"
            if reference.stored:
                identity["reference_samples"] = reference.moments.n
        if self.metric.against == "rows" and (known := identity["reference_samples"]):
            all_rows = reference.all_rows
            identity["reference_samples"] = known if all_rows else min(known, self.samples)
        if self.metric.against == "train":
            identity |= {
                "reference": "train",
                "reference_sha256": data.train.sha256,
                "reference_samples": len(data.train),
                "held_out_sha256": data.test.sha256,
            }
        if parameters := asdict(self.metric):  # type: ignore[call-overload]
            identity["parameters"] = parameters
        sources = {"metric": third_party_hash(self.metric), "extractor": features.source}
        identity |= {f"{what}_source": source for what, source in sources.items() if source}
        label = f"{name}-{data.name}{'' if is_fid else f'-{features.name}'}@{self.samples}"
        against = {"train": "", "test": "-vs-test", None: ""}
        if (other := against.get(identity["reference"])) is None:
            other = f"-vs-{identity['reference_sha256'][:8]}"
        label += other if protocol is None else f"{other}-{protocol}"
        return {**identity, "label": label, "id": short_hash(identity)}

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
        """Real against real: N images of the other split; None where there are not as many."""
        return self._of_rows(self.reference.held_out(self.samples))

    @cached_property
    def reconstruction(self) -> float | None:
        """Of latents: what the autoencoder makes of N images of the other split, against images."""
        return self._of_rows(self.reference.reconstructed(self.samples))

    def _of_rows(self, features: Array | None) -> float | None:
        return None if features is None else self.of(features).value


def features_of(wanted: Iterable[MetricInstance], x: Tensor) -> dict[Reference, Array]:
    """Features of raw samples (N, ...) for each reference; layers of a network in one pass."""
    found: dict[Reference, Array] = {}
    references = list(dict.fromkeys(measure.reference for measure in wanted))
    for reference in references:
        if reference not in found:
            alike = [other for other in references if other.layers is reference.layers]
            rows = in_one_pass([other.features for other in alike], x)
            found |= zip(alike, rows, strict=True)
    return found


def metric_instances(evaluation: Evaluation, dataset: Dataset, cache: Path) -> list[MetricInstance]:
    """All that ``evaluation`` asks for; those of one extractor share a ``Reference``."""
    return _instances(evaluation, evaluation.metric_requests(), dataset, cache)


def _instances(
    evaluation: Evaluation, requests: Sequence[Json], dataset: Dataset, cache: Path
) -> list[MetricInstance]:
    path, samples = evaluation.reference_file, evaluation.samples or len(dataset.test)
    file, protocol = None if path is None else resolved(path), evaluation.protocol
    references: dict[str, Reference] = {}
    instances = []
    for request in requests:
        key = repr(request["extractor"])
        if key not in references:
            asked = extractor(seen_by(protocol, request["extractor"]), dataset)
            features, split = prepared(asked, dataset, cache), evaluation.reference
            references[key] = Reference(features, dataset, cache, split, file, bool(protocol))
        metric = build_named(METRICS, "evaluation.metrics", request.get("metric", "fd"))
        reference = references[key].of_layer(layer_of(metric))
        instances.append(MetricInstance(metric, reference, samples, request))
    _refuse_guesses([i.reference for i in instances if i.metric.against == "moments"])
    return instances


def _refuse_guesses(references: list[Reference]) -> None:
    """Statistics that name no extractor cannot be of two."""
    guessed = {r.features.name: r for r in references if r.file is not None and r.is_guessed}
    if len(guessed) > 1:
        file = next(iter(guessed.values())).file
        labels = " or ".join(repr(reference.features.label) for reference in guessed.values())
        raise UserError(
            f"{file} has mu and sigma, and does not say of which extractor; of as many dimensions "
            f"are {', '.join(guessed)}: ask for one of them, or add the array extractor to the "
            f"file, {labels}"
        )


def is_made_so(record: Json, wanted: Json) -> bool:
    """Whether a cell was computed with what ``wanted`` names (``made_with``)."""
    metric = record["metric"]
    known = {**metric, "reference_moments": "reference_moments" in metric}
    files = record.get("extractor_files", wanted.get("extractor_files"))  # of old cells unknown
    known["extractor_files"] = files
    return all(known.get(name) == value for name, value in wanted.items())


def made_with(request: Json) -> Json:
    """What a cell has, beside what is asked for: what can change under its name.

    The code of a third party's metric and extractor, and the content of the reference file and of
    files that the extractor's settings name.
    """
    metric = build_named(METRICS, "evaluation.metrics", request.get("metric", "fd"))
    named = request["extractor"]
    extractor = None if named == "auto" else build_named(EXTRACTORS, "evaluation.extractor", named)
    wanted: Json = {
        "metric_source": third_party_hash(metric),
        "extractor_source": None if extractor is None else third_party_hash(extractor),
    }
    if (content := getattr(extractor, "content", lambda: None)()) is not None:
        wanted["extractor_files"] = content
    path = request.get("reference_file")
    against_file = metric.against not in ("train", "nothing")
    if path is not None and against_file and (file := resolved(path)).is_file():
        wanted["reference_sha256"] = known_sha256(file)
        both = metric.against == "moments" and holds_both(file, layer_of(metric))
        wanted["reference_moments"] = both
    return wanted


def main_metric(evaluation: Evaluation, dataset: Dataset, cache: Path) -> MetricInstance:
    """The first one, which a search minimises; ``UserError`` where lower is not better."""
    (instance,) = _instances(evaluation, evaluation.metric_requests()[:1], dataset, cache)
    if instance.metric.better != "lower":
        name = instance.metric.name
        raise UserError(
            f"a search minimises the first of evaluation.metrics, which cannot be {name}"
        )
    return instance


def extractor(request: Any, dataset: Dataset) -> Extractor:
    """The extractor that is asked for; "auto" is the data set's own."""
    if request == "auto":
        request = "cnn" if dataset.is_image and dataset.num_classes else "raw"
    entry: Extractor = build_named(EXTRACTORS, "evaluation.extractor", request)
    return entry
