"""The pictures of the viewer in this folder, taken in headless Chromium.

    pip install playwright
    coverslip run CMU-1-Small-Region.svs crohn-biopsy-20x.svs -o OUT --mpp 0.5 --nuclei default \
        --encoder efficientnet-lite0
    python docs/screenshots.py CMU-1-Small-Region.svs crohn-biopsy-20x.svs -o OUT

The viewer runs on a copy of OUT, so that what is drawn for the pictures is not kept.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

DOCS = Path(__file__).parent
PANE = "coverslip.panes[0]"
QUALITY = 72
DESKTOP, TABLET = (1440, 900), (820, 1080)


def wait_until(page: Page, expression: str, seconds: float = 90) -> None:
    """Ask the page until it says so; its policy forbids Playwright's own way, which is `eval`."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({expression})"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{expression} is not so after {seconds:g} s")
        page.wait_for_timeout(100)


def settled(page: Page) -> None:
    """Wait until everything in view has come."""
    page.wait_for_timeout(700)
    wait_until(page, f"{PANE}.objects.wanted.size === 0 && {PANE}.tiles.image.getFullyLoaded()")
    page.wait_for_timeout(1200)


def go(page: Page, x: float, y: float, um_per_px: float) -> None:
    """Show a place of level 0 at a power."""
    page.evaluate(
        f"([x, y, um]) => {PANE}.goTo({{x, y, scale: {PANE}.slide.mpp[0] / um}}, true)",
        [x, y, um_per_px],
    )
    settled(page)


def point_at_nucleus(page: Page) -> None:
    """Move the pointer over the view until a nucleus tells its measurements."""
    box = page.locator("#pane-first").bounding_box()
    assert box is not None
    for step in range(200):
        page.mouse.move(box["x"] + 300 + 2 * step, box["y"] + 330 + step % 40)
        if page.locator("#pane-first .hover-card").is_visible():
            break
    page.wait_for_timeout(1200)


def nuclei(page: Page) -> None:
    go(page, 12_510, 4_391, 0.3)
    point_at_nucleus(page)


def density(page: Page) -> None:
    settled(page)


def heat_and_annotations(page: Page) -> None:
    page.keyboard.press("n")
    page.keyboard.press("h")
    page.keyboard.press("o")
    settled(page)
    page.keyboard.press("d")
    box = page.locator("#pane-first").bounding_box()
    assert box is not None
    left, top = box["x"] + box["width"] * 0.52, box["y"] + box["height"] * 0.3
    outline = [(0, 0), (60, 20), (90, 80), (70, 150), (10, 170), (-40, 120), (-50, 50), (-10, 5)]
    for number, (x, y) in enumerate(outline):
        page.mouse.move(left + x, top + y, steps=4)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Layers").click()
    page.mouse.move(5, 5)
    page.wait_for_timeout(1500)


def side_by_side(page: Page) -> None:
    go(page, 1_250, 1_500, 0.5)
    page.keyboard.press("s")
    wait_until(page, "coverslip.panes[1].tiles.image?.getFullyLoaded()")
    page.wait_for_timeout(2000)
    settled(page)


def similar(page: Page) -> None:
    go(page, 1_110, 1_300, 1.0)
    page.keyboard.press("f")
    box = page.locator("#pane-first").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 70, y - 60)
    page.mouse.down()
    page.mouse.move(x + 70, y + 70, steps=4)
    page.mouse.up()
    wait_until(page, "document.querySelector('.results, #tab-search .warning-text')")
    settled(page)


def pictures(slides: Sequence[str]) -> list[tuple[str, str, tuple[int, int], str, Any]]:
    """(file, slide's id, window, colour scheme, what is done before)."""
    small, large = slides
    return [
        ("nuclei", large, DESKTOP, "light", nuclei),
        ("density", large, DESKTOP, "dark", density),
        ("heat-map", small, DESKTOP, "light", heat_and_annotations),
        ("side-by-side", small, DESKTOP, "dark", side_by_side),
        ("similar", small, DESKTOP, "light", similar),
        ("tablet", large, TABLET, "dark", lambda page: go(page, 12_510, 4_391, 0.6)),
    ]


def taken(page: Page, url: str, slide: str, name: str, before: Callable[[Page], None]) -> None:
    """One picture."""
    page.goto(f"{url}#slide={slide}")
    wait_until(page, f"globalThis.coverslip && {PANE}.tiles.image?.getFullyLoaded()")
    wait_until(page, "['saved', 'off'].includes(coverslip.annotations.state)")
    before(page)
    path = DOCS / f"viewer-{name}.jpg"
    page.screenshot(path=path, type="jpeg", quality=QUALITY)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slides", nargs=2, type=Path, help="the small one and the biopsy")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of their run")
    parser.add_argument("--only", default="", help="name of one picture")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        copy = Path(folder) / "out"
        shutil.copytree(given.output, copy, ignore=shutil.ignore_patterns("annotations"))
        command = [sys.executable, "-m", "coverslip", "view", *map(str, given.slides), "-o",
                   str(copy), "--port", "0", "--no-browser"]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        found = next(filter(None, (re.search(r"http://\S+", line) for line in server.stdout)))
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        try:
            names = [path.stem for path in given.slides]
            for name, slide, (width, height), scheme, before in pictures(names):
                if given.only not in ("", name):
                    continue
                page = browser.new_page(
                    viewport={"width": width, "height": height},
                    color_scheme=scheme,
                    has_touch=width < 1000,
                )
                taken(page, found[0], slide, name, before)
                page.close()
        finally:
            browser.close()
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
