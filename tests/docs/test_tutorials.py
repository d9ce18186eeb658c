"""Every tutorial runs as it is written, and says what it shows.

The one about SLURM is in tests/sweeps/slurm/cluster, with the cluster.
"""

from __future__ import annotations

import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from helpers.commands import environment
from helpers.pages import DOCS, Tutorial, lines

from fewstep.experiments.config.protocols import PROTOCOLS
from fewstep.experiments.config.run_config import compose
from fewstep.sweeps import plan, status

ON_SLURM = "first_slurm_sweep"
PAGES = sorted(p.stem for p in (DOCS / "tutorials").glob("*.md") if p.stem != ON_SLURM)


@pytest.mark.parametrize("page", PAGES)
def test_it_runs(page: str, tmp_path: Path) -> None:
    Tutorial(f"tutorials/{page}.md", tmp_path, environment()).run()


def test_commands_that_need_other_peoples_files_have_valid_settings() -> None:
    """Blocks marked ``bash``, which ``test_it_runs`` does not run."""
    blocks = re.findall(
        r"^```bash\n(.*?)^```$", (DOCS / "tutorials" / "published_fid.md").read_text(), re.M | re.S
    )
    commands = [shlex.split(line) for block in blocks for line in lines(block)]
    measured = [words[3:] for words in commands if words[1] in ("measure", "evaluate")]
    assert len(measured) == 3
    for settings in measured:
        evaluation = compose(settings).evaluation
        assert evaluation.protocol in PROTOCOLS
        assert evaluation.samples == 50_000


def test_a_deprecated_name_fails(tmp_path: Path) -> None:
    tutorial = Tutorial("tutorials/own_loop.md", tmp_path, environment())
    package = "import fewstep.deprecation\nfewstep.deprecation.warn('a', 'b', 2)\n"
    (tmp_path / "old.py").write_text(package)
    (tmp_path / "page.py").write_text("import old")
    with pytest.raises(AssertionError, match="a is called b since"):
        tutorial.command("python page.py")


def test_every_name_of_fewstep_in_the_text_exists() -> None:
    text = "".join((DOCS / "tutorials" / f"{page}.md").read_text() for page in PAGES)
    names = sorted(set(re.findall(r"`(fewstep\.[\w.]+)`", text)))
    assert len(names) > 2
    for name in names:
        pkgutil.resolve_name(name)


def test_the_page_of_the_run_directory_lists_every_state() -> None:
    page = (DOCS / "concepts/run_directory.md").read_text()
    rows = re.findall(r"^\| ([a-z]+) \| ([a-z() ]+) \|", page.split("\n## ")[3], re.M)
    assert {shown for shown, _ in rows} == set(status.STATES)
    assert {planned for _, planned in rows} >= set(plan.STATES)


def test_another_output_fails(tmp_path: Path) -> None:
    tutorial = Tutorial("tutorials/own_loop.md", tmp_path, environment())
    tutorial.said = "step   400 loss 0.25\n"
    tutorial.compare("step 12  loss 3\n...\n")
    with pytest.raises(AssertionError, match="not in the output"):
        tutorial.compare("step 12 loss: 3\n")
