"""Pictures of the report page for the documentation, taken by Debian's chromium.

python -m benchmarks.compare.pictures PAGE.html FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FLAGS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking".split()
PARTS = {"top": None, "classes": "#classes", "methods": "#methods", "confusion": "#confusion", "neurons": "#neurons"}


def main() -> None:
    """Open the page and take a picture of each part, in light; of the first screen in dark too."""
    from playwright.sync_api import sync_playwright

    page_file, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme=scheme)
            page.goto(f"file://{page_file}")
            page.wait_for_selector("html[data-ready]")
            for name, part in PARTS.items():
                if part is None:
                    page.screenshot(path=folder / f"report-{name}-{scheme}.png")
                elif scheme == "light" and page.locator(part).count():
                    page.locator(part).screenshot(path=folder / f"report-{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
