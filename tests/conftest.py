"""One thread everywhere (sums in another order are other bits, and xdist uses the cores), and none
of the environment variables that would send data or records elsewhere."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)

if "FEWSTEP_DATA" in os.environ:  # for the tests of real files alone: see test_data.py
    os.environ["FEWSTEP_TEST_DATA"] = os.environ.pop("FEWSTEP_DATA")
for name in ("MLFLOW_TRACKING_URI", "COLUMNS", "FORCE_COLOR"):
    os.environ.pop(name, None)
