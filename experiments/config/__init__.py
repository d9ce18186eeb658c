"""The configuration of runs: settings, overrides, and the key that they give a run."""

from typing import TYPE_CHECKING

from fewstep.deprecation import renamed

if not TYPE_CHECKING:
    # in version 0.1 run_config was this module
    _NAMES = "RunConfig Override compose amend parse pair build build_named with_sampler sweep_name"
    __getattr__ = renamed(__name__, {n: f"{__name__}.run_config:{n}" for n in _NAMES.split()})
