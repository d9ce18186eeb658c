"""The caption: what was measured, how, on how much, and what the marks mean."""

from collections import Counter
from collections.abc import Sequence
from statistics import median

from fewstep.analysis.summary_types import Conditions, Summary
from fewstep.reports.content.formatting import enumerated, listed, number
from fewstep.reports.content.method_selection import note
from fewstep.reports.content.published import Published
from fewstep.reports.content.published_notes import MARK, notes
from fewstep.reports.content.row_groups import groups

FLOOR, RECONSTRUCTION = "real vs real floor", "autoencoder's reconstructions"


def of_real_images(summary: Summary) -> list[tuple[str, float]]:
    """The last rows of a table: what no method trained on these data can be expected to surpass."""
    rows = (RECONSTRUCTION, summary.reconstruction), (FLOOR, summary.floor)
    return [(label, value) for label, value in rows if value is not None]


def caption(
    summary: Summary, published: Sequence[Published] = (), number: str = "in parentheses"
) -> str:
    """Plain text; escape it for where it goes.

    ``published``: the rows of papers beside ours. ``number``: how cells tell that of seeds.
    """
    c = summary.conditions
    if c.metric is None:
        return f"Sweep {summary.sweep}: nothing has been evaluated yet."
    parts = (measured(summary), budget(summary), _marks(summary, c, number),
             _sources(summary, published))  # fmt: skip
    return " ".join(sentence for part in parts for sentence in part)


def _sources(summary: Summary, published: Sequence[Published]) -> list[str]:
    """Whose the rows marked as published are."""
    if not (shown := [row for group in groups(summary, published) for row in group.published]):
        return []
    labels = {where: [row.label for row in shown if row.where == where]
              for where in dict.fromkeys(row.where for row in shown)}  # fmt: skip
    sources = "; ".join(f"{enumerated(of)}: {where}" for where, of in labels.items())
    told = f"{MARK}: published, not measured here and not ranked ({sources})."
    return [told, *notes(shown, summary.steps)]


def measured(summary: Summary) -> list[str]:
    """What was measured, on how much, and how it was sampled."""
    c = summary.conditions
    on = f" on {enumerated(c.data)}" if c.data else ""
    network = f", {enumerated(c.backbones)} backbone" if len(c.backbones) == 1 else ""
    digest = f" (sha256 {c.extractor_sha256[:8]})" if c.extractor_sha256 else ""
    extractor = f", extractor {c.extractor}{digest}" if c.extractor else ""
    against = f" against {c.reference_samples:,} references" if c.reference_samples else ""
    split = f" ({c.reference} split)" if c.reference else ""
    guidance = "no guidance" if c.guidance in (None, 1.0) else f"guidance {c.guidance:g}"
    if c.selected_from:
        guidance = "guidance selected for each cell"
    weights = _averaged(c.weights or "")
    sets = [str(s) for s in c.sample_sets]
    plural = "s" if len(sets) > 1 else ""
    sample_set = f", sample set{plural} {enumerated(sets)}" if any(c.sample_sets) else ""
    better = "0.5 is ideal" if c.better == "neither" else f"{c.better or 'lower'} is better"
    lines = [
        f"{c.metric}{on}{network} ({better}; metric {c.metric_id}{extractor}).",
        f"{c.samples:,} samples{against}{split}, {weights} weights, {guidance}{sample_set}.",
        *_guidance(summary),
        _samplers(summary, c),
        *_nfe(summary),
    ]
    return [*lines, *(f"{method} takes its {steps} steps at times {times}."
                      for method, steps, times in c.given_times)]  # fmt: skip


def _guidance(summary: Summary) -> list[str]:
    """Which scale each cell has, and how it was selected."""
    c = summary.conditions
    if not c.selected_from:
        return []
    parts = []
    for method in summary.methods:
        own = {steps: scale for (m, steps), scale in c.guidances.items() if m == method}
        by_scale = {scale: [str(s) for s in sorted(own) if own[s] == scale]
                    for scale in sorted(set(own.values()))}  # fmt: skip
        if by_scale:
            scales = [f"{scale:g} at {enumerated(steps)}" for scale, steps in by_scale.items()]
            parts.append(f"{method} {enumerated(scales)}")
    return [
        f"Each cell's guidance scale is the best of {c.selected_from}, which its value does not "
        f"use; at steps: {'; '.join(parts)}."
    ]


def _averaged(weights: str) -> str:
    """``ema-0.9999`` and the like in words."""
    kind, _, setting = weights.partition("-")
    words = {"ema": "EMA", "sigma_rel": "post-hoc EMA"}.get(kind, kind)
    return f"{words} ({'decay' if kind == 'ema' else kind} {setting})" if setting else words


def budget(summary: Summary) -> list[str]:
    """What training spent, and whether that was equal."""
    c = summary.conditions
    spent = f"{enumerated([f'{s:,}' for s in c.train_steps])} training steps"
    spent += f" ({enumerated([f'{s:,}' for s in c.images_seen])} images)" if c.images_seen else ""
    lines = [f"Equal budgets: {'; '.join(c.budgets)}."] if c.budgets else []
    if c.train_steps:
        differ = not c.budgets and (len(c.train_steps) > 1 or len(c.images_seen) > 1)
        lines.append(f"{'Budgets differ: ' if differ else ''}{spent}.")
    lines += [f"{recipe}." for recipe in c.recipes]
    return [*lines, *_first_weights(summary)]


def _first_weights(summary: Summary) -> list[str]:
    """Which methods begin with the weights of another."""
    own = {m: w for m in summary.methods if (w := summary.conditions.initialised.get(m))}
    lines = []
    for source in dict.fromkeys(own.values()):
        methods = [m for m, w in own.items() if w == source]
        verb = "starts" if len(methods) == 1 else "start"
        lines.append(f"{enumerated(methods)} {verb} from the weights of a run of {source}.")
    if random := [m for m in summary.methods if m in summary.conditions.random_starts]:
        verb, whose = ("starts", "its") if len(random) == 1 else ("start", "their")
        lines.append(f"{enumerated(random)} {verb} from random weights, not {whose} teacher's.")
    return lines


def _samplers(summary: Summary, c: Conditions) -> str:
    """The commonest sampler, and who has another."""
    own = {method: c.samplers[method] for method in summary.methods if method in c.samplers}
    (common, _), *others = Counter(own.values()).most_common()
    rest = (f"; {sampler} for {enumerated([m for m, s in own.items() if s == sampler])}"
            for sampler, _ in others)  # fmt: skip
    return f"Sampler: {common}{''.join(rest)}."


def _nfe(summary: Summary) -> list[str]:
    """Function evaluations, of each method where they are not its steps."""
    lines = []
    for method in summary.methods:
        pairs = [(s, summary.cells[method, s].nfe) for s in summary.steps]
        known = {steps: str(nfe) for steps, nfe in pairs if nfe is not None}
        if any(str(steps) != nfe for steps, nfe in known.items()):
            nfes = enumerated(list(known.values()))
            lines.append(f"{method} takes {nfes} function evaluations (NFE).")
    return lines or ["One function evaluation a step (NFE = steps)."]


def _marks(summary: Summary, c: Conditions, number: str) -> list[str]:
    cells = summary.cells.values()
    n = max((cell.n for cell in cells), default=0)
    seeds = f"seed{'s' if len(c.seeds) > 1 else ''} {listed(c.seeds)}"
    mean = "Mean ± half-width of the 95% Student-t interval over training"
    lines = [f"{mean} {seeds}; their number {number}." if n > 1 else
             f"Training {seeds}: one run, so no interval."]  # fmt: skip
    if c.seeds_differ:
        lines.append("Not all methods have the same seeds.")
    if c.shared:
        count = "1 run is" if c.shared == 1 else f"{c.shared} runs are"
        lines.append(f"{count} in two of the sweeps: rows that share runs are not independent.")
    lines += _spreads(summary)
    if any(cell.best for cell in cells):
        lines.append("Best mean bold, second underlined.")
        if not all(cell.complete for cell in cells):
            lines.append("Cells without all their seeds are not ranked.")
    if any(cell.tie for cell in cells):
        tie = (
            "≈: not significantly worse than the best (t-tests on log ratios paired by seed, all "
            f"pairs of methods, Holm over the whole table, p > {summary.alpha:g})"
        )
        if weak := sorted({cell.n for cell in cells if cell.underpowered}):
            few = enumerated([str(k) for k in weak])
            tie += f"; underpowered at {few} seeds, so not evidence of equality"
        lines.append(tie + ".")
    if summary.floor is not None:
        lines.append(f"Floor: {c.metric_name} of {c.samples:,} held-out real samples.")
    if summary.reconstruction is not None:
        lines.append(f"Reconstructions: of {c.samples:,} held-out images, encoded and decoded.")
    return lines


def _spreads(summary: Summary) -> list[str]:
    """How far single values are apart from seed to seed, and from one set of samples to another."""
    cells = [cell for cell in summary.cells.values() if cell.sampling_sd >= 0 and cell.mean]
    if not cells:
        return []
    sampling = median(100 * cell.sampling_sd / abs(cell.mean) for cell in cells)
    spread = f"{sampling:.2g}% from sample set to sample set"
    if seeds := [100 * cell.seed_sd / abs(cell.mean) for cell in cells if cell.seed_sd >= 0]:
        spread = f"{median(seeds):.2g}% from seed to seed and {spread}"
    return [
        "A run's value is its mean over the sample sets; the unit of every interval and test is "
        f"the seed. Single values vary by {spread} (standard deviations, medians over the table)."
    ]


def figure_caption(summary: Summary) -> str:
    """What the marks of the FD-versus-NFE figure stand for."""
    seeds = listed(summary.conditions.seeds)
    floor = f"; dashed: {FLOOR} ({number(summary.floor)})" if summary.floor is not None else ""
    return (
        f"Lines: mean over seeds {seeds}; bands: 95% Student-t interval of the mean, clipped at "
        f"the lower edge of the axis; dots: single seeds; open markers: not all seeds gave a "
        f"value{floor}.{note(summary)}"
    )
