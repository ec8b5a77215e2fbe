"""QuPath object files: what is written passes the strictest reading; what QuPath writes is read."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from coverslip.errors import InvalidGeoJSON, StoreError
from coverslip.export.feature_text import six_digits
from coverslip.export.geojson import (
    Limits,
    PolygonColumns,
    QuPathObject,
    box_columns,
    read_geojson,
    region_polygons,
    tissue_objects,
    write_geojson,
)
from coverslip.export.qupath_objects import NAMESPACE, class_color
from coverslip.wsi.slide import Box

REPOSITORY = Path(__file__).parents[1]
SQUARE = shapely.box(10, 10, 30, 30)


def checker() -> Path | None:
    data = os.environ.get("COVERSLIP_TEST_DATA")
    folders = [REPOSITORY.parent / "shared"] + ([Path(data).parent] if data else [])
    found = [f / "tools" / "qupath_geojson_check.py" for f in folders]
    return next((path for path in found if path.is_file()), None)


def check(path: Path, *options: str) -> None:
    """The project's own strict checker, where it is at hand."""
    tool = checker()
    if tool is None:
        pytest.skip("the QuPath checker is not beside the project")
    command = [sys.executable, str(tool), str(path), "--strict", *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def nuclei(count: int = 300, seed: int = 0, **changes: Any) -> PolygonColumns:
    random = np.random.default_rng(seed)
    vertices = random.integers(5, 40, count)
    offset = np.concatenate([[0], np.cumsum(vertices)])
    centroid = random.uniform(40, 1960, (count, 2)).astype(np.float32)
    owner = np.repeat(np.arange(count), vertices)
    angle = 2 * np.pi * (np.arange(offset[-1]) - offset[owner]) / vertices[owner]
    reach = random.uniform(5, 9, count)[owner] * random.uniform(0.9, 1.1, offset[-1])
    around = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None]
    values: dict[str, Any] = {
        "model": "watershed",
        "centroid": centroid,
        "polygon_offset": offset,
        "polygon": (centroid[owner] + around).astype(np.float32),
        "classes": ("Tumor: Positive", "Stroma", ""),
        "class_id": random.integers(0, 3, count).astype(np.uint8),
        "measurements": {
            "Detection probability": random.random(count).astype(np.float16),
            "Nucleus: Area µm^2": random.uniform(10, 90, count).astype(np.float32),
            "Cells 100% around": random.integers(0, 9, count),
        },
    }
    return PolygonColumns(**(values | changes))


def features(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    collection = json.loads(text)
    assert collection["type"] == "FeatureCollection"
    return collection["features"]


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("name", ["n.geojson", "n.geojson.gz", "n.json.gz", "name ü.geojson"])
def test_nuclei_pass_the_strict_checker(tmp_path: Path, name: str) -> None:
    written = write_geojson(tmp_path / name, nuclei(), slide="case")
    assert written.objects == 300
    assert written.paths == (tmp_path / name,)
    check(tmp_path / name, "--width", "2000", "--height", "2000", "--min-objects", "300")


def test_tissue_tiles_and_nuclei_in_one_file(tmp_path: Path) -> None:
    grid = np.array([(x, y, 100, 100) for y in range(0, 2000, 100) for x in range(0, 2000, 100)])
    share = np.linspace(0, 1, len(grid)).astype(np.float32)
    ring = SQUARE.buffer(40).difference(SQUARE)
    path = tmp_path / "all.geojson.gz"
    written = write_geojson(
        path,
        [
            *tissue_objects([ring]),
            box_columns(grid, model="100px", measurements={"Tissue fraction": share}),
            nuclei(),
            QuPathObject(SQUARE, "cell", "Tumor", nucleus=SQUARE.buffer(5)),
        ],
        slide="case",
        bounds=Box(0, 0, 2000, 2000),
    )
    check(path, "--width", "2000", "--height", "2000")
    found = features(path)
    assert len(found) == written.objects == 702
    assert found[0]["properties"]["isLocked"] is True
    assert len(found[0]["geometry"]["coordinates"]) == 2  # the hole is kept
    assert found[1]["properties"]["objectType"] == "tile"
    cell, nucleus = (
        shapely.geometry.shape(found[-1][key]) for key in ("geometry", "nucleusGeometry")
    )
    assert cell.covers(nucleus)


def test_columns_and_single_objects_write_the_same_geometry_and_values(tmp_path: Path) -> None:
    columns = nuclei(40)
    singles = [
        QuPathObject(
            shapely.Polygon(columns.polygon[a:b]),
            class_name=columns.classes[columns.class_id[i]],
            measurements={k: v[i].item() for k, v in columns.measurements.items()},
        )
        for i, (a, b) in enumerate(
            zip(columns.polygon_offset[:-1], columns.polygon_offset[1:], strict=True)
        )
    ]
    write_geojson(tmp_path / "a.geojson", columns, slide="s")
    write_geojson(tmp_path / "b.geojson", singles, slide="s")
    for one, other in zip(
        features(tmp_path / "a.geojson"), features(tmp_path / "b.geojson"), strict=True
    ):
        assert one["geometry"] == other["geometry"]
        assert one["properties"].get("classification") == other["properties"].get("classification")
        ours, theirs = one["properties"]["measurements"], other["properties"]["measurements"]
        assert list(ours) == list(theirs)
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=2e-6)


def test_ids_are_uuid5_of_slide_model_and_place_and_stay(tmp_path: Path) -> None:
    columns = nuclei(50)
    write_geojson(tmp_path / "a.geojson", columns, slide="case", threads=1)
    write_geojson(tmp_path / "b.geojson", columns, slide="case", max_objects=7)
    first = [f["id"] for f in features(tmp_path / "a.geojson")]
    parts = sorted(tmp_path.glob("b.part-*"))
    again = [f["id"] for part in parts for f in features(part)]
    assert first == again
    x, y = np.rint(np.asarray(columns.centroid[0], np.float64) * 100).astype(int)
    assert first[0] == str(uuid.uuid5(NAMESPACE, f"case\nwatershed\n{x},{y}"))
    write_geojson(tmp_path / "c.geojson", columns, slide="other")
    assert not set(first) & {f["id"] for f in features(tmp_path / "c.geojson")}


def test_objects_at_one_place_keep_different_ids(tmp_path: Path) -> None:
    boxes = np.tile([[5, 5, 10, 10]], (4, 1))
    same = QuPathObject(SQUARE, id="6f1c7f4e-52b5-5f0c-9a3e-0d5f5a1f7c12")
    write_geojson(
        tmp_path / "a.geojson",
        [box_columns(boxes, model="m"), same, same, QuPathObject(SQUARE), QuPathObject(SQUARE)],
        slide="s",
    )
    ids = [f["id"] for f in features(tmp_path / "a.geojson")]
    assert len(set(ids)) == 8
    assert ids[4] == same.id
    check(tmp_path / "a.geojson")


def test_a_model_cannot_be_written_twice_under_the_same_ids(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_geojson(tmp_path / "a.geojson", [nuclei(), nuclei()], slide="s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz"])
def test_bytes_do_not_depend_on_threads_or_time(tmp_path: Path, suffix: str) -> None:
    columns = nuclei(20_000)
    for threads in (1, 2, 5):
        write_geojson(tmp_path / f"{threads}{suffix}", columns, slide="s", threads=threads)
    contents = {path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 1


def test_the_gzip_is_one_member(tmp_path: Path) -> None:
    import zlib

    path = write_geojson(tmp_path / "a.geojson.gz", nuclei(20_000), slide="s").paths[0]
    decoder = zlib.decompressobj(31)
    text = decoder.decompress(path.read_bytes())
    assert decoder.eof
    assert not decoder.unused_data
    assert len(json.loads(text)["features"]) == 20_000


def test_parts_are_named_counted_and_replace_an_earlier_export(tmp_path: Path) -> None:
    path = tmp_path / "case.geojson.gz"
    beside = tmp_path / "case.other.geojson.gz"
    beside.write_bytes(b"")
    write_geojson(path, nuclei(25), slide="s")
    written = write_geojson(path, nuclei(25), slide="s", max_objects=10)
    names = [p.name for p in written.paths]
    assert names == [f"case.part-0{i}-of-03.geojson.gz" for i in (1, 2, 3)]
    assert {p.name for p in tmp_path.iterdir()} == {*names, beside.name}
    assert [len(features(p)) for p in written.paths] == [10, 10, 5]
    write_geojson(path, nuclei(25), slide="s")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, beside.name}


def test_a_failed_export_leaves_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "case.geojson.gz"
    write_geojson(path, nuclei(25), slide="s")
    before = path.read_bytes()

    def failing() -> Any:
        yield nuclei(25)
        raise RuntimeError("source gone")

    with pytest.raises(RuntimeError):
        write_geojson(path, failing(), slide="s", max_objects=10)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_geojson(tmp_path / "file" / "a.geojson", [], slide="s")


def test_a_name_qupath_would_not_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads objects only"):
        write_geojson(tmp_path / "a.txt", [], slide="s")


def test_bounds_are_subtracted_and_objects_cut_to_them(tmp_path: Path) -> None:
    bounds = Box(1000, 2000, 100, 50)
    boxes = [(1010, 2010, 10, 10), (1090, 2040, 20, 20), (0, 0, 50, 50), (990, 2010, 10, 10)]
    path = tmp_path / "a.geojson"
    written = write_geojson(path, box_columns(boxes, model="m"), slide="s", bounds=bounds)
    assert (written.objects, written.dropped) == (2, 2)
    whole, cut = (shapely.geometry.shape(f["geometry"]) for f in features(path))
    assert whole.bounds == (10, 10, 20, 20)
    assert cut.bounds == (90, 40, 100, 50)
    check(path, "--bounds", "1000,2000,100,50")
    back = read_geojson(path, bounds=bounds)
    assert back[0].geometry.bounds == (1010, 2010, 1020, 2020)
    with_points = [QuPathObject(shapely.Point(x, 2010), "annotation") for x in (999, 1001)]
    assert write_geojson(path, with_points, slide="s", bounds=bounds).objects == 1


CROOKED = {
    "bow-tie": [(0, 0), (10, 10), (10, 0), (0, 10)],
    "touches itself": [(0, 0), (10, 0), (10, 10), (5, 0), (0, 10)],
    "spike": [(0, 0), (10, 0), (20, 0), (10, 0), (10, 10), (0, 10)],
    "figure of eight through a vertex": [(0, 0), (5, 5), (0, 10), (10, 10), (5, 5), (10, 0)],
    "repeated vertices": [(0, 0), (0, 0), (10, 0), (10, 0), (10, 10), (0, 0)],
    "crosses only when rounded": [(0, 0), (10, 0.004), (20, 0), (20, 9), (10, 0.0041), (0, 9)],
}
VANISHING = {
    "smaller than the grid": [(1, 1), (1.002, 1), (1.002, 1.002)],
    "flat": [(0, 0), (10, 0), (20, 0)],
    "two points": [(0, 0), (10, 10)],
    "nothing": [],
    "not a number": [(0, 0), (10, np.nan), (10, 10)],
    "sliver": [(0, 0), (60, 0.004), (120, 0)],
}


def ragged(rings: list[list[tuple[float, float]]]) -> PolygonColumns:
    offset = np.concatenate([[0], np.cumsum([len(r) for r in rings])]).astype(np.int64)
    polygon = np.array([xy for ring in rings for xy in ring], dtype=np.float64).reshape(-1, 2) + 50
    centroid = np.arange(2 * len(rings)).reshape(-1, 2)
    return PolygonColumns("m", centroid, offset, polygon)


def assert_holds_in_qupath(feature: dict[str, Any]) -> None:
    shape = shapely.geometry.shape(feature["geometry"])
    assert shape.is_valid
    assert shape.area > 0
    assert not shapely.set_precision(shape, 0.01).is_empty


def test_crooked_polygons_are_repaired_and_vanishing_ones_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    columns = ragged([*CROOKED.values(), *VANISHING.values()])
    written = write_geojson(path, columns, slide="s")
    found = features(path)
    assert (written.objects, written.dropped) == (len(CROOKED), len(VANISHING))
    assert written.repaired >= 4
    for feature in found:
        assert_holds_in_qupath(feature)
    areas = [shapely.geometry.shape(f["geometry"]).area for f in found]
    assert areas[0] == pytest.approx(50, abs=0.1)  # both wings of the bow-tie
    check(path)


@pytest.mark.parametrize("ring", CROOKED.values(), ids=CROOKED)
def test_single_objects_are_repaired_too(tmp_path: Path, ring: list[tuple[float, float]]) -> None:
    path = tmp_path / "a.geojson"
    write_geojson(path, [QuPathObject(shapely.Polygon(ring))], slide="s")
    assert_holds_in_qupath(features(path)[0])


rings = st.lists(
    st.tuples(*[st.integers(0, 400).map(lambda v: v / 97)] * 2), min_size=0, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(st.lists(rings, min_size=1, max_size=12), st.booleans())
def test_whatever_is_drawn_is_valid_on_the_grid(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[list[tuple[float, float]]], cut: bool
) -> None:
    path = tmp_path_factory.mktemp("drawn") / "a.geojson"
    bounds = Box(51, 51, 2, 3) if cut else Box(0, 0, 100, 100)
    written = write_geojson(path, ragged(drawn), slide="s", bounds=bounds)
    found = features(path)
    assert len(found) == written.objects == len(drawn) - written.dropped
    for feature in found:
        assert_holds_in_qupath(feature)
        x0, y0, x1, y1 = shapely.geometry.shape(feature["geometry"]).bounds
        assert 0 <= x0 < x1 <= bounds.w
        assert 0 <= y0 < y1 <= bounds.h


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
colors = st.tuples(*[st.integers(0, 255)] * 3)
objects = st.builds(
    QuPathObject,
    geometry=st.tuples(*[st.integers(0, 10_000)] * 2).map(
        lambda c: shapely.box(c[0] / 100, c[1] / 100, c[0] / 100 + 20, c[1] / 100 + 30)
    ),
    kind=st.sampled_from(["annotation", "detection", "cell", "tile"]),
    class_name=st.sampled_from(["", "Tumor", "Tumor: Positive", "Drüse"]),
    measurements=st.dictionaries(
        text.filter(str.strip), st.integers(-(2**50), 2**50) | st.floats(-60000, 60000, width=16)
    ),
    name=text.filter(str.strip) | st.just(""),
    color=colors | st.none(),
    locked=st.booleans(),
    metadata=st.dictionaries(text, text),
    plane=st.tuples(st.integers(-1, 3), st.integers(0, 5), st.integers(0, 5)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(objects, max_size=6))
def test_objects_come_back_as_they_went(
    tmp_path_factory: pytest.TempPathFactory, items: list[QuPathObject]
) -> None:
    path = tmp_path_factory.mktemp("round") / "a.geojson.gz"
    write_geojson(path, items, slide="s")
    back = read_geojson(path)
    for sent, got in zip(items, back, strict=True):
        assert shapely.equals_exact(sent.geometry.normalize(), got.geometry.normalize(), 0.006)
        for name in ("kind", "class_name", "name", "color", "locked", "metadata", "plane"):
            assert getattr(sent, name) == getattr(got, name)
        assert {k: pytest.approx(v, rel=1e-5) for k, v in sent.measurements.items()} == dict(
            got.measurements
        )
        if sent.class_name:
            assert got.class_color == class_color(sent.class_name)
    write_geojson(path, back, slide="s")
    assert [b.id for b in read_geojson(path)] == [b.id for b in back]


def test_measurements_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    values = {"a": np.array([1.5, np.nan, np.inf]), "b": np.array([-np.inf, 2, 1e39])}
    write_geojson(path, nuclei(3, measurements=values), slide="s")
    assert [f["properties"]["measurements"] for f in features(path)] == [{"a": 1.5}, {"b": 2.0}, {}]
    single = QuPathObject(SQUARE, measurements={"a": float("nan"), "b": 1.0, " ": 2.0})
    write_geojson(path, [single], slide="s")
    assert features(path)[0]["properties"]["measurements"] == {"b": 1.0}
    check(path)


def test_class_names_at_which_qupath_throws_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    names = ("Tumor:", " a\nb : c", ":", "\u2028")
    write_geojson(path, nuclei(4, classes=names, class_id=np.arange(4)), slide="s")
    found = [f["properties"].get("classification") for f in features(path)]
    assert found[0]["name"] == "Tumor"
    assert found[1]["names"] == ["a b", "c"]
    assert found[2:] == [None, None]
    check(path)


def test_a_class_has_one_color_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    red, blue = (255, 0, 0), (0, 0, 255)
    given_ = [QuPathObject(SQUARE, class_name="A", class_color=c) for c in (red, blue)]
    write_geojson(path, given_, slide="s", colors={"B": blue})
    assert [f["properties"]["classification"]["color"] for f in features(path)] == [[*red]] * 2
    write_geojson(path, given_, slide="s", colors={"A": blue})
    assert [f["properties"]["classification"]["color"] for f in features(path)] == [[*blue]] * 2


@given(st.floats(1e-25, 1e25), st.booleans())
def test_six_digits_survive(value: float, negative: bool) -> None:
    value = -value if negative else value
    rounded = six_digits(np.array([value]))[0]
    assert float(str(rounded)) == pytest.approx(float(f"{value:.6g}"), rel=2e-6)
    assert len(f"{float(str(rounded)):e}".rstrip("0").replace(".", "")) <= 13


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_id": np.full(300, 3)}, "class ids"),
        ({"polygon_offset": np.arange(301)[::-1]}, "polygon_offset"),
        ({"polygon": np.zeros((5, 2))}, "polygon_offset"),
    ],
)
def test_columns_that_mean_nothing_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_geojson(tmp_path / "a.geojson", nuclei(**change), slide="s")


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="other lengths"):
        nuclei(measurements={"a": np.zeros(2)})
    with pytest.raises(ValueError, match="offsets"):
        nuclei(polygon_offset=np.zeros(3))


def test_nothing_to_write_is_an_empty_collection(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    for nothing in ([], nuclei(0)):
        assert write_geojson(path, nothing, slide="s").objects == 0
        assert read_geojson(path) == []


# ---------------------------------------------------------------- reading

RING = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
BOW_TIE = [[0, 0], [10, 10], [10, 0], [0, 10]]
POLYGON = {"type": "Polygon", "coordinates": [RING]}


def feature(**properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": POLYGON, "properties": properties}


def reading(tmp_path: Path, content: Any, **options: Any) -> list[QuPathObject]:
    path = tmp_path / "in.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return read_geojson(path, **options)


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature()]},
        {"features": [feature()], "type": "FeatureCollection"},
        {"type": "FeatureCollection", "crs": {"a": [{}]}, "features": [feature()], "more": 1},
        [feature()],
        feature(),
        POLYGON,
        "\ufeff" + json.dumps([feature()]),
        "\n " + json.dumps([feature()], indent=4) + "\n",
    ],
)
def test_every_container_is_read(tmp_path: Path, content: Any) -> None:
    (item,) = reading(tmp_path, content)
    assert item.geometry.area == 100
    assert item.kind == "annotation"


def test_gzip_and_zip_are_read_whatever_the_name(tmp_path: Path) -> None:
    content = json.dumps([feature()]).encode()
    (tmp_path / "a").write_bytes(gzip.compress(content) + gzip.compress(b"  "))
    assert len(read_geojson(tmp_path / "a")) == 1
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.geojson", content)
        archive.writestr("two.json", content)
        archive.writestr("readme.txt", "no")
    assert len(read_geojson(tmp_path / "b.zip")) == 2


def test_spellings_of_the_kind(tmp_path: Path) -> None:
    spelt = [
        (feature(objectType="cell"), "cell"),
        (feature(object_type="detection"), "detection"),
        (feature(type="tile"), "tile"),
        (feature(objectType="tma_core"), "tmaCore"),
        (feature() | {"id": "PathDetectionObject"}, "detection"),
        (feature(objectType="something else"), "annotation"),
        ({"type": "Feature", "geometry": POLYGON}, "annotation"),
        (feature() | {"properties": None}, "annotation"),
    ]
    assert [o.kind for o in reading(tmp_path, [f for f, _ in spelt])] == [k for _, k in spelt]


def test_spellings_of_the_class(tmp_path: Path) -> None:
    red = (200, 0, 0)
    spelt = [
        ({"name": "Tumor", "color": [200, 0, 0]}, ("Tumor", red)),
        ({"names": ["Tumor", "Positive"], "color": [200, 0, 0, 255]}, ("Tumor: Positive", red)),
        ({"name": "Tumor", "colorRGB": -3670016}, ("Tumor", red)),
        ({"name": "Tumor", "color": [-3670016]}, ("Tumor", red)),
        ({"name": "Tumor", "color": []}, ("Tumor", None)),
        ({"name": "Tumor", "color": None}, ("Tumor", None)),
        ("Tumor", ("Tumor", None)),
        ({"name": "Positive", "parentClass": {"name": "Tumor"}}, ("Tumor: Positive", None)),
        ({"name": "A: B", "colorRGB": 1, "parentClass": {"name": "A"}}, ("A: B", (0, 0, 1))),
        ({}, ("", None)),
        (None, ("", None)),
    ]
    found = reading(tmp_path, [feature(classification=c) for c, _ in spelt])
    assert [(o.class_name, o.class_color) for o in found] == [wanted for _, wanted in spelt]


def test_spellings_of_measurements_and_metadata(tmp_path: Path) -> None:
    first = (
        '{"type":"Feature","geometry":POLYGON,"properties":{"measurements":{"a":1,"b":"NaN",'
        '"c":"2.5","d":null,"e":true,"f":"-Infinity","g":NaN,"h":"text"},'
        '"metadata":{"k":"v"},"metadata":{"k":"v","n":3},"color":[1,2,3],"isLocked":true}}'
    ).replace("POLYGON", json.dumps(POLYGON))
    second = json.dumps(feature(measurements=[{"name": "a", "value": 1}]))
    content = f"[{first},{second}]"
    one, other = reading(tmp_path, content)
    assert {k: str(v) for k, v in one.measurements.items()} == {
        "a": "1.0", "b": "nan", "c": "2.5", "f": "-inf", "g": "nan",
    }  # fmt: skip
    assert one.metadata == {"k": "v", "n": "3"}
    assert one.color == (1, 2, 3)
    assert one.locked
    assert other.measurements == {"a": 1.0}


@pytest.mark.parametrize(
    ("geometry", "kind", "area"),
    [
        ({"type": "Point", "coordinates": [1, 2]}, "Point", 0),
        ({"type": "MultiPoint", "coordinates": [[1, 2, 9], [3, 4]]}, "MultiPoint", 0),
        ({"type": "LineString", "coordinates": [[1, 2], [3, 4]]}, "LineString", 0),
        ({"type": "MultiLineString", "coordinates": [[[1, 2], [3, 4]]]}, "MultiLineString", 0),
        ({"type": "Polygon", "coordinates": [RING[:-1]]}, "Polygon", 100),
        ({"type": "Polygon", "coordinates": [RING, [[2, 2], [4, 2], [4, 4]]]}, "Polygon", 98),
        ({"type": "MultiPolygon", "coordinates": [[RING], [RING]]}, "Polygon", 100),
        ({"type": "GeometryCollection", "geometries": [POLYGON]}, "Polygon", 100),
        (POLYGON | {"isEllipse": True}, "Polygon", 25 * np.pi),
        ({"type": "Polygon", "coordinates": [BOW_TIE]}, "MultiPolygon", 50),
    ],
)  # fmt: skip
def test_every_geometry_is_read(
    tmp_path: Path, geometry: dict[str, Any], kind: str, area: float
) -> None:
    (item,) = reading(tmp_path, geometry)
    assert item.geometry.geom_type == kind
    assert item.geometry.is_valid
    assert item.geometry.area == pytest.approx(area, rel=1e-3)


def test_hierarchies_are_read_flat_with_their_parents(tmp_path: Path) -> None:
    leaf = feature(objectType="detection")
    branch = feature(objectType="annotation", childObjects=[leaf, leaf])
    root = {"type": "Feature", "geometry": {}, "properties": {"objectType": "root"}}
    root["properties"]["childObjects"] = [branch, branch]  # type: ignore[index]
    found = reading(tmp_path, [root, feature(children=[leaf])])
    assert [o.parent for o in found] == [None, 0, 0, None, 3, 3, None, 6]


def test_planes_and_nuclei_are_read(tmp_path: Path) -> None:
    raw = feature(objectType="cell") | {"nucleusGeometry": POLYGON}
    raw["geometry"] = POLYGON | {"plane": {"c": 1, "z": 2, "t": 3}}
    (item,) = reading(tmp_path, raw, bounds=Box(100, 200, 50, 50))
    assert item.plane == (1, 2, 3)
    assert item.nucleus is not None
    assert item.nucleus.bounds == (100, 200, 110, 210)


def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coverslip.export import geojson_reader

    write_geojson(tmp_path / "a.geojson", nuclei(40), slide="s")
    whole = read_geojson(tmp_path / "a.geojson")
    for chunk in (1, 2, 7, 100):
        monkeypatch.setattr(geojson_reader, "_CHUNK", chunk)
        assert read_geojson(tmp_path / "a.geojson") == whole


def nested(depth: int) -> dict[str, Any]:
    item = feature()
    for _ in range(depth):
        item = feature(childObjects=[item])
    return item


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("hello", "not GeoJSON"),
        ("{}", "neither"),
        ('{"type":"Topology"}', "neither"),
        ("[", "ends early"),
        ("[1]", "feature 0: not a GeoJSON Feature"),
        (json.dumps([feature()])[:-20], "not JSON"),
        (json.dumps([feature()]) + "x", "after the end"),
        ([feature(), {"type": "Feature", "geometry": None}], "feature 1: no geometry"),
        ([feature() | {"geometry": {"type": "Circle", "coordinates": [1]}}], "unknown"),
        ([feature() | {"geometry": {"type": "Polygon", "coordinates": [[[0, 0]]]}}], "at least 3"),
        ([feature() | {"geometry": {"type": "Polygon", "coordinates": "abc"}}], "without coord"),
        ({"type": "Point", "coordinates": ["1", "2"]}, "must hold numbers"),
        ({"type": "Point", "coordinates": [1]}, r"must be \[x, y\]"),
        ('{"type":"Point","coordinates":[1e999,0]}', "finite"),
        ('{"type":"Point","coordinates":[NaN,0]}', "finite"),
        ('{"type":"Point","coordinates":[%s,0]}' % ("9" * 400), r"must be \[x, y\]"),
        ('{"type":"Point","coordinates":[%s,0]}' % ("9" * 9000), "not JSON"),
        ("[" * 100_000, "nested too deeply|not a GeoJSON"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [5, 0], [9, 0]]]}, "no extent"),
        (nested(80), "nested more than 64 deep"),
        ([feature() | {"geometry": POLYGON | {"plane": {"z": "1"}}}], "whole numbers"),
    ],
)
def test_what_is_not_geojson_says_so(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InvalidGeoJSON, match=message) as caught:
        reading(tmp_path, content)
    assert "in.geojson" in str(caught.value)


def test_files_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps([feature()] * 50).encode())
    contents = {
        "truncated.geojson.gz": whole[:-12],
        "broken.geojson.gz": whole[:20] + b"\xff\xff\xff" + whole[23:],
        "broken.zip": b"PK\x03\x04" + bytes(50),
        "latin.geojson": '{"type":"Feature","name":"Drüse"}'.encode("latin-1"),
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidGeoJSON, match=name):
            read_geojson(tmp_path / name)
    for missing in ("not there.geojson", "."):
        with pytest.raises(InvalidGeoJSON, match="cannot be read"):
            read_geojson(tmp_path / missing)


def test_limits_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "bomb.geojson.gz"
    path.write_bytes(gzip.compress(b"[" + b" " * 5_000_000))
    with pytest.raises(InvalidGeoJSON, match="more than 1000000 bytes"):
        read_geojson(path, limits=Limits(bytes=1_000_000))
    path.write_bytes(gzip.compress(b'["' + b"a" * 9_000_000))
    with pytest.raises(InvalidGeoJSON, match="one feature of more"):
        read_geojson(path, limits=Limits(feature=1_000_000))
    with pytest.raises(InvalidGeoJSON, match="feature 2: more than 2 objects"):
        reading(tmp_path, [feature()] * 3, limits=Limits(objects=2))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=200).map(lambda t: ("[" + t).encode()))
def test_strangers_files_never_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("strange") / "a.geojson"
    path.write_bytes(content)
    with contextlib.suppress(InvalidGeoJSON):
        read_geojson(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {"type": st.just("Feature")},
        optional={
            "id": json_values,
            "geometry": json_values
            | st.just(POLYGON)
            | st.fixed_dictionaries(
                {
                    "type": st.sampled_from(["Point", "LineString", "Polygon", "MultiPolygon"]),
                    "coordinates": json_values,
                },
                optional={"plane": json_values, "isEllipse": json_values},
            ),
            "properties": json_values
            | st.fixed_dictionaries(
                {},
                optional={
                    name: json_values
                    for name in (
                        "objectType", "classification", "measurements", "metadata", "name",
                        "color", "isLocked", "childObjects",
                    )
                },
            ),
        },
    )
)  # fmt: skip
def test_features_of_any_shape_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, raw: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("strange") / "a.geojson"
    path.write_text(json.dumps([raw]), "utf-8")
    try:
        found = read_geojson(path)
    except InvalidGeoJSON:
        return
    write_geojson(path, [o for o in found if o.kind not in ("cell", "tile")], slide="s")


# ---------------------------------------------------------------- regions


def test_regions_are_polygons_of_a_class_in_slide_coordinates(tmp_path: Path) -> None:
    bounds = Box(1000, 2000, 500, 500)
    hole = shapely.box(1100, 2100, 1200, 2200).difference(shapely.box(1120, 2120, 1150, 2150))
    two = shapely.MultiPolygon(
        [shapely.box(1300, 2300, 1320, 2320), shapely.box(1400, 2400, 1420, 2420)]
    )
    items = [
        QuPathObject(hole, "annotation", "Tumor"),
        QuPathObject(two, "annotation", "Stroma"),
        QuPathObject(shapely.Point(1111, 2111), "annotation", "Tumor"),
        QuPathObject(shapely.box(1300, 2300, 1310, 2320), "annotation", "Ignore*"),
        QuPathObject(SQUARE, "detection", "Tumor"),
    ]  # fmt: skip
    path = tmp_path / "regions.geojson"
    write_geojson(path, items, slide="s", bounds=bounds)
    (tumor,) = region_polygons(path, "tumor", bounds)
    assert tumor.equals(hole)
    assert len(region_polygons(path, class_name="Stroma", bounds=bounds)) == 2
    assert region_polygons(path, "Necrosis", bounds) == []
    every = region_polygons(path, bounds=bounds)
    assert sorted(p.area for p in every) == pytest.approx([200, 400, hole.area])
