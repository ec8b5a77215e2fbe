"""Zero-shot classes on stores: what is written, resumed, refused; heat maps and QuPath objects."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coverslip.cli import main
from coverslip.encoders.text import TEMPLATES, class_vectors, load_text_encoder, unit
from coverslip.engine import prompts as engine
from coverslip.engine.heat_map import SIDE_PX, draw_heat_map
from coverslip.engine.prompts import Prompts, classes_from, prompt_stores, templates_from
from coverslip.engine.result import ClassifiedSlide
from coverslip.errors import IncompleteStage, InvalidConfig, RecipeMismatch
from coverslip.export.geojson import read_geojson
from coverslip.tiling.grid import TileGrid, all_boxes
from coverslip.tiling.store import SlideStore

open_clip = pytest.importorskip("open_clip")

ENCODER, GRID = "open_clip:coverslip-tiny-slides", "256px_0.5mpp"
NAME = "open_clip_coverslip-tiny-slides"
CLASSES = {
    "tumour": ("tumour", "carcinoma"),
    "stroma: dense $x": ("stroma",),
    "débris/µ": ("dust",),
}
STAGE = f"prompts/classes.{NAME}@{GRID}"
TINY = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 48, "head_width": 12, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(open_clip's own tiny model, its checkpoint)."""
    folder = tmp_path_factory.mktemp("model")
    name = ENCODER.partition(":")[2]
    (folder / f"{name}.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(folder / f"{name}.json")
    torch.manual_seed(1)
    model = open_clip.create_model(name).eval()
    torch.save({"state_dict": model.state_dict()}, folder / "tiny.pt")
    return model, folder / "tiny.pt"


@pytest.fixture(scope="module")
def featured(
    tmp_path_factory: pytest.TempPathFactory, theirs: tuple[Any, Path], small_slide: Path
) -> Path:
    """A run's folder with features of the tiny model; the slide itself is gone."""
    folder = tmp_path_factory.mktemp("featured")
    slide = folder / "case.svs"
    slide.write_bytes(small_slide.read_bytes())
    command = ["features", str(slide), "-o", str(folder / "out"), "--encoder", ENCODER,
               "--weights", str(theirs[1])]  # fmt: skip
    assert main(command) == 0
    slide.unlink()
    return folder / "out"


@pytest.fixture
def output(featured: Path, tmp_path: Path) -> Path:
    """A copy of it to write into."""
    return Path(shutil.copytree(featured, tmp_path / "out"))


def asked(output: Path, weights: Path, **changes: Any) -> Prompts:
    return Prompts(output, ENCODER, changes.pop("classes", CLASSES), weights=weights, device="cpu",
                   **changes)  # fmt: skip


def only(prompts: Prompts) -> ClassifiedSlide:
    """The result of a folder with one store."""
    ((slide_id, result),) = prompt_stores(prompts)
    assert slide_id == "case"
    if isinstance(result, Exception):
        raise result
    return result


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_stage_is_open_clips_own_zero_shot(output: Path, theirs: tuple[Any, Path]) -> None:
    model, weights = theirs
    result = only(asked(output, weights))
    store = SlideStore.open(output / "case.zarr")
    group = store.group(STAGE)
    features = store.group(f"features/{NAME}@{GRID}")["features"][:]
    tokenizer = open_clip.get_tokenizer(ENCODER.partition(":")[2])
    with torch.inference_mode():
        classes = []
        for names in CLASSES.values():
            texts = [t.replace("{}", name) for name in names for t in TEMPLATES]
            mean = model.encode_text(tokenizer(texts), normalize=True).mean(dim=0)
            classes.append(mean / mean.norm())
        cosines = torch.from_numpy(unit(features)) @ torch.stack(classes).T
        expected = (model.logit_scale.exp() * cosines).softmax(dim=-1).numpy()
    np.testing.assert_allclose(group["similarity"][:], cosines.numpy(), atol=1e-5)
    np.testing.assert_allclose(group["probabilities"][:], expected, atol=1e-5)
    assert group["probabilities"].dtype == np.float32
    assert list(group.attrs["classes"]) == list(CLASSES)
    assert group.attrs["logit_scale"] == pytest.approx(model.logit_scale.exp().item(), rel=1e-6)
    assert store.record(STAGE).needs.keys() == {f"features/{NAME}@{GRID}"}
    assert result.tiles == len(features)
    assert result.changed
    assert sum(result.shares.values()) == pytest.approx(1)
    most = np.bincount(expected.argmax(axis=1), minlength=3) / len(features)
    assert list(result.shares.values()) == pytest.approx(most.tolist())


def test_again_does_nothing_and_loads_nothing(
    output: Path, theirs: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = only(asked(output, theirs[1]))
    before = tree(output)
    monkeypatch.setattr(engine, "load_text_encoder", None)
    again = only(asked(output, theirs[1]))
    assert not again.changed
    assert (again.files, again.shares) == (first.files, first.shares)
    assert tree(output) == before
    first.files[0].unlink()  # a picture that is gone is drawn again, from the store
    assert only(asked(output, theirs[1])).changed
    assert tree(output) == before


def test_another_question_is_another_result(output: Path, theirs: tuple[Any, Path]) -> None:
    weights = theirs[1]
    first = only(asked(output, weights))
    swapped = dict(reversed(CLASSES.items()))
    second = only(asked(output, weights, classes=swapped))
    assert second.changed
    assert {Path(f).name for f in second.files} != {Path(f).name for f in first.files}
    pictures = sorted((output / "report/case" / STAGE).iterdir())
    assert [p.name for p in pictures] == [
        "01-débris-µ.png",
        "02-stroma-dense-x.png",
        "03-tumour.png",
    ]
    store = SlideStore.open(output / "case.zarr")
    assert list(store.group(STAGE).attrs["classes"]) == list(swapped)
    named = only(asked(output, weights, name="other", classes={"a": ["fat"], "b": ["ink"]}))
    assert named.changed
    store = SlideStore.open(output / "case.zarr")
    assert store.stages("prompts/") == [STAGE, STAGE.replace("classes.", "other.")]
    assert not only(asked(output, weights, classes=swapped)).changed


def test_killed_between_blocks_it_goes_on(
    output: Path, theirs: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(engine, "ROWS_PER_BLOCK", 16)
    undisturbed = Path(shutil.copytree(output, tmp_path / "undisturbed"))
    only(asked(undisturbed, theirs[1]))
    compared = []

    def dies_at_third(*arguments: Any) -> Any:
        compared.append(len(arguments[0]))
        if len(compared) == 3:
            raise KeyboardInterrupt
        return similarity(*arguments)

    similarity = engine.similarity
    monkeypatch.setattr(engine, "similarity", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        only(asked(output, theirs[1]))
    assert SlideStore.open(output / "case.zarr").state(STAGE) == "partial"
    only(asked(output, theirs[1]))
    assert compared == [16, 16, 16, 16, 8]
    assert tree(output / "case.zarr") == tree(undisturbed / "case.zarr")


def test_heat_maps_can_be_looked_at(output: Path, theirs: tuple[Any, Path]) -> None:
    result = only(asked(output, theirs[1], formats=["png"]))
    assert [file.suffix for file in result.files] == [".png"] * 3
    assert not (output / "geojson").exists()
    for file in result.files:
        picture = Image.open(file).convert("RGB")
        assert 500 < max(picture.size) <= SIDE_PX
        assert len(set(picture.get_flattened_data())) > 50
    assert not only(asked(output, theirs[1], formats=[])).files


@pytest.mark.parametrize("overlap", [0, 128])
def test_a_heat_map_shows_each_tile_at_its_place(tmp_path: Path, overlap: int) -> None:
    """A checkerboard of 0 and 1 with a corner left out, found again in the picture."""
    size, step = (4096, 2048), 256 - overlap
    boxes = all_boxes(size, (0.25, 0.25), 256, step, 0.5)
    column, row = boxes[:, 0] // (2 * step), boxes[:, 1] // (2 * step)
    kept = (column > 1) | (row > 1)
    boxes, values = boxes[kept], ((column + row)[kept] % 2).astype(np.float32)
    tissue = np.ones(len(boxes), np.float32)
    grid = TileGrid(size, (0.25, 0.25), 256, step, 0.5, 0.0, boxes, tissue)
    path = tmp_path / "map.png"
    draw_heat_map(path, values, grid, [], title="$x$ y", label="p")
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    first, last = (
        (np.abs(pixels - colour) <= 2).all(axis=-1) for colour in ((68, 1, 84), (253, 231, 37))
    )
    across = np.flatnonzero((first | last).any(axis=0))
    scale_begins = np.flatnonzero(np.diff(across) > 10)[0]  # white lies between map and scale
    left, right = across[0], across[scale_begins] + 1
    down = np.flatnonzero((first | last)[:, left:right].any(axis=1))
    top, bottom = down[0], down[-1] + 1
    middle = boxes[:, :2] + boxes[:, 2:] / 2
    cells = np.array([middle.min(axis=0) - step, middle.max(axis=0) + step])  # level-0 px
    per_px = (cells[1] - cells[0]) / [right - left, bottom - top]
    assert per_px[0] == pytest.approx(per_px[1], rel=0.01)
    for (x, y), value in zip(middle, values, strict=True):
        u, v = left + (x - cells[0, 0]) / per_px[0], top + (y - cells[0, 1]) / per_px[1]
        assert (last if value else first)[int(v), int(u)], (x, y, value)
    assert (pixels[top + 8, left + 8] == 255).all()  # the corner left out


def test_objects_open_in_qupath(output: Path, theirs: tuple[Any, Path]) -> None:
    result = only(asked(output, theirs[1], formats=["geojson"]))
    (file,) = result.files
    objects = read_geojson(file)
    assert len(objects) == result.tiles
    assert {o.kind for o in objects} == {"tile"}
    for o in objects:
        found = [o.measurements[f"{name}: probability"] for name in CLASSES]
        assert sum(found) == pytest.approx(1, abs=1e-4)
        assert o.class_name == list(CLASSES)[int(np.argmax(found))]
        assert -1 <= o.measurements["tumour: similarity"] <= 1


def test_objects_pass_the_strict_checker(
    output: Path, theirs: tuple[Any, Path], real_data: Path
) -> None:
    tool = real_data.parent / "tools" / "qupath_geojson_check.py"
    if not tool.is_file():
        pytest.skip(f"the QuPath checker is not at {tool}")
    (file,) = only(asked(output, theirs[1], formats=["geojson"])).files
    command = [sys.executable, str(tool), str(file), "--strict", "--width", "2220",
               "--height", "2967"]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_features_of_another_checkpoint_are_refused(
    output: Path, theirs: tuple[Any, Path], tmp_path: Path
) -> None:
    state = {k: v + 0 for k, v in theirs[0].state_dict().items()}
    torch.save({**state, "logit_scale": torch.tensor(1.0)}, tmp_path / "other.pt")
    with pytest.raises(RecipeMismatch, match=r"case\.zarr.*weights [0-9a-f]{16}, the text tower"):
        only(asked(output, tmp_path / "other.pt"))
    assert not SlideStore.open(output / "case.zarr").stages("prompts/")


def test_without_features_the_command_is_named(output: Path, theirs: tuple[Any, Path]) -> None:
    with pytest.raises(IncompleteStage, match=rf"of {NAME}@(?s:.*)--encoder plip"):
        only(Prompts(output, "plip", CLASSES, weights=theirs[1]))


def test_a_slide_without_tiles_is_no_failure(output: Path, theirs: tuple[Any, Path]) -> None:
    facts = SlideStore.open(output / "case.zarr").slide
    shutil.rmtree(output / "case.zarr")
    store = SlideStore.create(output / "case.zarr", facts)
    none = np.empty((0, 4), np.int32)
    grid = TileGrid((2220, 2967), (0.5, 0.5), 256, 256, 0.5, 0.25, none, np.empty(0, np.float32))
    with store.stage(f"tiles/{GRID}", {"grid": grid.parameters()}) as stage:
        grid.write(stage)
    result = only(asked(output, theirs[1]))
    assert (result.tiles, result.files, result.changed) == (0, [], False)


def test_the_command(
    output: Path, theirs: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tissue.toml").write_text('[classes]\ntumour = ["tumour", "ca"]\nfat = "adipose"\n')
    (tmp_path / "templates.txt").write_text("# ours\nan image of {}.\n\n{} is shown\n")
    command = ["prompts", str(output), "--encoder", ENCODER, "--weights", str(theirs[1]),
               "--device", "cpu"]  # fmt: skip
    from_file = ["--classes", str(tmp_path / "tissue.toml"), "--templates",
                 str(tmp_path / "templates.txt"), "--export", "png"]  # fmt: skip
    assert main([*command, *from_file]) == 0
    said = capsys.readouterr().out
    assert "case: 56 tiles" in said
    assert f"prompts/tissue.{NAME}@{GRID}/02-fat.png" in said
    text = load_text_encoder(ENCODER, weights=theirs[1], device="cpu")
    classes = {"tumour": ["tumour", "ca"], "fat": ["adipose"]}
    vectors = class_vectors(text, classes, ["an image of {}.", "{} is shown"])
    store = SlideStore.open(output / "case.zarr")
    features = store.group(f"features/{NAME}@{GRID}")["features"][:]
    found = store.group(f"prompts/tissue.{NAME}@{GRID}")["similarity"][:]
    np.testing.assert_allclose(found, unit(features) @ vectors.T, atol=1e-6)
    assert main([*command, *from_file]) == 0
    assert "(unchanged)" in capsys.readouterr().out
    shutil.copytree(output / "case.zarr", output / "second.zarr")
    shutil.rmtree(output / "second.zarr/features")
    (output / "second.zarr/zarr.json").unlink()
    assert main([*command, *from_file]) == 1  # the bad store is named, the good one done
    shown = capsys.readouterr()
    assert "second.zarr" in shown.err
    assert "case: 56 tiles" in shown.out
    for wrong, words in (
        (["--classes", "tumour"], "two classes"),
        (["--classes", "tumour,tumour"], "named twice"),
        (["--classes", "absent.toml"], "absent.toml"),
        (["--classes", "a,b", "--export", "svg"], "svg"),
        (["--classes", "a,b", "--name", "../x"], "letters"),
        (["--classes", "a,b", "--templates", str(tmp_path / "tissue.toml")], "one {}"),
    ):
        assert main([*command, *wrong]) == 2
        assert words in capsys.readouterr().err
    empty = ["prompts", str(tmp_path), *command[2:], "--classes", "a,b"]
    assert main(empty) == 2
    assert "no stores" in capsys.readouterr().err


def test_class_files(tmp_path: Path) -> None:
    path = tmp_path / "classes.toml"
    assert classes_from(" a, b ,") == {"a": ("a",), "b": ("b",)}
    for content, words in (
        ("a = 1", r"\[classes\]"),
        ("[classes]\na = 1", "'a'"),
        ("[classes]\na = [1]", "'a'"),
        ("[classes]\na = 'b'\n[more]", "one table"),
        ("[classes", "classes.toml"),
    ):
        path.write_text(content)
        with pytest.raises(InvalidConfig, match=words):
            classes_from(str(path))
    with pytest.raises(InvalidConfig, match="absent"):
        templates_from(tmp_path / "absent.txt")
