"""Headless Chromium for the tests of pages, where there is one."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The program: CHROMIUM, or the first of its usual names on the path."""
    found = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    return next((name for name in found if name), None)


def lacking() -> str:
    """Why there can be no browser here, and what would help; empty if there can."""
    if importlib.util.find_spec("playwright") is None:
        return "no playwright: pip install -c constraints.txt -e '.[dev]'"
    if chromium() is None:
        return f"no Chromium ({', '.join(NAMES)} not found): apt-get install chromium"
    return ""


@contextmanager
def browser() -> Iterator[Any]:
    """Playwright's browser, with a profile of its own that is thrown away."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
        )
        try:
            yield found
        finally:
            found.close()
