"""One thread everywhere: sums in another order are other bits, and xdist uses the cores."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch

torch.set_num_threads(1)
