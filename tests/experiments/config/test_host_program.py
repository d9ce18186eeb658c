"""A program that uses Hydra itself finds it as it was, before and after fewstep composes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HOST = """
import os
from hydra import compose, initialize_config_dir, version
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf

def host_composes():
    config = compose("main", ["data=own", "seed=4"])
    assert config == {"data": {"size": 3}, "seed": 4}, config

def state():
    repo = ConfigStore.instance().repo
    return (
        GlobalHydra.instance(), GlobalHydra.instance().hydra, version.getbase(),
        sorted(repo), sorted(repo["data"]), dict(os.environ), OmegaConf.has_resolver("now"),
    )

store = ConfigStore.instance()
store.store(name="main", node={"defaults": ["_self_", {"data": "own"}], "seed": 0})
store.store(name="root", node={"not": "ours"})
store.store(group="data", name="own", node={"size": 3})
"""

FEWSTEP = """
from fewstep import compose as fewstep_compose
def fewstep_composes():
    before = state()
    assert fewstep_compose(["data=gaussians", "objective=scm"]).values["data"]["modes"] == 8
    assert state() == before
"""

ORDERS = {
    "host first": HOST
    + FEWSTEP
    + """
initialize_config_dir(os.getcwd(), version_base="1.2")
host_composes(); fewstep_composes(); host_composes()
""",
    "fewstep first": HOST
    + FEWSTEP
    + """
fewstep_composes()
assert not GlobalHydra.instance().is_initialized()
initialize_config_dir(os.getcwd(), version_base="1.2")
host_composes()
""",
    "within the host's context": HOST
    + FEWSTEP
    + """
with initialize_config_dir(os.getcwd(), version_base="1.2"):
    fewstep_composes(); host_composes()
assert not GlobalHydra.instance().is_initialized()
""",
}


ORDERS["an error of composing"] = (
    HOST
    + """
import fewstep
initialize_config_dir(os.getcwd(), version_base="1.2")
before = state()
for wrong in ("data=nothing", "training.nothing=1", "objective.sigma_d=x"):
    try:
        fewstep.compose([wrong])
        raise SystemExit(f"{wrong} was accepted")
    except fewstep.UserError:
        pass
assert state() == before
"""
)

# each program begins in a process of its own, which has torch and Hydra and nothing of fewstep
FORKED = """
import json, os, sys, traceback
import hydra, scipy.linalg, torch
for name, program in json.loads(sys.argv[1]).items():
    if os.fork() == 0:
        try:
            exec(program, {})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        print("failed:", name)
"""


def test_the_hosts_hydra_is_unchanged(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", FORKED, json.dumps(ORDERS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_importing_the_public_names_changes_no_environment() -> None:
    code = """
import os
before = dict(os.environ)
import fewstep
for name in fewstep.__all__:
    getattr(fewstep, name)
assert set(fewstep.__all__) <= set(dir(fewstep))
assert dict(os.environ) == before, set(os.environ) - set(before)
"""
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
