"""How smooth the viewer's page is over a million nuclei: time between frames in headless Chromium.

    pip install playwright
    python benchmarks/viewer_frames.py [--nuclei 1000000] [--seconds 6] [--chromium PATH]

A generated slide of 40,000 x 40,000 px (`pyramid.py`) gets that many nuclei: polygons of 18 corners
and about 7 µm in five classes, crowded in follicles as lymphocytes are, ten thousand a mm² on the
mean. The page is opened on it, and in each view (density, points, outlines at 10x, 20x, 40x) a
script moves the view at every frame: a pan along a circle, then a zoom in and out by a factor of
1.5. The table gives the times between animation frames while new cells and tiles come in, and what
a frame costs the processor: in the page, and in the process that draws for it.

Headless Chromium draws WebGL on the processor (SwiftShader) where there is no graphics card, and
the page then draws fewer corners and points while the view moves, and all when it rests. The times
between frames are of the machine as it is, with all that runs beside; the load is printed. What a
frame costs the processor does not depend on that.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from playwright.sync_api import Page, sync_playwright
from pyramid import GENERATED, MPP, pyramid

from coverslip.tiling.store import SlideStore
from coverslip.wsi.facts import slide_facts
from coverslip.wsi.opening import open_slide

SIDE = 40_000
CORNERS = 18
RADIUS = 3.5 / MPP
CLASSES = ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
BLOCK = 100_000
READY = "Boolean(globalThis.coverslip?.panes[0].objects.layers.length)"
QUIET = "coverslip.panes[0].objects.wanted.size === 0"
HELD = """[...coverslip.panes[0].objects.layers[0].cells.values()]
  .reduce((sum, { geometry }) => sum + (geometry?.cell.count ?? 0), 0)"""
MOVE = """
({seconds, x, y, scale, way}) => new Promise((done) => {
  const pane = coverslip.panes[0];
  const ticks = [];
  const start = performance.now();
  const step = (now) => {
    ticks.push(now);
    const t = (now - start) / 1000;
    if (t > seconds) {
      done({ticks});
      return;
    }
    const turn = 2 * Math.PI * t / seconds;
    const reach = 500 / scale;
    const panned = {x: x + reach * Math.sin(turn), y: y + reach * (1 - Math.cos(turn)), scale};
    const zoomed = {x, y, scale: scale * 1.5 ** Math.sin(turn)};
    pane.goTo(way === "pan" ? panned : zoomed, true);
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})
"""


@dataclass(frozen=True, slots=True)
class View:
    """name, µm per screen px, and how nuclei are drawn there."""

    name: str
    um_per_px: float
    drawn: str


VIEWS = (
    View("whole slide", 10.0, "density"),
    View("4x", 2.5, "points"),
    View("10x", 1.0, "polygons"),
    View("20x", 0.5, "polygons"),
    View("40x", 0.25, "polygons"),
)


def nuclei(count: int, side: int) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Blocks of columns: centroids in follicles, rounded outlines, classes, probabilities."""
    random = np.random.default_rng(7)
    follicles = random.uniform(0, side, (400, 2))
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    for first in range(0, count, BLOCK):
        size = min(BLOCK, count - first)
        crowded = random.random(size) < 0.4
        near = follicles[random.integers(400, size=size)] + random.normal(0, 600, (size, 2))
        centroid = np.where(crowded[:, None], near, random.uniform(0, side, (size, 2)))
        centroid = centroid.clip(20, side - 20)
        radius = (
            RADIUS
            * random.uniform(0.7, 1.3, (size, 1))
            * (1 + 0.15 * np.sin(2 * angle + random.uniform(0, 6, (size, 1))))
        )
        ring = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
        yield {
            "centroid": centroid.astype(np.float64),
            "polygon_offset": np.arange(size + 1, dtype=np.int64) * CORNERS,
            "polygon": (centroid[:, None] + ring).reshape(-1, 2).astype(np.float32),
            "class_id": random.integers(len(CLASSES), size=size).astype(np.uint8),
            "probability": random.uniform(0.3, 1, size).astype(np.float32),
            "area_um2": (np.pi * (radius[:, 0] * MPP) ** 2).astype(np.float32),
        }


def stored(count: int) -> tuple[Path, Path]:
    """(slide, folder of a run that found so many nuclei on it); made when not there yet."""
    path, output = pyramid(SIDE), GENERATED / f"nuclei-{count}"
    with open_slide(path, cross_check=False) as slide:
        facts = {**slide_facts(slide), "fingerprint": "generated"}
    store = SlideStore.open_or_create(output / f"{facts['name']}.zarr", facts)
    if "nuclei/generated" not in store.stages():
        with store.stage("nuclei/generated", {"count": count}) as stage:
            for number, columns in enumerate(nuclei(count, SIDE)):
                stage.append_block(number, columns)
            stage.finish({"model": "generated", "classes": list(CLASSES)})
    return path, output


@contextmanager
def served(slide: Path, output: Path) -> Iterator[str]:
    """The URL of `coverslip view` over it."""
    command = [sys.executable, "-m", "coverslip", "view", str(slide), "-o", str(output),
               "--port", "0", "--no-browser"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"http://\S+", line):
                yield found[0]
                return
        raise RuntimeError(f"the viewer has ended with status {process.wait()}")
    finally:
        process.terminate()
        process.wait()


def wait_until(page: Page, expression: str, seconds: float = 120) -> None:
    """Ask the page until it says so; its policy forbids Playwright's own way, which is `eval`."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{expression} is not so after {seconds:g} s")
        page.wait_for_timeout(100)


def processor_seconds() -> dict[str, float]:
    """What the browser's processes have used: the page's (renderer), and the drawing one's."""
    used = {"renderer": 0.0, "gpu-process": 0.0}
    for process in psutil.Process().children(recursive=True):
        kinds = [a.removeprefix("--type=") for a in process.cmdline() if a.startswith("--type=")]
        if kinds and kinds[0] in used:
            times = process.cpu_times()
            used[kinds[0]] += times.user + times.system
    return used


def row(page: Page, view: View, way: str, seconds: float) -> str:
    """A line of the table."""
    scale = MPP / view.um_per_px
    place = {"x": SIDE / 2, "y": SIDE / 2, "scale": scale}
    page.evaluate("(place) => coverslip.panes[0].goTo(place, true)", place)
    page.wait_for_timeout(500)
    wait_until(page, QUIET)
    detail = page.evaluate("coverslip.panes[0].objects.layers[0].detail(coverslip.panes[0].scale)")
    if detail != view.drawn:
        raise RuntimeError(f"{view.name}: nuclei are drawn as {detail}, not as {view.drawn}")
    before = processor_seconds()
    found = page.evaluate(MOVE, {"seconds": seconds, "way": way, **place})
    after = processor_seconds()
    gaps = np.diff(found["ticks"])
    cost = {kind: 1e3 * (after[kind] - before[kind]) / len(gaps) for kind in after}
    late = (gaps > 34).mean()  # two frames of the screen are 33.4 ms
    held = page.evaluate(HELD)
    return (
        f"| {view.name} | {view.drawn} | {way} | {len(gaps)} | {np.median(gaps):.1f} | "
        f"{np.percentile(gaps, 95):.1f} | {np.percentile(gaps, 99):.1f} | {late:.0%} | "
        f"{cost['renderer']:.0f} | {cost['gpu-process']:.0f} | {held:,} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nuclei", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--chromium", default=shutil.which("chromium") or "/usr/bin/chromium")
    parser.add_argument("--size", type=int, nargs=2, default=(1440, 900), help="of the window, px")
    given = parser.parse_args()
    slide, output = stored(given.nuclei)
    with served(slide, output) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=given.chromium, args=["--no-sandbox"])
        width, height = given.size
        page = browser.new_page(viewport={"width": width, "height": height})
        page.goto(url)
        wait_until(page, READY)
        kind = page.evaluate("coverslip.panes[0].objects.renderer.constructor.name")
        print(f"{given.nuclei:,} nuclei, {width} x {height} px, {kind}, Chromium {browser.version}")
        print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f} before\n")
        print("| view | nuclei as | moved by | frames | median, ms | 95 %, ms | 99 %, ms "
              "| over 34 ms | processor: page, ms | drawing, ms | nuclei held |")  # fmt: skip
        print("|" + "---|" * 11)
        for view in VIEWS:
            for way in ("pan", "zoom"):
                print(row(page, view, way, given.seconds), flush=True)
        print(f"\nload {os.getloadavg()[0]:.1f} after")
        browser.close()


if __name__ == "__main__":
    main()
