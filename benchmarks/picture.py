"""Take a picture of the top of a report, for the README.

python -m benchmarks.picture report.html docs/report.png
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path


def main() -> None:
    """Open the page in headless Chromium and write a PNG."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=1200)
    options = parser.parse_args()
    browser = shutil.which("chromium")
    if browser is None:
        parser.error("chromium is not installed (apt-get install chromium)")
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",
                "--hide-scrollbars",
                "--disable-dev-shm-usage",
                f"--user-data-dir={profile}",
                f"--window-size={options.width},{options.height}",
                "--virtual-time-budget=10000",
                f"--screenshot={options.picture.resolve()}",
                options.page.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
    print(f"{options.picture}: {options.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
