"""How numbers and names are written: rounding, accounting for runs, escaping."""

import csv
import io
import math
import re
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence

from fewstep.analysis.summary_types import Cell

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "%": r"\%", "_": r"\_", "&": r"\&",
    "#": r"\#", "$": r"\$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "ß": r"{\ss}",
    "[": "{[}", "]": "{]}", "*": "{*}",  # a row may begin with one: \\[ and \\* are commands
    "`": r"\textasciigrave{}",
    '"': "''",  # OT1, which a paper has unless it asks for another, lacks the straight one
    "±": r"$\pm$", "×": r"$\times$", "≈": r"$\approx$", "→": r"$\to$", "≤": r"$\leq$",
    "≥": r"$\geq$", "∞": r"$\infty$", "·": r"$\cdot$", "†": r"$\dagger$", "‡": r"$\ddagger$",
    "§": r"\S{}",
    "−": r"$-$", "–": r"\textendash{}", "—": r"\textemdash{}", "’": "'", "…": r"\ldots{}",
}  # fmt: skip
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~#$&])")


def in_steps(steps: int) -> str:
    """Of a number of sampling steps: 1 step, 2 steps."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def one_line(text: str) -> str:
    """Without control characters, line breaks among them."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)


def latex(text: str) -> str:
    """``text`` for LaTeX, whatever is in it; what pdflatex can not set is named: [U+4E2D]."""
    escaped = "".join(_latex_character(c) for c in one_line(text))
    return escaped.replace("--", "-{}-{}")  # or two hyphens would become a dash


def _latex_character(character: str) -> str:
    if character in _LATEX:
        return _LATEX[character]
    if character.isascii():
        return character
    name = unicodedata.name(character, "")
    if greek := re.fullmatch(r"GREEK (SMALL|CAPITAL) LETTER (FINAL )?([A-Z]+)", name):
        letter = {"LAMDA": "LAMBDA"}.get(greek[3], greek[3]).lower()
        if greek[1] == "SMALL" and letter != "omicron":
            return rf"$\{letter}$"
        if letter in _CAPITALS:
            return rf"$\{letter.capitalize()}$"
    base = unicodedata.normalize("NFD", character)
    if len(base) == 2 and base[0].isascii() and base[0].isalpha() and base[1] in _ACCENTS:
        return rf"{{\{_ACCENTS[base[1]]}{{{base[0]}}}}}"
    return f"{{[}}U+{ord(character):04X}{{]}}"


_CAPITALS = {"gamma", "delta", "theta", "lambda", "xi", "pi", "sigma", "phi", "psi", "omega"}
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u",
    "\u0307": ".", "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


def wrapped(label: str, width: int = 24) -> list[str]:
    """A method's label in lines: one for each of its choices, and no word broken."""
    wrap = textwrap.TextWrapper(width, break_long_words=False).wrap
    return [line for part in one_line(label).split(" · ") for line in wrap(part)] or [label]


def markdown(text: str) -> str:
    """``text`` for a cell of a Markdown table: nothing in it is markup, nothing ends the cell."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def markdown_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "", escaped: bool = False
) -> str:
    """A pipe table. ``align``: ``-`` (left) or ``>`` (right) for each column, all left by default.

    ``escaped``: the cells of ``rows`` are Markdown already, not plain text.
    """
    kinds = {"-": "---", ">": "---:"}
    lines = [list(map(markdown, header)), [kinds[a] for a in align or "-" * len(header)]]
    lines += [list(row) if escaped else [markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Comma-separated lines."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def exact(value: float | None) -> str:
    """A number at full precision, for a machine; empty for none."""
    return "" if value is None or math.isnan(value) else repr(value)


def number(value: float, spread: float = math.nan) -> str:
    """Three significant digits, and as many decimals as the spread needs to show one."""
    if not math.isfinite(value):
        return str(value)
    value = value or 0.0  # and not -0.0
    if abs(value) >= 1e5 or 0 < abs(value) < 1e-4:
        return f"{value:.3g}"
    decimals = 2 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    if math.isfinite(spread) and spread > 0:
        decimals = max(decimals, -math.floor(math.log10(spread)))
    return f"{value:.{min(decimals, 6)}f}"


def enumerated(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def listed(numbers: Sequence[int]) -> str:
    """``0, 1 and 2``; of more than five in a row, ``0 to 49``."""
    first, last = (numbers[0], numbers[-1]) if numbers else (0, 0)
    if len(numbers) > 5 and list(numbers) == list(range(first, last + 1)):
        return f"{first} to {last}"
    return enumerated([str(n) for n in numbers])


def fraction(length: float) -> str:
    """``0.125`` -> ``1/8``."""
    if not 0 < length < 1 or not math.isclose(1 / length, round(1 / length), rel_tol=1e-9):
        return f"{length:g}"
    return f"1/{round(1 / length)}"


def mean_and_spread(cell: Cell) -> tuple[str, str]:
    """``("12.3", "1.1")`` with the same decimals; the spread is empty for one seed."""
    mean = number(cell.mean, cell.half_width)
    if not math.isfinite(cell.half_width):
        return mean, ""
    decimals = len(mean.partition(".")[2]) if "e" not in mean else None
    return mean, f"{cell.half_width:.3g}" if decimals is None else f"{cell.half_width:.{decimals}f}"


def run_counts(cell: Cell) -> str:
    """How many runs are behind a cell: ``3``, or ``2 of 3; 1 failed``."""
    if cell.complete:
        return str(cell.n)
    lost = {"failed": cell.n_failed, "stopped": cell.n_stopped, "missing": cell.n_missing}
    parts = [f"{n} {word}" for word, n in lost.items() if n]
    return "; ".join([f"{cell.n} of {cell.n_expected}", *parts])


def no_value(cell: Cell) -> str:
    """What stands where there is no value: ``failed (3/3)``, ``not run``, or several."""
    trained = len(cell.unevaluated_seeds)
    lost = {
        "failed": cell.n_failed,
        "stopped": cell.n_stopped,
        "not evaluated": trained,
        "not run": cell.n_missing - trained,
    }
    for word in ("not evaluated", "not run"):
        if lost[word] == cell.n_expected:
            return word
    return ", ".join(f"{word} ({n}/{cell.n_expected})" for word, n in lost.items() if n)


def plain(cell: Cell) -> str:
    """``12.3 ± 1.1 (3)``."""
    if not cell.n:
        return no_value(cell)
    mean, spread = mean_and_spread(cell)
    return f"{mean} ± {spread} ({run_counts(cell)})" if spread else f"{mean} ({run_counts(cell)})"
