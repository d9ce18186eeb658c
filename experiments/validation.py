"""Checks before a run writes anything: its data is there, and the settings fit it."""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.backbones import Backbone
from fewstep.errors import UserError, located
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import Dataset, DataSource
from fewstep.experiments.data.base import placeholder_of
from fewstep.experiments.data.expected import EXAMPLE
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.evaluation.evaluate import cells
from fewstep.experiments.evaluation.measurement import extractor
from fewstep.experiments.extractors.base import LAYERED
from fewstep.experiments.metrics import METRICS
from fewstep.experiments.metrics.base import layer_of
from fewstep.experiments.metrics.frechet_distance import names_in_npz
from fewstep.experiments.metrics.reference import NO_MOMENTS, NO_ROWS, moment_names
from fewstep.experiments.store.data_record import check_data
from fewstep.experiments.store.run_directory import TEACHERS
from fewstep.experiments.training.augmentation import check_augmentation
from fewstep.experiments.training.network import (
    build_network,
    check_guidance,
    uninitialised_weights,
)
from fewstep.experiments.training.teacher import check_teacher, teacher_directory
from fewstep.files import resolved
from fewstep.objectives.core.guidance import EVERYWHERE
from fewstep.registry import build_named

log = logging.getLogger(__name__)


@dataclass
class Missing:
    """What a plan does without.

    Attributes:
        data: data sets of which there are the shapes alone, and why each could not be loaded.
        measures: why runs could not be measured: an extractor's weights are not there, say.
    """

    data: dict[DataSource, str] = field(default_factory=dict)
    measures: list[str] = field(default_factory=list)


def check(
    configs: Iterable[RunConfig],
    to_come: Mapping[str, RunConfig] = {},
    missing: Missing | None = None,
) -> dict[DataSource, Dataset]:
    """Load each data set and build each network once, and hold every run's settings against them.

    ``to_come``: runs, by key, that will be done before, so that they may be teachers. Returns the
    data sets. Raises ``UserError`` for the first thing that is missing or does not fit.

    ``missing``: if given, a data set that cannot be loaded is replaced by its shapes alone, where
    they are known, and noted there with the reason; how it is measured is not checked then. What
    measures run on data that are there is noted, too, where it is missing.
    """
    loaded: dict[DataSource, Dataset] = {}
    measured: list[RunConfig] = []
    built: set[tuple[Backbone, DataSource, bool, str]] = (
        set()
    )  # runs that differ otherwise share it
    for config in configs:
        if config.data not in loaded:
            loaded[config.data] = _load(config.data, missing)
        if not learned(config):
            check_teacher(config, to_come, loaded[config.data])
        optimiser = str(config.training.optimiser)
        network = (config.backbone, config.data, config.objective.uses_jump, optimiser)
        if network not in built:
            # no memory, however large the network; one that needs real numbers is built by the run
            with contextlib.suppress(NotImplementedError), uninitialised_weights():
                config.optimiser.rules(build_network(config, loaded[config.data]))
            built.add(network)
        dataset = loaded[config.data]
        check_settings(config, dataset)
        if missing is not None and config.data in missing.data:
            continue  # what measures it may be missing, too
        try:
            check_measures(config, dataset)
            measured.append(config)
        except UserError as error:
            if missing is None:
                raise
            missing.measures.append(str(error))
        for role in () if learned(config) else TEACHERS:
            taught_by = teacher_directory(config, role)
            if taught_by is not None and taught_by.data() is not None:
                with located(f"{role} of {config.key}"):
                    check_data(taught_by, data_record(dataset), getattr(config.data, "root", None))
    note_left_out(measured)
    return loaded


def _load(source: DataSource, missing: Missing | None) -> Dataset:
    try:
        return source.load()
    except UserError as error:
        placeholder = None if missing is None else placeholder_of(source)
        if missing is None or placeholder is None:
            if missing is not None and hasattr(source, "expected"):
                hint = f"to plan without them, set data.expected, as in {EXAMPLE!r}"
                raise UserError(f"{error}; {hint}") from None
            raise
        missing.data[source] = str(error)
        return placeholder


def learned(config: RunConfig) -> bool:
    """Whether the run is trained already: then it needs its teacher no more."""
    folder = Path(config.values["runs"]) / config.values["sweep"] / config.key
    return (folder / "result.json").is_file()


def check_settings(config: RunConfig, dataset: Dataset) -> None:
    """Raise ``UserError`` unless the run's settings fit one another and data like these."""
    evaluation, asking = config.evaluation, config.objective.uses_guidance
    guided = f"the guidance in objective {config.values['objective']['name']!r}"
    check_guidance(config, dataset, guided, asking and not learned(config))
    if set(evaluation.guidance) <= {1} and tuple(evaluation.guidance_interval) != EVERYWHERE:
        raise UserError(
            f"evaluation.guidance_interval {list(evaluation.guidance_interval)} restricts nothing: "
            f"evaluation.guidance is {evaluation.guidance}"
        )
    check_augmentation(config, dataset)
    if (rows := config.training.class_rows) is not None and not dataset.num_classes:
        raise UserError(f"training.class_rows={rows}: {dataset.name} has no classes")
    for cell in cells(evaluation, config.training):
        cell.schedule(cell.objective(config.objective).path)
        guided = f"evaluation.guidance {cell.guidance:g}"
        check_guidance(config, dataset, guided, cell.guidance != 1)


def note_left_out(configs: Iterable[RunConfig]) -> None:
    """Warn, once for each file, of a protocol's metrics that it has no references for."""
    files = {(c.evaluation.protocol, c.evaluation.reference_file): c.evaluation for c in configs}
    for (protocol, path), evaluation in files.items():
        if lacks := evaluation.left_out:
            what = f"{path} has nothing for {', '.join(lacks)}, which are left out"
            log.warning("evaluation.protocol=%s: %s", protocol, what)


def check_measures(config: RunConfig, dataset: Dataset) -> None:
    """Raise ``UserError`` unless data like these can be measured as the settings say."""
    evaluation = config.evaluation
    for name in evaluation.extractors:
        extractor(name, dataset).check(dataset)
    path = evaluation.reference_file
    if path and not resolved(path).is_file():
        raise UserError(f"evaluation.reference_file: no file {path}")
    file = resolved(path) if path else None
    held = names_in_npz(file) if file else {"arr_0"}
    for request in evaluation.metric_requests():
        name = request.get("metric", "fd")
        metric, of = build_named(METRICS, "evaluation.metrics", name), request["extractor"]
        layer, moments = layer_of(metric), moment_names(layer_of(metric))
        if layer and layer not in getattr(extractor(of, dataset), "layer_names", ()):
            raise UserError(
                f"evaluation.metrics {name}: extractor {of} has no {layer} (choices: {LAYERED})"
            )
        if "arr_0" in held:
            continue
        if metric.against == "rows":
            raise UserError(f"evaluation.metrics {name}: {NO_ROWS.format(file)}")
        if layer and metric.against == "moments" and not held.issuperset(moments):
            lacking = NO_MOMENTS.format(file, " and ".join(moments))
            raise UserError(f"evaluation.metrics {name}: {lacking}")
