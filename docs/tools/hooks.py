"""MkDocs events: generated pages, generated parts of pages, and formulas as MathML.

MkDocs loads this file by its path, so its neighbours are imported by their bare names.
"""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import command_line  # noqa: E402
import gallery  # noqa: E402
import modules  # noqa: E402

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
ARXIV = re.compile(r"(?<![\w/])arXiv:(\d{4}\.\d{5})")
PART = re.compile(r"^<!-- (\w+) -->$", re.M)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code and from files of the repository's root."""
    pages = {
        "command_line.md": command_line.page(),
        "contributing.md": from_root("CONTRIBUTING.md"),
        "changelog.md": from_root("CHANGELOG.md"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def from_root(name: str) -> str:
    """A page of the repository's root, its links written as from ``docs/``."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
    return text.replace("](CONTRIBUTING.md)", "](contributing.md)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill the places that a page marks with ``<!-- name -->``."""
    if page.file.src_uri == "where_things_are.md":
        parts: Mapping[str, Callable[[], str]] = {"modules": modules.listing}
    elif page.file.src_uri == "api/index.md":
        parts = {"names": modules.public_names}
    elif page.file.src_uri == "gallery/index.md":
        parts = {"overview": gallery.overview, "pictures": gallery.pictures}
    elif page.file.src_uri.startswith("gallery/"):
        parts = gallery.parts(page.meta["objectives"], page.meta.get("published"))
    else:
        return markdown
    return PART.sub(lambda found: parts[found[1]](), markdown)


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas, which Arithmatex leaves as LaTeX, become MathML; papers get a link."""
    html_text = FORMULA.sub(_formula, html_text)
    return ARXIV.sub(r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', html_text)


def _formula(found: re.Match[str]) -> str:
    latex = html.unescape(found[2]).strip()
    if found[1] == "span":
        return convert(latex)
    return f'<div class="formula">{convert(latex, display="block")}</div>'
