"""One thread everywhere (sums in another order are other bits, and xdist uses the cores), and none
of the environment variables that would send data or records elsewhere."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

if "FEWSTEP_DATA" in os.environ:  # for the tests of real files alone: see test_data.py
    os.environ["FEWSTEP_TEST_DATA"] = os.environ.pop("FEWSTEP_DATA")
for name in ("MLFLOW_TRACKING_URI", "COLUMNS", "FORCE_COLOR"):
    os.environ.pop(name, None)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module share a process: in another it is made again."""
    for item in items:
        fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        shared = any(f.scope == "module" for some in fixtures for f in some)
        if shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
