"""Tile classes on slides: which tiles annotations label, what the stage holds, maps and objects."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from PIL import Image
from torch import Tensor, nn

from coverslip.cli import main
from coverslip.encoders.encoder import Encoder
from coverslip.encoders.loading import load_encoder
from coverslip.encoders.registry import EncoderSpec, register
from coverslip.engine import tile_classes as engine
from coverslip.engine.config import RunConfig
from coverslip.engine.embedding_source import source_of_encoder, source_of_features
from coverslip.engine.heat_map import NO_TILE, draw_class_map
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.result import ClassifiedSlide
from coverslip.engine.run import Run
from coverslip.engine.tile_classes import (
    Classification,
    class_colours,
    classify,
    connected_tiles,
)
from coverslip.engine.tile_training import (
    AnnotatedSlides,
    class_regions,
    examples_of_annotations,
    examples_of_images,
    group_numbers,
    labelled_boxes,
)
from coverslip.errors import CoverslipError, IncompleteStage, InvalidConfig, RecipeMismatch
from coverslip.export.geojson import QuPathObject, read_geojson, write_geojson
from coverslip.heads.tile_classifier import TileClassifier, TileExamples, TileTraining
from coverslip.tiling.grid import TileGrid, all_boxes
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stream import TileStream
from coverslip.wsi.opening import open_slide

NAME, GRID = "mean-colour", "128px_0.5mpp"
FEATURES, STAGE = f"features/{NAME}@{GRID}", f"classes/shade@{GRID}"
CLASSES = ("dark", "Stroma")


class MeanColour(nn.Module):
    """Three numbers a tile: what an address slide's tiles can be told by."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


register(EncoderSpec(NAME, f"{__name__}:MeanColour", dim=3, input_px=16, weights=""))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(NAME, weights="random", device="cpu")


@pytest.fixture(scope="module")
def featured(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    """A run's folder with features and an export."""
    folder = tmp_path_factory.mktemp("featured")
    config = RunConfig(
        tile=128, encoder=(NAME,), weights="random", quality=False, export=("geojson",), threads=1
    )
    (result,) = Run.over([small_slide], folder / "out", config).execute(debug=True)
    assert result.status == "done"
    (folder / "out" / f"{small_slide.stem}.zarr").rename(folder / "out" / "case.zarr")
    (folder / "out" / "report" / small_slide.stem).rename(folder / "out" / "report" / "case")
    return folder / "out"


@pytest.fixture
def output(featured: Path, tmp_path: Path) -> Path:
    """A copy of it to write into."""
    return Path(shutil.copytree(featured, tmp_path / "out"))


@pytest.fixture(scope="module")
def classifier(featured: Path) -> TileClassifier:
    return shades(featured)


def shades(featured: Path, quantile: float = 0.5) -> TileClassifier:
    """Tells dark tiles from light ones, of which there are as many."""
    store = SlideStore.open(featured / "case.zarr")
    features = store.group(FEATURES)["features"][:]
    light = features.mean(axis=1)
    labels = (light > np.quantile(light, quantile)).astype(np.int64)
    source = source_of_features(store, FEATURES)
    tiles = TileExamples(features, labels, CLASSES, source)
    return TileClassifier.fit(tiles, TileTraining(folds=2), name="shade")


def only(output: Path, classifier: TileClassifier, **changes: Any) -> ClassifiedSlide:
    """The result of a folder with one store; without files, unless asked for."""
    asked = Classification(classifier, **{"formats": ()} | changes)
    ((slide_id, result),) = classify([str(output)], asked)
    assert slide_id == "case"
    if isinstance(result, Exception):
        raise result
    return result


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_stage_is_what_the_classifier_says(output: Path, classifier: TileClassifier) -> None:
    result = only(output, classifier)
    store = SlideStore.open(output / "case.zarr")
    group, features = store.group(STAGE), store.group(FEATURES)["features"][:]
    expected = classifier.probabilities(features)
    np.testing.assert_array_equal(group["probabilities"][:], expected)
    np.testing.assert_array_equal(group["class_id"][:], expected.argmax(axis=1))
    assert (group["probabilities"].dtype, group["class_id"].dtype) == (np.float32, np.uint8)
    assert list(group.attrs["classes"]) == list(CLASSES)
    record = store.record(STAGE)
    assert record.parameters == {"classifier": classifier.sha256}
    assert record.needs.keys() == {FEATURES}
    assert result.changed
    assert result.tiles == len(features) > 100
    assert result.shares["dark"] == pytest.approx(0.5, abs=0.1)
    assert sum(result.shares.values()) == pytest.approx(1)


def test_the_map_says_for_each_place_which_class_it_is(
    output: Path, classifier: TileClassifier
) -> None:
    only(output, classifier)
    store = SlideStore.open(output / "case.zarr")
    boxes = store.group(f"tiles/{GRID}")["boxes"][:]
    class_id = store.group(STAGE)["class_id"][:]
    group = store.group(f"maps/shade@{GRID}")
    cells, scale, origin = group["classes"][:], group.attrs["scale"], group.attrs["origin"]
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    column, row = ((middle - origin) // scale).astype(int).T
    np.testing.assert_array_equal(cells[row, column], class_id)
    assert np.count_nonzero(cells != NO_TILE) == len(boxes)
    assert list(group.attrs["classes"]) == list(CLASSES)
    assert [tuple(c) for c in group.attrs["colours"]] == list(class_colours(CLASSES).values())
    assert not (output / "geojson" / f"case.classes_shade@{GRID}.geojson.gz").exists()


def test_again_does_nothing(output: Path, classifier: TileClassifier) -> None:
    both = {"formats": ["geojson", "png"]}
    first = only(output, classifier, **both)
    before = tree(output)
    again = only(output, classifier, **both)
    assert not again.changed
    assert (again.files, again.shares) == (first.files, first.shares)
    assert tree(output) == before
    first.files[0].unlink()  # a picture that is gone is drawn again, from the store
    assert only(output, classifier, **both).changed
    assert tree(output) == before


def test_another_classifier_of_that_name_makes_it_stale(
    output: Path, featured: Path, classifier: TileClassifier
) -> None:
    only(output, classifier)
    other = shades(featured, 0.8)
    assert other.sha256 != classifier.sha256
    result = only(output, other)
    assert result.changed
    assert result.shares["dark"] > 0.65
    store = SlideStore.open(output / "case.zarr")
    assert store.stages("classes/") == [STAGE]
    counted = store.group(f"maps/shade@{GRID}")["classes"][:]
    assert np.count_nonzero(counted == 0) == round(result.shares["dark"] * result.tiles)
    named = replace(other, recipe=replace(other.recipe, name="second"))
    assert only(output, named).changed
    assert not only(output, other).changed
    assert len(SlideStore.open(output / "case.zarr").stages("classes/")) == 2


def test_killed_between_blocks_it_goes_on(
    output: Path, classifier: TileClassifier, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "ROWS_PER_BLOCK", 40)
    undisturbed = Path(shutil.copytree(output, tmp_path / "undisturbed"))
    only(undisturbed, classifier)
    asked = []

    def dies_at_third(self: TileClassifier, rows: Any) -> Any:
        asked.append(len(rows))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return probabilities(self, rows)

    probabilities = TileClassifier.probabilities
    monkeypatch.setattr(TileClassifier, "probabilities", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        only(output, classifier)
    assert SlideStore.open(output / "case.zarr").state(STAGE) == "partial"
    total = only(output, classifier).tiles
    assert sum(asked) == total + asked[2]  # only the block in hand was done twice
    assert tree(output / "case.zarr") == tree(undisturbed / "case.zarr")


def test_what_a_run_exports_does_not_hang_on_classes(
    output: Path, classifier: TileClassifier, small_slide: Path, featured: Path
) -> None:
    for place in (output / "case.zarr", output / "report" / "case"):
        place.rename(place.with_name(place.name.replace("case", small_slide.stem)))
    list(classify([str(output)], Classification(classifier, ["geojson"])))
    config = RunConfig(
        tile=128, encoder=(NAME,), weights="random", quality=False, export=("geojson",), threads=1
    )
    (result,) = Run.over([small_slide], output, config).execute(debug=True)
    assert result.status == "unchanged"


def test_objects_are_tiles_and_areas(output: Path, classifier: TileClassifier) -> None:
    result = only(output, classifier, formats=["geojson"])
    tiles, areas = map(read_geojson, result.files)
    assert [file.name for file in result.files] == [
        f"case.classes_shade@{GRID}.geojson.gz",
        f"case.classmap_shade@{GRID}.geojson.gz",
    ]
    assert {o.kind for o in tiles} == {"tile"}
    assert {o.kind for o in areas} == {"detection"}
    assert len(tiles) == result.tiles
    for o in tiles:
        found = [o.measurements[f"{name}: probability"] for name in CLASSES]
        assert sum(found) == pytest.approx(1, abs=1e-4)
        assert o.class_name == CLASSES[int(np.argmax(found))]
    slide = shapely.box(0, 0, 2220, 2967)
    for name in CLASSES:
        mine = [o for o in areas if o.class_name == name]
        squares = shapely.union_all([o.geometry for o in tiles if o.class_name == name])
        merged = shapely.union_all([o.geometry for o in mine])
        assert merged.symmetric_difference(squares & slide).area <= 0.01 * squares.area
        assert sum(o.measurements["Tiles"] for o in mine) == sum(
            o.class_name == name for o in tiles
        )
        assert all(0.5 <= o.measurements["Mean probability"] <= 1 for o in mine)


def test_objects_pass_the_strict_checker(
    output: Path, classifier: TileClassifier, real_data: Path
) -> None:
    tool = real_data.parent / "tools" / "qupath_geojson_check.py"
    if not tool.is_file():
        pytest.skip(f"the QuPath checker is not at {tool}")
    for file in only(output, classifier, formats=["geojson"]).files:
        command = [sys.executable, str(tool), str(file), "--strict", "--width", "2220",
                   "--height", "2967"]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("overlap", [0, 32])
@pytest.mark.parametrize("mpp", [0.25, 0.2527])
def test_areas_cover_their_tiles_and_nothing_else(overlap: int, mpp: float) -> None:
    """Random classes: the areas of all classes are a partition of the tiles' cells."""
    size, random = (3000, 2000), np.random.default_rng(0)
    boxes = all_boxes(size, (mpp, mpp), 64, 64 - overlap, 0.5)
    kept = random.random(len(boxes)) < 0.8
    boxes = boxes[kept]
    grid = TileGrid(
        size, (mpp, mpp), 64, 64 - overlap, 0.5, 0, boxes, np.ones(len(boxes), np.float32)
    )
    class_id = random.integers(0, 3, len(boxes))
    middle = shapely.points(boxes[:, :2] + boxes[:, 2:] / 2)
    within = shapely.box(0, 0, *size).contains(middle)
    everything = []
    for number in range(3):
        areas = connected_tiles(grid, class_id == number)
        polygons = [polygon for _, polygon in areas]
        assert all(polygon.is_valid and polygon.geom_type == "Polygon" for polygon in polygons)
        tiles = np.sort(np.concatenate([tiles for tiles, _ in areas]))
        assert set(np.flatnonzero((class_id == number) & within)) <= set(tiles)
        for numbers, polygon in areas:
            inside = np.flatnonzero(polygon.contains(middle))
            np.testing.assert_array_equal(inside, np.sort(numbers[within[numbers]]))
        everything += polygons
        if mpp == 0.25 and not overlap:  # then cells are the tiles themselves
            squares = shapely.union_all(
                [shapely.box(x, y, x + w, y + h) for x, y, w, h in boxes[class_id == number]]
            )
            assert shapely.union_all(polygons).equals(squares & shapely.box(0, 0, *size))
    whole = shapely.union_all(everything)
    assert whole.area == pytest.approx(sum(polygon.area for polygon in everything))
    assert not connected_tiles(grid, np.zeros(len(boxes), np.bool_))


def test_the_picture_shows_each_tile_in_its_colour(tmp_path: Path) -> None:
    size = (4096, 2048)
    boxes = all_boxes(size, (0.25, 0.25), 256, 256, 0.5)
    class_id = ((boxes[:, 0] // 512 + boxes[:, 1] // 512) % 2).astype(np.uint8)
    grid = TileGrid(size, (0.25, 0.25), 256, 256, 0.5, 0, boxes, np.ones(len(boxes), np.float32))
    legend = [("$a$ b", (200, 0, 0)), ("c", (0, 0, 200))]
    backdrop = np.full((64, 128, 3), (0, 200, 0), np.uint8)
    for picture, colours in (
        (None, [(200, 0, 0), (0, 0, 200)]),
        (backdrop, [(100, 100, 0), (0, 100, 100)]),
    ):
        path = tmp_path / "map.png"
        draw_class_map(path, class_id, grid, [], title="t", legend=legend, backdrop=picture)
        pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
        first, last = ((np.abs(pixels - c) <= 3).all(axis=-1) for c in colours)
        rows = np.flatnonzero((first | last).sum(axis=1) > 200)
        columns = np.flatnonzero((first | last)[rows].sum(axis=0) > 0.9 * len(rows))
        left, right, top, bottom = columns[0], columns[-1] + 1, rows[0], rows[-1] + 1
        assert (right - left) / (bottom - top) == pytest.approx(2, rel=0.02)
        for (x, y, w, h), number in zip(boxes, class_id, strict=True):
            u = left + (x + w / 2) / size[0] * (right - left)
            v = top + (y + h / 2) / size[1] * (bottom - top)
            assert (last if number else first)[int(v), int(u)], (x, y)


def test_the_picture_of_a_slide_has_the_slide_in_it(
    output: Path, classifier: TileClassifier
) -> None:
    (file,) = only(output, classifier, formats=["png"]).files
    assert file == output / "report" / "case" / f"{STAGE}.png"
    assert len(set(Image.open(file).convert("RGB").get_flattened_data())) > 5000


def test_other_features_are_refused(output: Path, classifier: TileClassifier) -> None:
    def asking(**changes: Any) -> TileClassifier:
        source = dict(classifier.recipe.settings["source"]) | changes
        settings = {**classifier.recipe.settings, "source": source}
        return replace(classifier, recipe=replace(classifier.recipe, settings=settings))

    with pytest.raises(RecipeMismatch, match=r"case\.zarr.*weights random-0(?s:.*)--tile 128"):
        only(output, asking(weights_sha256="another"))
    with pytest.raises(RecipeMismatch, match=r"tiles of 128 px at 0\.5 µm, not of 224 px"):
        only(output, asking(tile_px=224))
    with pytest.raises(IncompleteStage, match=r"no features of uni, but of mean(?s:.*)--encoder"):
        only(output, asking(encoder="uni"))
    assert not SlideStore.open(output / "case.zarr").stages("classes/")


def test_a_slide_without_tiles_is_no_failure(output: Path, classifier: TileClassifier) -> None:
    facts = SlideStore.open(output / "case.zarr").slide
    shutil.rmtree(output / "case.zarr")
    store = SlideStore.create(output / "case.zarr", facts)
    none = np.empty((0, 4), np.int32)
    grid = TileGrid((2220, 2967), (0.5, 0.5), 128, 128, 0.5, 0.25, none, np.empty(0, np.float32))
    with store.stage(f"tiles/{GRID}", {"grid": grid.parameters()}) as stage:
        grid.write(stage)
    result = only(output, classifier)
    assert (result.tiles, result.files, result.changed) == (0, [], False)


# -- training on annotations -----------------------------------------------------------------------


def drawn(path: Path, *objects: tuple[str, tuple[float, float, float, float]]) -> Path:
    """A QuPath file with rectangles (class, x0, y0, x1, y1)."""
    shapes = [QuPathObject(shapely.box(*box), "annotation", name) for name, box in objects]
    write_geojson(path, shapes, slide=path.stem)
    return path


def test_boxes_take_the_class_of_the_region_they_lie_in() -> None:
    boxes = np.array([[x, 0, 10, 10] for x in range(0, 60, 10)], np.int32)
    left, right = shapely.box(0, 0, 25, 10), shapely.box(29, 0, 44, 10)
    np.testing.assert_array_equal(labelled_boxes(boxes, [left, right], 0.5), [0, 0, 0, 1, -1, -1])
    np.testing.assert_array_equal(labelled_boxes(boxes, [left, right], 0.4), [0, 0, 0, 1, 1, -1])
    np.testing.assert_array_equal(labelled_boxes(boxes, [left, right], 1), [0, 0, -1, 1, -1, -1])
    both = [left, shapely.box(10, 0, 20, 10)]
    np.testing.assert_array_equal(labelled_boxes(boxes, both, 0.5), [0, -1, 0, -1, -1, -1])
    two = shapely.union_all([shapely.box(0, 0, 3, 10), shapely.box(6, 0, 9, 10)])
    np.testing.assert_array_equal(labelled_boxes(boxes, [two], 0.6), [0, -1, -1, -1, -1, -1])
    np.testing.assert_array_equal(labelled_boxes(boxes, [], 0.5), [-1] * 6)


def test_only_classified_annotations_are_regions(tmp_path: Path, address_slide: Path) -> None:
    path = tmp_path / "a.geojson"
    square = shapely.box(0, 0, 100, 100)
    write_geojson(
        path,
        [
            QuPathObject(square, "annotation", "Tumor"),
            QuPathObject(shapely.box(50, 0, 200, 100), "annotation", "Tumor"),
            QuPathObject(shapely.box(0, 0, 20, 100), "annotation", "Ignore*"),
            QuPathObject(square, "annotation"),
            QuPathObject(shapely.Point(5, 5), "annotation", "Dot"),
            QuPathObject(square, "detection", "Found"),
            QuPathObject(shapely.box(300, 0, 400, 50), "annotation", "Stroma"),
        ],
        slide="a",
    )
    with open_slide(address_slide) as slide:
        bounds = slide.bounds
    regions = class_regions([path], bounds)
    assert {name: region.area for name, region in regions.items()} == {
        "Tumor": 180 * 100,
        "Stroma": 100 * 50,
    }
    assert list(class_regions([path], bounds, ["stroma"])) == ["Stroma"]


def test_annotated_tiles_are_read_at_their_place(
    tmp_path: Path, address_slide: Path, encoder: Encoder
) -> None:
    """Tiles of 128 level-0 px whose pixels spell where they are."""
    for name in ("one", "two"):
        shutil.copy(address_slide, tmp_path / f"{name}.tif")
    drawn(tmp_path / "one.geojson", ("left", (0, 0, 256, 512)), ("right", (640, 128, 1024, 330)))
    drawn(tmp_path / "two.tif.geojson", ("right", (768, 0, 900, 256)))
    drawn(tmp_path / "other.geojson", ("left", (0, 0, 999, 999)))
    annotated = AnnotatedSlides.over([str(tmp_path)], [tmp_path])
    assert [(Path(p).name, i, [f.name for f in files]) for p, i, files in annotated.slides] == [
        ("one.tif", "one", ["one.geojson"]),
        ("two.tif", "two", ["two.tif.geojson"]),
    ]
    config = RunConfig(tile=64, encoder=(), threads=1)
    tiles = examples_of_annotations(annotated, encoder, config)
    assert tiles.classes == ("left", "right")
    assert tiles.groups is not None
    assert tiles.source == source_of_encoder(encoder, 64, 0.5)
    corners = {
        (0, 0): [(x, y) for y in range(0, 512, 128) for x in (0, 128)],
        (0, 1): [(x, y) for y in (128, 256) for x in (640, 768, 896)],
        (1, 1): [(768, y) for y in (0, 128)],
    }
    with open_slide(address_slide) as slide:
        grid = TileGrid.over(slide, tile=64, mpp=0.5)
        for (group, label), places in corners.items():
            mine = (tiles.groups == group) & (tiles.labels == label)
            assert mine.sum() == len(places)
            index = sorted(grid.boxes[:, :2].tolist().index([x, y]) for x, y in places)
            stream = TileStream(slide, grid, indices=np.array(index), threads=1)
            expected = encoder.encode(np.concatenate([batch.pixels for batch in stream]))
            np.testing.assert_allclose(tiles.embeddings[mine], expected, atol=1e-5)
    single = AnnotatedSlides.over([str(tmp_path / "one.tif")], [tmp_path / "one.geojson"])
    assert examples_of_annotations(single, encoder, config).groups is None
    by_patient = examples_of_annotations(annotated, encoder, config, group_pattern=r"(.)$")
    assert len(np.unique(by_patient.groups)) == 2


def test_features_of_a_store_are_used_where_they_are(
    featured: Path, small_slide: Path, encoder: Encoder, tmp_path: Path
) -> None:
    slide = tmp_path / "case.svs"
    slide.write_bytes(small_slide.read_bytes())
    drawn(tmp_path / "case.geojson", ("a", (0, 0, 900, 2967)), ("b", (1000, 0, 2220, 2967)))
    config = RunConfig(tile=128, encoder=(), threads=1)

    class Counting:
        """The encoder, and how many tiles it was given."""

        def __init__(self) -> None:
            self.tiles = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def encode(self, tiles: Any, recolour: Any = None) -> Any:
            self.tiles += len(tiles)
            return encoder.encode(tiles, recolour)

    counted = []
    found = []
    for stores in (None, featured):
        counting: Any = Counting()
        annotated = AnnotatedSlides.over([str(slide)], [tmp_path], stores=stores)
        found.append(examples_of_annotations(annotated, counting, config))
        counted.append(counting.tiles)
    held = SlideStore.open(featured / "case.zarr").group(f"tiles/{GRID}")["boxes"].shape[0]
    assert counted[0] == len(found[0].labels) > 300
    assert 0 < counted[0] - counted[1] < held
    np.testing.assert_allclose(found[0].embeddings, found[1].embeddings, atol=1e-5)
    np.testing.assert_array_equal(found[0].labels, found[1].labels)
    assert found[0].source == found[1].source


def test_what_cannot_be_trained_on_is_said(
    tmp_path: Path, address_slide: Path, encoder: Encoder
) -> None:
    config = RunConfig(tile=64, encoder=(), threads=1)
    with pytest.raises(InvalidConfig, match="named after its slide"):
        AnnotatedSlides.over([str(address_slide)], [tmp_path])
    with pytest.raises(InvalidConfig, match="absent"):
        AnnotatedSlides.over([str(address_slide)], [tmp_path / "absent"])
    drawn(tmp_path / "address.geojson", ("a", (0, 0, 20, 20)))
    with pytest.raises(InvalidConfig, match="share"):
        AnnotatedSlides.over([str(address_slide)], [tmp_path], share=0)
    small = AnnotatedSlides.over([str(address_slide)], [tmp_path])
    with pytest.raises(InvalidConfig, match="smaller tiles"):
        examples_of_annotations(small, encoder, config)
    np.testing.assert_array_equal(group_numbers(["p2-a", "p1-b", "p2-c"], "(p.)"), [1, 0, 1])
    with pytest.raises(InvalidConfig, match="finds no group in 'b'"):
        group_numbers(["p2", "b"], "(p.)")


# -- the commands ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light tile images of three patients, in a folder a class."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, level in (("dark", 150), ("light", 230)):
        (folder / name).mkdir()
        for number in range(12):
            pixels = random.normal(level, 10, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"p{number % 3}_{number}.png")
    return folder


def test_tile_images_are_embedded_with_their_patients(images: Path, encoder: Encoder) -> None:
    labelled = LabelledTiles.read(images)
    tiles = examples_of_images(labelled, encoder, mpp=0.25, data="ours", group_pattern="(p[0-9])")
    np.testing.assert_array_equal(tiles.embeddings, encoder.encode(labelled.pixels))
    assert tiles.source == source_of_encoder(encoder, 32, 0.25)
    assert tiles.groups is not None
    assert [f"p{g}" for g in tiles.groups] == [name[:2] for name in labelled.names]
    assert tiles.data == "ours"


def test_train_and_classify(
    images: Path,
    small_slide: Path,
    output: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = ["--encoder", NAME, "--weights", "random", "--device", "cpu"]
    shade = str(tmp_path / "shade")
    command = ["train", "tiles", str(images), "-o", shade, *common, "--group-pattern", "(p.)"]
    assert main([*command, "--mpp", "2"]) == 0
    said = capsys.readouterr().out
    assert "balanced accuracy 1.000" in said
    assert "3 folds of 3 groups" in said
    file = tmp_path / "shade" / "shade.safetensors"
    assert str(file) in said
    table = (tmp_path / "shade/shade.csv").read_text().splitlines()
    assert table[:2] == ["class,tiles,recall,as dark,as light", "dark,12,1.0000,12,0"]
    ask = ["classify", "--classifier", str(file), "--weights", "random", "--device", "cpu",
           "--threads", "1", "--export", "png"]  # fmt: skip
    new = tmp_path / "new"
    assert main([*ask, str(small_slide), "-o", str(new)]) == 0
    said = capsys.readouterr().out
    assert f"{small_slide.stem}: " in said
    assert (new / "report" / small_slide.stem / "classes" / "shade@32px_2mpp.png").exists()
    assert main([*ask, str(new)]) == 0
    assert "(unchanged)" in capsys.readouterr().out
    assert main([*ask, str(new / f"{small_slide.stem}.zarr"), str(output)]) == 1
    shown = capsys.readouterr()
    assert "(unchanged)" in shown.out
    assert "tiles of 128 px at 0.5 µm, not of 32 px at 2 µm" in shown.err
    (new / "second.zarr").mkdir()  # a bad store is named, the good one done
    assert main([*ask, str(new)]) == 1
    assert "second.zarr" in capsys.readouterr().err
    for wrong, words in (
        ([str(small_slide)], "-o OUT"),
        ([str(new), "--export", "svg"], "svg"),
        ([str(tmp_path / "absent")], "absent"),
    ):
        assert main([*ask, *wrong]) == 2
        assert words in capsys.readouterr().err
    assert main([*command[:3], str(images), *command[3:]]) == 2
    assert "--annotations" in capsys.readouterr().err
    assert main([*command, "--name", "../x"]) == 2
    assert "letters" in capsys.readouterr().err


def test_a_slide_that_fails_is_a_row(classifier: TileClassifier, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    config = RunConfig(encoder=(NAME,), weights="random", threads=1)
    asked = Classification(classifier, output=tmp_path / "out", config=config)
    ((slide_id, result),) = classify([str(tmp_path / "bad.svs")], asked)
    assert slide_id == "bad"
    assert isinstance(result, CoverslipError)
    assert "bad.svs" in str(result)


def test_training_on_annotations_by_command(
    tmp_path: Path, address_slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        shutil.copy(address_slide, tmp_path / f"{name}.tif")
        drawn(tmp_path / f"{name}.geojson", ("left", (0, 0, 256, 1100)),
              ("right", (896, 0, 1200, 1100)))  # fmt: skip
    command = ["train", "tiles", str(tmp_path / "*.tif"), "--annotations", str(tmp_path), "-o",
               str(tmp_path / "sides"), "--encoder", NAME, "--weights", "random", "--tile", "64",
               "--kind", "mlp", "--device", "cpu", "--json"]  # fmt: skip
    assert main(command) == 0
    assert '"groups":3,"folds":3' in capsys.readouterr().out
    recipe = TileClassifier.load(tmp_path / "sides" / "sides.safetensors").recipe
    assert recipe.data == "annotations of 3 slides: one, three, two"
    assert (recipe.classes, recipe.mpp) == (("left", "right"), 0.5)
