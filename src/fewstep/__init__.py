"""fewstep: few-step generative objectives, compared fairly on one shared backbone.

>>> import torch
>>> from fewstep import Batch, MeanFlow, Nets, Progress                      # doctest: +SKIP
>>> net, objective, g = MyNet(), MeanFlow(), torch.Generator()               # doctest: +SKIP
>>> loss = objective.loss(Nets(net), Batch(x), Progress(step, total), g)     # doctest: +SKIP
>>> samples = objective.sample(net, noise, times=1, g=g)                     # doctest: +SKIP

``MyNet`` is any ``nn.Module`` with ``forward(x, t, d=None, y=None)``. All names below are imported
on first use, because torch takes a second and ``fewstep --help`` should not wait for it.
"""

import sys
from typing import TYPE_CHECKING, Any

from fewstep._moved import MovedModules
from fewstep._version import __version__

if TYPE_CHECKING:
    from fewstep.analysis import compare as compare
    from fewstep.analysis import load as load
    from fewstep.analysis import load_samples as load_samples
    from fewstep.analysis import summarise as summarise
    from fewstep.backbones import *  # noqa: F403
    from fewstep.errors import UserError as UserError
    from fewstep.experiments.config.run_config import RunConfig as RunConfig
    from fewstep.experiments.config.run_config import compose as compose
    from fewstep.experiments.data import DATA as DATA
    from fewstep.experiments.data import Dataset as Dataset
    from fewstep.experiments.data import DataSource as DataSource
    from fewstep.experiments.data import Split as Split
    from fewstep.experiments.extractors import EXTRACTORS as EXTRACTORS
    from fewstep.experiments.metrics import METRICS as METRICS
    from fewstep.experiments.run import prepare as prepare
    from fewstep.experiments.run import run as run
    from fewstep.objectives import *  # noqa: F403
    from fewstep.objectives.conformance import run_checks as run_checks

_PUBLIC = {
    "analysis": "compare load load_samples summarise",
    "backbones": "BACKBONES Backbone DiT MLP UNet",
    "errors": "UserError",
    "experiments.config.run_config": "RunConfig compose",
    "experiments.data": "DATA DataSource Dataset Split",
    "experiments.extractors": "EXTRACTORS",
    "experiments.metrics": "METRICS",
    "experiments.run": "prepare run",
    "objectives": "ECT ICT OBJECTIVES SCD SCM AlphaFlow Batch Consistency ConsistencyDistillation "
    "FlowMatching GaussianFlow Guided ImprovedMeanFlow LinearPath LiveReflow Loss MeanFlow Net "
    "Nets Objective ProbabilityPath Progress ProgressiveDistillation Reflow Shortcut "
    "ShortcutContinuous Teacher TrigPath drop_conditions",
    "objectives.conformance": "run_checks",
}
_HOMES = {name: home for home, names in _PUBLIC.items() for name in names.split()}
__all__ = ["__version__", *_HOMES]

sys.meta_path.append(MovedModules())


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A public name, from where it is defined."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
