"""report.html in a real browser: it sorts, filters, answers, asks nobody, and reads well."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browser import browser, lacking
from helpers.synthetic_runs import Run, write_sweep

from fewstep.analysis import load, load_samples
from fewstep.reports.html import page as html
from fewstep.reports.report import data_sets, views_of

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> \"&$_%"
OTHER = {"data": {"name": "moons"}}
MOONS = {"data": "moons", "label": "FD-moons-raw@500", "id": "ffffffffffff", "extractor": "raw"}


def sweep(root: Path) -> Path:
    """Two data sets, two phases, a failure and a hostile name."""
    fill = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 8, 8), np.uint8)
    points = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    runs = [
        *(Run("FM", s, {1: 90.0 + s, 4: 11.0 + s}, images={1: fill, 4: fill}) for s in range(3)),
        *(Run("CD", s, {1: 30.0 + s, 4: 20.0 + s}, teacher=f"fm-s{s}") for s in range(3)),
        *(Run(HOSTILE, s, {1: 50.0 + s, 4: 5.0 + s}, objective="hostile") for s in range(3)),
        *(Run("CT", s, failure=HOSTILE, objective="ct") for s in range(3)),
        *(Run("FM", s, {1: 1.0 + s}, config=OTHER, metric=MOONS, choices={"data": "moons"},
              images={1: points}) for s in range(2)),
    ]  # fmt: skip
    return write_sweep(root, runs, name=HOSTILE.replace("/", "\N{FRACTION SLASH}"))


@dataclass
class Visited:
    """A page, and what it said and asked for."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def column(self, number: int) -> list[str]:
        """What stands in a column of the first table, as it is shown."""
        rows = self.page.locator("table.main").first.locator("tbody tr:not(.group):visible")
        return [row.locator("th, td").nth(number).inner_text() for row in rows.all()]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if why := lacking():
        pytest.skip(why)
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    folder = sweep(root)
    frame = load(folder)
    samples: Any = {}
    for part in data_sets(frame).values():
        samples |= load_samples(folder, part)
    file = root / "report.html"
    file.write_text(html.page(folder.name, views_of(frame, samples), frame), encoding="utf-8")
    return file


@pytest.fixture
def visit(chromium: Any, report: Path) -> Iterator[Any]:
    made = []

    def open_page(**options: Any) -> Visited:
        page = chromium.new_page(**options)
        made.append(page)
        visited = Visited(page)
        page.on("console", lambda said: visited.errors.append(said.text))
        page.on("pageerror", lambda error: visited.errors.append(str(error)))
        page.on("request", lambda asked: visited.requests.append(asked.url))
        page.goto(report.as_uri())
        return visited

    yield open_page
    for page in made:
        page.close()


def test_sorting_goes_up_down_and_back(visit: Any) -> None:
    seen = visit()
    home = seen.column(0)
    assert [name[:2] for name in home] == ["FM", "<s", "CT", "CD"]
    head = seen.page.locator("table.main").first.get_by_role("button", name="1 step")
    head.click()
    assert [v.split()[0] for v in seen.column(1)] == ["31.0", "51.0", "91.0", "failed"]
    assert seen.page.locator("th[aria-sort=ascending]").count() == 1
    assert seen.page.locator("table.main").first.locator("tr.group:visible").count() == 0
    head.click()
    assert [v.split()[0] for v in seen.column(1)] == ["91.0", "51.0", "31.0", "failed"]
    head.click()
    assert seen.column(0) == home
    assert seen.page.locator("table.main").first.locator("tr.group:visible").count() == 2
    assert not seen.errors


def test_filters_take_a_method_out_of_all_there_is(visit: Any) -> None:
    seen = visit()
    parts = seen.page.locator("[data-objective='1']:visible")
    assert parts.count() > 8
    assert seen.page.locator("svg.chart [data-objective='1']:visible").count() >= 4
    chip = seen.page.get_by_role("button", name="CD", exact=True)
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert parts.count() == 0
    assert [name[:2] for name in seen.column(0)] == ["FM", "<s", "CT"]
    chip.click()
    assert parts.count() > 8
    seen.page.get_by_role("button", name="digits", exact=True).click()
    shown = seen.page.locator("article:visible")
    assert shown.count() == 1
    assert "FD-moons-raw@500" in shown.inner_text()
    assert not seen.errors


def test_nothing_is_asked_of_anybody_and_no_name_is_code(visit: Any, report: Path) -> None:
    seen = visit()
    seen.page.mouse.wheel(0, 4000)
    assert [r for r in seen.requests if not r.startswith("data:")] == [report.as_uri()]
    assert seen.page.evaluate("window.hacked") is None
    assert seen.column(0)[1].strip() == HOSTILE
    assert seen.page.title().startswith("<script>")
    assert not seen.errors
    assert not re.search(r"<(script|img)[^>]*hacked", report.read_text())
    # and what would be asked for is refused
    seen.page.evaluate("() => fetch('http://localhost:1/').catch(() => 0)")
    assert any("Content Security Policy" in error for error in seen.errors)


def test_a_click_tells_where_a_value_comes_from(visit: Any) -> None:
    seen = visit()
    seen.page.locator("button[data-cell]").first.click()
    told = seen.page.locator("dialog").inner_text()
    for fact in ("FM, 1 step", "91.0 ± 2.5 (3)", "fm-s1", "c0ffeec0ffee", "laptop",
                 "fewstep train seed=1 'evaluation.steps=[1]'"):  # fmt: skip
        assert fact in told
    seen.page.keyboard.press("Escape")
    assert not seen.page.locator("dialog").is_visible()
    seen.page.locator("svg.chart .point:has(.mark)").first.hover()
    tip = seen.page.locator("#tip").inner_text()
    assert tip.splitlines() == ["FM, 1 step", "91.0 ± 2.5 (3)", "seed 0: 90.0", "seed 1: 91.0",
                                "seed 2: 92.0"]  # fmt: skip
    assert not seen.errors


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2) of a browser's ``rgb(r, g, b)``."""
    parts = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
    r, g, b = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_by_the_system_or_by_choice(visit: Any, scheme: str) -> None:
    seen = visit(color_scheme=scheme)

    def colors(selector: str) -> tuple[str, str]:
        style = "e => [getComputedStyle(e).color, getComputedStyle(e.closest('.card, body'))"
        found = seen.page.locator(selector).first.evaluate(f"{style}.backgroundColor]")
        return found[0], found[1]

    for selector in ("body", ".card h2", ".note", "table.main small", "td.lost span", ".legend li"):
        ink, paper = map(luminance, colors(selector))
        assert (ink > paper) == (scheme == "dark")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector
    button = seen.page.locator("#theme")
    while scheme not in (now := button.inner_text()):
        button.click()
        assert button.inner_text() != now
    opposite = {"light": "dark", "dark": "light"}[scheme]
    while opposite not in button.inner_text():
        button.click()
    ink, paper = map(luminance, colors("body"))
    assert (ink > paper) == (opposite == "dark")
    assert not seen.errors


def test_a_phone_scrolls_tables_not_the_page(visit: Any) -> None:
    seen = visit(viewport={"width": 360, "height": 740})
    assert seen.page.evaluate("document.documentElement.scrollWidth") == 360
    for table in seen.page.locator("table:visible").all():
        box = table.locator("xpath=..").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


def test_without_a_script_all_is_there_to_read(visit: Any) -> None:
    seen = visit(java_script_enabled=False)
    text = seen.page.locator("main").inner_text()
    for fact in ("91.0", "failed (3/3)", "Cost of training", "Methods", "Failed and stopped runs"):
        assert fact in text
    assert seen.page.locator("svg.chart").count() >= 6
    assert seen.page.locator("svg.chart title").count() > 20  # a browser's own hover values
    assert not seen.page.locator("nav").is_visible()
    seen.page.get_by_text("All 14 runs").click()
    assert "fewstep train seed=2" in seen.page.locator("table.runs").inner_text()
