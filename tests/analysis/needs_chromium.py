"""Skip a test where Chromium is missing, but never in continuous integration."""

import importlib.util
import os
import shutil

import pytest


def chromium_or_skip() -> tuple[str, str]:
    """Paths of the browser and its driver."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser and driver and importlib.util.find_spec("selenium"):
        return browser, driver
    if os.environ.get("CI") or os.environ.get("FOCUSFT_REQUIRE_CHROMIUM") == "1":
        pytest.fail(
            "chromium, chromium-driver or selenium is missing, and this run must test pages"
        )
    pytest.skip("no browser to test pages in (apt-get install chromium chromium-driver)")
