"""``launch.json``: the launcher and settings of a sweep's last launch, for ``retry``."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from fewstep._version import __version__
from fewstep.errors import UserError
from fewstep.experiments.store.failures import rules
from fewstep.experiments.store.json_files import CorruptFile, read_json, write_json
from fewstep.experiments.store.provenance import now
from fewstep.experiments.store.run_directory import RunDirectory, SweepDirectory
from fewstep.sweeps.definition.launchers import LAUNCHERS, with_new_names
from fewstep.sweeps.definition.resources import Resources

log = logging.getLogger(__name__)


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
    try:
        _, _, before = _read(sweep)
    except CorruptFile as error:
        log.warning("%s: it is written anew", error)
        before = {}
    by_key = {key: asdict(r) for key, r in {**before, **resources}.items()}
    record = {"fewstep": __version__, "launcher": launcher, "settings": dict(settings)}
    write_json(sweep.path / "launch.json", {**record, "resources": by_key, "time": now()})


def load_launch_record(sweep: SweepDirectory) -> tuple[str, dict[str, Any], dict[str, Resources]]:
    """(launcher, its settings, resources by key); local if there is no record.

    ``UserError`` for a damaged record, and where there is none but jobs of SLURM: runs that need
    its nodes are not run on the machine that one submits from.
    """
    again = f"start the sweep with `fewstep sweep {sweep.name} --launcher NAME`"
    if not (sweep.path / "launch.json").exists() and (sweep.path / "_slurm").is_dir():
        raise UserError(
            f"{sweep.path} has no launch.json, which says how it was launched: "
            f"{again.replace('NAME', 'slurm')}"
        )
    try:
        return _read(sweep)
    except CorruptFile as error:
        raise CorruptFile(f"{error}; {again}, which writes it again") from None


def _read(sweep: SweepDirectory) -> tuple[str, dict[str, Any], dict[str, Resources]]:
    record = read_json(file := sweep.path / "launch.json") or {}
    name, settings = record.get("launcher", "local"), record.get("settings", {})
    asked = record.get("resources", {})
    try:
        resources = {key: Resources(**values) for key, values in asked.items()}
        if name in LAUNCHERS:  # version 0.1 wrote names that are old by now
            settings = with_new_names(LAUNCHERS[name], name, settings, silent=True)
    except (TypeError, AttributeError, ValueError) as error:
        raise CorruptFile(f"{file} is not the record of a launch ({error})") from None
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
        if spec and kind and (kind in classes or (not classes and (keys or rules(kind).retried))):
            runs.append(run)
    return runs, errors
