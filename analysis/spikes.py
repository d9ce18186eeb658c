"""Spikes of the gradient in a run's training curve."""

import re
from pathlib import Path
from statistics import median

SPIKE, BEFORE, FEWEST = 10.0, 20, 5
NORM = re.compile(rb'^\{"step": (\d+),[^\n]*?"grad_norm": ([0-9.e+-]+)[,}]', re.MULTILINE)
SPIKED = (
    f"a logged gradient norm (before clipping) above {SPIKE:g} times the median of the up to "
    f"{BEFORE} norms logged before it"
)


def first_spike(metrics: Path) -> int | None:
    """The step of the first spike in a metrics.jsonl; 0 for none, None where too little is known.

    A spike is ``SPIKED``, with at least ``FEWEST`` norms before it.
    """
    try:
        content = metrics.read_bytes()
    except OSError:
        return None
    norms = [(int(step), float(norm)) for step, norm in NORM.findall(content)]
    for i in range(FEWEST, len(norms)):
        step, norm = norms[i]
        if norm > SPIKE * median(before for _, before in norms[max(0, i - BEFORE) : i]):
            return step
    return 0 if len(norms) > FEWEST else None
