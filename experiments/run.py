"""One run, from its directory: train, evaluate, record. The same code under every launcher."""

import contextlib
import logging
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import torch

from fewstep._version import __version__
from fewstep.errors import UserError
from fewstep.errors import located as in_front
from fewstep.experiments.config.data_location import (
    load_data,
    located,
    location,
    remembered,
    with_location,
)
from fewstep.experiments.config.reproduce import command
from fewstep.experiments.config.run_config import RunConfig
from fewstep.experiments.config.settings import Training
from fewstep.experiments.cost.flops import train_flops
from fewstep.experiments.data import Dataset
from fewstep.experiments.data.identity import data_record
from fewstep.experiments.distributed.process_group import ranks
from fewstep.experiments.early_stopping import Rungs
from fewstep.experiments.evaluation.evaluate import cells_lacking, check_weights_kept, evaluate
from fewstep.experiments.store import failures
from fewstep.experiments.store.data_record import check_data, describe
from fewstep.experiments.store.json_files import CorruptFile, Json
from fewstep.experiments.store.lease import LeaseLost as LeaseLost
from fewstep.experiments.store.lease import RunLease
from fewstep.experiments.store.lease import RunLocked as RunLocked
from fewstep.experiments.store.provenance import environment, now, save_packages
from fewstep.experiments.store.run_directory import TEACHERS, RunDirectory
from fewstep.experiments.store.source_hash import recorded_sources
from fewstep.experiments.training.network import device_name
from fewstep.experiments.training.teacher import first_weights_line, teacher_directory
from fewstep.experiments.training.trained_guidance import trained_guidance
from fewstep.experiments.training.trainer import Interrupted as Interrupted
from fewstep.experiments.training.trainer import Trainer
from fewstep.files import broken_link, relative_to
from fewstep.objectives import sampling_fields

log = logging.getLogger(__name__)

# asked to stop, a run finishes a cell that needs no longer than this: half a cell is lost, and
# schedulers leave some time before they kill
PATIENCE_SECONDS = 10.0

OnProgress = Callable[[str, int, int, float], None]
"""(phase "pairs" | "train" | "evaluate", done, of how many, a second)"""


class RunFailed(Exception):
    """The run ended as a failure; ``record`` is its failure.json, unless none could be written."""

    def __init__(self, record: Json, recorded: bool = True) -> None:
        super().__init__(f"{record['class']}: {record['message']}")
        self.record, self.recorded = record, recorded


def directory_of(config: RunConfig) -> RunDirectory:
    """Where the run belongs: ``<runs>/<sweep>/<key>``."""
    return RunDirectory(Path(config.values["runs"]) / config.values["sweep"] / config.key)


def prepare(config: RunConfig) -> RunDirectory:
    """Make the run's directory: ``spec.json`` once, ``request.json`` when the request changes.

    Files that a removed run left there are deleted. ``UserError`` where the run root cannot be
    written, or the directory is of another configuration.
    """
    directory = directory_of(config)
    where = location(located(config, directory))
    check_weights_kept(config, directory)
    known = directory.path.is_dir() and read_spec(directory) is not None
    bookkeeping = [f.name for f in fields(Training) if f.metadata.get("bookkeeping")]
    request = {
        "evaluation": config.values["evaluation"],
        "sampler": sampling_fields(config.objective),
        "bookkeeping": {name: getattr(config.training, name) for name in bookkeeping},
        "data": where,
    }
    spec = {
        "version": 1,
        "fewstep": __version__,
        "key": config.key,
        "title": config.objective.title,
        "config": config.values,
        "directory": os.getcwd(),
        "created": now(),
    }
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        if not known:
            _begin_anew(directory)
            directory.write("spec", {**spec, "command": command(config)})
        if directory.request() != request:
            directory.write("request", request)
    except OSError as error:
        root = Path(config.values["runs"]).absolute()
        reason = broken_link(directory.path) or error.strerror
        raise UserError(
            f"cannot write to run root {str(root)!r} ({reason}); choose another with runs=DIR"
        ) from None
    return directory


def _begin_anew(directory: RunDirectory) -> None:
    # of a run that lost its spec.json: a finished one keeps its results, and the lease lets a live
    # attempt keep its files
    if directory.status() == "done":
        directory.remove("failure")
    elif directory.leftovers():
        with contextlib.suppress(RunLocked), RunLease(directory):
            if directory.spec() is None:  # else another process has just started it
                directory.clear()


def read_spec(directory: RunDirectory) -> RunConfig | None:
    """The configuration in ``spec.json``, or None; ``UserError`` if it is another run's."""
    spec = directory.spec()
    if spec is None:
        return None
    file = directory.path / "spec.json"
    try:
        config = RunConfig(spec["config"])
        key = config.key
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{file} is not the spec of a run (it lacks {error})") from None
    if {key, spec["key"]} != {directory.key}:
        raise UserError(
            f"{directory.path} is from another configuration: its spec.json has key {key}, "
            f"expected {directory.key}; remove the directory or restore its spec.json"
        )
    return config


def load_config(directory: RunDirectory) -> RunConfig:
    """The run's configuration as it was made, its data where they are now.

    ``UserError`` where there is no run, or another.
    """
    config = read_spec(directory)
    if config is None:
        raise UserError(f"no run in {directory.path}: it has no spec.json")
    return remembered(config, directory)


def relocate(directory: RunDirectory) -> None:
    """Note in the request where the run's data are now (``load_config``)."""
    where = location(load_config(directory))
    if (request := directory.request()) is not None and request.get("data") != where:
        directory.write("request", {**request, "data": where})


def requested(directory: RunDirectory) -> RunConfig:
    """The run's configuration with the cells, sampler, device, logging and data asked for last."""
    config, request = load_config(directory), directory.request()
    if request is None:
        return config
    config = with_location(config, request.get("data", {}))
    objective = {**config.values["objective"], **request["sampler"]}
    training = {**config.values["training"], **request.get("bookkeeping", {})}
    changes = {"objective": objective, "evaluation": request["evaluation"], "training": training}
    return RunConfig({**config.values, **changes})


def run(
    directory: RunDirectory,
    stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = lambda phase, done, total, rate: None,
    rungs: Rungs | None = None,
) -> Json:
    """Run to the end, from the last checkpoint if there is one, and return the result.

    A finished run is only evaluated at missing cells. At ``rungs`` it may be stopped early.

    Raises:
        RunFailed: the run failed; failure.json has the record.
        Interrupted: ``stop()`` became true, or it was stopped at a rung; it can be resumed.
        RunLocked: another process runs it.
        LeaseLost: a newer attempt has the run; checkpoints of this one are kept.
        UserError: the directory holds no run, or one of another configuration.
    """
    everyone = ranks()  # rank 0 reads, holds the lease, and writes
    config = RunConfig(everyone.broadcast(requested(directory).values))
    with relative_to(directory.made_in()), exact_float32():
        return _held(config, directory, stop, on_progress, rungs)


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Convolutions in float32 are so, too: by default cuDNN takes TF32, with 10 bits of 23.

    ECT, iCT and sCM subtract outputs that are nearly equal; the codes of ECT and EDM do the same.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _held(
    config: RunConfig,
    directory: RunDirectory,
    stop: Callable[[], bool],
    on_progress: OnProgress,
    rungs: Rungs | None,
) -> Json:
    """As ``run``, of a configuration; holds the lease meanwhile."""
    everyone = ranks()
    finished = everyone.broadcast(directory.result())
    if finished is not None and not everyone.broadcast(cells_lacking(config, directory)):
        if everyone.is_main:
            directory.remove("failure")  # of cells asked for earlier
        return finished
    lease, free = RunLease(directory), False
    with contextlib.ExitStack() as held:
        with contextlib.suppress(RunLocked):
            if everyone.is_main:
                held.enter_context(lease)
            free = True
        if not everyone.broadcast(free):
            raise RunLocked(f"another process runs {directory.path}")

        def leave() -> bool:
            if everyone.is_main:
                lease.check()
            return stop() or lease.cancelled or (rungs is not None and rungs.ended)

        def note(how: str) -> None:
            if everyone.is_main:
                with contextlib.suppress(OSError):  # the disk may be full
                    directory.record_attempt(lease.attempt.token, ended=how)

        try:
            stopping = everyone.any_rank(leave)
            result = _run(config, directory, lease, stopping, on_progress, rungs)
        except LeaseLost as reason:
            note(str(reason))
            raise
        except Interrupted as reason:
            note("cancelled" if lease.cancelled else "interrupted")
            if not lease.cancelled:
                raise
            record = failures.record(directory, "cancelled", f"cancelled: {reason}")
            raise RunFailed(record, _recorded(directory, record)) from None
        except Exception as error:
            record = everyone.failure(failures.error_record(directory, error), error)
            recorded = True
            if everyone.is_main:
                with contextlib.suppress(OSError):
                    lease.check(at_once=True)  # a superseded attempt records no failure
                recorded = _recorded(directory, record)
            note(record["class"])
            log.info("run %s failed\n%s", directory.key, record["traceback"])
            raise RunFailed(record, recorded) from error
        note("done")
        return result


def _recorded(directory: RunDirectory, record: Json) -> bool:
    """Write failure.json, if the disk lets us; else the exit code says what it would have said."""
    try:
        directory.write("failure", record)
    except OSError as error:
        log.error("failure.json could not be written (%s)", error)
        return False
    return True


def _run(
    config: RunConfig,
    directory: RunDirectory,
    lease: RunLease,
    stop: Callable[[], bool],
    on_progress: OnProgress,
    rungs: Rungs | None,
) -> Json:
    started, begun = now(), time.perf_counter()
    everyone, attempt = ranks(), lease.attempt
    provenance: Json = {}
    if everyone.is_main:
        provenance = environment()  # now: the source may be edited while it trains
        work = directory.saved_work()
        directory.record_attempt(attempt.token, begun=started, job=attempt.job, **work)
        directory.remove("failure")  # of an earlier attempt
        directory.remove("stopped")  # whoever launches it wants it continued
    dataset = _data(config, directory)
    if everyone.is_main:
        directory.record_attempt(attempt.token, held_out=len(dataset.test))  # for the time left
        save_packages(directory.cache / "environments")

    def on_images(done: int, total: int, rate: float, left: float) -> None:
        on_progress("evaluate", done, total, rate)
        if stop() and done < total and not 0 < left < PATIENCE_SECONDS:
            raise Interrupted(f"stopped after {done} of {total} network evaluations")

    finished = everyone.broadcast(directory.result())
    if finished is not None:
        if added := evaluate(config, dataset, directory, on_images):
            log.info("added %d cells to run %s", len(added), directory.key)
        return finished
    trainer = Trainer(config, dataset, directory)
    if (line := first_weights_line(config)) is not None:
        log.info(line)
    trainer.prepare(stop, lambda done, total, rate: on_progress("pairs", done, total, rate))
    taught_by = teacher_directory(config) if config.objective.needs_pairs else None
    teacher = None if taught_by is None else read_spec(taught_by)
    whole = trainer.ema if trainer.parallel.replicated else None
    flops = train_flops(config, dataset, teacher, whole)  # now: nothing may fail at the end

    def on_step(done: int, total: int, rate: float) -> None:
        on_progress("train", done, total, rate)
        if rungs is not None:
            rungs.evaluate_if_due(trainer, stop)

    if everyone.is_main:
        lease.check(at_once=True)  # it has not taken hold of the run's files yet
    trainer.train(stop, on_step)
    evaluation_begun = time.perf_counter()
    evaluate(config, dataset, directory, on_images)
    images = trainer.step * config.training.batch_size
    result = {
        "key": directory.key,
        "steps": trainer.step,
        "images_seen": images,
        "train_flops": flops,
        "train_seconds": trainer.seconds,
        "evaluate_seconds": time.perf_counter() - evaluation_begun,
        "seconds_total": time.perf_counter() - begun,
        "steps_per_second": trainer.step / trainer.seconds,
        "images_per_second": images / trainer.seconds,
        "peak_memory_bytes": peak_memory(trainer.device),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        **{name: trainer.last.get(name) for name in ("loss", "validation_loss")},
        "initialised": trainer.form.record,
        "taught": config.objective.needs_teacher,
        "trained_guidance": trained_guidance(config),
        "provenance": {
            **provenance,
            **recorded_sources(config.objective, config.backbone, config.optimiser),
            "device": str(trainer.device),
            "device_name": device_name(trainer.device),
            "threads": torch.get_num_threads(),
            "processes": everyone.size,
            "data_sha256": (directory.data() or {}).get("sha256"),
            "started": started,
            "finished": now(),
        },
    }
    if everyone.is_main:
        lease.check(at_once=True)
        directory.write("result", result)
    return result


def _data(config: RunConfig, directory: RunDirectory) -> Dataset:
    """The run's data, the same in all its processes; recorded when it begins."""
    everyone = ranks()
    dataset = load_data(config, directory)
    record = data_record(dataset)
    for role in () if directory.result() is not None else TEACHERS:
        if (teacher := teacher_directory(config, role)) is not None:
            with in_front(f"{role} of {directory.key}"):
                check_data(teacher, record)
    if everyone.is_main and directory.result() is None and directory.data() is None:
        directory.write("data", record)
    first = everyone.broadcast(record)
    if record["sha256"] != first["sha256"]:  # another node has other files
        raise UserError(
            f"process {everyone.rank} of run {directory.key} has data {describe(record)}, "
            f"the first has {describe(first)}"
        )
    log.info("data: %s", "; ".join([describe(record), *dataset.notes]))
    return dataset


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where one is used, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
