"""A headless Chromium for the tests that look at pages; they skip, and say so, only where none can be had."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def chromium(own: Path) -> Path | None:
    """Playwright's own Chromium, one of the system, or in CI one that can be downloaded."""
    system = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    found = [path for path in (own, *map(Path, filter(None, system))) if path.is_file()]
    if not found and "CI" in os.environ:
        install = [sys.executable, "-m", "playwright", "install", "chromium"]
        with suppress(subprocess.TimeoutExpired):  # a network that swallows packets is no network
            subprocess.run(install, timeout=180, check=False, capture_output=True)
        found = [own] if own.is_file() else []
    return found[0] if found else None


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        path = chromium(Path(playwright.chromium.executable_path))
        if path is None:
            pytest.skip("There is no Chromium. Install one, or run: python -m playwright install chromium")
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
