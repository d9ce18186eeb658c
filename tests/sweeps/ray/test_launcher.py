"""The Ray launcher on real Ray: failures, kills, a dead driver, shares of a machine, a cluster."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch
from helpers.commands import TINY, wait_for
from helpers.ranks import free_port
from helpers.ray_driver import is_there, start_driver, start_node
from helpers.tiny import last_tensors, times_changed, tiny
from ray.exceptions import RayActorError

from fewstep.cli.commands.sweep import sweep
from fewstep.errors import UserError
from fewstep.experiments.config.run_config import Override, compose
from fewstep.experiments.run import prepare, run
from fewstep.experiments.store.lease import live_lease
from fewstep.experiments.store.run_directory import RunDirectory
from fewstep.sweeps.definition.resources import Resources
from fewstep.sweeps.launcher import Event, LaunchRequest, Outcome, launcher
from fewstep.sweeps.local.worker_pool import WorkerPool
from fewstep.sweeps.ray import cluster
from fewstep.sweeps.ray.environment import TOKEN, ray_environment
from fewstep.sweeps.ray.experiment import LOOK_SECONDS, Watch
from fewstep.sweeps.ray.placement import ResourceRequest
from fewstep.sweeps.ray.process_group import MachineLost
from fewstep.sweeps.ray.searcher import RunSearcher
from fewstep.sweeps.ray.settings import RaySettings
from fewstep.sweeps.run_queue import RunQueue

pytestmark = pytest.mark.xdist_group("ray")  # one Ray, in one process


class Told:
    """What a launch told: events in their order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def __call__(self, event: Event, working: Sequence[RunDirectory]) -> None:
        if event.run is not None:
            self.events.append((event.kind, event.run.key))

    def kinds(self, run: RunDirectory) -> list[str]:
        return [kind for kind, key in self.events if key == run.key]


def launch(
    runs: Sequence[RunDirectory], resources: Resources | None = None, **settings: object
) -> tuple[Outcome, Told]:
    told = Told()
    wanted = None if resources is None else {run.key: resources for run in runs}
    request = LaunchRequest.of(runs, wanted)
    return launcher("ray", settings).launch(request, told), told


def made(root: Path, *overrides: Override) -> RunDirectory:
    return prepare(tiny(root, *overrides))


def long_run(root: Path, steps: int) -> RunDirectory:
    """About a second a thousand steps."""
    every = ("training.log_every=100", "training.checkpoint_every=200", "evaluation.steps=[]")
    return prepare(compose([*TINY, *every, f"training.steps={steps}", ("runs", str(root))]))


def process_of(run: RunDirectory) -> int:
    """The process id of a run that trains now; 0 for none."""
    told = run.progress()
    there = told is not None and told["done"] and psutil.pid_exists(told["pid"])
    return int(told["pid"]) if told is not None and there else 0


CPU_ONLY = Resources(cpus=1, gpus=0)


def test_failures_have_classes_and_leave_the_others_alone(tmp_path, ray_here):
    bad = made(tmp_path, "training.lr=1e30")
    good = [made(tmp_path, f"seed={seed}") for seed in (1, 2)]
    teacher = made(tmp_path, "seed=3")
    student = made(tmp_path, "seed=3", "objective=scd", ("teacher", str(teacher.path)))
    runs = [student, bad, *good, teacher]
    outcome, told = launch(runs, CPU_ONLY)
    assert set(outcome.done) == {r.key for r in [*good, teacher, student]}
    assert outcome.failed == [bad.key]
    assert (bad.failure()["class"], bad.failure()["step"]) == ("nan", 2)
    assert "NotFinite" in bad.failure()["traceback"]
    assert told.kinds(bad) == ["started", "failed"]
    # a student waits for its teacher
    assert told.events.index(("done", teacher.key)) < told.events.index(("started", student.key))
    assert good[0].attempts()[0]["job"]["launcher"] == "ray"

    # the second time only what failed runs
    before = {r.key: times_changed(r.path) for r in good}
    outcome, told = launch(runs, CPU_ONLY)
    assert (len(outcome.done), len(outcome.failed)) == (4, 1)
    assert {key for kind, key in told.events if kind == "started"} == {bad.key}
    assert {r.key: times_changed(r.path) for r in good} == before


def test_a_run_begun_by_the_local_launcher_goes_on_to_the_same_bits(
    tmp_path, ray_here, monkeypatch
):
    config = tiny(tmp_path / "here", "training.steps=12", "training.checkpoint_every=2")
    begun, alone = prepare(config), made(tmp_path / "alone", "training.steps=12")
    local = WorkerPool(workers=1)

    def stop_soon(event: Event, working: Sequence[RunDirectory]) -> None:
        if list(begun.checkpoints.glob("step-*")):
            local.stop()

    local.launch([begun], stop_soon)
    run(alone)
    if begun.result() is None:  # it may have been quick
        assert begun.status() == "running"
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the user's, not the one that Ray sets
    outcome, _ = launch([begun], Resources(cpus=2, gpus=0))
    assert outcome.done == [begun.key] == [alone.key]
    assert begun.result()["provenance"]["threads"] == 1
    theirs, ours = last_tensors(alone), last_tensors(begun)
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_lost_actor_is_a_kill_that_is_tried_again_once(tmp_path, ray_here):
    victim = long_run(tmp_path, 100_000)
    killed: list[int] = []
    told = Told()

    def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
        told(event, working)
        pid = process_of(victim)
        if pid and pid not in killed and live_lease(victim):
            killed.append(pid)
            server = psutil.Process(pid).parent()
            os.kill(server.parent().pid, signal.SIGKILL)

    outcome = launcher("ray").launch(LaunchRequest.of([victim], {victim.key: CPU_ONLY}), on_event)
    assert outcome.failed == [victim.key]
    ends = [kind for kind in told.kinds(victim) if kind != "busy"]
    assert ends == ["started", "again", "started", "failed"]
    assert victim.failure()["class"] == "killed"
    # its processes noticed, and saved: nothing was lost
    wait_for(lambda: not live_lease(victim), "the orphan to leave")
    assert victim.status() == "failed"
    first, second = victim.attempts()[1]["step"], victim.last_step()
    assert 0 < first < second
    steps = [row["step"] for row in victim.metrics()]
    assert steps == list(range(100, second + 1, 100))


def test_shares_of_gpus_and_cores_are_kept_to(tmp_path, ray_here):
    big, other, small = runs = [long_run(tmp_path, steps) for steps in (60_000, 201, 202)]
    half = Resources(gpus=0.6, cpus=0.5)
    wanted = {big.key: half, other.key: half, small.key: Resources(gpus=0.4, cpus=0.5)}
    together = set()

    def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
        together.add(frozenset(r.key for r in working))
        if frozenset({big.key, small.key}) in together:  # however long an actor takes to start
            big.cancel.touch()

    outcome = launcher("ray").launch(LaunchRequest.of(runs, wanted), on_event)
    assert (set(outcome.done), outcome.failed) == ({other.key, small.key}, [big.key])
    assert big.failure()["class"] == "cancelled"
    assert not any({big.key, other.key} <= keys for keys in together)


def test_a_run_that_asks_for_more_than_there_is_is_refused():
    here = RunDirectory(Path("runs/mine/0123456789ab"))
    with pytest.raises(UserError, match=r"asks for 1 GPU, and Ray has 0\.5 here"):
        ResourceRequest({here.key: Resources(gpus=1)}, None, [{"CPU": 2, "GPU": 0.5}]).check([here])


def test_a_killed_driver_loses_nothing(tmp_path, ray_here):
    """Its own Ray dies with it; the runs notice, save and leave; whoever comes next goes on."""
    runs = [long_run(tmp_path, 100_000 + i) for i in range(2)]  # not done before they are told
    driver = start_driver(runs, cpus=2)
    wait_for(lambda: all(process_of(r) for r in runs), "both runs at work")
    reached = [r.progress()["done"] for r in runs]
    workers = [psutil.Process(process_of(r)) for r in runs]
    driver.kill()
    driver.communicate()
    wait_for(lambda: not any(w.is_running() for w in workers), "the orphans to leave")
    assert [r.status() for r in runs] == ["running", "running"]
    saved = {r.key: r.last_step() for r in runs}
    assert all(s >= r for s, r in zip(saved.values(), reached, strict=True))

    def on_event(event: Event, working: Sequence[RunDirectory]) -> None:
        for r in working:
            if (told := r.progress()) and told["done"] > saved[r.key] + 200:
                r.cancel.touch()

    request = LaunchRequest.of(runs, {r.key: CPU_ONLY for r in runs})
    launcher("ray").launch(request, on_event)
    for r in runs:
        assert r.failure()["class"] == "cancelled"
        assert [a["ended"] for a in r.attempts()] == ["interrupted", "cancelled"]
        assert r.attempts()[1]["step"] == saved[r.key]
        # no line is lost, none is there twice
        assert [row["step"] for row in r.metrics()] == list(range(100, r.last_step() + 1, 100))
        assert r.last_step() > saved[r.key]


def nobody() -> str:
    """An address at which nobody listens."""
    return f"127.0.0.1:{free_port()}"


@pytest.mark.parametrize("auto", [False, True])
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path, monkeypatch, auto):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests' own
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray would wait for minutes"))
    monkeypatch.setenv("RAY_ADDRESS", address := nobody())
    told = f"no Ray cluster at ray.address '{'auto' if auto else address}': nothing answers"
    with pytest.raises(UserError, match=told):
        launch([made(tmp_path)], address="auto" if auto else address)
    with pytest.raises(UserError, match="'here': it is not of the form HOST:PORT"):
        launch([made(tmp_path)], address="here")


def test_what_this_machine_has_not_is_told_before_ray_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    with pytest.raises(UserError, match="asks for 8 CPU, and Ray has 2 here"):
        launch([made(tmp_path)], Resources(cpus=8), cpus=2, gpus=0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["ray.address=auto"], "no Ray cluster at ray.address 'auto': nothing answers"),
        (["resources.cpus=8", "ray.cpus=2"], "asks for 8 CPU, and Ray has 2 here"),
        (["ray.search=optuna"], "ray.search optuna has nothing to propose from"),
        (
            ["ray.scheduler=asha", "ray.grace=1", "resources.nodes=2"],
            "early stopping is for runs of one process",
        ),
    ],
)
def test_a_launch_that_is_refused_has_written_nothing(tmp_path, monkeypatch, settings, told):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was started"))
    monkeypatch.setenv("RAY_ADDRESS", nobody())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text("base: {data: gaussians}\nseeds: 2\n")
    with pytest.raises(UserError, match=told):
        sweep("small.yaml", settings, launcher="ray")
    assert os.listdir(tmp_path) == ["small.yaml"]


@pytest.mark.parametrize("error", [RayActorError(), MachineLost("temporarily unavailable")])
def test_runs_of_a_cluster_that_is_gone_are_lost_not_killed(tmp_path, monkeypatch, error):
    class Gone:
        gcs_address = nobody()
        get_node_id = staticmethod(lambda: "here")

    monkeypatch.setattr(ray, "get_runtime_context", Gone)
    victim = made(tmp_path)
    queue = RunQueue([victim], Told())
    searcher = RunSearcher(queue, [], None, lambda run: [{"CPU": 1.0}])
    searcher.suggest("one")
    (tmp_path / "error.pkl").write_bytes(pickle.dumps(error))
    trial = SimpleNamespace(
        trial_id="one", pickled_error_file=tmp_path / "error.pkl", error_file=None
    )
    Watch(searcher).on_trial_error(1, [], trial)
    assert (victim.failure()["class"], queue.outcome.failed) == ("lost_node", [victim.key])
    assert queue.stopping  # trying again would be in vain
    assert "the Ray cluster is gone: the same command resumes" in queue.outcome.notes[0]


@pytest.mark.parametrize("alive", [True, False])
def test_a_cluster_whose_raylet_here_is_lost_ends_the_launch(tmp_path, monkeypatch, alive):
    """It starts no trial any more, and Tune would wait for one for ever."""

    class Here:
        gcs_address = "one that answers"
        get_node_id = staticmethod(lambda: "here")

    nodes = [{"NodeID": "here", "Alive": alive}, {"NodeID": "there", "Alive": True}]
    monkeypatch.setattr(ray, "get_runtime_context", Here)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "answers", lambda address: True)
    queue = RunQueue([made(tmp_path)], Told())
    watch = Watch(RunSearcher(queue, [], None, lambda run: [{"CPU": 1.0}]))
    watch.on_step_end(1, [])
    assert not queue.stopping  # it was looked at a moment ago
    watch.looked -= LOOK_SECONDS
    watch.on_step_end(2, [])
    assert queue.stopping == (not alive)
    assert len(queue.outcome.notes) == (not alive)


SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"  # of HTTP/2, by which a server of gRPC begins


def test_what_accepts_connections_and_does_not_speak_is_no_cluster(monkeypatch):
    """As of a head node that hangs, whose kernel still accepts them."""
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as hung:
        address = f"127.0.0.1:{hung.getsockname()[1]}"
        told = f"ray.address '{address}': what listens at {address} does not answer as a Ray"
        with pytest.raises(UserError, match=told):
            cluster.reachable(address)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        answers = [b"HTTP/1.1 400 Bad Request\r\n", SETTINGS_FRAME]

        def serve() -> None:
            for answer in answers:
                caller, _ = other.accept()
                with caller:
                    caller.sendall(answer)
                    caller.recv(100)

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setattr(cluster, "ANSWER_SECONDS", 10.0)
        with pytest.raises(cluster.Silent):
            cluster.answers(address)
        assert cluster.answers(address)


@pytest.mark.parametrize("silent", [True, False])
def test_a_cluster_that_hangs_ends_the_process_in_which_ray_waits(monkeypatch, capsys, silent):
    """Ray waits for it in C++, where no handler of Ctrl-C runs."""
    looked, ended = threading.Semaphore(0), threading.Event()

    def answers(address: str) -> bool:
        looked.release()
        if silent:
            raise cluster.Silent
        return True

    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(cluster, "SILENT_SECONDS", 0.1 if silent else 0.0)
    monkeypatch.setattr(cluster, "answers", answers)
    monkeypatch.setattr(cluster, "_end", ended.set)
    with cluster.ending_if_silent("head:6379"):
        for _ in range(3):
            looked.acquire(timeout=60)
        assert ended.wait(60 if silent else 0) == silent
    told = capsys.readouterr().err
    assert ("the Ray cluster at head:6379 does not answer\n" in told) == silent
    assert ("is gone: the same command resumes the runs\n" in told) == silent


@pytest.mark.parametrize(
    ("environment", "own", "set"),
    [
        ({}, False, {}),
        ({}, True, {"RAY_AUTH_TOKEN": TOKEN}),
        ({"RAY_AUTH_TOKEN": "mine"}, False, {"RAY_AUTH_MODE": "token"}),
        ({"RAY_AUTH_TOKEN": "mine"}, True, {}),
        ({"RAY_AUTH_MODE": "disabled"}, True, {}),
        ({"file": "mine"}, False, {"RAY_AUTH_MODE": "token"}),
        ({"file": "mine"}, True, {}),
    ],
)
def test_tokens_that_exist_are_shown_and_none_is_left_behind(
    tmp_path, monkeypatch, environment, own, set
):
    for name in [name for name in os.environ if name.startswith("RAY_AUTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "ray")  # later it would not look any more
    monkeypatch.setenv("HOME", str(tmp_path))
    if "file" in environment:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("mine")
    else:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with ray_environment(own):
        added = {k: v for k, v in os.environ.items() if k not in before}
        assert {k: v for k, v in added.items() if k.startswith("RAY_AUTH_")} == set
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # as Ray does
    assert dict(os.environ) == before


def test_what_ray_says_of_an_address_is_told_of_the_one_that_was_typed(monkeypatch):
    def refuse(**options: object) -> None:
        raise ConnectionError("Failed to connect to Ray cluster at 10.1.2.3:6379")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "answers", lambda address: True)
    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(UserError, match=r"ray.address 'login:6379': .* RAY_AUTH_TOKEN") as error,
        cluster.connected(RaySettings(address="login:6379")),
    ):
        pass
    assert "10.1.2.3" not in str(error.value)


def test_a_ray_of_our_own_is_not_the_one_of_the_environment(monkeypatch):
    asked = {}
    monkeypatch.setenv("RAY_ADDRESS", nobody())
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: asked.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster.connected(RaySettings(cpus=1, gpus=0)):
        pass
    assert asked["address"] == "local"


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of a Ray that somebody else has started."""
    port = free_port()
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        options = ("--num-cpus=2", "--include-dashboard=false", f"--temp-dir={folder}")
        head = start_node("--head", f"--port={port}", *options)
        try:
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()
            head.wait()


def test_a_sweep_on_somebody_elses_cluster_can_be_stopped_and_leaves_it(tmp_path, elsewhere):
    long, short = long_run(tmp_path, 100_000), long_run(tmp_path, 100)
    wait_for(lambda: is_there(elsewhere), "the cluster")
    driver = start_driver([long, short], address=elsewhere)
    wait_for(lambda: short.result() and process_of(long), "one run done, one at work", 120)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=60)
    assert driver.returncode == 0, out
    assert f"joined the Ray cluster at {elsewhere}" in out
    assert f"done {short.key}" in out
    assert f"interrupted {long.key}" in out
    assert not process_of(long)
    assert long.attempts()[0]["ended"] == "interrupted"
    assert long.last_step() > 0
    assert is_there(elsewhere)
