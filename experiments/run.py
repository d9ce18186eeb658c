"""One run, from its directory: train, evaluate, record. The same code under every launcher."""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from fewstep.errors import UserError
from fewstep.experiments import failures
from fewstep.experiments.claim import Busy, Claim, Superseded
from fewstep.experiments.config import RunConfig
from fewstep.experiments.distributed import ranks
from fewstep.experiments.evaluation import cells_lacking, evaluate
from fewstep.experiments.flops import train_flops
from fewstep.experiments.network import device_name
from fewstep.experiments.provenance import environment, keep_packages, now, source_hash
from fewstep.experiments.reproduce import command
from fewstep.experiments.rundir import Json, RunDirectory
from fewstep.experiments.rungs import Rungs
from fewstep.experiments.teacher import teacher_directory
from fewstep.experiments.trainer import Interrupted, Trainer
from fewstep.objectives import sampling_fields

log = logging.getLogger(__name__)

# told to stop, a run finishes a cell that takes no longer: of half a one nothing is kept, and who
# stops it (a scheduler, before it kills) leaves time to save
PATIENCE_SECONDS = 10.0

OnProgress = Callable[[str, int, int, float], None]
"""(phase "pairs" | "train" | "evaluate", done, of how many, a second)"""


class RunFailed(Exception):
    """The run ended as a recorded failure; ``record`` is its failure.json."""

    def __init__(self, record: Json) -> None:
        super().__init__(f"{record['class']}: {record['message']}")
        self.record = record


def directory_of(config: RunConfig) -> RunDirectory:
    """Where the run belongs: ``<runs>/<sweep>/<key>``."""
    return RunDirectory(Path(config.values["runs"]) / config.values["sweep"] / config.key)


def prepare(config: RunConfig) -> RunDirectory:
    """Make the run's directory: ``spec.json`` once, ``request.json`` when something else is asked.

    What is left there of a run that somebody has removed is no beginning of this one.

    Raises:
        UserError: the run root cannot be written, or the directory is of another configuration.
    """
    directory = directory_of(config)
    spec = read_spec(directory) if directory.path.is_dir() else None
    request = {
        "evaluation": config.values["evaluation"],
        "sampler": sampling_fields(config.objective),
        "bookkeeping": {
            f.name: getattr(config.training, f.name)
            for f in fields(config.training)
            if f.metadata.get("bookkeeping")
        },
    }
    try:
        directory.path.mkdir(parents=True, exist_ok=True)
        if spec is None:
            _begin_anew(directory)
            directory.write(
                "spec",
                {
                    "version": 1,
                    "key": config.key,
                    "title": config.objective.title,
                    "config": config.values,
                    "command": command(config),
                    "created": now(),
                },
            )
        if directory.request() != request:
            directory.write("request", request)
    except OSError as error:
        root = config.values["runs"]
        raise UserError(
            f"cannot write to run root {root!r} ({error.strerror}); choose another with runs=DIR"
        ) from None
    return directory


def _begin_anew(directory: RunDirectory) -> None:
    """Remove what a run without its spec has left; one that is done keeps what it found.

    Under a claim: what somebody is at work on stays, and nobody begins meanwhile.
    """
    if directory.status() == "done":
        directory.remove("failure")
    elif directory.leftovers():
        with contextlib.suppress(Busy), Claim(directory):
            if directory.spec() is None:  # else somebody has begun it anew just now
                directory.clear()


def read_spec(directory: RunDirectory) -> RunConfig | None:
    """The configuration in ``spec.json``, checked to be this directory's; None without one.

    Raises:
        UserError: the spec is of another configuration than the directory's name says.
    """
    spec = directory.spec()
    if spec is None:
        return None
    try:
        config = RunConfig(spec["config"])
        key = config.key
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{directory.path / 'spec.json'} is not the spec of a run ({error})"
        ) from None
    if {key, spec["key"]} != {directory.key}:
        raise UserError(
            f"{directory.path} is from another configuration: its spec.json has key {key}, "
            f"expected {directory.key}; remove the directory or restore its spec.json"
        )
    return config


def load_config(directory: RunDirectory) -> RunConfig:
    """The run's configuration as it was made.

    Raises:
        UserError: no run there, or a directory from another configuration.
    """
    config = read_spec(directory)
    if config is None:
        raise UserError(f"no run in {directory.path}: it has no spec.json")
    return config


def requested(directory: RunDirectory) -> RunConfig:
    """The run's configuration with the cells, sampler, device and logging asked for last."""
    config, request = load_config(directory), directory.request()
    if request is None:
        return config
    objective = {**config.values["objective"], **request["sampler"]}
    training = {**config.values["training"], **request.get("bookkeeping", {})}
    asked = {"objective": objective, "evaluation": request["evaluation"], "training": training}
    return RunConfig({**config.values, **asked})


def run(
    directory: RunDirectory,
    stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = lambda phase, done, total, rate: None,
    rungs: Rungs | None = None,
) -> Json:
    """Bring the run to its end, from wherever it is, and return its result.

    A finished run is only evaluated at the cells it lacks. At ``rungs`` it may be ended early.

    Raises:
        RunFailed: it ended as a failure, recorded in failure.json.
        Interrupted: ``stop()`` became true, or it was ended at a rung; it can be continued.
        Busy: another process has it.
        Superseded: a newer attempt took it away; what this one did is no loss.
        UserError: the directory holds no run, or one of another configuration.
    """
    everyone = ranks()  # of several processes, the first reads, has the claim, and writes
    config = RunConfig(everyone.told(requested(directory).values))
    finished = everyone.told(directory.result())
    if finished is not None and not everyone.told(cells_lacking(config, directory)):
        if everyone.first:
            directory.remove("failure")  # of cells asked for earlier
        return finished
    claim, free = Claim(directory), True
    with contextlib.ExitStack() as held:
        try:
            if everyone.first:
                held.enter_context(claim)
        except Busy:
            free = False
        if not everyone.told(free):
            raise Busy(f"another process is at work on {directory.path}")

        def leave() -> bool:
            if everyone.first:
                claim.check()
            return stop() or claim.cancelled or (rungs is not None and rungs.ended)

        def note(how: str) -> None:
            if everyone.first:
                directory.note(claim.attempt.token, ended=how)

        try:
            stopping = everyone.agreed(leave)
            result = _run(config, directory, claim, stopping, on_progress, rungs)
        except Superseded as reason:
            note(str(reason))
            raise
        except Interrupted as reason:
            note("cancelled" if claim.cancelled else "interrupted")
            if not claim.cancelled:
                raise
            record = failures.record(directory, "cancelled", f"cancelled: {reason}")
            directory.write("failure", record)
            raise RunFailed(record) from None
        except Exception as error:
            record = everyone.failure(failures.of_error(directory, error), error)
            if everyone.first:
                claim.check(at_once=True)  # the failure of an attempt that is over is nobody's
                directory.write("failure", record)
            note(record["class"])
            log.info("run %s failed\n%s", directory.key, record["traceback"])
            raise RunFailed(record) from error
        note("done")
        return result


def _run(
    config: RunConfig,
    directory: RunDirectory,
    claim: Claim,
    stop: Callable[[], bool],
    on_progress: OnProgress,
    rungs: Rungs | None,
) -> Json:
    started, begun = now(), time.perf_counter()
    everyone = ranks()
    made: Json = {}
    if everyone.first:
        made = environment()  # now: the source may be edited while it trains
        job = claim.attempt.job
        directory.note(claim.attempt.token, begun=started, job=job, **directory.kept())
        directory.remove("failure")  # of an earlier attempt
        directory.remove("stopped")  # whoever launches it wants it continued
    dataset = config.data.load()
    if everyone.first:
        directory.note(claim.attempt.token, held_out=len(dataset.test))  # for the time left
        keep_packages(directory.cache / "environments")
    result = everyone.told(directory.result())
    trainer, flops = None, None
    if result is None:
        trainer = Trainer(config, dataset, directory)
        trainer.prepare(stop, lambda done, total, rate: on_progress("pairs", done, total, rate))
        learner = trainer
        flops = train_flops(config, dataset, _teacher(config))  # now: nothing may fail at the end

        def on_step(done: int, total: int, rate: float) -> None:
            on_progress("train", done, total, rate)
            if rungs is not None:
                rungs.look(learner, directory.cache, stop)

        if everyone.first:
            claim.check(at_once=True)  # it has not taken hold of the run's files yet
        trainer.train(stop, on_step)
    evaluation_begun = time.perf_counter()

    def on_images(done: int, total: int, rate: float, left: float) -> None:
        on_progress("evaluate", done, total, rate)
        if stop() and done < total and not 0 < left < PATIENCE_SECONDS:
            raise Interrupted(f"stopped after {done} of {total} network evaluations")

    added = evaluate(config, dataset, directory, directory.cache, on_images)
    if trainer is None:
        assert result is not None
        if added:
            log.info("added %d cells to run %s", len(added), directory.key)
        return result
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
        "provenance": {
            **made,
            "objective_source": source_hash(config.objective),
            "backbone_source": source_hash(config.backbone),
            "device": str(trainer.device),
            "device_name": device_name(trainer.device),
            "threads": torch.get_num_threads(),
            "processes": everyone.size,
            "started": started,
            "finished": now(),
        },
    }
    if everyone.first:
        claim.check(at_once=True)
        directory.write("result", result)
    return result


def _teacher(config: RunConfig) -> RunConfig | None:
    directory = teacher_directory(config) if config.objective.needs_pairs else None
    return None if directory is None else read_spec(directory)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU where one is used, of the process otherwise."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


__all__ = [
    "Busy",
    "Interrupted",
    "RunFailed",
    "Superseded",
    "directory_of",
    "load_config",
    "prepare",
    "requested",
    "run",
]
