"""The viewer's page in a real browser: what a person sees, draws and clicks is what is stored."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image
from shapely.geometry import Polygon, shape
from viewer_stores import add_columns, add_grid, add_objects, nucleus_columns

from coverslip.engine.run import slide_ids
from coverslip.export.geojson import read_geojson
from coverslip.tiling.store import SlideStore
from coverslip.viewer.app import viewer_app
from coverslip.viewer.page_files import PAGE
from coverslip.viewer.safety import Access
from coverslip.viewer.viewer import Viewer
from coverslip.wsi.facts import slide_facts
from coverslip.wsi.opening import open_slide

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install it")
CHROMIUM = Path(shutil.which("chromium") or "/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}"),
]
NAME = "<img src=x onerror=document.title='broken'>"
SPACING, RADIUS = 40.0, 12.0
CLASSES = ("Neoplastic", "<b>Connective</b>")
PANE = "coverslip.panes[0]"
NUCLEUS = (1036.0, 1451.0)
"""The middle of a nucleus of the packaged slide, level-0 px."""


class Served:
    """A viewer on a port of its own, over the packaged slide under a hostile and a plain name.

    columns   of the nuclei that the first one has
    """

    def __init__(self, folder: Path, small_slide: Path) -> None:
        self.output = folder / "out"
        hostile, plain = folder / f"{NAME}.svs", folder / "plain.svs"
        for path in (hostile, plain):
            path.symlink_to(small_slide)
        places = np.arange(20, 900, SPACING)
        x, y = (grid.ravel() for grid in np.meshgrid(places + 600, places + 900))
        self.columns = nucleus_columns(np.stack([x, y], axis=1), radius=RADIUS, vertices=16)
        self.slide = slide_ids([str(hostile)])[0][1]
        with open_slide(hostile, cross_check=False) as slide:
            facts = {**slide_facts(slide), "fingerprint": "packaged"}
        store = SlideStore.open_or_create(self.output / f"{self.slide}.zarr", facts)
        add_objects(store, self.columns, classes=CLASSES)
        grid = add_grid(store, tile=256)
        focus = np.linspace(0, 1, len(grid)).astype(np.float32)
        quality = {"focus": focus, "pen": focus, "brightness": focus}
        add_columns(store, f"quality/{grid.name}", quality, {})
        self.viewer = Viewer(slide_ids([str(hostile), str(plain)]), self.output, Access())
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/"

    def annotations(self) -> Path:
        return self.output / "annotations" / f"{self.slide}.geojson"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Iterator[Served]:
    uvicorn = pytest.importorskip("uvicorn")
    served = Served(tmp_path_factory.mktemp("browser"), small_slide)
    config = uvicorn.Config(
        viewer_app(served.viewer), log_level="warning", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [served.socket]})
    thread.start()
    yield served
    server.should_exit = True
    thread.join(30)
    served.socket.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """A page that was opened on the slide; every error it reports is kept."""

    def __init__(self, browser: Any, served: Served, **settings: Any) -> None:
        settings.setdefault("viewport", {"width": 1280, "height": 800})
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        self.page.goto(served.url)
        self.until(f"{PANE}.slide && {PANE}.tiles.image?.getFullyLoaded()")
        self.until("coverslip.annotations.state === 'saved'")

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def until(self, expression: str, seconds: float = 20) -> None:
        # Playwright's own way to wait is `eval`, which the page's policy forbids
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(f"(async () => Boolean(await ({expression})))()"):
            assert time.monotonic() < deadline, f"not so after {seconds} s: {expression}"
            self.page.wait_for_timeout(40)

    def saved(self, count: int, seconds: float = 20) -> None:
        """Wait until the server has so many annotations, and the page knows."""
        there = (
            "(await (await fetch(`/api/slides/${encodeURIComponent(coverslip.annotations.id)}"
            "/annotations`)).json()).features.length"
        )
        self.until(f"(async () => {there} === {count})()", seconds)
        self.until("coverslip.annotations.state === 'saved'")

    def go(self, x: float, y: float, um_per_px: float) -> None:
        place = {"x": x, "y": y, "scale": 0.499 / um_per_px}
        self.page.evaluate(f"(place) => {PANE}.goTo(place, true)", place)
        self.settled()

    def settled(self) -> None:
        self.page.wait_for_timeout(250)
        self.until(f"{PANE}.objects.wanted.size === 0 && {PANE}.tiles.image.getFullyLoaded()")
        self.page.wait_for_timeout(150)

    def screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a level-0 point is in the window."""
        left, top = self.page.evaluate(
            f"([x, y]) => {{const box = {PANE}.element.getBoundingClientRect();"
            f"const [u, v] = {PANE}.screenOf(x, y); return [box.left + u, box.top + v]}}",
            [x, y],
        )
        return left, top

    def drag(self, *points: tuple[float, float]) -> None:
        """With the mouse held down, over level-0 points."""
        for number, point in enumerate(points):
            self.page.mouse.move(*self.screen(*point))
            if number == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def around(self, x: float, y: float, half: int = 30) -> np.ndarray:
        """(2 half, 2 half, 3) pixels of the window around a level-0 point."""
        u, v = self.screen(x, y)
        box = {"x": round(u) - half, "y": round(v) - half, "width": 2 * half, "height": 2 * half}
        picture = Image.open(io.BytesIO(self.page.screenshot(clip=box)))
        return np.asarray(picture.convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def shown(browser: Any, served: Served) -> Iterator[Page]:
    """One page for the tests that leave it as they found it."""
    shown = Page(browser, served)
    yield shown
    shown.context.close()


@pytest.fixture(autouse=True)
def no_problems(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test may make the page report an error: a script's, or one of its policy."""
    yield
    if "shown" in request.fixturenames:
        assert request.getfixturevalue("shown").problems == []


@pytest.fixture
def drawing(browser: Any, served: Served) -> Iterator[Page]:
    """A page whose slide has no annotations."""
    served.annotations().unlink(missing_ok=True)
    drawing = Page(browser, served)
    yield drawing
    drawing.context.close()
    assert drawing.problems == []


def test_names_are_text_whatever_they_are(shown: Page) -> None:
    names = shown.page.locator(".slide-name").all_text_contents()
    assert f"{NAME}.svs" in names
    assert shown.page.locator("#list img[src='x']").count() == 0
    assert "<b>Connective</b>" in shown.page.locator("#tab-layers .classes").first.inner_text()
    assert "broken" not in shown.page.title().split("onerror")[0]


def test_a_slide_is_seen_at_the_power_that_is_asked_for(shown: Page) -> None:
    shown.page.keyboard.press("5")
    shown.page.wait_for_timeout(600)
    shown.settled()
    foot = shown.page.locator("#pane-first .pane-foot").inner_text()
    assert "20x · 0.5 µm/px" in foot
    # 50 µm at 0.5 µm/px are 100 px
    assert "50 µm" in foot
    bar = shown.page.locator("#pane-first .bar-line").bounding_box()
    assert bar["width"] == pytest.approx(100, abs=1)
    x, y, scale = shown.page.evaluate(f"Object.values({PANE}.place())")
    assert (x, y) == pytest.approx((1110, 1483.5), abs=2)
    assert scale == pytest.approx(0.499 / 0.5, rel=1e-3)
    assert shown.around(1110, 1483).std() > 5  # tissue, not an empty ground


def test_nuclei_are_drawn_where_they_are(shown: Page) -> None:
    x, y = 600 + 20 + 5 * SPACING, 900 + 20 + 10 * SPACING
    shown.go(x, y, 0.25)
    drawn = shown.around(x, y, 34)
    shown.page.keyboard.press("n")
    shown.page.wait_for_timeout(300)
    changed = np.abs(drawn - shown.around(x, y, 34)).sum(axis=2) > 12
    shown.page.keyboard.press("n")
    away = np.hypot(*(np.indices(changed.shape) - 33.5))
    radius = RADIUS * 0.499 / 0.25
    assert changed[away < radius - 2].mean() > 0.9
    assert changed[(away > radius + 2) & (away < radius + 6)].mean() < 0.02


def test_less_probable_nuclei_are_hidden(shown: Page) -> None:
    number = 10 * 22 + 5
    x, y = served_centroid(number)
    shown.go(x, y, 0.25)
    slider = shown.page.locator("#tab-layers .slider", has_text="Probability from")
    clear = {}
    for least in (0.0, 1.0):
        slider.locator("input").fill(str(least))
        shown.page.wait_for_timeout(250)
        clear[least] = shown.around(x, y, 20)
    slider.locator("input").fill("0")
    assert np.abs(clear[0.0] - clear[1.0]).mean() > 5


def served_centroid(number: int) -> tuple[float, float]:
    """Of the nucleus of that number: they are laid row by row."""
    row, column = divmod(number, 22)
    return 620 + SPACING * column, 920 + SPACING * row


def test_a_nucleus_tells_its_measurements(shown: Page) -> None:
    number = 8 * 22 + 7
    x, y = served_centroid(number)
    shown.go(x, y, 0.25)
    shown.page.mouse.move(*shown.screen(x + 30, y + 20))
    shown.page.mouse.move(*shown.screen(x + 2, y + 2))
    card = shown.page.locator("#pane-first .hover-card")
    shown.until("document.querySelector('.hover-card').textContent.includes('Area')")
    text = card.inner_text()
    assert CLASSES[number % 2] in text
    assert re.search(rf"Area µm²\s+{number}\b", text)
    shown.page.mouse.move(*shown.screen(x + SPACING / 2, y + SPACING / 2))
    assert card.is_hidden()


def test_few_nuclei_are_points_when_they_are_small(shown: Page) -> None:
    for um_per_px, detail in ((0.5, "polygons"), (2.5, "points"), (30, "density")):
        scale = 0.499 / um_per_px
        assert shown.page.evaluate(f"{PANE}.objects.layers[0].detail({scale})") == detail


def test_a_heat_map_covers_the_tiles_in_order(shown: Page) -> None:
    shown.page.keyboard.press("0")
    shown.page.keyboard.press("n")
    shown.page.wait_for_timeout(600)
    shown.page.locator("select[aria-label='Heat map']").select_option(label="focus")
    shown.page.locator("#tab-layers .slider", has_text="Opacity").last.locator("input").fill("1")
    shown.until(f"{PANE}.tiles.heat?.getFullyLoaded()")
    shown.page.wait_for_timeout(400)
    found = [shown.around(x, y, 6).mean(axis=(0, 1)) for x, y in ((128, 128), (1110, 2437))]
    shown.page.locator("select[aria-label='Heat map']").select_option("")
    shown.page.keyboard.press("n")
    # row by row from 0 to 1, of which the colours leave out the outer percentiles
    last = (9 * 9 + 4) / (9 * 12 - 1)
    for colour, share in zip(found, (0, (last - 0.01) / 0.98), strict=True):
        assert colour / 255 == pytest.approx(colormaps["viridis"](share)[:3], abs=0.03)


def test_two_views_move_together(shown: Page) -> None:
    shown.page.keyboard.press("s")
    shown.until("coverslip.panes[1].slide && coverslip.panes[1].tiles.image")
    shown.page.wait_for_timeout(400)
    box = shown.page.locator("#pane-first").bounding_box()
    shown.page.mouse.move(box["x"] + 200, box["y"] + 300)
    shown.page.mouse.wheel(0, -400)
    shown.page.wait_for_timeout(700)
    places = shown.page.evaluate("coverslip.panes.map((pane) => Object.values(pane.place()))")
    variant = shown.page.evaluate("coverslip.panes[1].variant")
    shown.page.keyboard.press("s")
    assert places[0] == pytest.approx(places[1], rel=1e-6)
    assert variant == "normalised"


def test_a_cell_of_nuclei_is_read_as_it_was_written(shown: Page, served: Served) -> None:
    url = f"/api/slides/{{}}/nuclei/made-up/{12 - 2}/1_1.bin"
    read = shown.page.evaluate(
        """async ([id, url]) => {
          const {parsedCell} = await import("/static/modules/object_cells.js");
          const answer = await fetch(url.replace("{}", encodeURIComponent(id)));
          const cell = parsedCell(await answer.arrayBuffer());
          const plain = (array) => Array.from(array);
          return {...cell, buffer: 0, index: plain(cell.index), centroid: plain(cell.centroid),
            classes: plain(cell.classes), probability: plain(cell.probability),
            offset: plain(cell.offset), outline: plain(cell.outline)};
        }""",
        [served.slide, url],
    )
    columns, index = served.columns, np.array(read["index"])
    assert len(index) > 100
    centroid = np.array(read["centroid"]).reshape(-1, 2) + read["origin"]
    np.testing.assert_allclose(centroid, columns["centroid"][index], atol=1e-3)
    np.testing.assert_array_equal(read["classes"], columns["class_id"][index])
    probability = np.array(read["probability"]) / 255
    np.testing.assert_allclose(probability, columns["probability"][index], atol=0.5 / 255 + 1e-6)
    first = np.array(read["outline"]).reshape(-1, 2)[: read["offset"][1]] * read["unit"]
    start = columns["polygon_offset"][index[0]]
    expected = columns["polygon"][start : start + 16]
    np.testing.assert_allclose(first + centroid[0], expected, atol=0.13)


RINGS = {
    "star": [[-9, -8], [9, -7], [10, 9], [-8, 10]],
    "bay": [[-10, -10], [10, -10], [10, 10], [2, 10], [0, -8], [-2, 10], [-10, 10]],
    "spiral": [[-20, -20], [20, -20], [20, 20], [-12, 20], [-12, -10], [10, -10], [10, 10],
               [-4, 10], [-4, 4], [5, 4], [5, -5], [-8, -5], [-8, 15], [15, 15], [15, -15],
               [-20, -15]],
}  # fmt: skip


@pytest.mark.parametrize("name", RINGS)
def test_triangles_fill_an_outline_and_nothing_else(shown: Page, name: str) -> None:
    ring = np.array(RINGS[name])
    triangles = shown.page.evaluate(
        """async (ring) => {
          const {addTriangles} = await import("/static/modules/triangulation.js");
          const vertices = [];
          const triangles = [];
          addTriangles(Int16Array.from(ring), (x, y, a, b) => vertices.push([x, y, a, b]) - 1,
            (...corners) => triangles.push(corners.map((n) => vertices[n])), () => {});
          return triangles;
        }""",
        ring.ravel().tolist(),
    )
    polygon = Polygon(ring)
    parts = [Polygon([corner[:2] for corner in triangle]) for triangle in triangles]
    assert sum(part.area for part in parts) == pytest.approx(polygon.area)
    assert all(polygon.buffer(1e-6).contains(part) for part in parts)
    # a side whose height is 0 at both ends is drawn as a border: all of the ring's, no other
    borders = {
        frozenset((tuple(one[:2]), tuple(other[:2])))
        for triangle in triangles
        for slot in (2, 3)
        for i, one in enumerate(triangle)
        for other in triangle[i + 1 :]
        if one[slot] == other[slot] == 0
    }
    sides = zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True)
    assert borders == {frozenset((tuple(a), tuple(b))) for a, b in sides}


def test_what_is_drawn_is_kept_as_geojson(drawing: Page, served: Served) -> None:
    drawing.go(1110, 1480, 1.0)
    drawing.page.keyboard.press("r")
    drawing.drag((900, 1300), (1000, 1380), (1100, 1450))
    drawing.saved(1)
    (rectangle,) = read_geojson(served.annotations())
    assert rectangle.geometry.bounds == pytest.approx((900, 1300, 1100, 1450), abs=3)
    assert rectangle.geometry.area == pytest.approx(200 * 150, rel=0.03)
    drawing.page.keyboard.press("p")
    for corner in ((1200, 1300), (1400, 1300), (1300, 1500)):
        drawing.page.mouse.move(*drawing.screen(*corner), steps=3)
        drawing.page.wait_for_timeout(120)
        drawing.page.mouse.click(*drawing.screen(*corner), delay=40)
        drawing.page.wait_for_timeout(320)  # no double click
    drawing.page.mouse.move(*drawing.screen(1250, 1450), steps=3)
    drawing.page.mouse.dblclick(*drawing.screen(1250, 1450))
    drawing.saved(2)
    drawing.page.keyboard.press("d")
    angle = np.linspace(0, 2 * np.pi, 30)
    ring = np.stack([1000 + 80 * np.cos(angle), 1650 + 60 * np.sin(angle)], axis=1)
    drawing.drag(*[(x, y) for x, y in ring.tolist()])
    drawing.saved(3)
    answer = drawing.page.evaluate(
        "async (id) => (await fetch(`/api/slides/${encodeURIComponent(id)}/annotations`)).json()",
        served.slide,
    )
    assert [f["properties"]["classification"]["name"] for f in answer["features"]] == ["Tumor"] * 3
    freehand = shape(answer["features"][2]["geometry"])
    assert freehand.symmetric_difference(Polygon(ring)).area < 0.05 * freehand.area


def test_an_annotation_is_named_moved_and_taken_away(drawing: Page, served: Served) -> None:
    drawing.go(1110, 1480, 1.0)
    drawing.page.keyboard.press("r")
    drawing.drag((1000, 1400), (1100, 1450), (1200, 1550))
    drawing.until("coverslip.annotations.selected")
    drawing.page.get_by_label("Name of the annotation").fill("<i>A</i>")
    drawing.page.keyboard.press("Tab")
    drawing.page.locator(".class-choice", has_text="Necrosis").click()
    drawing.until("coverslip.annotations.state === 'saved'")
    (kept,) = json.loads(served.annotations().read_text())["features"]
    assert kept["properties"]["name"] == "<i>A</i>"
    assert kept["properties"]["classification"]["name"] == "Necrosis"
    assert "<i>A</i> (Necrosis)" in drawing.page.locator(".annotations").inner_text()
    drawing.drag((1100, 1475), (1130, 1500), (1200, 1575))
    drawing.page.wait_for_timeout(1000)
    drawing.until("coverslip.annotations.state === 'saved'")
    (moved,) = read_geojson(served.annotations())
    assert moved.geometry.bounds == pytest.approx((1100, 1500, 1300, 1650), abs=4)
    drawing.page.locator("#pane-first").focus()
    drawing.page.keyboard.press("Delete")
    drawing.saved(0)
    assert read_geojson(served.annotations()) == []


def test_a_click_outlines_the_nucleus_there(drawing: Page, served: Served) -> None:
    drawing.go(*NUCLEUS, 0.25)
    drawing.page.keyboard.press("c")
    drawing.page.mouse.click(*drawing.screen(*NUCLEUS))
    drawing.saved(1, seconds=60)
    (nucleus,) = read_geojson(served.annotations())
    assert nucleus.geometry.buffer(2).contains(shape({"type": "Point", "coordinates": NUCLEUS}))
    assert 20 < nucleus.geometry.area * 0.499**2 < 200  # µm²


def test_what_someone_else_has_changed_is_not_overwritten(browser: Any, served: Served) -> None:
    served.annotations().unlink(missing_ok=True)
    page = Page(browser, served)
    theirs = (
        "async (id) => {const url = `/api/slides/${encodeURIComponent(id)}/annotations`;"
        "const tag = (await fetch(url)).headers.get('etag');"
        "const ring = [[9, 9], [99, 9], [9, 99], [9, 9]];"
        "await fetch(url, {method: 'PUT', headers: {'if-match': tag, 'x-coverslip': '1', "
        "'content-type': 'application/json'}, body: JSON.stringify({type: 'FeatureCollection', "
        "features: [{type: 'Feature', geometry: {type: 'Polygon', coordinates: [ring]}, "
        "properties: {objectType: 'annotation', name: 'theirs'}}]})})}"
    )
    page.page.evaluate(theirs, served.slide)
    page.go(1110, 1480, 1.0)
    page.page.keyboard.press("r")
    page.drag((1000, 1400), (1100, 1450), (1200, 1550))
    page.until("coverslip.annotations.state === 'conflict'")
    assert [o.name for o in read_geojson(served.annotations())] == ["theirs"]
    page.page.get_by_role("button", name="Load theirs").click()
    page.saved(1)
    assert "theirs" in page.page.locator("#tab-annotations").inner_text()
    assert all("412" in problem for problem in page.problems)
    page.context.close()


def test_a_stage_is_run_and_its_progress_told(browser: Any, served: Served) -> None:
    page = Page(browser, served)
    page.page.locator(".slide", has_text="plain.svs").click()
    page.until(f"{PANE}.slide.id === 'plain'")
    page.page.get_by_role("tab", name="Run").click()
    page.page.get_by_label("Quality of tiles").check()
    page.page.get_by_role("button", name="Run on this slide").click()
    page.page.locator(".job").wait_for()
    page.until("document.querySelector('.job.done, .job.failed')", seconds=90)
    assert page.page.locator(".job").inner_text().splitlines()[-1].startswith("Done")
    page.until("coverslip.list.find('plain').status === 'done'")
    page.until(f"{PANE}.slide.heat.length === 3")
    assert page.problems == []
    page.context.close()


def test_a_text_makes_a_heat_map(browser: Any, served: Served) -> None:
    page = Page(browser, served)
    asked = []

    def answer(route: Any) -> None:
        asked.append(json.loads(route.request.post_data))
        layer = page.page.evaluate(f"{PANE}.slide.heat[1].layer")
        route.fulfill(json={"layer": layer})

    page.page.route("**/prompt", answer)
    page.page.evaluate("coverslip.list.facts.text = ['made-up']; coverslip.layers.show("
                       f"{PANE}, () => {{}})")  # fmt: skip
    page.page.get_by_label("Text to look for").fill("<b>crypts</b>")
    page.page.keyboard.press("Enter")
    page.until(f"{PANE}.tiles.heat")
    assert asked == [{"encoder": "made-up", "text": "<b>crypts</b>"}]
    assert page.page.evaluate(f"{PANE}.heat.layer.layer === {PANE}.slide.heat[1].layer")
    assert page.problems == []
    page.context.close()


def test_a_tablet_has_room_for_fingers(browser: Any, served: Served) -> None:
    size = {"width": 820, "height": 1180}
    page = Page(browser, served, viewport=size, has_touch=True, is_mobile=True, color_scheme="dark")
    assert page.page.locator("#list").is_hidden()
    assert page.page.locator("#panel").is_hidden()
    assert page.page.locator("#pane-first").bounding_box()["width"] == 820
    for button in page.page.locator(".tools button, .bar .icon-button").all():
        if button.is_visible():
            box = button.bounding_box()
            assert min(box["width"], box["height"]) >= 44
    page.page.locator("#toggle-panel").tap()
    assert page.page.locator("#tab-layers").is_visible()
    page.page.locator("#toggle-list").tap()
    assert page.page.locator(".slide").first.is_visible()
    assert page.page.locator("#panel").is_hidden()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.page.evaluate(ground)
    page.page.keyboard.press("t")
    assert (dark, page.page.evaluate(ground)) == ("rgb(16, 20, 24)", "rgb(238, 241, 244)")
    assert page.problems == []
    page.context.close()


def test_keys_are_told_and_every_control_has_a_name(shown: Page) -> None:
    shown.page.keyboard.press("?")
    assert shown.page.locator("#shortcuts").is_visible()
    assert "Side by side" in shown.page.locator("#shortcuts .keys").first.inner_text()
    shown.page.keyboard.press("Escape")
    nameless = shown.page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter((e) => !e.ariaLabel && "
        "!e.textContent.trim() && !e.labels?.length && !e.title).map((e) => e.outerHTML)"
    )
    assert nameless == []


def test_vendored_files_are_the_ones_that_are_written_down() -> None:
    folder = PAGE / "vendored"
    table = (folder / "VENDORED.md").read_text()
    rows = re.findall(r"^\|[^|]+\|[^|]+\|[^|]+\| (\S+)[^|]*\| ([0-9a-f]{64}) \|$", table, re.M)
    scripts = {p for p in folder.rglob("*") if p.suffix in (".js", ".mjs", ".css")}
    assert {folder / name for name, _ in rows} == scripts
    for name, digest in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        assert list((folder / name).parent.glob("LICENSE*"))


def test_the_page_loads_nothing_from_elsewhere() -> None:
    ours = [p for p in PAGE.rglob("*") if p.suffix in (".html", ".css", ".js") and p.is_file()]
    for path in ours:
        if "vendored" in path.parts:
            continue
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), path
        assert not re.search(r"(inner|outer|Adjacent)HTML|document\.write|\beval\(", text), path
    index = (PAGE / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", index)
