"""Where the data of a run are: decided when a command is given, and no part of the run's identity.

Whether they are the same data is decided by their content (``data/identity.py``).
"""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.data import DATA, Dataset
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.store.data_record import check_data
from fewstep.experiments.store.json_files import Json
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.files import relative_to, resolved


def location(config: RunConfig) -> Json:
    """The settings of ``config`` that say where its data are, ``root`` as it is used now."""
    source, values = config.data, config.values["data"]
    names = [f.name for f in fields(source) if f.metadata.get("bookkeeping")]  # type: ignore[arg-type]
    root = {"root": source.root} if hasattr(source, "root") else {}
    # a setting that came after the run was made has its default
    return {**{name: values.get(name, getattr(source, name)) for name in names}, **root}


def with_location(config: RunConfig, where: Json) -> RunConfig:
    """``config`` with its data there; what its data set has no setting for is left out."""
    data = config.values["data"]
    known = {name: value for name, value in where.items() if name in data}
    return RunConfig({**config.values, "data": {**data, **known}})


def located(config: RunConfig, directory: RunDirectory) -> RunConfig:
    """``config``, as composed now, with an absolute root: relative to where the run was made."""
    where = location(config)
    with relative_to(directory.made_in()):
        paths = {k: str(resolved(where[k])) for k in ("root", "cache") if where.get(k)}
    return with_location(config, {**where, **paths})


def remembered(config: RunConfig, directory: RunDirectory) -> RunConfig:
    """``config``, as a run was made, with its data where they were last, or FEWSTEP_DATA is."""
    is_moved = bool(os.environ.get("FEWSTEP_DATA"))
    last: dict[str, Any] = (directory.request() or {}).get("data") or {}
    here = with_location(located(config, directory), {k: v for k, v in last.items() if k != "root"})
    if "root" not in config.values["data"]:
        return here
    root, before = here.values["data"]["root"], last.get("root") or here.values["data"]["root"]
    named = config.values["data"]["root"] != DATA[config.values["data"]["name"]].root  # type: ignore[attr-defined]
    first, second = (root, before) if is_moved and not named else (before, root)
    elsewhere = os.environ.get("FEWSTEP_DATA") or second
    there = [place for place in (first, second, elsewhere) if Path(place).exists()]
    return with_location(here, {"root": there[0] if there else second})


def load_data(config: RunConfig, directory: RunDirectory) -> Dataset:
    """The run's data; ``UserError`` for others than those that it is trained on."""
    with relative_to(directory.made_in()):
        dataset = config.data.load()
    check_data(directory, data_record(dataset), getattr(config.data, "root", None))
    if (known := directory.data()) is not None:  # data.folder=. has the name of its root
        if dataset.is_ and "is" not in known and ranks().is_main:  # declared after it was trained
            directory.write("data", {**known, "is": dataset.is_})
        dataset = replace(dataset, name=known["name"])
    return dataset
