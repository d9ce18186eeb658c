"""Records -> one tidy frame -> a summary with its statistics. Reads only; needs no torch.

>>> from fewstep import analysis
>>> frame = analysis.load("runs/digits")                                 # doctest: +SKIP
>>> summary = analysis.summarise(frame, weights="ema", guidance=1.0)      # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.analysis.comparison import Comparison as Comparison
    from fewstep.analysis.comparison import compare as compare
    from fewstep.analysis.frame import load as load
    from fewstep.analysis.samples import load_samples as load_samples
    from fewstep.analysis.statistics import bootstrap as bootstrap
    from fewstep.analysis.statistics import paired_difference as paired_difference
    from fewstep.analysis.statistics import paired_log_ratio as paired_log_ratio
    from fewstep.analysis.summary import Summary as Summary
    from fewstep.analysis.summary import summarise as summarise

_HOMES = {
    "Comparison": "comparison",
    "compare": "comparison",
    "bootstrap": "statistics",
    "paired_difference": "statistics",
    "paired_log_ratio": "statistics",
    "load": "frame",
    "load_samples": "samples",
    "Summary": "summary",
    "summarise": "summary",
}


def __getattr__(name: str) -> Any:
    """Import on first use: pandas takes a while, and `fewstep --help` should not wait for it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
