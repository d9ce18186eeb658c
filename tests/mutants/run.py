"""``make mutants``: is every fault in the .txt files here found by ``tests/objectives``?

Each worker has a copy of the tree of its own; a mutant is put in, the tests run until one fails,
the mutant is taken out again. Exit code 1 if one survives or does not fit the code any more.

The tests run in a fork of a process that has imported the libraries already, but nothing of
``fewstep``: starting them is most of the time otherwise.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import multiprocessing
import queue
import shutil
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import omegaconf  # noqa: F401
import pytest
import scipy.integrate
import scipy.stats  # noqa: F401
import torch._decomp.decompositions_for_jvp
import torch._dynamo  # noqa: F401
from table import MUTANTS, Mutant, source

FORK = multiprocessing.get_context("fork")
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300  # a mutant that never ends is found too
# the tests that look closest, by the file that is changed; the rest follow
CLOSE = {
    "base": ["discrete_consistency", "shortcut_rows", "times_and_solvers"],
    "paths": ["paths"],
    "gaussian": ["paths"],
    "guidance": ["guidance"],
    "teacher": ["paths"],
    "converted_network": ["converted_network"],
    "times": ["times_and_solvers"],
    "average_velocity": ["shortcut_rows", "mean_flows"],
    "batch_math": ["discrete_consistency", "shortcut_rows", "imm"],
    "label_dropout": ["conditions"],
    "wrappers": ["wrappers"],
    "samplers": ["multistep", "times_and_solvers"],
    "amed": ["amed"],
    "tangent": ["scm_tangents", "self_distillation", "flow_map_variants"],
    "self_distillation": ["self_distillation"],
    "lsd": ["self_distillation"],
    "esd": ["self_distillation"],
    "psd": ["self_distillation"],
    "tvm": ["flow_map_variants"],
    "soflow": ["flow_map_variants"],
    "tim": ["flow_map_variants"],
    "facm": ["flow_map_variants"],
    "ayf": ["ayf"],
    "decoupled_mean_flow": ["decoupled_mean_flow"],
    "teachers_flow": ["ayf"],
    "distribution_matching": ["distribution_matching"],
    "dmd2": ["distribution_matching"],
    "sid": ["distribution_matching"],
    "flow_matching": ["multistep", "times_and_solvers"],
    "imm": ["imm"],
    "ctm": ["ctm"],
    "tcm": ["tcm"],
    "edm": ["ctm"],
    "shortcut": ["shortcut_rows"],
    "shortcut_continuous": ["shortcut_rows"],
    "scm": ["scm_tangents"],
    "mean_flow": ["mean_flows", "flow_map_variants"],
    "improved_mean_flow": ["mean_flows"],
    "alpha_flow": ["mean_flows"],
    "progressive_distillation": ["distillations"],
    "reflow": ["distillations"],
    "live_reflow": ["distillations"],
}


def misfits() -> list[str]:
    """Mutants whose ``old`` is not in their file exactly once."""
    found = []
    for m in MUTANTS:
        file = source(ROOT, m)
        count = file.read_text().count(m.old)
        if count != 1:
            found.append(f"{file.relative_to(ROOT)} has {m.old!r} {count} times, not once")
    return found


def copy(folder: Path) -> None:
    """The tree, links kept as links, without what is built or recorded."""
    left_out = (".git", ".venv", "build", "dist", "runs", "shared", "__pycache__", ".*_cache")
    shutil.copytree(
        ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*left_out, "*.egg-info")
    )


def killer(mutant: Mutant, folder: Path) -> str | None:
    """The test that fails on ``mutant``, or None."""
    file = source(folder, mutant)
    sound = file.read_text()
    file.write_text(sound.replace(mutant.old, mutant.new))
    try:
        return first_failure(folder, mutant)
    finally:
        file.write_text(sound)


def first_failure(folder: Path, mutant: Mutant | None) -> str | None:
    """The first test that fails in ``folder``; None if none does."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=run_tests, args=(folder, mutant, there))
    process.start()
    there.close()
    try:
        ended = here.poll(SECONDS)
        told: str | None = here.recv() if ended else f"no end after {SECONDS} s"
    except EOFError:
        raise RuntimeError(f"pytest gave up:\n{(folder / 'log').read_text()}") from None
    finally:
        process.kill()
        process.join()
    return told


class First:
    """Remembers the first failure; those tests come first that look closest at ``file``."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.failure: str | None = None

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Its own tests, its own conformance, other tests, the conformance of the rest."""
        close = [f"test_{name}" for name in CLOSE.get(self.file, ["discrete_consistency"])]

        def distance(item: pytest.Item) -> int:
            if item.path.stem in close:
                return 0
            if item.path.stem == "test_conformance":
                own = item.name.startswith(f"test_conformance[{self.file}-")
                return 3 if item.name.startswith("test_conformance[") and not own else 1
            return 2

        items.sort(key=distance)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and self.failure is None:
            self.failure = report.nodeid.rsplit("/", 1)[-1]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failure is None:
            self.failure = f"{report.nodeid} cannot be imported"


def run_tests(folder: Path, mutant: Mutant | None, answer: Connection) -> None:
    """In the fork: the tests of ``folder``, on the ``fewstep`` that is there."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder / "src"))
    import fewstep

    assert Path(fewstep.__file__).is_relative_to(folder), fewstep.__file__
    first = First(mutant.file if mutant else "")
    given = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "tests/objectives"]
    code = pytest.main(given, plugins=[first])
    if (code == pytest.ExitCode.OK) == (first.failure is None):
        answer.send(first.failure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--file", help="those of one file only")
    arguments = parser.parse_args()
    if told := misfits():
        print(*told, sep="\n")
        return 1
    sys.dont_write_bytecode = True  # a mutant of the same size and second would be taken for old
    chosen = [m for m in MUTANTS if arguments.file in (None, m.file)]
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for m in chosen:
        waiting.put(m)
    survived: list[Mutant] = []
    broken: list[BaseException] = []
    begun = time.monotonic()

    def work(folder: Path) -> None:
        try:
            while not broken:
                mutant = waiting.get_nowait()
                test = killer(mutant, folder)
                if test is None:
                    survived.append(mutant)
                told = f"killed    {test}" if test else "SURVIVED"
                print(f"{mutant.file:<26}{mutant.why:<48}{told}", flush=True)
        except queue.Empty:
            return
        except BaseException as error:
            broken.append(error)
            raise

    with tempfile.TemporaryDirectory(prefix="fewstep-mutants-") as base:
        folders = [Path(base) / str(i) for i in range(arguments.jobs)]
        for folder in folders:
            copy(folder)
        if (test := first_failure(folders[0], None)) is not None:
            print(f"the suite fails without any mutant: {test}")
            return 1
        workers = [threading.Thread(target=work, args=(folder,)) for folder in folders]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    minutes = (time.monotonic() - begun) / 60
    print(f"{len(chosen) - len(survived)} of {len(chosen)} killed in {minutes:.0f} min")
    return 1 if survived or broken else 0


if __name__ == "__main__":
    sys.exit(main())
