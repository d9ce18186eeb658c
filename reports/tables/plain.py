"""Tables of plain text, whatever is in it, as Markdown and LaTeX."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fewstep.analysis.summary_types import Summary
from fewstep.reports.content import formatting


@dataclass(frozen=True)
class Table:
    """``values``: what the cells of a row but the first are sorted by, where they can be.

    ``align``: ``-`` (left) or ``>`` (right) for each column; all but the first to the right by
    default.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    values: Sequence[Sequence[float]] = ()
    align: str = ""

    def __post_init__(self) -> None:
        if not self.align:
            object.__setattr__(self, "align", "-" + ">" * (len(self.header) - 1))

    def markdown(self) -> str:
        """The table alone, without title and note."""
        return formatting.markdown_table(self.header, self.rows, self.align)


def failures(summary: Summary) -> Table:
    """The runs that gave no result, and why."""
    rows = [(f.method, str(f.seed), f.kind, f.message, f.key) for f in summary.failures]
    header = ("Method", "Seed", "What", "Message", "Run")
    return Table("Failed and stopped runs", header, rows, align="-----")


MOST_ROWS, LONGEST_NOTE = 20, 900
"""Of a float, which fits on a page then. More rows go into further floats, and a longer note
below the last, as text."""


def latex(*tables: Table) -> str:
    """``table`` floats to be \\input; their document needs booktabs and graphicx."""
    return latex_file([line for table in tables for line in _floats(table)])


def _floats(table: Table) -> list[str]:
    head, *heads = table.header
    header = [latex_row([formatting.latex(head), *(latex_name(h, "c", 12) for h in heads)])]
    rows = [
        latex_row([latex_name(name), *map(formatting.latex, cells)]) for name, *cells in table.rows
    ]
    long = len(table.note) > LONGEST_NOTE
    note = "Notes: in the text." if long else table.note
    floats = []
    pages = math.ceil(len(rows) / MOST_ROWS) or 1
    size = math.ceil(len(rows) / pages) or 1
    for first in range(0, pages * size, size):
        caption = f"{table.title}. {note}" if first == 0 else f"{table.title}, continued."
        lines = [*header, r"\midrule", *rows[first : first + size]]
        floats += latex_float(caption, "l" + "r" * len(heads), lines)
    text = rf"{{\footnotesize\noindent {formatting.latex(f'{table.title}. {table.note}')}\par}}"
    return [*floats, text] if long else floats


FLOATS = r"""% \usepackage{booktabs,graphicx}
\makeatletter % over both columns where there are two; smaller where it is wider than the text
\providecommand{\fewstepfloat}{table\if@twocolumn*\fi}
\providecommand{\fewstepfit}[1]{\sbox\z@{#1}\ifdim\wd\z@>\linewidth
  \resizebox{\linewidth}{!}{\usebox\z@}\else\usebox\z@\fi}
\makeatother"""


def latex_file(lines: Iterable[str]) -> str:
    """Lines with floats, as a file that says what it needs."""
    return "\n".join([FLOATS, *lines, ""])


def latex_float(
    caption: str, columns: str, lines: Sequence[str], size: str = "footnotesize", label: str = ""
) -> list[str]:
    """A ``table`` float with a plain-text caption above ``lines``, those of the tabular."""
    return [
        r"\begin{\fewstepfloat}[t]",
        rf"\centering\{size}\setlength{{\tabcolsep}}{{4pt}}\setlength{{\belowcaptionskip}}{{4pt}}",
        rf"\caption{{{formatting.latex(caption)}}}",
        *([rf"\label{{{label}}}"] if label else []),
        rf"\fewstepfit{{\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{\fewstepfloat}",
    ]


def latex_row(cells: Iterable[str]) -> str:
    """One line of a tabular."""
    return " & ".join(cells) + r" \\"


def latex_name(text: str, align: str = "l", width: int = 24) -> str:
    """Plain text as a cell, wrapped."""
    return latex_lines([*map(formatting.latex, formatting.wrapped(text, width))], align)


def latex_lines(lines: Sequence[str], align: str) -> str:
    """One or more lines of LaTeX in one cell, centred on the row."""
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}{{@{{}}{align}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


LAYOUTS = {  # text width of NeurIPS; columns of CVPR
    "landscape": (r"\documentclass{article}", "a4paper,landscape,margin=2cm"),
    "neurips": (r"\documentclass{article}", "letterpaper,textwidth=5.5in,textheight=9in"),
    "cvpr": (
        r"\documentclass[10pt,twocolumn]{article}",
        "letterpaper,textwidth=6.875in,textheight=8.875in,columnsep=0.3125in",
    ),
}


def latex_document(*files: str, layout: str = "landscape") -> str:
    """A document of its own around files that hold tables and text, to look at."""
    document, page = LAYOUTS[layout]
    return "\n".join([
        document,
        rf"\usepackage[{page}]{{geometry}}",
        r"\usepackage{booktabs,graphicx}",
        r"\begin{document}",
        *(rf"\input{{{file}}}" for file in files),
        r"\end{document}",
        "",
    ])  # fmt: skip
