"""Tiles streamed from slides for training, labelled tiles, and the commands around them."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyramids import address_pixels

from coverslip.cli import main
from coverslip.curve import log_rows
from coverslip.encoders.pretrain import PretrainConfig
from coverslip.engine.config import RunConfig
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.pretraining import CHUNK, SlideTiles, read_tile_weights
from coverslip.errors import InvalidConfig

TINY = PretrainConfig(
    name="tiny", input_px=64, width=48, depth=2, heads=3, registers=1, patches=(16, 32),
    mpps=(0.5, 1.0), tile=64, large=64, small=32, parts=2, steps=4, batch=4, prototypes=16,
    head_hidden=32, probe_every=2, save_every=2,
)  # fmt: skip
OPENING = RunConfig(encoder=())


def places(tile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of every pixel of a picture that spells its own address."""
    red, green, blue = (tile[..., i].astype(int) for i in range(3))
    return red | (blue >> 4) << 8, green | (blue & 15) << 8


def test_a_step_gets_the_same_tiles_whenever_it_asks(small_slide: Path, jpeg_slide: Path) -> None:
    paths = [small_slide, jpeg_slide]
    one, two = (SlideTiles(paths, TINY, OPENING) for _ in range(2))
    wanted = [0, 3, CHUNK, 1]
    first = {step: one.batch(step) for step in wanted}
    for step in reversed(wanted):
        pixels, numbers = two.batch(step)
        np.testing.assert_array_equal(pixels, first[step].pixels)
        np.testing.assert_array_equal(numbers, first[step].numbers)
    other = SlideTiles(paths, replace(TINY, seed=1), OPENING)
    assert not np.array_equal(other.batch(0).pixels, first[0].pixels)
    assert len({int(n) for step in (0, 3, CHUNK, 1) for n in first[step].numbers}) == 16
    for tiles in (one, two, other):
        tiles.close()


def test_tiles_are_read_at_the_pixel_sizes_asked_for(tmp_path: Path) -> None:
    """A plain image whose pixels spell their address, at 0.5 µm: neighbours differ by 1."""
    Image.fromarray(address_pixels(900, 700)).save(tmp_path / "address.png")
    config = replace(TINY, mpps=(0.5,), batch=16)
    tiles = SlideTiles([tmp_path / "address.png"], config, replace(OPENING, assume_mpp=0.5))
    pixels, _ = tiles.batch(0)
    tiles.close()
    # drawn between pixels, so neighbours blend: where red does not wrap, it climbs by one
    steps = np.diff(pixels[..., 0].astype(int), axis=2)
    assert np.median(steps) == 1
    assert len({p.tobytes() for p in pixels}) == 16


def test_a_limited_set_of_tiles_comes_again_in_another_order(small_slide: Path) -> None:
    config = replace(TINY, tiles=CHUNK * TINY.batch)
    tiles = SlideTiles([small_slide], config, OPENING)
    rounds = [
        {int(n): p.tobytes() for step in range(CHUNK)
         for p, n in zip(*tiles.batch(start + step), strict=True)}
        for start in (0, CHUNK)
    ]  # fmt: skip
    order = [[int(n) for s in range(CHUNK) for n in tiles.batch(start + s).numbers]
             for start in (0, CHUNK)]  # fmt: skip
    tiles.close()
    assert rounds[0] == rounds[1]
    assert order[0] != order[1]


def test_a_bad_slide_is_left_out_and_named(small_slide: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_bytes(b"II*\0 nothing")
    blank = Image.new("RGB", (600, 600), "white")
    blank.save(tmp_path / "nompp.png")
    tiles = SlideTiles([tmp_path / "bad.svs", small_slide, tmp_path / "nompp.png"], TINY, OPENING)
    tiles.close()
    assert tiles.slides == [str(small_slide)]
    assert {Path(p).name for p in tiles.failed} == {"bad.svs", "nompp.png"}
    with pytest.raises(InvalidConfig, match=r"no slide has tissue at 0\.1 µm"):
        SlideTiles([small_slide], replace(TINY, mpps=(0.1, 0.5)), OPENING)


def test_weights_say_where_tiles_are_drawn(tmp_path: Path) -> None:
    Image.fromarray(address_pixels(2000, 1500)).save(tmp_path / "address.png")
    table = tmp_path / "weights.csv"
    table.write_text(
        "slide,x,y,w,h,weight\naddress,1400,900,100,100,3\naddress,200,200,100,100,0\n"
        "address,300,1100,100,100,1\nother,0,0,9,9,1\n"
    )
    weights = read_tile_weights(table)
    assert weights["address"][1].tolist() == [3, 1]
    config = replace(TINY, mpps=(0.5,), batch=32)
    tiles = SlideTiles(
        [tmp_path / "address.png"], config, replace(OPENING, assume_mpp=0.5), weights
    )
    pixels, _ = tiles.batch(0)
    tiles.close()
    x, y = (a[:, 32, 32] for a in places(pixels))
    near = [(abs(x - cx) < 80) & (abs(y - cy) < 80) for cx, cy in ((1450, 950), (350, 1150))]
    # addresses that are blended across a wrap spell nonsense: most do not
    assert (near[0] | near[1]).mean() > 0.6
    assert near[0].sum() > near[1].sum() > 0
    table.write_text("slide,x,y\na,1,2\n")
    with pytest.raises(InvalidConfig, match="slide, x, y, w, h, weight"):
        read_tile_weights(table)


def width(picture: Path) -> int:
    with Image.open(picture) as image:
        return image.size[0]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Two classes of eight tiles each, told by their colour."""
    rng = np.random.default_rng(0)
    for name, colour in (("pink", (230, 150, 190)), ("blue", (120, 90, 170))):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for i in range(8):
            noise = rng.integers(-20, 20, (64, 64, 3)) + np.array(colour)
            Image.fromarray(noise.astype(np.uint8)).save(tmp_path / "tiles" / name / f"{i}.png")
    return tmp_path / "tiles"


def test_labelled_tiles_from_folders_patterns_and_tables(labelled: Path, tmp_path: Path) -> None:
    folders = LabelledTiles.read(labelled)
    assert folders.pixels.shape == (16, 64, 64, 3)
    assert folders.classes == ("blue", "pink")
    assert folders.labels.tolist() == [0] * 8 + [1] * 8
    named = LabelledTiles.read(labelled, r"(\d)\.png")
    assert named.classes == tuple("01234567")
    table = labelled / "table.csv"
    table.write_text("file,label\npink/0.png,a\nblue/0.png,b\npink/1.png,a\n")
    listed = LabelledTiles.read(table)
    assert listed.classes == ("a", "b")
    np.testing.assert_array_equal(listed.pixels[0], folders.pixels[8])
    with pytest.raises(InvalidConfig, match="at least two classes"):
        LabelledTiles.read(labelled / "pink")
    (labelled / "pink" / "9.png").write_bytes(b"no picture")
    with pytest.raises(InvalidConfig, match=r"9\.png"):
        LabelledTiles.read(labelled)


def test_pretrain_command(
    small_slide: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        'name = "mine"\ninput_px = 64\nwidth = 48\ndepth = 2\nheads = 3\npatches = [16, 32]\n'
        "mpps = [0.5]\ntile = 64\nlarge = 64\nsmall = 32\nparts = 2\nsteps = 4\nbatch = 4\n"
        "prototypes = 16\nhead_hidden = 32\nprobe_every = 2\nsave_every = 2\n"
    )
    output = tmp_path / "out"
    command = ["pretrain", str(small_slide), "-o", str(output), "--config", str(config),
               "--probe", str(labelled), "--device", "cpu", "--json"]  # fmt: skip
    assert main(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["failed"] == []
    assert width(Path(said["curve"])) > 1000
    probed = list(log_rows(output / "probe.csv"))
    assert [r["step"] for r in probed] == [0, 2, 4]
    assert all(r["linear"] > 0.9 for r in probed)  # pink and blue are told by anything
    before = (output / "mine.safetensors").read_bytes()
    assert main(command) == 0  # done already
    assert (output / "mine.safetensors").read_bytes() == before

    slide_out = tmp_path / "features"
    recipe = str(output / "mine.json")
    assert main(["features", str(small_slide), "-o", str(slide_out), "--encoder", recipe]) == 0
    assert list(slide_out.glob("*.zarr/features/mine@256px_0.5mpp"))


def test_evaluate_command(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "evaluation"
    command = ["evaluate", str(labelled), "--encoder", "efficientnet-lite0,efficientnet-lite0",
               "-o", str(output), "--repeats", "2", "--device", "cpu"]  # fmt: skip
    assert main(command) == 0
    assert "16 tiles of 2 classes" in capsys.readouterr().out
    with open(output / "evaluation.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["encoder"] for r in rows] == ["efficientnet-lite0"] * 2
    assert rows[0]["linear"].startswith("1.000")
    assert {k: v for k, v in rows[0].items() if k != "tiles/s"} == {
        k: v for k, v in rows[1].items() if k != "tiles/s"
    }
    assert width(output / "evaluation.png") > 1000
    assert main(["evaluate", str(labelled / "pink"), "--encoder", "efficientnet-lite0"]) == 2
