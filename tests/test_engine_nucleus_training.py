"""From annotations in QuPath to a model, and from the model to nuclei on the slide."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
from PIL import Image

from coverslip.cli import main
from coverslip.cli.train_nuclei import _recipe
from coverslip.engine.nucleus_images import annotated_regions, nucleus_images
from coverslip.engine.nucleus_training import split
from coverslip.errors import InvalidConfig
from coverslip.export.geojson import QuPathObject, read_geojson, write_geojson
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.recipe import read_recipe
from coverslip.wsi.opening import open_slide

SIDE, STEP, RADIUS = 560, 40, 12
"""Of a slide at 0.25 µm/px: px, px between discs' centres, px."""
QUICK = """
steps = 100
batch = 2
crop = 64
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
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of blue discs, its annotations, and the settings of a quick training."""
    folder = tmp_path_factory.mktemp("annotated")
    rgb = np.full((SIDE, SIDE, 3), (232, 190, 212), np.uint8)
    v, u = np.mgrid[:SIDE, :SIDE]
    objects = []
    for y in range(STEP // 2, SIDE, STEP):
        for x in range(STEP // 2, SIDE, STEP):
            rgb[np.hypot(v + 0.5 - y, u + 0.5 - x) < RADIUS] = (90, 60, 140)
            name = "Immune cells" if x < SIDE / 2 else "Tumor"
            disc = shapely.Point(x, y).buffer(RADIUS)
            objects.append(QuPathObject(disc, "annotation", class_name=name))
    noise = np.random.default_rng(0).normal(0, 5, rgb.shape)
    rgb = np.clip(rgb + noise, 0, 255).astype(np.uint8)
    tifffile.imwrite(folder / "discs.tif", rgb, tile=(128, 128), photometric="rgb",
                     resolution=(40_000, 40_000), resolutionunit="CENTIMETER",
                     compression="deflate")  # fmt: skip
    for x0 in (0, 280):
        for y0 in (0, 160, 320):
            box = shapely.box(x0, y0, x0 + 280, y0 + 160)
            objects.append(QuPathObject(box, "annotation", class_name="Region*"))
    write_geojson(folder / "discs.geojson", objects, slide="discs")
    (folder / "quick.toml").write_text(QUICK)
    return folder


def test_regions_are_read_with_their_nuclei_and_classes(folder: Path) -> None:
    with open_slide(folder / "discs.tif") as slide:
        images = annotated_regions(slide, [folder / "discs.geojson"], 0.5, ("Tumor",))
    assert [image.rgb.shape for image in images] == [(80, 140, 3)] * 6
    first = images[0]
    assert first.labels.shape == (80, 140)
    assert first.labels.max() == len(first.class_id) == 4 * 7
    assert set(first.class_id) == {255}  # the left half is of a class nobody asked for
    assert set(images[3].class_id) == {0}
    dark = first.rgb[..., 0] < 160
    assert (dark == (first.labels > 0)).mean() > 0.97  # labels lie on the discs


def test_annotations_without_regions_are_told(folder: Path, tmp_path: Path) -> None:
    disc = QuPathObject(shapely.Point(50, 50).buffer(9), "annotation", class_name="Tumor")
    write_geojson(tmp_path / "none.geojson", [disc], slide="discs")
    empty = QuPathObject(shapely.box(300, 300, 310, 310), "annotation", class_name="Region*")
    write_geojson(tmp_path / "empty.geojson", [disc, empty], slide="discs")
    with open_slide(folder / "discs.tif") as slide:
        with pytest.raises(InvalidConfig, match=r"no object of class 'Region\*'"):
            annotated_regions(slide, [tmp_path / "none.geojson"], 0.5, ())
        with pytest.raises(InvalidConfig, match="no nucleus is outlined in region 1"):
            annotated_regions(slide, [tmp_path / "empty.geojson"], 0.5, ())


def test_regions_and_nuclei_may_lie_in_two_files(folder: Path, tmp_path: Path) -> None:
    objects = read_geojson(folder / "discs.geojson")
    regions = [o for o in objects if o.class_name == "Region*"]
    write_geojson(tmp_path / "regions.geojson", regions, slide="discs")
    write_geojson(
        tmp_path / "nuclei.geojson", [o for o in objects if o not in regions], slide="discs"
    )
    files = [tmp_path / "nuclei.geojson", tmp_path / "regions.geojson"]
    with open_slide(folder / "discs.tif") as slide:
        whole = annotated_regions(slide, [folder / "discs.geojson"], 0.5, ("Tumor",))
        split_up = annotated_regions(slide, files, 0.5, ("Tumor",))
    for one, other in zip(whole, split_up, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.class_id, other.class_id)


def test_a_model_from_annotations_finds_the_nuclei(folder: Path, tmp_path: Path) -> None:
    slide, model = str(folder / "discs.tif"), tmp_path / "model"
    assert (
        main(["train", "nuclei", slide, "--annotations", str(folder), "--output", str(model),
              "--name", "discs", "--architecture", "distance-map", "--classes",
              "Tumor,Immune cells", "--config", str(folder / "quick.toml"), "--device", "cpu"])
        == 0
    )  # fmt: skip
    path = model / "discs.safetensors"
    recipe = read_recipe(path)
    assert recipe.classes == ("Tumor", "Immune cells")
    assert recipe.data == "discs.tif"
    assert recipe.expected["agreement"] > 0.5
    with open(model / "validation.csv", newline="") as file:
        assert float(list(csv.DictReader(file))[-1]["f1"]) > 0.8
    out = tmp_path / "out"
    assert (
        main(["nuclei", slide, "-o", str(out), "--nuclei", str(path), "--nucleus-views", "1",
              "--device", "cpu"])
        == 0
    )  # fmt: skip
    (written,) = out.glob("**/*nuclei_discs.geojson.gz")
    found = read_geojson(written)
    count = (SIDE // STEP) ** 2
    assert 0.95 * count < len(found) < 1.05 * count
    names = {o.class_name for o in found}
    assert names <= {"Tumor", "Immune cells"}
    assert all(0.5 < o.measurements["Detection probability"] <= 1 for o in found)
    assert all(0 <= o.measurements["Detection agreement"] <= 1 for o in found)
    centres = np.array([o.geometry.centroid.coords[0] for o in found])
    off = np.abs((centres - STEP / 2 + STEP / 2) % STEP - STEP / 2)
    assert np.median(off) < 1.5  # level-0 px: two thirds of a pixel of the model


def test_folders_of_images_with_labels(tmp_path: Path) -> None:
    labels = np.zeros((40, 60), np.uint16)
    labels[4:16, 4:16], labels[20:32, 30:42] = 7, 9
    rgb = np.repeat((255 - 20 * labels).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    Image.fromarray(labels).save(tmp_path / "a_instances.png")
    (image,) = nucleus_images(tmp_path, 0.5, image_mpp=0.25)
    assert image.rgb.shape == (20, 30, 3)
    assert np.bincount(image.labels.ravel()).tolist() == [600 - 72, 36, 36]
    assert image.class_id.tolist() == [0, 0]
    (scaled,) = nucleus_images(tmp_path, 0.5, nucleus_um2=144 * 0.125**2)
    assert scaled.rgb.shape == (10, 15, 3)  # 0.125 µm per px
    (tmp_path / "a_classes.csv").write_text("label,class\n9,small\n")
    (image,) = nucleus_images(tmp_path, 0.25, ["large", "small"], image_mpp=0.25)
    assert image.class_id.tolist() == [255, 1]
    with pytest.raises(InvalidConfig, match="columns label and class"):
        nucleus_images(tmp_path, 0.25, ["large"], image_mpp=0.25)
    with pytest.raises(InvalidConfig, match="has to be told"):
        nucleus_images(tmp_path, 0.25)
    with pytest.raises(InvalidConfig, match="of enough nuclei"):
        nucleus_images(tmp_path, 0.25, ["large", "small"], image_mpp=0.25, least=3)
    Image.fromarray(rgb[:30]).save(tmp_path / "a.png")
    with pytest.raises(InvalidConfig, match="labels are"):
        nucleus_images(tmp_path, 0.25, ["large", "small"], image_mpp=0.25)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        nucleus_images(tmp_path, 0.25, ["large", "small"], image_mpp=0.25)


def test_some_images_are_held_out_or_that_is_told() -> None:
    one = NucleusImage(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.int32),
                       np.zeros(0, np.uint8), "one")  # fmt: skip
    taught, held_out = split([one] * 10, 0.15, 0)
    assert (len(taught), len(held_out)) == (8, 2)
    assert [len(part) for part in split([one], 0.0, 0)] == [1, 0]
    with pytest.raises(InvalidConfig, match="too few to hold some out"):
        split([one], 0.15, 0)


def test_pannukes_classes_go_by_one_name() -> None:
    recipe = _recipe("n", "hovernet", {}, 0.5, ("pannuke",), "", ["folder/a"])
    assert recipe.classes == ("Neoplastic", "Inflammatory", "Connective", "Dead", "Epithelial")
    assert recipe.arguments == {"classes": 5}
