"""What a summary is made of: cells, the conditions they share, failures."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from numpy.typing import NDArray

from fewstep.analysis.statistics import PairedRatio, paired_log_ratio
from fewstep.errors import check_choice, unknown

ALPHA = 0.05
Samples = dict[tuple[str, int], NDArray[Any]]
"""By (method, steps): uint8 images (n, C, H, W), or vectors (n, D)."""


@dataclass(frozen=True)
class Cell:
    """One method at one number of sampling steps, over seeds."""

    values: Mapping[int, float]  # by seed, a mean over sample sets; of networks trained to the end
    failed_seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]  # not run, still running, or this cell not evaluated
    mean: float  # nan for no value
    half_width: float  # of the 95% t-interval over seeds; nan for n < 2
    keys: tuple[str, ...]  # of the runs behind ``values``
    nfe: int | None
    best: bool = False  # lowest mean of the column
    second: bool = False
    tie: bool = False  # not significantly worse than the best
    p_value: float = math.nan  # of the surest of those that are lower: Holm over the table's pairs
    underpowered: bool = False  # a tie that so few seeds could hardly have resolved
    seed_sd: float = math.nan  # spread of single values from seed to seed, sampling taken out
    sampling_sd: float = math.nan  # and from sample set to sample set; nan for one set
    stopped_seeds: tuple[int, ...] = ()  # ended early, by a search: no failure, and no value
    unevaluated_seeds: tuple[int, ...] = ()  # those of the missing that are trained to the end

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def n_failed(self) -> int:
        return len(self.failed_seeds)

    @property
    def n_stopped(self) -> int:
        return len(self.stopped_seeds)

    @property
    def n_missing(self) -> int:
        return len(self.missing_seeds)

    @property
    def n_expected(self) -> int:
        return self.n + self.n_failed + self.n_stopped + self.n_missing

    @property
    def complete(self) -> bool:
        return 0 < self.n == self.n_expected


@dataclass(frozen=True)
class Conditions:
    """Under what conditions all values of a table were measured; None where nothing was."""

    metric: str | None = None
    metric_id: str | None = None
    metric_name: str | None = None
    better: str | None = None  # lower | higher | neither
    extractor: str | None = None
    extractor_sha256: str | None = None
    samples: int | None = None
    reference: str | None = None
    reference_samples: int | None = None
    weights: str | None = None
    guidance: float | None = None
    selected_from: str | None = None  # scales, and the sample set that chose each cell's among them
    guidances: Mapping[tuple[str, int], float] = field(default_factory=dict)  # these cells' scales
    sample_sets: tuple[int, ...] = ()
    data: tuple[str, ...] = ()
    data_versions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By a data set's name and settings: sha256 of what runs are trained on, key of one of them."""
    backbones: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    seeds_differ: bool = False  # from method to method
    shared: int = 0  # runs that are in more than one of several sweeps
    budgets: tuple[str, ...] = ()  # of sweeps whose runs were made to spend the same
    recipes: tuple[str, ...] = ()  # of papers, and how far sweeps differ from them
    train_steps: tuple[int, ...] = ()  # more than one: budgets differ, unless that was so
    images_seen: tuple[int, ...] = ()
    samplers: Mapping[str, str] = field(default_factory=dict)  # method -> sampler
    initialised: Mapping[str, str] = field(default_factory=dict)  # method -> whose weights it took
    random_starts: tuple[str, ...] = ()  # methods that have a teacher, and did not take its weights
    given_times: tuple[tuple[str, int, str], ...] = ()  # (method, steps, times) unless uniform
    # in the words of published.csv; more than one: the table mixes them, "unknown" is one of them
    data_is: tuple[str, ...] = ()  # public data sets
    conditional: tuple[str, ...] = ()  # classes | vectors | none
    references: tuple[str, ...] = ()
    guidance_kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A run that gave no result for the table; of kind "stopped" if it was ended early."""

    key: str
    method: str
    seed: int
    kind: str
    message: str


@dataclass(frozen=True)
class Summary:
    """Rows ``methods`` (in the sweep's order) by columns ``steps`` (ascending).

    ``conditions.better`` says which values rank first.
    """

    sweep: str  # their names joined by " + " where there are several
    methods: tuple[str, ...]
    steps: tuple[int, ...]
    cells: Mapping[tuple[str, int], Cell]
    floor: float | None  # the metric between real and real at the same N
    conditions: Conditions
    failures: tuple[Failure, ...]
    alpha: float = ALPHA
    two_phase: frozenset[str] = frozenset()  # methods that learn from a finished run
    reconstruction: float | None = None  # between what an autoencoder makes of real, and real
    left_out: int = 0  # methods that a part of it does not have

    @property
    def tested(self) -> bool:
        """Whether any two methods were: with what is neither better nor worse, none are."""
        return any(not math.isnan(cell.p_value) for cell in self.cells.values())

    def only(self, methods: Collection[str]) -> Self:
        """The part that these methods are, in their order; ranks and marks are the whole's."""
        kept = tuple(m for m in self.methods if m in methods)
        return replace(
            self,
            methods=kept,
            cells={key: cell for key, cell in self.cells.items() if key[0] in kept},
            two_phase=self.two_phase & frozenset(kept),
            left_out=self.left_out + len(self.methods) - len(kept),
        )

    def compare(self, method: str, baseline: str, steps: int) -> PairedRatio:
        """``method`` / ``baseline`` over the seeds that both have at ``steps``."""
        for name in (method, baseline):
            check_choice("method", name, self.methods)
        if steps not in self.steps:
            raise unknown("step count", steps, map(str, self.steps))
        a, b = self.cells[method, steps].values, self.cells[baseline, steps].values
        seeds = sorted(a.keys() & b.keys())
        return paired_log_ratio([a[s] for s in seeds], [b[s] for s in seeds])
