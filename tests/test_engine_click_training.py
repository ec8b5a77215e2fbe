"""A click model of one's own: trained from folders or outlined slides, asked for glands on one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import shapely
import tifffile
import torch
from PIL import Image

import coverslip
from coverslip.cli import main
from coverslip.engine.click_training import click_recipe, train_clicks
from coverslip.engine.nucleus_images import images_of_sources
from coverslip.errors import InvalidConfig
from coverslip.export.geojson import QuPathObject, write_geojson
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.click_training import KINDS, ClickBatches, click_figures
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.nuclick import NuClick
from coverslip.heads.recipe import load_head, read_recipe
from coverslip.heads.training import TrainingConfig

PLAIN = Augmentation(scale=(1.0, 1.0), stain=0.0, brightness=0.05, blur=0.0, noise=0.0)
GLANDS = """
steps = 40
batch = 4
learning_rate = 6e-3
average = 0.9
validate_every = 40
validation = 0.3
[augmentation]
scale = [1, 1]
stain = 0
blur = 0
noise = 0
[network]
width = 8
"""


def glands(seed: int, side: int = 160) -> tuple[np.ndarray, np.ndarray, list[shapely.Point]]:
    """(rgb, labels, outlines): rings of epithelium around white lumina, in stroma with white gaps
    and with nuclei that look like those of the rings."""
    random = np.random.default_rng(seed)
    v, u = np.mgrid[:side, :side] + 0.5
    rgb = np.full((side, side, 3), (225.0, 170, 200))
    for x, y, r in random.uniform((0, 0, 3), (side, side, 9), (8, 3)):
        rgb[(u - x) ** 2 + (v - y) ** 2 < r * r] = (245, 243, 245)
    labels, outlines = np.zeros((side, side), np.int32), []
    for column in (40, 120):
        for row in (40, 120):
            x, y = np.array([column, row]) + random.uniform(-6, 6, 2)
            r = random.uniform(22, 31)
            away = np.hypot(u - x, v - y)
            labels[away < r] = len(outlines) + 1
            rgb[away < r] = (165, 105, 165)
            rgb[away < 0.5 * r] = (245, 243, 245)
            outlines.append(shapely.Point(x, y).buffer(r))
    for x, y in random.uniform(0, side, (side // 2, 2)):
        disc = (u - x) ** 2 + (v - y) ** 2 < 9
        rgb[disc & (rgb[..., 1] < 200)] = (95, 60, 140)
    rgb += random.normal(0, 6, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8), labels, outlines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of glands at 0.5 µm/px with their labels, an outlined slide, and settings."""
    folder = tmp_path_factory.mktemp("glands")
    (folder / "images").mkdir()
    for seed in range(6):
        rgb, labels, _ = glands(seed)
        Image.fromarray(rgb).save(folder / "images" / f"{seed}.png")
        Image.fromarray(labels.astype(np.uint8)).save(folder / "images" / f"{seed}_instances.png")
    rgb, _, outlines = glands(99)
    tifffile.imwrite(folder / "slide.tif", rgb, tile=(64, 64), photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    objects = [QuPathObject(o, "annotation", class_name="Gland") for o in outlines]
    objects += [QuPathObject(o.centroid.buffer(4), "annotation", class_name="Lumen")
                for o in outlines]  # fmt: skip
    objects.append(QuPathObject(shapely.box(0, 0, 160, 80), "annotation", class_name="Region*"))
    write_geojson(folder / "slide.geojson", objects, slide="slide")
    (folder / "glands.toml").write_text(GLANDS)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("model")
    status = main(["train", "clicks", str(folder / "images"), "--objects", "glands", "-o",
                   str(output), "--patch", "96", "--image-mpp", "0.5", "--config",
                   str(folder / "glands.toml"), "--device", "cpu"])  # fmt: skip
    assert status == 0
    return output / "glands.safetensors"


def test_it_learns_glands_from_clicks_and_squiggles(model: Path) -> None:
    recipe = read_recipe(model)
    assert (recipe.task, recipe.classes, recipe.mpp) == ("clicks", ("Gland",), 0.5)
    assert recipe.settings == {"threshold": 0.5, "patch_px": 96, "least_um2": 100.0}
    torch.manual_seed(0)
    _, trained, _ = load_head(model, "cpu")
    new = [NucleusImage(rgb, labels, np.zeros(4, np.uint8), "new")
           for rgb, labels, _ in map(glands, (50, 51))]  # fmt: skip
    for squiggles in (False, True):
        untrained = click_figures(NuClick(width=8).eval(), new, 96, squiggles=squiggles)["iou"]
        found = click_figures(trained, new, 96, squiggles=squiggles)["iou"]
        assert found > max(untrained + 0.25, 0.6)
    with open(model.parent / "validation.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {"iou", "found", "squiggle iou", "squiggle found"} < row.keys()


def test_the_model_answers_on_a_slide(folder: Path, model: Path) -> None:
    outline = glands(99)[2][0]
    x, y = outline.centroid.coords[0]
    line = [(x - 15, y), (x, y + 15), (x + 15, y)]
    with coverslip.open_slide(folder / "slide.tif") as slide:
        (found,) = coverslip.segment_click(slide, line, squiggle=True, model=str(model))
    assert found is not None
    both = found.polygon.intersection(outline).area
    assert both / found.polygon.union(outline).area > 0.6


def test_what_is_marked_stays_in_small_patches() -> None:
    rgb, labels, _ = glands(0)
    image = NucleusImage(rgb, labels, np.zeros(4, np.uint8), "one")
    source = ClickBatches([image], TrainingConfig(batch=8, crop=48), KINDS["glands"].habits)
    for step in range(4):  # the habit's jitter is as wide as the patch
        batch = source.batch(step)
        marked = batch.images[..., 3].max(axis=(1, 2)) > 0.5
        assert marked.all()


def test_only_objects_of_the_wanted_classes_are_learned(folder: Path) -> None:
    slide, annotations = [str(folder / "slide.tif")], folder / "slide.geojson"
    (some,) = images_of_sources(slide, annotations, 0.5, ("Gland",), only=("gland",))
    (every,) = images_of_sources(slide, annotations, 0.5, ("Gland",))
    assert some.class_id.tolist() == [0, 0]
    assert sorted(every.class_id.tolist()) == [0, 0]  # a lumen within a gland has no free pixel
    with pytest.raises(InvalidConfig, match="no object of class Crypt is outlined in region 1"):
        images_of_sources(slide, annotations, 0.5, ("Gland",), only=("Crypt",))


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    kind = KINDS["nuclei"]
    config = TrainingConfig(steps=4, batch=2, crop=32, validate_every=2, validation=0.5,
                            augmentation=PLAIN)  # fmt: skip
    recipe = click_recipe("n", kind, {"width": 8}, config)
    assert (recipe.mpp, recipe.settings["patch_px"]) == (0.25, 32)
    images = []
    for seed in range(2):
        rgb, labels, _ = glands(seed, 80)
        images.append(NucleusImage(rgb, labels, np.zeros(labels.max(), np.uint8), f"{seed}"))

    def run(folder: Path, stop: int | None) -> bytes:
        def observe(step: int, total: int, row: object) -> None:
            if step == stop:
                raise KeyboardInterrupt

        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                train_clicks(images, recipe, kind, config, folder, device="cpu", observer=observe)
        return train_clicks(images, recipe, kind, config, folder, device="cpu").path.read_bytes()

    assert run(tmp_path / "whole", None) == run(tmp_path / "parts", 3)


def test_what_means_nothing_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", "clicks", "-o", str(tmp_path / "out"), "--image-mpp", "0.5"]
    assert main([*command, str(tmp_path)]) == 2
    assert f"{tmp_path}: no <name>.png with <name>_instances.png" in capsys.readouterr().err
    assert main([*command, str(folder / "images"), "--patch", "100"]) == 2
    assert "crop must be a multiple of 16, got 100" in capsys.readouterr().err
