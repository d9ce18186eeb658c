"""``fewstep check``: does an objective keep its word?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fewstep.cli.console import out
from fewstep.errors import UserError
from fewstep.experiments.config import compose, parse
from fewstep.objectives import OBJECTIVES
from fewstep.objectives.conformance import Finding, conform

WORDS = {True: "holds", False: "fails", None: "not taken"}
MANY = {True: "hold", False: "fail", None: "not taken"}
STYLES = {True: "green", False: "bold red", None: "dim"}


def check(overrides: Sequence[str]) -> int:
    """Print what holds of the named objective, or a line for each; returns the exit code.

    Raises:
        UserError: a setting that is not the objective's, or settings without a name.
    """
    keys = [parse(override)[0] for override in overrides]
    for key in keys:
        if key != "objective" and not key.startswith("objective."):
            raise UserError(f"check takes objective=NAME and objective.* only, got {key!r}")
    if not overrides:
        return _all()
    if "objective" not in keys:
        raise UserError(f"check needs objective=NAME (choices: {', '.join(OBJECTIVES.names())})")
    findings = conform(compose(overrides).objective)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("check", "", "measured"):
        table.add_column(column, overflow="fold")
    for f in findings:
        table.add_row(f.name, Text(WORDS[f.held], STYLES[f.held]), Text(f.told))
    out.print(table)
    return _exit_code(findings)


def _all() -> int:
    code = 0
    for name in OBJECTIVES.names():
        findings = conform(OBJECTIVES[name])
        code = max(code, _exit_code(findings))
        counts = Counter(f.held for f in findings)
        told = [f"{counts[held]} {many}" for held, many in MANY.items() if counts[held]]
        failing = [f"{f.name} ({f.told})" for f in findings if f.held is False]
        tail = f": {'; '.join(failing)}" if failing else ""
        out.print(f"{name:<26} {', '.join(told)}{tail}", markup=False)
    return code


def _exit_code(findings: Sequence[Finding]) -> int:
    return 1 if any(f.held is False for f in findings) else 0
