"""What samples are compared by: one file per extractor."""

from fewstep.experiments.extractors.base import EXTRACTORS as EXTRACTORS
from fewstep.experiments.extractors.base import Extractor as Extractor
from fewstep.experiments.extractors.base import Features as Features
from fewstep.experiments.extractors.cnn import CNN as CNN
from fewstep.experiments.extractors.decoded import Decoded as Decoded
from fewstep.experiments.extractors.dinov2 import DINOv2 as DINOv2
from fewstep.experiments.extractors.efficientnet import EfficientNetLite0 as EfficientNetLite0
from fewstep.experiments.extractors.inception import Inception as Inception
from fewstep.experiments.extractors.random_conv import RandomConv as RandomConv
from fewstep.experiments.extractors.raw_pca import PCA as PCA
from fewstep.experiments.extractors.raw_pca import Raw as Raw
