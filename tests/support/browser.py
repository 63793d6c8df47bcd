"""A real browser, without a window, that opens a page from its folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


def found_browser() -> str:
    """Return the browser's command; a test without one is skipped, or fails where one is asked."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("BALORA_REQUIRE_BROWSER") == "1":
            pytest.fail("BALORA_REQUIRE_BROWSER is 1, and there is no chromium on PATH")
        pytest.skip("no chromium on PATH")
    return found


def open_page(browser: str, profile: Path, *options: str) -> str:
    """Open a page, and return what the browser prints.

    Args:
        browser: Its command.
        profile: A folder for its own files.
        options: More of its options, and the address.
    """
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
