"""Data sets by name: ``DATA["digits"].load()``."""

from fewstep.experiments.data import cifar, digits, folder, huggingface, latents, mnist, toy
from fewstep.experiments.data.base import DATA as DATA
from fewstep.experiments.data.base import ROUNDINGS as ROUNDINGS
from fewstep.experiments.data.base import Dataset as Dataset
from fewstep.experiments.data.base import DataShape as DataShape
from fewstep.experiments.data.base import DataSource as DataSource
from fewstep.experiments.data.base import Rows as Rows
from fewstep.experiments.data.base import Split as Split
from fewstep.experiments.data.base import like as like
from fewstep.experiments.data.base import shape_of as shape_of
from fewstep.experiments.data.base import take as take
from fewstep.experiments.data.base import to_model as to_model
from fewstep.experiments.data.base import to_uint8 as to_uint8
from fewstep.experiments.data.base import without_labels as without_labels

_ = cifar, digits, folder, huggingface, latents, mnist, toy  # they register themselves
