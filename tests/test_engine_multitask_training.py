"""One model from sources that are labelled for some tasks each, and all it finds on a slide."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from PIL import Image

from coverslip.cli import main
from coverslip.engine import nucleus_output
from coverslip.engine.config import RunConfig
from coverslip.engine.multitask_images import multitask_source
from coverslip.engine.multitask_training import multitask_recipe, train_multitask
from coverslip.engine.run import Run
from coverslip.errors import CoverslipError, InvalidConfig, UnknownName
from coverslip.export.geojson import QuPathObject, read_geojson, write_geojson
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.cerberus import Cerberus
from coverslip.heads.instances import Nuclei
from coverslip.heads.multitask_training import (
    MultitaskBatches,
    MultitaskImage,
    MultitaskSource,
    multitask_figures,
)
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.recipe import HeadRecipe, read_recipe, save_head
from coverslip.heads.training import TrainingConfig
from coverslip.tiling.store import SlideStore

SMALL = {"width": 8, "encoder_arguments": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}}
PLAIN = Augmentation(scale=(1.0, 1.0), stain=0.0, brightness=0.0, blur=0.0, noise=0.0)
QUICK = """
steps = 75
batch = 3
crop = 96
learning_rate = 8e-3
average = 0.9
validate_every = 75
validation = 0.25
[augmentation]
scale = [1, 1]
stain = 0
brightness = 0
blur = 0
noise = 0
[network]
width = 8
[network.encoder_arguments]
layers = [1, 1, 1, 1]
channels = [8, 16, 16, 16]
"""
RGB = np.ndarray[Any, np.dtype[np.uint8]]
GROUND = {"Tumor": (205, 150, 200), "Stroma": (235, 200, 215)}


def scene(
    seed: int, width: int, height: int, ground: RGB | None = None
) -> tuple[RGB, dict[str, np.ndarray[Any, Any]], dict[str, list[shapely.Polygon]]]:
    """(rgb, labels, outlines): small dark nuclei, and glands of a colour of their own."""
    random = np.random.default_rng(seed)
    v, u = np.mgrid[:height, :width] + 0.5
    rgb = np.full((height, width, 3), GROUND["Stroma"], float)
    if ground is not None:
        rgb[:] = ground
    labels = {task: np.zeros((height, width), np.int32) for task in ("nuclei", "glands")}
    outlines: dict[str, list[shapely.Polygon]] = {"nuclei": [], "glands": []}

    def put(task: str, x: float, y: float, r: float, colour: tuple[int, int, int]) -> None:
        disc = np.hypot(u - x, v - y) < r
        outlines[task].append(shapely.Point(x, y).buffer(r))
        labels[task][disc] = len(outlines[task])
        rgb[disc] = colour

    for y in range(48, height, 96):
        for x in range(48, width, 96):
            if (x // 96 + y // 96) % 2 == seed % 2:
                put("glands", x, y, random.uniform(22, 30), (190, 120, 90))
            else:
                for dx, dy in ((-22, -22), (22, -22), (-22, 22), (22, 22)):
                    shift = random.uniform(-3, 3, 2)
                    put("nuclei", x + dx + shift[0], y + dy + shift[1], 7, (80, 60, 140))
    rgb += random.normal(0, 4, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8), labels, outlines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images labelled for nuclei, others for glands, tiles of two tissues, and a slide."""
    folder = tmp_path_factory.mktemp("multitask")
    for number, task in enumerate(("nuclei", "glands")):
        (folder / task).mkdir()
        for seed in range(4):
            rgb, labels, _ = scene(10 * number + seed, 192, 192)
            name = f"{seed}_instances" if task == "nuclei" else f"{seed}_glands"
            Image.fromarray(rgb).save(folder / task / f"{seed}.png")
            Image.fromarray(labels[task].astype(np.uint8)).save(folder / task / f"{name}.png")
    for tissue, colour in GROUND.items():
        (folder / "tissue" / tissue).mkdir(parents=True)
        for seed in range(4):
            noise = np.random.default_rng(seed).normal(0, 4, (96, 96, 3))
            Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(
                folder / "tissue" / tissue / f"{seed}.png"
            )
    ground = np.full((384, 576, 3), GROUND["Stroma"], np.uint8)
    ground[:, :288] = GROUND["Tumor"]
    rgb, _, outlines = scene(77, 576, 384, ground)
    tifffile.imwrite(folder / "slide.tif", rgb, tile=(128, 128), photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER")  # fmt: skip
    objects = [
        QuPathObject(outline, "annotation", class_name={"nuclei": "Cell", "glands": "Gland"}[task])
        for task, drawn in outlines.items() for outline in drawn
    ]  # fmt: skip
    objects.append(QuPathObject(shapely.box(0, 0, 192, 192), "annotation", class_name="Region*"))
    write_geojson(folder / "slide.geojson", objects, slide="slide")
    (folder / "quick.toml").write_text(QUICK)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("model")
    status = main(["train", "multitask", f"images={folder / 'nuclei'},mpp=0.5",
                   f"images={folder / 'glands'},mpp=0.5", f"tissue={folder / 'tissue'},mpp=0.5",
                   "-o", str(output), "--config", str(folder / "quick.toml"),
                   "--device", "cpu"])  # fmt: skip
    assert status == 0
    return output / "cerberus.safetensors"


def test_every_task_is_learned_from_its_own_source(model: Path) -> None:
    recipe = read_recipe(model)
    assert recipe.arguments["tasks"] == ["nuclei", "glands"]  # nobody labelled lumina
    assert recipe.arguments["tissue_classes"] == ["Stroma", "Tumor"]
    assert recipe.data == "nuclei, glands, tissue"
    with open(model.parent / "validation.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    head = NetworkNuclei.load(model, "cpu")
    rgb, labels, _ = scene(50, 192, 192)
    figures = multitask_figures(head, [MultitaskImage(rgb, labels, None, "new")])
    for found in (figures, {k: float(v) for k, v in last.items()}):
        assert found["pq nuclei"] > 0.6
        assert found["pq glands"] > 0.6
        assert found["dice glands"] > 0.8
    assert float(last["balanced_accuracy"]) == 1


def _run(folder: Path, model: Path, output: Path) -> SlideStore:
    config = RunConfig(encoder=(), quality=False, tissue=False, device="cpu", threads=1,
                       cross_check=False, nuclei=str(model), export=("geojson",))  # fmt: skip
    (result,) = Run.over([folder / "slide.tif"], output, config).execute(debug=True)
    assert result.status == "done", result.reason
    return SlideStore.open(output / "slide.zarr")


def test_one_run_finds_objects_and_tissue(
    folder: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nucleus_output, "OWN_PX", 576)  # the slide
    store = _run(folder, model, tmp_path)
    _, _, outlines = scene(77, 576, 384)
    for task in ("nuclei", "glands"):
        found = Nuclei.from_columns(store.group(f"{task}/cerberus"))
        assert 0.8 * len(outlines[task]) <= len(found) <= 1.2 * len(outlines[task])
    group = store.group("maps/cerberus")
    assert list(group.attrs["classes"]) == ["Stroma", "Tumor"]
    assert list(group.attrs["scale"]) == [32.0, 32.0]
    chance, classes = group["probabilities"][:], group["classes"][:]
    assert chance.shape == (12, 18, 2)
    np.testing.assert_allclose(chance.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_array_equal(classes, chance.argmax(axis=2))
    assert (classes[:, :6] == 1).mean() > 0.9
    assert (classes[:, -6:] == 0).mean() > 0.9
    areas = read_geojson(tmp_path / "geojson" / "slide.tissuemap_cerberus.geojson.gz")
    assert {area.class_name for area in areas} == {"Stroma", "Tumor"}
    assert (tmp_path / "report" / "slide" / "maps" / "cerberus.png").exists()


class Ground(torch.nn.Module):
    """Tells tissues by the redness of each cell; finds no nuclei."""

    multiple, reach, others = 32, 32, ()
    tissue_classes = ("Pale", "Red")
    segmentation, tissue_probabilities = Cerberus.segmentation, Cerberus.tissue_probabilities

    def __init__(self) -> None:
        super().__init__()
        self.sure = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        red = torch.nn.functional.avg_pool2d(x[:, :1] - x[:, 1:2] - 0.6, 32) * self.sure
        background = torch.cat([torch.full_like(x[:, :1], 50), *[-x[:, :1] * 0] * 2], dim=1)
        return background, x[:, :0], x[:, :0], torch.cat([-red, red], dim=1)


def test_windows_do_not_show_in_the_map(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = HeadRecipe("ground", "nuclei", f"{__name__}:Ground", normalisation="imagenet")
    save_head(tmp_path / "ground.safetensors", recipe, Ground())
    monkeypatch.setattr(nucleus_output, "OWN_PX", 576)
    whole = _run(folder, tmp_path / "ground.safetensors", tmp_path / "whole")
    monkeypatch.setattr(nucleus_output, "OWN_PX", 128)
    monkeypatch.setattr(nucleus_output, "BLOCK", 4)
    cut = _run(folder, tmp_path / "ground.safetensors", tmp_path / "cut")
    maps = [store.group("maps/ground") for store in (whole, cut)]
    np.testing.assert_allclose(*(m["probabilities"][:] for m in maps), atol=1e-6)
    np.testing.assert_array_equal(*(m["classes"][:] for m in maps))
    assert set(np.unique(maps[0]["classes"][:])) == {0, 1}


def test_a_map_of_the_same_name_is_refused(folder: Path, tmp_path: Path) -> None:
    recipe = HeadRecipe("same", "nuclei", f"{__name__}:Ground", normalisation="imagenet")
    save_head(tmp_path / "same.safetensors", recipe, Ground())
    arguments = {"classes": 2, "filters": 4, "levels": 2}
    tissue = HeadRecipe("same", "tissue", "tissue-map", arguments, 2.0, ("A", "B"))
    save_head(tmp_path / "tissue.safetensors", tissue, tissue.network())
    config = RunConfig(encoder=(), quality=False, tissue=False, device="cpu", threads=1,
                       cross_check=False, nuclei=str(tmp_path / "same.safetensors"),
                       tissue_map=str(tmp_path / "tissue.safetensors"))  # fmt: skip
    (result,) = Run.over([folder / "slide.tif"], tmp_path / "out", config).execute()
    assert result.status == "failed"
    assert "would both fill maps/same" in result.reason


def image(labels: dict[str, int], tissue: str | None = None, side: int = 64) -> MultitaskImage:
    """One object of `labels[task]` px a side for each task."""
    maps = {task: np.zeros((side, side), np.int32) for task in labels}
    for task, px in labels.items():
        maps[task][:px, :px] = 1
    grey = 40 * len(labels) + (0 if tissue is None else 20)
    return MultitaskImage(np.full((side, side, 3), grey, np.uint8), maps, tissue, "one")


def test_batches_have_a_share_of_every_source() -> None:
    sources = [
        MultitaskSource([image({"nuclei": 20})], 2, "n"),
        MultitaskSource([image({"nuclei": 0, "glands": 40})], 1, "g"),
        MultitaskSource([image({}, "A", 32), *[image({}, "B")] * 9], 1, "t"),
    ]
    recipe = multitask_recipe("m", sources, SMALL, 0.5)
    config = TrainingConfig(batch=8, crop=32, augmentation=PLAIN)
    source = MultitaskBatches(sources, recipe, recipe.network(), config)
    batches = [source.batch(step) for step in range(30)]
    for batch in batches:
        # in the order nuclei, glands, lumina, tissue: what is known of each crop
        known = [tuple(row) for row in batch.targets["known"].astype(int).tolist()]
        assert known.count((1, 0, 0, 0)) == 4
        assert known.count((1, 1, 0, 0)) == known.count((0, 0, 0, 1)) == 2
        unknown = batch.targets["known"][:, 1] == 0
        assert not batch.targets["glands"][unknown].any()
    kinds = np.concatenate([b.targets["tissue"][b.targets["known"][:, 3] == 1] for b in batches])
    assert 0.3 < kinds.mean() < 0.7  # one image of A, nine of B: each comes as often
    np.testing.assert_array_equal(source.batch(3).images, batches[3].images)


def test_figures_by_hand() -> None:
    recipe = multitask_recipe(
        "m", [MultitaskSource([image({"nuclei": 9}, "A"), image({}, "B")], 1, "s")], SMALL, 0.5
    )

    class Fixed(Cerberus):
        """Nuclei where it is dark, of tissue A whatever it sees."""

        def forward(self, x: torch.Tensor) -> Any:
            dark = -20 * x[:, :1].sign()
            nuclei = torch.cat([-dark, dark, torch.full_like(dark, -50)], dim=1)
            tissue = torch.zeros(1, 2, *(n // 32 for n in x.shape[2:]))
            tissue[:, 0] = 1
            return nuclei, x[:, :0], x[:, :0], tissue

    head = NetworkNuclei(recipe, Fixed(**recipe.arguments), "")
    rgb = np.full((64, 64, 3), 255, np.uint8)
    rgb[10:30, 10:30] = 0
    labels = np.zeros((64, 64), np.int32)
    labels[9:31, 9:31] = 1  # with the boundary's one px that is given back, but for the corners
    empty = np.zeros((64, 64), np.int32)
    white = np.full_like(rgb, 255)
    images = [MultitaskImage(rgb, {"nuclei": labels}, None, "found"),
              MultitaskImage(white, {"nuclei": empty}, None, "nothing there"),
              MultitaskImage(white, {}, "A", "right"), MultitaskImage(white, {}, "B", "wrong"),
              MultitaskImage(white, {}, "A", "right")]  # fmt: skip
    found = multitask_figures(head, images)
    iou = (484 - 4) / 484
    assert found["pq nuclei"] == pytest.approx(iou)  # of the one image with anything
    assert found["dice nuclei"] == pytest.approx(2 * 480 / (480 + 484))
    assert found["balanced_accuracy"] == 0.5
    assert found["score"] == pytest.approx((iou + 0.5) / 2)
    nothing = multitask_figures(head, images[1:2])
    assert nothing["score"] == 0
    assert np.isnan(nothing["pq nuclei"])


def test_sources_are_read_as_told(folder: Path, tmp_path: Path) -> None:
    slides = multitask_source(
        f"slides={folder / 'slide.tif'},annotations={folder / 'slide.geojson'},nuclei=Cell,share=3",
        1.0,
    )
    (region,) = slides.images
    assert (slides.share, region.rgb.shape, list(region.labels)) == (3, (96, 96, 3), ["nuclei"])
    inside = [
        o
        for o in scene(77, 576, 384)[2]["nuclei"]
        if o.centroid.within(shapely.box(0, 0, 192, 192))
    ]
    assert region.labels["nuclei"].max() == len(inside)
    tiles = multitask_source(f"tissue={folder / 'tissue'},mpp=0.25", 0.5)
    assert {(i.tissue, i.rgb.shape) for i in tiles.images} == {
        ("Stroma", (48, 48, 3)), ("Tumor", (48, 48, 3))}  # fmt: skip
    odd = tmp_path / "a,b"
    odd.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(odd / "x.png")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(odd / "x_instances.png")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(odd / "x_nuclei.png")
    (both,) = multitask_source(f"images={odd},mpp=0.5,instances=lumina", 0.5).images
    assert both.labels["lumina"].sum() == 8
    assert not both.labels["nuclei"].any()
    with pytest.raises(InvalidConfig, match=r"x_nuclei\.png holds nuclei as well"):
        multitask_source(f"images={odd},mpp=0.5", 0.5)
    with pytest.raises(UnknownName, match="glands"):
        multitask_source(f"images={odd},mpp=0.5,instances=gland", 0.5)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("folder", "a source begins with images=, tissue=, slides="),
        ("images=,mpp=0.5", "a source begins with"),
        ("images=x", "mpp= must be a number above 0, got None"),
        ("images=x,mpp=nan", "got 'nan'"),
        ("images=x,mpp=0.5,share=-1", "share= must be a number above 0"),
        ("images=x,mpp=0.5,nuclei=Cell", "images know no nuclei="),
        ("images=x,mpp=0.5", "x: no <name>.png with any of <name>_nuclei.png"),
        ("tissue=x,mpp=0.5", "at least two classes are wanted"),
        ("slides=x.tif,annotations=y", "the classes of some of nuclei, glands, lumina are wanted"),
        (
            "slides={}/slide.tif,annotations={}/slide.geojson,glands=Crypt",
            "no object of class Crypt",
        ),
    ],
)
def test_a_source_that_means_nothing_is_told(source: str, said: str, folder: Path) -> None:
    with pytest.raises(CoverslipError) as error:
        multitask_source(source.replace("{}", str(folder)), 0.5)
    assert said in str(error.value)


def test_a_head_is_of_what_is_labelled() -> None:
    def source(*images: MultitaskImage) -> list[MultitaskSource]:
        return [MultitaskSource(images, 1, "s")]

    with pytest.raises(InvalidConfig, match="no source is labelled for nuclei"):
        multitask_recipe("m", source(image({"glands": 9})), {}, 0.5)
    with pytest.raises(InvalidConfig, match="2 to 64 are wanted, got 1"):
        multitask_recipe("m", source(image({"nuclei": 9}, "A")), {}, 0.5)
    with pytest.raises(InvalidConfig, match="tasks are those that the sources are labelled for"):
        multitask_recipe("m", source(image({"nuclei": 9})), {"tasks": ["nuclei"]}, 0.5)
    sources = source(*[image({"nuclei": 9}, name) for name in "AAB"])
    recipe = multitask_recipe("m", sources, SMALL, 0.5)
    with pytest.raises(InvalidConfig, match="s, B: 1 images are too few to hold some out"):
        train_multitask(sources, recipe, TrainingConfig(crop=32), Path("unused"))
    unnamed = NetworkNuclei(recipe, Cerberus(["nuclei"], 9, **SMALL), "")
    assert unnamed.tissue_classes == ()


def test_a_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    sources = [MultitaskSource([image({"nuclei": 20})] * 2, 1, "n"),
               MultitaskSource([image({}, "A"), image({}, "B")] * 2, 1, "t")]  # fmt: skip
    recipe = multitask_recipe("m", sources, SMALL, 0.5)
    config = TrainingConfig(steps=4, batch=2, crop=32, validate_every=2, validation=0.5)

    def run(folder: Path, stop: int | None) -> bytes:
        def observe(step: int, total: int, row: object) -> None:
            if step == stop:
                raise KeyboardInterrupt

        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                train_multitask(sources, recipe, config, folder, device="cpu", observer=observe)
        return train_multitask(sources, recipe, config, folder, device="cpu").path.read_bytes()

    assert run(tmp_path / "whole", None) == run(tmp_path / "parts", 3)
    rows = (tmp_path / "parts" / "log.csv").read_text().splitlines()
    assert rows[0].split(",")[:4] == ["step", "loss", "nuclei", "tissue"]
    assert len(rows) == 5
