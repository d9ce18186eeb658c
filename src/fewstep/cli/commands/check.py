"""``fewstep check``: tests of an objective against closed forms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from fewstep.cli.options import Overrides, pairs
from fewstep.cli.views.console import new_table, out
from fewstep.errors import UserError

if TYPE_CHECKING:
    from fewstep.objectives.conformance import CheckResult

WORDS = {True: "holds", False: "fails", None: "not taken"}
PLURALS = {True: "hold", False: "fail", None: "not taken"}
STYLES = {True: "green", False: "bold red", None: "dim"}


def check(overrides: Overrides = None) -> int:
    """Test an objective against closed forms and calculus; without objective=NAME, every objective.

    Exit code 0 if every check that applies holds, else 1.

    Example: [bold]fewstep check objective=scm objective.sigma_d=0.4[/]
    """
    from fewstep.experiments.config.run_config import compose
    from fewstep.objectives import OBJECTIVES
    from fewstep.objectives.conformance import run_checks

    if not overrides:
        return _all()
    given = pairs("check", overrides, ("objective",))
    if "objective" not in dict(given):
        raise UserError(f"check needs objective=NAME (choices: {', '.join(OBJECTIVES.names())})")
    findings = run_checks(compose(given).objective)
    rows = [
        {"check": f.name, "": Text(WORDS[f.passed], STYLES[f.passed]), "measured": Text(f.detail)}
        for f in findings
    ]
    out.print(new_table(rows, overflow="fold"))
    return _exit_code(findings)


def _all() -> int:
    from fewstep.objectives import OBJECTIVES
    from fewstep.objectives.conformance import run_checks

    code = 0
    for name in OBJECTIVES.names():
        findings = run_checks(OBJECTIVES[name])
        code = max(code, _exit_code(findings))
        counts = Counter(f.passed for f in findings)
        verdicts = [
            f"{counts[passed]} {word}" for passed, word in PLURALS.items() if counts[passed]
        ]
        failures = [f"{f.name} ({f.detail})" for f in findings if f.passed is False]
        tail = f": {'; '.join(failures)}" if failures else ""
        out.print(f"{name:<26} {', '.join(verdicts)}{tail}")
    return code


def _exit_code(findings: Sequence[CheckResult]) -> int:
    return 1 if any(f.passed is False for f in findings) else 0
