"""Whether several extractors put the methods in the same order."""

from collections.abc import Sequence

from fewstep.analysis.agreement import Agreement
from fewstep.analysis.statistics import Estimate
from fewstep.reports.content import formatting
from fewstep.reports.content.formatting import exact
from fewstep.reports.tables import plain

NOTE = (
    "Kendall's tau between the orders of the methods: 1 the same, 0 unrelated, −1 the reverse. "
    "Mean [95% Student-t interval over seeds, within −1 and 1] (number of seeds); no interval "
    "where all seeds agree."
)


def table(agreements: Sequence[Agreement]) -> plain.Table:
    """A row for each two metrics, a column for each number of steps and one for their mean."""
    steps = sorted({s for agreement in agreements for s in agreement.by_steps})
    points = [[*(a.by_steps.get(s) for s in steps), a.mean] for a in agreements]
    rows = [
        (f"{a.first} and {a.second}", str(a.methods), *map(_shown, of))
        for a, of in zip(agreements, points, strict=True)
    ]
    header = ("Metrics", "Methods", *map(formatting.in_steps, steps), "Mean")
    return plain.Table("Rank agreement of extractors", header, rows, NOTE)


def _shown(point: Estimate | None) -> str:
    if point is None:
        return "–"
    low, high = max(-1.0, point.mean - point.half_width), min(1.0, point.mean + point.half_width)
    spread = f" [{low:.2f}, {high:.2f}]" if point.half_width > 0 else ""
    return f"{point.mean:.2f}{spread} ({point.n})".replace("-", "−")


def markdown(agreements: Sequence[Agreement]) -> str:
    """With its note."""
    made = table(agreements)
    return f"{made.markdown()}\n\n{formatting.markdown(made.note)}\n"


def csv(agreements: Sequence[Agreement]) -> str:
    """Tidy, at full precision: a line for each two metrics and number of steps; 0: their mean."""
    lines = [
        [a.first, a.second, *map(exact, (steps, p.mean, p.half_width, p.n, a.methods))]
        for a in agreements
        for steps, p in {**a.by_steps, 0: a.mean}.items()
    ]
    header = ("first", "second", "steps", "tau", "half_width", "n", "methods")
    return formatting.csv_table(header, lines)
