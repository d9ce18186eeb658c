"""A real SLURM cluster on this machine (tests/sweeps/slurm/cluster/box), and runs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from helpers.commands import environment, wait_for

BOX = Path(__file__).parents[1] / "sweeps/slurm/cluster/box"
# each process of tests has ports of its own: up to PORT + 400 a cluster
PORT = 17817 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "slurmdbd", "mariadbd", "mariadb")
PACKAGES = (
    "slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin "
    "mariadb-server-core mariadb-client-core"
)


def lacking() -> str:
    """Why there can be no cluster here, and what would help; empty if there can."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = [name for name in NEEDED if shutil.which(name, path=path) is None]
    if missing:
        return f"no SLURM ({', '.join(missing)} not found): apt-get install {PACKAGES}"
    return "" if os.geteuid() == 0 else "the SLURM cluster of the tests needs root"


class Box:
    """The cluster: four virtual nodes with two CPUs, partitions low (preemptible) and high."""

    def __init__(self, state: Path, **settings: object) -> None:
        self.state = state
        self.settings = {f"SLURM_BOX_{k.upper()}": str(v) for k, v in settings.items()}

    @property
    def environment(self) -> dict[str, str]:
        return {
            **environment(),
            **self.settings,
            "SLURM_STATE_DIR": str(self.state),
            "SLURM_CONF": str(self.state / "slurm.conf"),
        }

    def up(self) -> None:
        self._box("slurm-up")

    def down(self) -> None:
        self._box("slurm-down", "--purge")

    def node(self, *words: str) -> None:
        """slurm-node: kill, drop or start one."""
        self._box("slurm-node", *words)

    def _box(self, name: str, *words: str) -> None:
        done = subprocess.run(
            [str(BOX / name), *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{name} {words}: {done.stdout}\n{done.stderr}"

    def run(self, *words: object, cwd: Path | None = None) -> str:
        """The output of one of SLURM's commands."""
        done = subprocess.run(
            [str(w) for w in words],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def idle(self) -> bool:
        """Whether nothing is in the queue, and every node can work."""
        queued = self.run("squeue", "-h")
        states = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split()
        return not queued.strip() and all(s == "idle" for s in states)

    def clear(self) -> None:
        """End every job, and bring lost nodes back."""
        self.run("scancel", "--user", "root")
        for n in range(1, 5):
            pid = self.state / f"run/slurmd.node{n}.pid"
            if not pid.exists():
                self.node("start", f"node{n}")
        wait_for(self._mended, "an empty cluster", 180, every=0.3)

    def _mended(self) -> bool:
        for line in self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%N %T").splitlines():
            node, state = line.split()
            if state.startswith(("down", "drain")):  # refused while the node comes back by itself
                words = ["scontrol", "update", f"nodename={node}", "state=resume"]
                subprocess.run(words, env=self.environment, capture_output=True)
        return self.idle()
