"""The documentation site: it builds without a warning, lacks nothing, and shows well on a phone."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from helpers.browser import browser, lacking
from helpers.commands import environment
from helpers.pages import DOCS

import fewstep
from fewstep.objectives import OBJECTIVES

ROOT = DOCS.parent
PHONE = {"width": 390, "height": 844}


def tool(name: str) -> ModuleType:
    """A program of ``docs/tools``, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_objective_has_a_page_in_the_gallery_and_no_page_is_of_none() -> None:
    pages = tool("gallery").sources()
    shown = [name for page in pages.values() for name in page["objectives"]]
    ours = {n for n in OBJECTIVES.names() if type(OBJECTIVES[n]).__module__.startswith("fewstep.")}
    assert sorted(shown) == sorted(ours)
    for page in pages:
        text = (DOCS / f"gallery/{page}.md").read_text(encoding="utf-8")
        for part in ("facts", "settings", "toy", "published"):
            assert f"<!-- {part} -->" in text, f"{page} lacks {part}"
        picture = DOCS / f"images/toy/{pages[page]['objectives'][0]}.png"
        assert 0 < picture.stat().st_size < 40_000, picture


def test_the_gallery_explains_every_setting() -> None:
    gallery = tool("gallery")
    for name in OBJECTIVES.names():
        told = gallery.descriptions(type(OBJECTIVES[name]))
        assert [f.name for f in fields(OBJECTIVES[name]) if not told.get(f.name)] == [], name


def test_the_gallery_says_what_the_code_says(site: Path) -> None:
    page = (site / "gallery/scm.html").read_text(encoding="utf-8")
    for said in ("tangent_warmup", "10000", "1.33 times", "2.85", "2.97 at 1", "<math", "TrigFlow"):
        assert said in page, said
    assert "arithmatex" not in page
    assert "2410.12557" in (site / "gallery/shortcut.html").read_text(encoding="utf-8")


def test_the_command_line_page_has_every_command_and_option(site: Path) -> None:
    page = (site / "command_line.html").read_text(encoding="utf-8")
    named = tool("command_line").commands()
    assert {"train", "sweep", "extractor train"} <= set(named)
    for name, command in named.items():
        assert f"<code>fewstep {name}</code>" in page
        shown = [o for o in command.params if o.param_type_name == "option" and not o.hidden]
        assert [o.opts for o in shown if o.opts[0] not in page] == [], name


PACKAGES = "src|docs|tests|examples|objectives|backbones|experiments|sweeps|analysis|reports"


def test_files_that_pages_name_exist() -> None:
    layout = (DOCS / "where_things_are.md").read_text(encoding="utf-8")
    assert len(re.findall(rf"`(?:{PACKAGES})/[\w/]+\.py`", layout)) > 20
    missing = {}
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        if page.name not in ("log.md", "CHANGELOG.md"):  # they name what was
            text = page.read_text(encoding="utf-8")
            named = re.findall(rf"`((?:{PACKAGES})/[\w/.-]+)`", text)
            lost = [n for n in named if "NAME" not in n and not (ROOT / n).exists()]
            missing |= {page.name: lost} if lost else {}
    assert missing == {}


def test_pages_that_the_code_names_exist() -> None:
    folders = [ROOT / name for name in PACKAGES.split("|")]
    files = [
        f for folder in folders for end in ("py", "yaml", "ipynb") for f in folder.rglob(f"*.{end}")
    ]
    named = {n: f for f in files for n in re.findall(r"docs/[\w/]+\.md", f.read_text("utf-8"))}
    assert len(named) > 4
    assert {n: f for n, f in named.items() if not (ROOT / n).exists()} == {}


def test_the_version_is_the_same_everywhere() -> None:
    version = re.escape(fewstep.__version__)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^version: {version}$", citation, re.M)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\d\S+)", changes, re.M)[1] == fewstep.__version__  # type: ignore[index]


def test_commits_are_checked_by_what_make_check_runs() -> None:
    target = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert target is not None
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in target[1].splitlines()]
    assert commands == re.findall(r"entry: (.*?), language", hooks)
    assert "run: .ci/run" in (ROOT / ".github/workflows/test.yml").read_text()
    assert (ROOT / ".ci/run").read_text().endswith("\nmake test\n")


@pytest.mark.skipif(bool(lacking()), reason=lacking())
def test_pages_fit_a_phone_and_need_no_network(site: Path, address: str) -> None:
    pages = sorted(str(p.relative_to(site)) for p in site.rglob("*.html") if p.name != "404.html")
    assert len(pages) > 40
    wide, elsewhere, errors = {}, set(), []
    with browser() as chromium:
        page = chromium.new_page(viewport=PHONE)
        page.on("request", lambda r: r.url.startswith(address) or elsewhere.add(r.url))
        page.on("console", lambda m: m.type == "error" and errors.append(m.text))
        for name in pages:
            page.goto(f"{address}/{name}", wait_until="load")
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > PHONE["width"]:
                wide[name] = width
        page = chromium.new_page(viewport={"width": 1280, "height": 800})
        page.goto(f"{address}/index.html", wait_until="networkidle")  # its scripts have begun
        page.click("input[name=query]")
        page.keyboard.type("heartbeat lease", delay=50)
        page.wait_for_selector(".md-search-result__item", timeout=120_000)
    assert (wide, elsewhere, errors) == ({}, set(), [])


def test_pages_open_from_a_disk(site: Path) -> None:
    text = (site / "gallery/index.html").read_text(encoding="utf-8")
    assert 'href="scm.html"' in text
    assert not re.search(r'(?:src|href)="(?:https?:)?//(?!schema)[^"]*\.(?:js|css|woff2?)"', text)
    assert os.path.exists(site / "images/few_steps.png")
