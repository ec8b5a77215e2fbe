"""Objects, densities and heat maps by Deep Zoom cell, against the plain way to count and colour."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient
from viewer_stores import (
    add_columns,
    add_grid,
    add_objects,
    new_store,
    nucleus_columns,
    viewing,
)

from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue
from coverslip.viewer import heat_layers, object_tiles
from coverslip.viewer.coloured_tiles import ramp
from coverslip.viewer.deep_zoom import TILE, DeepZoom
from coverslip.viewer.heat_layers import HeatCells, HeatLayer, spread
from coverslip.viewer.object_index import indexed, z_codes
from coverslip.viewer.object_outlines import outlined
from coverslip.viewer.object_tiles import Density, TooMany, object_bytes

ZOOM = DeepZoom((5000, 3000))


def parsed(content: bytes) -> dict[str, Any]:
    """The binary as its documentation reads, by another hand."""
    magic, count, vertices, x, y, unit = struct.unpack_from("<4sIIfff", content)
    assert magic == b"CSN1"
    at = 24

    def column(dtype: str, length: int) -> np.ndarray:
        nonlocal at
        found = np.frombuffer(content, dtype, length, at)
        at += found.nbytes
        return found

    found = {
        "index": column("<u4", count),
        "centroid": column("<f4", 2 * count).reshape(-1, 2) + np.array([x, y]),
        "class": column("u1", count),
        "probability": column("u1", count),
    }
    at += -at % 4
    if vertices:
        offset = column("<u4", count + 1)
        rings = column("<i2", 2 * vertices).reshape(-1, 2) * unit
        found["polygons"] = [
            found["centroid"][i] + rings[offset[i] : offset[i + 1]] for i in range(count)
        ]
    assert at == len(content)
    return found


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(-5, 5005), st.floats(-5, 3005)), max_size=60),
    st.integers(0, ZOOM.last),
    st.data(),
)
def test_a_cell_holds_just_its_objects(
    points: list[tuple[float, float]], level: int, data: st.DataObject
) -> None:
    centroid = np.array(points, np.float64).reshape(-1, 2)
    columns = nucleus_columns(centroid)
    index = indexed(ZOOM, columns, ["a", "b"])
    side = TILE * ZOOM.scale(level)
    columns_, rows = ZOOM.grid(level)
    column = data.draw(st.integers(0, columns_ - 1))
    row = data.draw(st.integers(0, rows - 1))
    # what lies beyond the slide belongs to its edge
    inside = np.clip(centroid, 0, np.array(ZOOM.size) - 1)
    wanted = np.flatnonzero((inside // side == (column, row)).all(axis=1))
    outlines = outlined(index, columns["polygon_offset"], columns["polygon"])
    found = parsed(object_bytes(index, level, column, row, outlines))
    assert sorted(found["index"]) == wanted.tolist()
    for i, number in enumerate(found["index"]):
        assert found["centroid"][i] == pytest.approx(centroid[number], abs=0.01)
        assert found["class"][i] == number % 2
        assert abs(found["probability"][i] - columns["probability"][number] * 255) <= 0.5 + 1e-4
        ring = columns["polygon"][number * 8 : number * 8 + 8]
        assert np.abs(found["polygons"][i] - ring).max() <= 0.125 + 0.01
    assert "polygons" not in parsed(object_bytes(index, level, column, row))


@given(st.integers(0, 2**20), st.integers(0, 2**20))
def test_the_z_curve_takes_bits_by_turns(column: int, row: int) -> None:
    code = int(z_codes(np.array([column]), np.array([row]))[0])
    bits = f"{code:b}".zfill(64)
    assert int(bits[1::2], 2) == column
    assert int(bits[0::2], 2) == row


def test_large_outlines_take_coarser_steps() -> None:
    columns = nucleus_columns(np.array([[20_000.0, 20_000.0], [100.0, 100.0]]), radius=15_000)
    zoom = DeepZoom((60_000, 60_000))
    index = indexed(zoom, columns, ["Gland"], noun="Gland")
    outlines = outlined(index, columns["polygon_offset"], columns["polygon"])
    assert outlines.unit > 0.25
    away = np.abs(outlines.polygon(0) - columns["polygon"][:8])
    assert away.max() <= outlines.unit / 2 + 0.01
    assert outlines.at(30_000, 20_000) == 0  # far from any centroid


@settings(max_examples=40)
@given(st.floats(0, 400), st.floats(0, 300))
def test_the_object_under_a_point_is_what_shapely_says(x: float, y: float) -> None:
    random = np.random.default_rng(3)
    columns = nucleus_columns(random.uniform(0, (400, 300), (60, 2)), radius=14, vertices=11)
    columns["polygon"] = np.round(columns["polygon"] * 4) / 4
    columns["centroid"] = np.round(columns["centroid"] * 4) / 4
    index = indexed(DeepZoom((400, 300)), columns, ["a", "b"])
    outlines = outlined(index, columns["polygon_offset"], columns["polygon"])
    rings = columns["polygon"].reshape(60, 11, 2)
    polygons = [shapely.Polygon(ring) for ring in rings]
    point = shapely.Point(x, y)
    holding = [i for i, polygon in enumerate(polygons) if polygon.contains(point)]
    edge = any(polygon.exterior.distance(point) < 1e-6 for polygon in polygons)
    found = outlines.at(x, y)
    if not edge:
        assert (found in holding) if holding else found is None
        if holding:
            assert polygons[found].area == pytest.approx(min(polygons[i].area for i in holding))


def test_density_counts_every_object_once() -> None:
    random = np.random.default_rng(0)
    columns = nucleus_columns(random.uniform(0, (5000, 3000), (4000, 2)))
    index = indexed(ZOOM, columns, ["a", "b"])
    for class_id, total in ((None, 4000), (1, 2000)):
        density = Density(ZOOM, index.codes_of(class_id))
        for level in (ZOOM.last, ZOOM.last - 1, ZOOM.last - 3, 6, 0):
            bins = min(object_tiles.BINS, 1 << (ZOOM.last - level + 4))
            across, down = ZOOM.grid(level)
            margin = object_tiles.MARGIN
            inner = (slice(margin, -margin),) * 2
            counts = sum(
                density._counts(level, column, row, bins)[inner].sum()
                for column in range(across)
                for row in range(down)
            )
            assert counts == total


def test_density_tiles_meet_without_a_seam_and_are_clear_where_nothing_is() -> None:
    random = np.random.default_rng(0)
    columns = nucleus_columns(random.normal((2048, 1024), 300, (6000, 2)))
    index = indexed(ZOOM, columns, ["a", "b"])
    density = Density(ZOOM, index.codes)
    level = ZOOM.last - 2  # tiles of 1024 px: four of them meet where most objects are
    tiles = {
        (column, row): np.asarray(Image.open(io.BytesIO(density.png(level, column, row))))
        for column in (1, 2)
        for row in (0, 1)
    }
    assert all(tile.shape == (TILE, TILE) for tile in tiles.values())
    whole = np.block([[tiles[1, 0], tiles[2, 0]], [tiles[1, 1], tiles[2, 1]]]).astype(int)
    steps = np.abs(np.diff(whole, axis=1))
    assert steps[:, TILE - 1].max() <= steps.max()
    assert steps[:, TILE - 1].mean() < 2 * steps.mean()
    empty = Image.open(io.BytesIO(density.png(level, 4, 2))).convert("RGBA")
    assert np.asarray(empty)[..., 3].max() == 0
    assert np.asarray(Image.open(io.BytesIO(density.png(0, 0, 0))).convert("RGBA")).max() > 0


def test_a_crowded_cell_is_refused_with_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_tiles, "MOST_OBJECTS", 10)
    columns = nucleus_columns(np.full((11, 2), 50.0))
    index = indexed(ZOOM, columns, ["a", "b"])
    with pytest.raises(TooMany) as refused:
        object_bytes(index, 3, 0, 0)
    assert refused.value.count == 11


def test_a_million_nuclei_are_indexed_in_seconds_and_answered_at_once() -> None:
    random = np.random.default_rng(0)
    size = (100_000, 80_000)
    columns = nucleus_columns(random.uniform(0, size, (1_000_000, 2)), vertices=6)
    started = time.perf_counter()
    index = indexed(DeepZoom(size), columns, ["a", "b"])
    outlines = outlined(index, columns["polygon_offset"], columns["polygon"])
    indexing = time.perf_counter() - started
    level = index.zoom.last - 2
    started = time.perf_counter()
    for column in range(20):
        object_bytes(index, level, 30 + column, 40, outlines)
    answering = (time.perf_counter() - started) / 20
    assert index.nbytes + outlines.nbytes < 150e6
    # seconds on a quiet machine are 1 and 0.0005; this one is shared
    assert indexing < 10
    assert answering < 0.1


# ---------------------------------------------------------------- heat maps


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, address_slide: Path) -> Path:
    """A run's folder: the address slide with a bit of everything."""
    output = tmp_path_factory.mktemp("viewer") / "out"
    store = new_store(output, address_slide)
    random = np.random.default_rng(1)
    mask = np.zeros((35, 47), np.bool_)
    mask[5:30, 5:40] = True
    polygon = shapely.box(160, 160, 1280, 960)
    with store.stage("tissue", {}) as stage:
        Tissue(mask, (32.0, 32.0), (polygon,), 0.0, (255.0,) * 3, "made up", {}).write(stage)
    grid = add_grid(store)
    count = len(grid)
    share = random.random((count, 2)).astype(np.float32)
    add_columns(
        store, f"classes/kinds@{grid.name}", {"probabilities": share},
        {"classes": ["Tumor", "Stroma"], "grid": grid.name},
    )  # fmt: skip
    add_columns(
        store, f"prompts/words.enc@{grid.name}", {"probabilities": share[:, ::-1].copy()},
        {"classes": ["débris", "<script>"], "grid": grid.name},
    )  # fmt: skip
    quality = {name: share[:, 0] * 3 for name in ("focus", "pen", "brightness")}
    add_columns(store, f"quality/{grid.name}", quality, {})
    attention = np.linspace(0, 0.1, count, dtype=np.float32)
    add_columns(
        store, f"predictions/study-1@enc@{grid.name}",
        {"attention": attention, "contributions": share}, {"contribution_names": ["no", "yes"]},
    )  # fmt: skip
    add_columns(store, f"slide/mean@enc@{grid.name}", {"embedding": attention}, {"dim": count})
    classes = random.integers(0, 2, (110, 150)).astype(np.uint8)
    classes[:50] = 255
    add_columns(
        store, "maps/tissues", {"classes": classes},
        {"classes": ["Tumor", "Necrosis"], "scale": [10.0, 10.0], "origin": [0.0, 0.0],
         "missing": 255},
    )  # fmt: skip
    add_objects(store, nucleus_columns(random.uniform(0, (1500, 1100), (500, 2))))
    glands = nucleus_columns(np.array([[700.0, 500.0]]), radius=300, classes=1)
    add_objects(store, glands, "glands", classes=["Gland"])
    return output


@pytest.fixture(scope="module")
def client(stored: Path, address_slide: Path) -> Iterator[TestClient]:
    with viewing([address_slide], stored) as found:
        yield found


SLIDE = "/api/slides/address"


def rgba(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


def test_the_facts_of_a_slide(client: TestClient) -> None:
    facts = client.get(SLIDE).json()
    assert (facts["size"], facts["mpp"], facts["levels"], facts["tile"]) == (
        [1500, 1100], [0.25, 0.25], 12, 256,
    )  # fmt: skip
    assert facts["status"] == "done"
    models = {found["model"]: found for found in facts["nuclei"]}
    assert set(models) == {"made-up", "glands:made-up"}
    assert models["made-up"]["count"] == 500
    assert models["made-up"]["classes"][0] == {"name": "Neoplastic", "color": [255, 0, 0]}
    assert "Gland: Area µm^2" in models["glands:made-up"]["measurements"]
    heat = {(layer["kind"], layer["title"], layer["column"]) for layer in facts["heat"]}
    assert heat == {
        ("attention", "study-1@enc", "attention"),
        ("attention", "study-1@enc", "contribution: no"),
        ("attention", "study-1@enc", "contribution: yes"),
        ("probability", "kinds", "Tumor"),
        ("probability", "kinds", "Stroma"),
        ("prompt", "words.enc", "débris"),
        ("prompt", "words.enc", "<script>"),
        ("class map", "tissues", "class"),
        ("quality", "quality", "focus"),
        ("quality", "quality", "pen"),
        ("quality", "quality", "brightness"),
    }
    keys = [layer["layer"] for layer in facts["heat"]]
    assert len(set(keys)) == len(keys)
    assert all(key.isalnum() for key in keys)


def _layer(client: TestClient, kind: str, column: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        layer
        for layer in client.get(SLIDE).json()["heat"]
        if (layer["kind"], layer["column"]) == (kind, column)
    )
    return found


def test_heat_tiles_have_the_colours_of_their_values(client: TestClient, stored: Path) -> None:
    layer = _layer(client, "probability", "Stroma")
    store = SlideStore.open(stored / "address.zarr")
    grid = add_grid(store)
    values = store.group(f"classes/kinds@{grid.name}")["probabilities"][:, 1]
    tile = rgba(client.get(f"{SLIDE}/heat/{layer['layer']}/10/1_0.png").content)
    palette = ramp()
    columns = -(-1500 // 128)
    for u, v in ((0, 0), (100, 40), (200, 255), (230, 128)):
        x, y = (256 + u) * 2 + 1, v * 2 + 1
        value = values[(y // 128) * columns + x // 128]
        assert tile[v, u].tolist() == palette[1 + round(float(value) * 254)].tolist()
    # the slide ends 1500 / 2 - 512 = 238 px behind this tile's left; the grid's last tile goes on
    assert tile[0, 237, 3] == 255
    assert tile[:, 12 * 64 - 256 * 2 :, 3].max(initial=0) == 0


def test_heat_thresholds_make_the_rest_clear(client: TestClient) -> None:
    layer = _layer(client, "probability", "Tumor")
    url = f"{SLIDE}/heat/{layer['layer']}/9/0_0.png"
    whole, part = rgba(client.get(url).content), rgba(client.get(f"{url}?low=0.5").content)
    assert 0 < (part[..., 3] > 0).sum() < (whole[..., 3] > 0).sum()
    shown = part[..., 3] > 0
    assert (part[shown] == whole[shown]).all()
    assert rgba(client.get(f"{url}?low=2").content)[..., 3].max() == 0
    for nonsense in ("low=x", "high=nan", "low=inf"):
        assert client.get(f"{url}?{nonsense}").status_code == 400


def test_class_maps_take_the_classes_colours(client: TestClient) -> None:
    layer = _layer(client, "class map", "class")
    colours = [tuple(found["color"]) for found in layer["classes"]]
    assert colours == [(200, 0, 0), (50, 50, 50)]
    tile = rgba(client.get(f"{SLIDE}/heat/{layer['layer']}/11/2_2.png").content)
    assert {tuple(p[:3]) for p in tile.reshape(-1, 4) if p[3]} == set(colours)
    assert rgba(client.get(f"{SLIDE}/heat/{layer['layer']}/11/2_0.png").content)[..., 3].max() == 0


@pytest.mark.parametrize("scale", [1, 4, 16])
def test_a_large_class_map_is_read_where_it_is_looked_at(
    scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = np.random.default_rng(0).integers(0, 3, (1000, 1400)).astype(np.uint8)

    class Group:
        attrs = {"scale": [2.0, 2.0], "origin": [0.0, 0.0], "missing": 255}  # noqa: RUF012

        def __getitem__(self, name: str) -> np.ndarray:
            return classes

    layer = HeatLayer("t", "class", "class map", "maps/t", array="classes",
                      classes=(("a", (1, 0, 0)), ("b", (2, 0, 0)), ("c", (3, 0, 0))))  # fmt: skip
    monkeypatch.setattr(heat_layers, "HELD_PX", 300)
    cells = heat_layers._raster(Group(), layer)
    assert cells.step == 5
    assert np.array_equal(cells.cells, classes[::5, ::5])
    zoom = DeepZoom((2800, 2000))
    level = zoom.last - scale.bit_length() + 1
    tile = rgba(cells.png(zoom, level, 0, 0, None))[..., 0]
    places = ((np.arange(TILE) + 0.5) * scale / 2).astype(int)
    inside = places[places < 1000]
    if scale / 2 < cells.step:  # finer than what is held: every pixel is the map's own
        assert np.array_equal(tile[: len(inside), : len(inside)],
                              classes[np.ix_(inside, inside)] + 1)  # fmt: skip
    else:
        coarse = inside // 5 * 5
        assert np.array_equal(tile[: len(inside), : len(inside)],
                              classes[np.ix_(coarse, coarse)] + 1)  # fmt: skip


def test_overlapping_tiles_stand_for_their_middles() -> None:
    layer = HeatLayer("t", "c", "quality", "quality/g")
    cells = HeatCells(layer, np.array([[0.0, 1.0]], np.float32), (100.0, 100.0), (30.0, 10.0))
    tile = rgba(cells.png(DeepZoom((256, 256)), 8, 0, 0, None))
    assert tile[50, 29, 3] == 0
    assert tile[50, 30].tolist() == ramp()[1].tolist()
    assert tile[50, 130].tolist() == ramp()[255].tolist()
    assert tile[50, 230, 3] == 0
    assert tile[109, 130, 3] == 255
    assert tile[110, 130, 3] == 0


def test_limits_always_have_a_width() -> None:
    assert spread(np.array([np.nan])) == (0.0, 1.0)
    low, high = spread(np.full(5, 7.0))
    assert low == 7 < high
    assert spread(np.arange(101.0)) == (1.0, 99.0)


def test_objects_over_http(client: TestClient, stored: Path) -> None:
    centroid = SlideStore.open(stored / "address.zarr").group("nuclei/made-up")["centroid"][:]
    answer = client.get(f"{SLIDE}/nuclei/made-up/10/0_0.bin")
    found = parsed(answer.content)
    assert sorted(found["index"]) == np.flatnonzero((centroid // 512 == 0).all(axis=1)).tolist()
    points = client.get(f"{SLIDE}/nuclei/made-up/10/0_0.bin?detail=points")
    assert len(points.content) < len(answer.content)
    assert points.headers["etag"] != answer.headers["etag"]
    kept = client.get(
        f"{SLIDE}/nuclei/made-up/10/0_0.bin", headers={"if-none-match": answer.headers["etag"]}
    )
    assert kept.status_code == 304
    x, y = centroid[42]
    under = client.get(f"{SLIDE}/nuclei/made-up/at", params={"x": x, "y": y}).json()
    assert np.hypot(*(np.array(under["centroid"]) - (x, y))) < 12
    assert under["class_name"] == ("Neoplastic", "Connective")[under["class"]]
    assert under["measurements"]["Nucleus: Area µm^2"] == under["index"]
    assert shapely.Polygon(under["polygon"]).contains(shapely.Point(x, y))
    gland = client.get(f"{SLIDE}/nuclei/glands:made-up/at", params={"x": 900, "y": 500}).json()
    assert (gland["index"], gland["class_name"]) == (0, "Gland")
    for nowhere in ("x=1&y=1", "x=-1&y=5", "x=1e300&y=5", "x=1500&y=5"):
        assert client.get(f"{SLIDE}/nuclei/glands:made-up/at?{nowhere}").status_code == 404
    for url, status in (
        ("nuclei/other/10/0_0.bin", 404), ("nuclei/glands:other/10/0_0.bin", 404),
        ("nuclei/tissue:/10/0_0.bin", 404), ("nuclei/made-up/12/0_0.bin", 404),
        ("nuclei/made-up/10/0_0.bin?detail=all", 400), ("nuclei/made-up/at?x=1", 400),
        ("nuclei/made-up/at?x=1&y=nan", 400), ("density/made-up/5/0_0.png?class=7", 404),
        ("density/made-up/5/0_0.png?class=-1", 400), ("density/made-up/5/0_0.png?class=²", 400),
        ("heat/unknown/5/0_0.png", 404),
    ):  # fmt: skip
        assert client.get(f"{SLIDE}/{url}").status_code == status, url


def test_a_crowded_cell_over_http(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_tiles, "MOST_OBJECTS", 10)
    answer = client.get(f"{SLIDE}/nuclei/made-up/0/0_0.bin")
    assert (answer.status_code, answer.json()["count"]) == (413, 500)
    assert "10" in answer.json()["error"]


def test_density_over_http(client: TestClient) -> None:
    whole = client.get(f"{SLIDE}/density/made-up/9/0_0.png")
    one = client.get(f"{SLIDE}/density/made-up/9/0_0.png?class=1")
    assert whole.headers["content-type"] == "image/png"
    assert (rgba(whole.content)[..., 3] > 0).sum() > (rgba(one.content)[..., 3] > 0).sum() > 0


def test_outlines(client: TestClient) -> None:
    found = client.get(f"{SLIDE}/outlines").json()
    (feature,) = found["features"]
    assert shapely.geometry.shape(feature["geometry"]).equals(shapely.box(160, 160, 1280, 960))
    (grid,) = found["grids"]
    assert grid == {
        "grid": "64px_0.5mpp", "tile_px0": [128, 128], "step_px0": [128, 128], "shape": [9, 12],
        "count": 108,
    }  # fmt: skip


def test_a_slide_that_was_not_run_has_no_overlays(small_slide: Path, stored: Path) -> None:
    with viewing([small_slide], stored) as client:
        base = "/api/slides/CMU-1-Small-Region"
        facts = client.get(base).json()
        assert (facts["status"], facts["nuclei"], facts["heat"]) == ("not run", [], [])
        assert client.get(f"{base}/nuclei/made-up/5/0_0.bin").status_code == 404
        assert client.get(f"{base}/outlines").json()["features"] == []


def test_what_a_run_adds_is_seen(tmp_path: Path, address_slide: Path) -> None:
    store = new_store(tmp_path, address_slide)
    columns = nucleus_columns(np.array([[50.0, 50.0], [60.0, 60.0]]))
    with viewing([address_slide], tmp_path) as client:
        assert client.get(SLIDE).json()["status"] == "partial"
        add_objects(store, columns)
        time.sleep(0.6)
        url = f"{SLIDE}/nuclei/made-up/11/0_0.bin"
        first = client.get(url)
        assert len(parsed(first.content)["index"]) == 2
        add_objects(store, nucleus_columns(np.array([[50.0, 50.0]])))
        time.sleep(0.6)
        again = client.get(url, headers={"if-none-match": first.headers["etag"]})
        assert len(parsed(again.content)["index"]) == 1


def test_a_broken_store_is_told_and_its_slide_shown(tmp_path: Path, address_slide: Path) -> None:
    (tmp_path / "address.zarr").mkdir()
    (tmp_path / "address.zarr" / "zarr.json").write_text("{")
    with viewing([address_slide], tmp_path) as client:
        facts = client.get(SLIDE).json()
        assert facts["problem"].startswith("address.zarr: ")
        assert str(tmp_path) not in facts["problem"]
        assert (facts["nuclei"], facts["heat"]) == ([], [])
        assert client.get(f"{SLIDE}/tiles/original/9/0_0.jpg").status_code == 200
        answer = client.get(f"{SLIDE}/nuclei/made-up/9/0_0.bin")
        assert answer.status_code == 409
