"""How many threads a process of a run computes with."""

import os

LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""What the libraries below torch read as they are loaded."""


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(share: float) -> int:
    """For a process whose share of the machine is so many cores: whole ones, one at least.

    No more than this process may use, nor than the user's OMP_NUM_THREADS says. The share is for
    its launcher to tell: the cores that a process sees are often others' as well.
    """
    most = user_limit()
    return max(1, min(int(share), cores(), *([] if most is None else [most])))


def user_limit() -> int | None:
    """What OMP_NUM_THREADS says; None where it says nothing."""
    setting = os.environ.get(LIMITS[0], "").partition(",")[0].strip()  # 4,2: of nested loops
    return int(setting) if setting.isdigit() else None


def limits(number: int) -> dict[str, str]:
    """The variables that hold a new process to so many."""
    return dict.fromkeys(LIMITS, str(number))
