"""What samples are measured by: one file per family of metrics."""

from fewstep.experiments.metrics.base import METRICS as METRICS
from fewstep.experiments.metrics.base import Metric as Metric
from fewstep.experiments.metrics.base import Value as Value
from fewstep.experiments.metrics.fd import FD as FD
from fewstep.experiments.metrics.fd import SFD as SFD
from fewstep.experiments.metrics.fd import FDInf as FDInf
from fewstep.experiments.metrics.fd import at_infinity as at_infinity
from fewstep.experiments.metrics.fd import bias_curve as bias_curve
from fewstep.experiments.metrics.inception_score import InceptionScore as InceptionScore
from fewstep.experiments.metrics.kid import KID as KID
from fewstep.experiments.metrics.memorisation import Authenticity as Authenticity
from fewstep.experiments.metrics.memorisation import Memorisation as Memorisation
from fewstep.experiments.metrics.prdc import Coverage as Coverage
from fewstep.experiments.metrics.prdc import Density as Density
from fewstep.experiments.metrics.prdc import Precision as Precision
from fewstep.experiments.metrics.prdc import Recall as Recall
