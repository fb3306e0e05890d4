"""The browser that all of these tests drive."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


def chromium() -> str:
    chosen = os.environ.get("CHROMIUM")
    for name in (chosen,) if chosen else ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.fail("there is no Chromium: `make browser` installs it, or set CHROMIUM to its path")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # A container has neither a sandbox nor a sound device.
        browser = playwright.chromium.launch(
            executable_path=chromium(), args=["--no-sandbox", "--mute-audio"]
        )
        yield browser
        browser.close()
