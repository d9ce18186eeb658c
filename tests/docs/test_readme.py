"""The README keeps its word: its lines run, its links lead somewhere, its tables are short."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from helpers.commands import environment
from helpers.pages import BLOCK, DOCS, Tutorial
from torch import nn

README = DOCS.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
BLOCKS = [(language, text) for language, _, text in BLOCK.findall(TEXT)]


class MyNet(nn.Module):
    """The smallest network with the signature that the README names."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x, t, d=None, y=None):
        d = torch.zeros_like(t) if d is None else d
        return self.linear(torch.cat([x, t[:, None], d[:, None]], dim=1))


def test_the_ten_lines_run() -> None:
    [lines] = [text for language, text in BLOCKS if language == "python"]
    assert len([line for line in lines.splitlines() if line]) == 10
    total = 3
    given = {
        "MyNet": MyNet,
        "total": total,
        "batches": [torch.randn(8, 2) for _ in range(total)],
        "noise": torch.randn(5, 2),
    }
    exec(lines, given)
    assert given["samples"].shape == (5, 2)
    assert given["net"].linear.weight.grad is not None


def test_the_plan_is_what_the_command_prints(tmp_path: Path) -> None:
    [shown] = [text for language, text in BLOCKS if language == "text"]
    assert any("fewstep sweep digits --plan" in text for _, text in BLOCKS)
    tutorial = Tutorial("../README.md", tmp_path, environment())
    tutorial.said = tutorial.command("fewstep sweep digits --plan")
    tutorial.compare(shown)


def test_links_and_commands() -> None:
    linked = [to for to in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in to]
    assert len(linked) > 20
    assert [to for to in linked if not (README.parent / to).exists()] == []
    targets = re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), re.M)
    assert set(re.findall(r"make (\w+)", TEXT)) <= set(targets)


def test_it_can_be_read_in_a_minute() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith("| ---")]
    assert rows
    assert all(line.count("---:") <= 4 for line in rows)  # numeric columns
    shown = re.sub(r"<details>.*?</details>", "", TEXT, flags=re.S)
    assert len(shown.split()) < 1000
    assert TEXT.index("![") < 600  # the picture comes first


def test_the_table_is_part_of_the_digits_page() -> None:
    page = (DOCS / "studies/digits.md").read_text(encoding="utf-8").replace(" (3)", "")
    cells = re.findall(r"\d+\.\d+ ± \d+\.\d+", TEXT)
    assert len(cells) == 16
    assert [cell for cell in cells if cell not in page] == []
