"""The caption: what was measured, how, on how much, and what the marks mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from fewstep.analysis.records import Conditions, Summary
from fewstep.reports.published import MARK, Published
from fewstep.reports.rows import groups
from fewstep.reports.text import number

FLOOR = "real vs real floor"


def caption(summary: Summary, published: Sequence[Published] = ()) -> str:
    """Plain text; escape it for where it goes. ``published``: the rows of papers beside ours."""
    c = summary.conditions
    if c.metric is None:
        return f"Sweep {summary.sweep}: nothing has been evaluated yet."
    return " ".join([*protocol(summary, c), *_marks(summary, c), *_sources(summary, published)])


def _sources(summary: Summary, published: Sequence[Published]) -> list[str]:
    """Whose the rows marked as published are."""
    shown = [row for group in groups(summary, published) for row in group.published]
    if not shown:
        return []
    wheres: dict[str, list[str]] = {}
    for row in shown:
        wheres.setdefault(row.where, []).append(row.label)
    told = "; ".join(f"{joined(labels)}: {where}" for where, labels in wheres.items())
    odd = any(row.unintended & set(summary.steps) for row in shown)
    note = " In parentheses: steps that the method was not made for." if odd else ""
    return [f"{MARK}: published, not measured here and not ranked ({told}).{note}"]


def protocol(summary: Summary, c: Conditions) -> list[str]:
    """Sentences: what was measured, on how much, and how it was sampled."""
    on = f" on {joined(c.data)}" if c.data else ""
    network = f", {joined(c.backbones)} backbone" if len(c.backbones) == 1 else ""
    digest = f" (sha256 {c.extractor_sha256[:8]})" if c.extractor_sha256 else ""
    extractor = f", extractor {c.extractor}{digest}" if c.extractor else ""
    against = f" against {c.reference_samples:,} references" if c.reference_samples else ""
    split = f" ({c.reference} split)" if c.reference else ""
    guidance = "no guidance" if c.guidance in (None, 1.0) else f"guidance {c.guidance:g}"
    weights = "EMA" if c.weights == "ema" else c.weights
    sample_set = f", sample set {c.sample_set}" if c.sample_set else ""
    lines = [
        f"{c.metric}{on}{network} (lower is better; metric {c.metric_id}{extractor}).",
        f"{c.samples:,} samples{against}{split}, {weights} weights, {guidance}{sample_set}.",
        _samplers(summary, c),
        *_nfe(summary),
    ]
    for method, steps, times in c.given_times:
        lines.append(f"{method} takes its {steps} steps at times {times}.")
    budget = f"{joined([f'{s:,}' for s in c.train_steps])} training steps"
    budget += f" ({joined([f'{s:,}' for s in c.images_seen])} images)" if c.images_seen else ""
    if c.train_steps:
        differ = len(c.train_steps) > 1 or len(c.images_seen) > 1
        lines.append(f"{'Budgets differ: ' if differ else ''}{budget}.")
    return [line for line in lines if line]


def _samplers(summary: Summary, c: Conditions) -> str:
    """The commonest sampler, and who has another."""
    own = {method: c.samplers[method] for method in summary.methods if method in c.samplers}
    (common, _), *others = Counter(own.values()).most_common()
    shown = [f"Sampler: {common}"]
    for sampler, _ in others:
        shown.append(f"{sampler} for {joined([m for m, s in own.items() if s == sampler])}")
    return "; ".join(shown) + "."


def _nfe(summary: Summary) -> list[str]:
    """Function evaluations, of each method where they are not its steps."""
    lines = []
    for method in summary.methods:
        pairs = [(s, summary.cells[method, s].nfe) for s in summary.steps]
        known = [(steps, nfe) for steps, nfe in pairs if nfe is not None]
        if any(steps != nfe for steps, nfe in known):
            evaluations = [str(nfe) for _, nfe in known]
            lines.append(f"{method} takes {joined(evaluations)} function evaluations (NFE).")
    return lines or ["One function evaluation a step (NFE = steps)."]


def _marks(summary: Summary, c: Conditions) -> list[str]:
    cells = summary.cells.values()
    n = max((cell.n for cell in cells), default=0)
    seeds = f"seed{'s' if len(c.seeds) > 1 else ''} {joined([str(s) for s in c.seeds])}"
    if n > 1:
        lines = [f"Mean ± half-width of the 95% Student-t interval over training {seeds}; their "
                 "number in parentheses."]  # fmt: skip
    else:
        lines = [f"Training {seeds}: one run tells nothing of the spread."]
    if any(cell.best for cell in cells):
        lines.append("Best mean bold, second underlined.")
        if not all(cell.complete for cell in cells):
            lines.append("Cells without all their seeds are not ranked.")
    if any(cell.tie for cell in cells):
        tie = (
            "≈: not distinguished from the best (t-test on log ratios paired by seed, Holm over "
            f"the steps of each method, p > {summary.alpha:g})"
        )
        weak = sorted({cell.n for cell in cells if cell.underpowered})
        if weak:
            tie += (
                f"; underpowered at {joined([str(k) for k in weak])} seeds, so no sign of equality"
            )
        lines.append(tie + ".")
    if summary.floor is not None:
        lines.append(
            f"Floor: {c.metric_name} of {c.samples:,} held-out real samples, by the same measure."
        )
    return lines


def figure_caption(summary: Summary) -> str:
    """What the marks of the FD-versus-NFE figure stand for."""
    seeds = joined([str(s) for s in summary.conditions.seeds])
    floor = f"; dashed: {FLOOR} ({number(summary.floor)})" if summary.floor is not None else ""
    return (
        f"Lines: mean over seeds {seeds}; bands: 95% Student-t interval of the mean, clipped at "
        f"the lower edge of the axis; dots: single seeds; open markers: not all seeds gave a "
        f"value{floor}."
    )


def joined(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
