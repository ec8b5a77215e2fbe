"""From areas annotated in QuPath to a tissue map's model, and from the model to maps of slides."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch

from coverslip.cli import main
from coverslip.engine import tissue_map_export, tissue_map_output
from coverslip.engine.config import RunConfig
from coverslip.engine.journal import journals
from coverslip.engine.run import Run
from coverslip.engine.tissue_areas import annotated_areas, split_areas
from coverslip.errors import InvalidConfig
from coverslip.export.geojson import QuPathObject, read_geojson, write_geojson
from coverslip.heads.normalisation import Normalisation
from coverslip.heads.recipe import HeadRecipe, read_recipe
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.heads.tissue_training import TissueImage
from coverslip.kernels.raster import polygon_mask
from coverslip.tiling.store import SlideStore
from coverslip.wsi.opening import open_slide

WIDTH, HEIGHT = 1500, 1210
"""Of a slide at 1 µm/px with a second level of 2 µm/px."""
TISSUE = shapely.box(150, 150, 1350, 1060)
RING = shapely.Point(600, 600).buffer(300).difference(shapely.Point(600, 600).buffer(110))
CLASSES = ("Stripes", "Dots")
QUICK = """
steps = 50
batch = 2
crop = 96
learning_rate = 6e-3
average = 0.9
validate_every = 50
validation = 0.3
[augmentation]
scale = [1, 1]
stain = 0
brightness = 0
blur = 0
noise = 0
[network]
filters = 8
levels = 3
"""


def _pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Dots in a ring, stripes around it and in its hole, glass beyond; both of one mean colour."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    stripes = (v // 8) % 2 == 0
    dots = ((v // 8) % 2 == 0) == ((u // 8) % 2 == 0)
    dark = np.where(polygon_mask(RING, (HEIGHT, WIDTH)), dots, stripes)
    rgb = np.where(dark[..., None], np.uint8((150, 80, 160)), np.uint8((225, 150, 205)))
    rgb[~polygon_mask(TISSUE, (HEIGHT, WIDTH))] = 243
    noise = np.random.default_rng(0).normal(0, 4, rgb.shape)
    return np.clip(rgb + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of two textures, annotations of some of it, and a quick training's settings."""
    folder = tmp_path_factory.mktemp("tissue")
    rgb = _pixels()
    half = rgb.reshape(HEIGHT // 2, 2, WIDTH // 2, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    with tifffile.TiffWriter(folder / "textures.tif") as file:
        for level, pixels in enumerate((rgb, half)):
            resolution = 10_000 / 2**level
            file.write(pixels, tile=(128, 128), photometric="rgb", compression="deflate",
                       resolution=(resolution, resolution), resolutionunit="CENTIMETER",
                       subfiletype=int(level > 0), metadata=None)  # fmt: skip
    boxes = [shapely.box(x, y, x + 130, y + 130) for x, y in ((180, 180), (1000, 200), (1150, 800),
             (200, 900), (1000, 500), (700, 920))]  # fmt: skip
    dots = [shapely.box(x, y, x + 130, y + 130) for x, y in ((535, 320), (535, 750), (310, 535),
            (745, 535))]  # fmt: skip
    objects = [QuPathObject(box, "annotation", class_name="Stripes") for box in boxes]
    objects += [QuPathObject(box & RING, "annotation", class_name="dots") for box in dots]
    objects.append(QuPathObject(shapely.Point(900, 900), "annotation", class_name="Stripes"))
    write_geojson(folder / "textures.geojson", objects, slide="textures")
    (folder / "quick.toml").write_text(QUICK)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The file of a model trained on the annotations."""
    torch.set_num_threads(1)  # so that it is the same model wherever the tests run
    status = main(["train", "tissue", str(folder / "textures.tif"), "--annotations", str(folder),
                   "--classes", ",".join(CLASSES), "-o", str(folder / "model"), "--name",
                   "textures", "--config", str(folder / "quick.toml"),
                   "--device", "cpu"])  # fmt: skip
    assert status == 0
    return folder / "model" / "textures.safetensors"


CONFIG = RunConfig(encoder=(), quality=False, device="cpu", threads=1, cross_check=False, mpp=1.0)


def _map(folder: Path, model: Path, output: Path, **changes: Any) -> Any:
    """The group of the map that a run leaves."""
    config = replace(CONFIG, tissue_map=str(model), **changes)
    (result,) = Run.over([folder / "textures.tif"], output, config).execute(debug=True)
    assert result.status == "done", result.reason
    return SlideStore.open(output / "textures.zarr").group("maps/textures")


def _truth() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The layout at 2 µm/px; 255 beyond the tissue."""
    shape, scale = (HEIGHT // 2, WIDTH // 2), (2.0, 2.0)
    truth = polygon_mask(RING, shape, scale=scale).astype(np.uint8)
    truth[~polygon_mask(TISSUE, shape, scale=scale)] = 255
    return truth


def test_a_model_from_annotations_maps_the_slide(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(model)
    assert (recipe.task, recipe.classes, recipe.mpp) == ("tissue", CLASSES, 2.0)
    with open(model.parent / "validation.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["iou"]) > 0.9
    assert float(last["balanced_accuracy"]) > 0.9
    monkeypatch.setattr(tissue_map_export, "PIECE_PX", 200)  # pieces are put together
    out = tmp_path / "out"
    assert main(["run", str(folder / "textures.tif"), "-o", str(out), "--encoder", "none",
                 "--mpp", "1", "--tissue-map", str(model), "--export", "geojson",
                 "--device", "cpu"]) == 0  # fmt: skip
    group = SlideStore.open(out / "textures.zarr").group("maps/textures")
    found, truth = group["classes"][:], _truth()
    assert found.shape == truth.shape
    assert list(group.attrs["scale"]) == [2.0, 2.0]
    assert list(group.attrs["classes"]) == list(CLASSES)
    known = (found != 255) & (truth != 255)
    assert known.mean() > 0.95 * (truth != 255).mean()
    for kind in (0, 1):
        both = ((found == kind) & (truth == kind))[known].sum()
        assert both / ((found == kind) | (truth == kind))[known].sum() > 0.8
    with open(out / "report.csv", newline="") as file:
        assert next(csv.DictReader(file))["status"] == "done"
    assert (out / "report" / "textures" / "maps" / "textures.png").exists()
    objects = read_geojson(out / "geojson" / "textures.tissuemap_textures.geojson.gz")
    assert {o.class_name for o in objects} == set(CLASSES)
    assert all(o.kind == "detection" and o.geometry.is_valid for o in objects)
    for kind, name in enumerate(CLASSES):
        areas = [o.geometry for o in objects if o.class_name == name]
        px = np.count_nonzero(found == kind)
        assert sum(area.area for area in areas) / 4 == pytest.approx(px, rel=0.01)
        told = sum(o.measurements["Area mm^2"] for o in objects if o.class_name == name)
        assert told == pytest.approx(px * 4e-6, rel=0.01)
        raster = np.sum([polygon_mask(a, found.shape, scale=(2.0, 2.0)) for a in areas], axis=0)
        assert raster.max() == 1  # none lies on another: they were put together
        assert ((raster == 1) != (found == kind)).mean() < 0.01
    ring = max((o.geometry for o in objects if o.class_name == "Dots"), key=lambda g: g.area)
    assert len(ring.interiors) >= 1


def test_windows_do_not_show(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _map(folder, model, tmp_path / "whole")["classes"][:]
    monkeypatch.setattr(tissue_map_output, "OWN_PX", 136)
    small = _map(folder, model, tmp_path / "small")["classes"][:]
    assert len(np.unique(whole)) == 3
    assert (whole == small).mean() > 0.999


def test_an_interrupted_map_goes_on_to_the_same_bytes(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tissue_map_output, "OWN_PX", 136)
    whole = _map(folder, model, tmp_path / "whole", quality=True)
    write, wrote = tissue_map_output.TissueMapOutput._write_band, []

    def failing(self: tissue_map_output.TissueMapOutput) -> None:
        if len(wrote) == 2:
            raise KeyboardInterrupt
        write(self)
        wrote.append(1)

    monkeypatch.setattr(tissue_map_output.TissueMapOutput, "_write_band", failing)
    with pytest.raises(KeyboardInterrupt):
        _map(folder, model, tmp_path / "cut", quality=True)
    store = SlideStore.open(tmp_path / "cut" / "textures.zarr")
    assert store.state("maps/textures") == "partial"
    monkeypatch.setattr(tissue_map_output.TissueMapOutput, "_write_band", write)
    output = tissue_map_output.TissueMapOutput
    starts: list[int] = []
    finish = output.finish
    monkeypatch.setattr(output, "finish", lambda self: (starts.append(self.start), finish(self)))
    again = _map(folder, model, tmp_path / "cut", quality=True)
    assert starts[0] > 0
    np.testing.assert_array_equal(again["classes"][:], whole["classes"][:])
    files = [sorted(p.relative_to(g).as_posix() for p in g.rglob("*") if p.is_file())
             for g in (tmp_path / "cut" / "textures.zarr/maps/textures",
                       tmp_path / "whole" / "textures.zarr/maps/textures")]  # fmt: skip
    assert files[0] == files[1]
    for name in files[0]:
        pair = [tmp_path / run / "textures.zarr/maps/textures" / name for run in ("cut", "whole")]
        assert pair[0].read_bytes() == pair[1].read_bytes()
    config = replace(CONFIG, tissue_map=str(model), quality=True)
    (result,) = Run.over([folder / "textures.tif"], tmp_path / "cut", config).execute(debug=True)
    assert result.status == "unchanged"


def test_annotations_become_partly_labelled_images(folder: Path, tmp_path: Path) -> None:
    big, small = shapely.box(200, 200, 600, 500), shapely.box(300, 300, 400, 400)
    named = [("Region*", shapely.box(180, 180, 700, 520)), ("Dots", small), ("Stripes", big),
             ("Fat", shapely.box(620, 200, 680, 260)), ("Ignore*", shapely.box(200, 200, 240, 240)),
             ("Dots", shapely.box(1000, 900, 1100, 1000))]  # fmt: skip
    objects = [QuPathObject(shape, "annotation", class_name=name) for name, shape in named]
    write_geojson(tmp_path / "textures.geojson", objects, slide="textures")
    with open_slide(folder / "textures.tif") as slide:
        for classes, inside in ((("Stripes", "Dots"), {0, 1, 255}),
                                (("Stripes", "Dots", "Other"), {0, 1, 2, 255})):  # fmt: skip
            recipe = HeadRecipe("t", "tissue", "tissue-map", {}, 2.0, classes)
            images = annotated_areas(slide, [tmp_path / "textures.geojson"], recipe)
            assert [image.region for image in images] == [0, 1]
            first, second = images
            assert set(np.unique(first.class_id).tolist()) == inside
            counts = np.bincount(first.class_id.ravel(), minlength=256)
            assert counts[0] == 200 * 150 - 50 * 50 - 20 * 20
            assert counts[1] == 50 * 50
            assert set(np.unique(second.class_id).tolist()) == {1, 255}
            assert first.rgb.shape[:2] == first.class_id.shape
        recipe = HeadRecipe("t", "tissue", "tissue-map", {}, 2.0, ("Muscle",))
        with pytest.raises(InvalidConfig, match="no area of class Muscle"):
            annotated_areas(slide, [tmp_path / "textures.geojson"], recipe)
    taught, held_out = split_areas(images, ("Stripes", "Dots"), 0.3, 0)
    assert (len(taught), len(held_out)) == (1, 1)
    assert 0 in taught[0].class_id  # a class of one region only is taught
    with pytest.raises(InvalidConfig, match="no annotation is of class Fat"):
        split_areas(images[:1], ("Stripes", "Dots", "Other", "Fat"), 0.3, 0)
    with pytest.raises(InvalidConfig, match="too little to hold some out"):
        split_areas(images[:1], ("Stripes", "Dots"), 0.3, 0)


def test_large_areas_are_cut_and_too_large_ones_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coverslip.engine import tissue_areas

    recipe = HeadRecipe("t", "tissue", "tissue-map", {}, 2.0, CLASSES)
    with open_slide(folder / "textures.tif") as slide:
        whole = annotated_areas(slide, [folder / "textures.geojson"], recipe)
        monkeypatch.setattr(tissue_areas, "PIECE_PX", 40)
        cut = annotated_areas(slide, [folder / "textures.geojson"], recipe)
        assert len(cut) > len(whole)
        counts = [sum(image.counts(2) for image in images) for images in (whole, cut)]
        np.testing.assert_array_equal(*counts)
        assert {image.region for image in cut} == {image.region for image in whole}
        assert all(image.class_id[0, 0] == UNKNOWN_CLASS for image in cut)
        monkeypatch.setattr(tissue_areas, "LARGEST_PX", 1000)
        with pytest.raises(InvalidConfig, match="a coarser map"):
            annotated_areas(slide, [folder / "textures.geojson"], recipe)


def test_a_map_added_later_is_the_one_made_with_the_tiles(
    small_slide: Path, model: Path, tmp_path: Path
) -> None:
    """One level of JPEG: both are cut from the same decoded pixels, as fine as tiles want them."""
    together = replace(CONFIG, mpp=0.5, quality=True, tissue_map=str(model))
    (first,) = Run.over([small_slide], tmp_path / "together", together).execute(debug=True)
    Run.over([small_slide], tmp_path / "later", replace(together, tissue_map="")).execute()
    (later,) = Run.over([small_slide], tmp_path / "later", together).execute(debug=True)
    assert first.status == later.status == "done"
    maps = [SlideStore.open(tmp_path / run / f"{first.slide}.zarr").group("maps/textures")
            for run in ("together", "later")]  # fmt: skip
    assert len(np.unique(maps[0]["classes"][:])) > 1
    np.testing.assert_array_equal(maps[0]["classes"][:], maps[1]["classes"][:])
    lines = journals(tmp_path / "together")[0].read_text().splitlines()
    assert sum('"pixel pass"' in line for line in lines) == 1  # nothing was decoded twice


def test_of_several_slides_whole_ones_are_held_out() -> None:
    rgb = np.zeros((4, 4, 3), np.uint8)
    span = Normalisation.of("imagenet", rgb)
    images = [TissueImage(rgb, np.full((4, 4), kind, np.uint8), slide, region, span)
              for slide in ("one", "two", "three")
              for region, kind in enumerate((0, 1))]  # fmt: skip
    taught, held_out = split_areas(images, CLASSES, 0.3, 0)
    assert (len(taught), len(held_out)) == (4, 2)
    assert not {image.slide for image in taught} & {image.slide for image in held_out}
    assert [len(part) for part in split_areas(images, CLASSES, 0.0, 0)] == [6, 0]
