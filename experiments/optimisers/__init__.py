"""How gradients change weights: one file per family of optimisers."""

from fewstep.experiments.optimisers.adam import Adam as Adam
from fewstep.experiments.optimisers.adam import AdamW as AdamW
from fewstep.experiments.optimisers.adam import RAdam as RAdam
from fewstep.experiments.optimisers.base import OPTIMISERS as OPTIMISERS
from fewstep.experiments.optimisers.base import Optimiser as Optimiser
from fewstep.experiments.optimisers.base import Update as Update
from fewstep.experiments.optimisers.muon import Muon as Muon
