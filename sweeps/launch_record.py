"""``launch.json``: the launcher and settings of a sweep's last launch, for ``retry``."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from fewstep._version import __version__
from fewstep.errors import UserError
from fewstep.experiments.store.failures import CLASSES
from fewstep.experiments.store.json_files import CorruptFile, read_record, write_json
from fewstep.experiments.store.provenance import now
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.launchers import LAUNCHERS, with_new_names
from fewstep.sweeps.definition.resources import Resources


@contextmanager
def recorded(
    sweep: SweepDirectory,
    launcher: str,
    settings: Mapping[str, Any],
    resources: Mapping[str, Resources],
) -> Iterator[None]:
    """Record a launch, unless it is refused with a ``UserError``."""
    file = sweep.path / "launch.json"
    before = file.read_bytes() if file.exists() else None
    save_launch_record(sweep, launcher, settings, resources)
    try:
        yield
    except UserError:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)
        raise


def save_launch_record(
    sweep: SweepDirectory,
    launcher: str,
    settings: Mapping[str, Any],
    resources: Mapping[str, Resources],
) -> None:
    """Write how the sweep is launched; resources of runs launched earlier are kept."""
    _, _, before = load_launch_record(sweep)
    by_key = {key: asdict(r) for key, r in {**before, **resources}.items()}
    record = {"fewstep": __version__, "launcher": launcher, "settings": dict(settings)}
    write_json(sweep.path / "launch.json", {**record, "resources": by_key, "time": now()})


def load_launch_record(sweep: SweepDirectory) -> tuple[str, dict[str, Any], dict[str, Resources]]:
    """(launcher, its settings, resources by key); local if there is no record."""
    record = read_record(sweep.path / "launch.json") or {}
    resources = {key: Resources(**values) for key, values in record.get("resources", {}).items()}
    name, settings = record.get("launcher", "local"), record.get("settings", {})
    if name in LAUNCHERS:  # version 0.1 wrote names that are old by now
        settings = with_new_names(LAUNCHERS[name], name, settings, silent=True)
    return name, settings, resources


def failed(
    sweep: SweepDirectory, classes: Sequence[str], keys: Sequence[str]
) -> tuple[list[RunDirectory], list[CorruptFile]]:
    """Runs that failed: of these classes, with these beginnings of keys (else a UserError).

    Without either, all but cancelled ones. Also the errors of runs whose files are corrupt.
    """
    runs, errors = [], []
    for run in sweep.select(keys):
        if run.status() != "failed":
            continue
        try:
            spec, failure = run.spec(), run.failure()
        except CorruptFile as error:
            errors.append(error)
            continue
        kind = (failure or {}).get("class")
        if spec and kind and (kind in classes or (not classes and (keys or CLASSES[kind].retried))):
            runs.append(run)
    return runs, errors
