"""Records -> one tidy frame -> a summary with its statistics. Reads only; needs no torch.

>>> from fewstep import analysis
>>> frame = analysis.load("runs/digits")                                 # doctest: +SKIP
>>> summary = analysis.summarise(frame, weights="ema", guidance=1.0)      # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.analysis.comparison import Comparison as Comparison
from fewstep.analysis.comparison import compare as compare
from fewstep.analysis.samplers import over_nfe as over_nfe
from fewstep.analysis.statistics import bootstrap as bootstrap
from fewstep.analysis.statistics import paired_difference as paired_difference
from fewstep.analysis.statistics import paired_log_ratio as paired_log_ratio
from fewstep.analysis.summary import Summary as Summary
from fewstep.analysis.summary import summarise as summarise

if TYPE_CHECKING:
    from fewstep.analysis.frame import load as load
    from fewstep.analysis.sample_images import load_samples as load_samples


def __getattr__(name: str) -> Any:
    """What reads runs, imported at its first use: reports import none of it."""
    home = {"load": "frame", "load_samples": "sample_images"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
