"""What can be told before a run writes anything: its data is there, and the settings fit it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from fewstep.backbones import Backbone
from fewstep.errors import UserError
from fewstep.experiments.config import RunConfig
from fewstep.experiments.data import Dataset, DataSource
from fewstep.experiments.evaluation import cells
from fewstep.experiments.measure import extractor
from fewstep.experiments.network import unfilled
from fewstep.experiments.teacher import check_teacher
from fewstep.objectives.guidance import EVERYWHERE


def check(configs: Iterable[RunConfig], to_come: Mapping[str, RunConfig] = {}) -> None:
    """Load each data set and build each network once, and hold every run's settings against them.

    ``to_come``: runs, by key, that will be done before, so that they may be teachers.

    Raises:
        UserError: data that is missing or damaged, or a backbone, a time schedule, a guidance
            scale, an extractor or a teacher that does not fit it.
    """
    loaded: dict[DataSource, Dataset] = {}
    built: set[tuple[Backbone, DataSource, bool]] = set()  # runs that differ otherwise share it
    for config in configs:
        if config.data not in loaded:
            loaded[config.data] = config.data.load()
        if not learned(config):
            check_teacher(config, to_come)
        network = (config.backbone, config.data, config.objective.uses_jump)
        if network not in built:
            _build(config, loaded[config.data])
            built.add(network)
        _check(config, loaded[config.data])


def learned(config: RunConfig) -> bool:
    """Whether the run is trained already: then it needs its teacher no more."""
    place = Path(config.values["runs"]) / config.values["sweep"] / config.key
    return (place / "result.json").is_file()


def _build(config: RunConfig, dataset: Dataset) -> None:
    try:
        with unfilled():  # no memory, however large the network
            config.backbone.build(dataset.shape, dataset.num_classes, config.objective.uses_jump)
    except NotImplementedError:  # a network that needs real numbers to be built: the run will tell
        pass


def _check(config: RunConfig, dataset: Dataset) -> None:
    _check_guidance(config, dataset)
    asked = config.evaluation
    if set(asked.guidance) <= {1} and tuple(asked.guidance_interval) != EVERYWHERE:
        raise UserError(
            f"evaluation.guidance_interval {list(asked.guidance_interval)} restricts nothing: "
            f"evaluation.guidance is {asked.guidance}"
        )
    for cell in cells(config.evaluation):
        cell.objective(config.objective).path.times(
            cell.steps if cell.times is None else cell.times
        )
        if cell.guidance != 1 and not dataset.num_classes:
            raise UserError(f"evaluation.guidance {cell.guidance:g}: {dataset.name} has no labels")
    for asked in config.evaluation.extractors:
        extractor(asked, dataset).check(dataset)
    if (file := config.evaluation.reference_file) and not Path(file).expanduser().is_file():
        raise UserError(f"evaluation.reference_file: no file {file}")


def _check_guidance(config: RunConfig, dataset: Dataset) -> None:
    """Guidance asks for "no label", which a network knows only if some labels were dropped."""
    if not dataset.num_classes or config.training.label_dropout:
        return
    scales = [scale for scale in config.evaluation.guidance if scale != 1]
    if scales:
        asks = f"evaluation.guidance {scales[0]:g}"
    elif config.objective.guides:
        asks = f"the guidance in objective {config.values['objective']['name']!r}"
    else:
        return
    raise UserError(
        f"{asks} needs a network that was trained without labels too: "
        f"training.label_dropout is 0 (the usual choice: 0.1)"
    )
