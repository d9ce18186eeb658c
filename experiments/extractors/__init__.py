"""What samples are compared by: one file per extractor."""

from fewstep.experiments.extractors.base import EXTRACTORS, Extractor, Features
from fewstep.experiments.extractors.cnn import CNN
from fewstep.experiments.extractors.decoded import Decoded
from fewstep.experiments.extractors.dinov2 import DINOv2
from fewstep.experiments.extractors.inception import Inception
from fewstep.experiments.extractors.pixels import PCA, Raw
from fewstep.experiments.extractors.random_conv import RandomConv

__all__ = [
    "CNN",
    "EXTRACTORS",
    "PCA",
    "DINOv2",
    "Decoded",
    "Extractor",
    "Features",
    "Inception",
    "RandomConv",
    "Raw",
]
