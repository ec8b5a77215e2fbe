"""Embedding at scale: several encoders in one pass, batches, precision, recipes, processes."""

from __future__ import annotations

import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from coverslip.cli import main
from coverslip.encoders.encoder import Encoder
from coverslip.encoders.loading import load_encoder
from coverslip.encoders.registry import EncoderSpec, register
from coverslip.engine.bag_files import facts_difference
from coverslip.engine.bags import open_bags
from coverslip.engine.config import RunConfig
from coverslip.engine.journal import read_journals
from coverslip.engine.run import Run
from coverslip.engine.sharing import devices_of
from coverslip.errors import InvalidConfig, NotEnoughMemory
from coverslip.tiling.store import SlideStore

GRID = "256px_0.5mpp"
register(
    EncoderSpec(
        "small-vit-for-features",
        "vit_tiny_patch16_224",
        {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 3},
        96,
        input_px=64,
        pooling="cls+mean",
        weights="",
    )
)


class Brightness(nn.Module):
    """Three numbers a tile, and a device that holds `room` tiles."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        self.room, self.sizes = room, list[int]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(x))
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.mean(dim=(2, 3))


@pytest.fixture
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)


def brightness(network: Brightness) -> Encoder:
    spec = EncoderSpec("brightness", "none", dim=3, input_px=32)
    return Encoder(spec, network, "none", "cpu")


def test_too_large_a_batch_is_halved_and_nothing_is_lost(
    tiles: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    network = Brightness()
    encoder = brightness(network)
    expected = encoder.encode(tiles)
    network.room = 3
    with caplog.at_level(logging.WARNING):
        found = encoder.encode(tiles)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert encoder.at_once == 2
    assert "going on with 2" in caplog.text
    network.sizes.clear()
    encoder.encode(tiles)
    assert set(network.sizes) == {2}  # it is not tried again


def test_not_even_one_tile_is_an_error_with_advice(tiles: np.ndarray) -> None:
    network = Brightness()
    encoder = brightness(network)
    network.room = 0
    with pytest.raises(NotEnoughMemory, match="--device cpu"):
        encoder.encode(tiles)


@pytest.mark.parametrize("name", ["efficientnet-lite0", "pluto-s"])
def test_half_precision_is_checked_against_float32(name: str, small_slide: Path) -> None:
    from coverslip.tiling.grid import TileGrid
    from coverslip.tiling.stream import TileStream
    from coverslip.wsi.opening import open_slide

    weights = None if name == "efficientnet-lite0" else "random"
    with open_slide(small_slide) as slide:
        grid = TileGrid.over(slide)
        (batch,) = TileStream(slide, grid, indices=np.arange(20, 28), threads=1)
    exact = load_encoder(name, weights=weights, device="cpu")
    half = load_encoder(name, weights=weights, device="cpu", precision=exact.spec.dtype)
    assert (exact.precision, half.precision) == ("float32", exact.spec.dtype)
    assert exact.half_precision_cosine(batch.pixels) == 1.0
    cosine = half.half_precision_cosine(batch.pixels)
    assert 0.999 < cosine < 1.0
    a, b = exact.encode(batch.pixels), half.encode(batch.pixels)
    by_hand = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert by_hand.min() == pytest.approx(cosine, abs=1e-6)


def test_half_precision_that_strays_is_flagged(
    small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Encoder, "half_precision_cosine", lambda self, tiles: 0.9)
    config = RunConfig(quality=False, precision="bfloat16", device="cpu")
    (result,) = Run.over([small_slide], tmp_path, config).execute(debug=True)
    assert any("strays from float32: cosine 0.9" in flag for flag in result.flags)


@pytest.mark.slow
def test_compiled_networks_embed_alike(tiles: np.ndarray) -> None:
    plain = load_encoder("small-vit-for-features", weights="random", device="cpu")
    compiled = load_encoder("small-vit-for-features", weights="random", device="cpu", compiled=True)
    np.testing.assert_allclose(compiled.encode(tiles), plain.encode(tiles), atol=1e-4)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    """Two encoders and two slide encoders over the sample slide, by the command line."""
    output = tmp_path_factory.mktemp("two")
    status = main(
        ["features", str(small_slide), "-o", str(output), "--encoder",
         "efficientnet-lite0,resnet18", "--weights", str(_weights(output)), "--slide-encoder",
         "mean,max", "--export", "h5", "--device", "cpu"]
    )  # fmt: skip
    assert status == 0
    return output


def _weights(folder: Path) -> Path:
    """A folder with weights of both encoders."""
    from safetensors.torch import save_file

    from coverslip.encoders.networks.efficientnet_lite import weights_path

    kept = folder / "weights"
    kept.mkdir()
    (kept / "efficientnet-lite0.pth").write_bytes(weights_path().read_bytes())
    network = load_encoder("resnet18", weights="random", device="cpu")._network
    save_file({k: v.contiguous() for k, v in network.state_dict().items()},
              kept / "resnet18.safetensors")  # fmt: skip
    return kept


def test_two_encoders_share_one_pass_over_the_pixels(two: Path) -> None:
    store = SlideStore.open(two / "CMU-1-Small-Region.zarr")
    assert [s.partition("@")[0] for s in store.stages("features/")] == [
        "features/efficientnet-lite0", "features/resnet18",
    ]  # fmt: skip
    passes = [e for e in read_journals(two) if e["event"] == "pixel pass"]
    assert len(passes) == 1
    assert passes[0]["stream"]["native_tiles"] <= 130  # the slide's own, each at most once


def test_a_slide_has_embeddings_of_its_own(two: Path) -> None:
    store = SlideStore.open(two / "CMU-1-Small-Region.zarr")
    for encoder in ("efficientnet-lite0", "resnet18"):
        features = store.group(f"features/{encoder}@{GRID}")["features"][:]
        for name, expected in (("mean", features.mean(axis=0)), ("max", features.max(axis=0))):
            found = store.group(f"slide/{name}@{encoder}@{GRID}")["embedding"][:]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
            path = two / f"h5/20x_256px_0px_overlap/slide_features_{name}_{encoder}"
            with h5py.File(path / "CMU-1-Small-Region.h5") as file:
                np.testing.assert_array_equal(file["features"][:], found)


@pytest.mark.parametrize("encoder", ["efficientnet-lite0", "resnet18"])
def test_bags_are_those_of_its_exports(two: Path, encoder: str) -> None:
    ours, theirs = (open_bags(folder, encoder=encoder) for folder in (two, two / "h5"))
    assert ours.names == theirs.names == ("CMU-1-Small-Region",)
    np.testing.assert_array_equal(ours.read(0), theirs.read(0))
    np.testing.assert_array_equal(ours.corners(0), theirs.corners(0))
    assert facts_difference(ours.facts, theirs.facts) == ""
    with pytest.raises(InvalidConfig, match="name one with --encoder"):
        open_bags(two)


def test_again_nothing_is_done(two: Path, small_slide: Path) -> None:
    config = RunConfig(
        encoder=("efficientnet-lite0", "resnet18"), weights=str(two / "weights"),
        slide_encoder=("mean", "max"), export=("h5",), device="cpu",
    )  # fmt: skip
    (result,) = Run.over([small_slide], two, config).execute(debug=True)
    assert result.status == "unchanged"


def test_other_weights_under_the_same_name_are_refused(
    two: Path, small_slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    output = tmp_path / "copy"
    shutil.copytree(two, output)
    other = load_encoder("resnet18", weights="random", seed=9, device="cpu")._network
    torch.save(other.state_dict(), output / "other.pth")
    command = ["features", str(small_slide), "-o", str(output), "--encoder", "resnet18",
               "--weights", str(output / "other.pth"), "--device", "cpu"]  # fmt: skip
    before = SlideStore.open(output / "CMU-1-Small-Region.zarr").record(f"features/resnet18@{GRID}")
    assert main(command) == 1
    said = capsys.readouterr().out
    assert "was made with weights" in said
    assert "--replace-features" in said
    store = SlideStore.open(output / "CMU-1-Small-Region.zarr")
    assert store.record(f"features/resnet18@{GRID}") == before
    assert main([*command, "--replace-features"]) == 0
    store = SlideStore.open(output / "CMU-1-Small-Region.zarr")
    assert store.record(f"features/resnet18@{GRID}").hash != before.hash


def test_another_recipe_is_named(two: Path) -> None:
    from coverslip.engine.pixel_pass import require_same_recipe
    from coverslip.errors import RecipeMismatch

    store = SlideStore.open(two / "CMU-1-Small-Region.zarr")
    name = f"features/resnet18@{GRID}"
    held = store.record(name).parameters
    require_same_recipe(store, name, held)
    require_same_recipe(store, "features/absent", held)
    other = {**held, "recipe": {**held["recipe"], "interpolation": "linear"}}
    with pytest.raises(RecipeMismatch, match="interpolation default, not linear"):
        require_same_recipe(store, name, other)


def test_a_slide_encoder_wants_its_own_tiles(tmp_path: Path, small_slide: Path) -> None:
    run = Run.over([small_slide], tmp_path, RunConfig(slide_encoder=("titan",)))
    with pytest.raises(InvalidConfig, match=r"add --encoder conch-v1\.5"):
        run.execute()
    config = RunConfig(encoder=("conch-v1.5",), slide_encoder=("titan",))
    with pytest.raises(InvalidConfig, match="--tile 512"):
        Run.over([small_slide], tmp_path, config).execute()
    with pytest.raises(InvalidConfig, match="goes with --encoder"):
        RunConfig(encoder=(), slide_encoder=("mean",))


def test_an_artefact_model_gives_a_table_with_names_and_flags(
    small_slide: Path, tmp_path: Path
) -> None:
    """With weights that find folds everywhere: the last layer's bias says so."""
    from coverslip.encoders.networks.artefacts import unet
    from coverslip.encoders.registry import encoder_spec

    torch.manual_seed(0)
    state = unet(8).state_dict()
    columns = encoder_spec("grandqc-mpp1").columns
    last = list(state)[-1]
    assert state[last].shape == (8,)
    state[last][columns.index("fold")] = 1e6
    torch.save(state, tmp_path / "grandqc-mpp1.pth")
    config = RunConfig(
        encoder=("grandqc-mpp1",), weights=str(tmp_path), mpp=2.0, tile=512, quality=False,
        device="cpu",
    )  # fmt: skip
    (result,) = Run.over([small_slide], tmp_path / "out", config).execute(debug=True)
    group = SlideStore.open(tmp_path / "out" / "CMU-1-Small-Region.zarr").group(
        "features/grandqc-mpp1@512px_2mpp"
    )
    assert tuple(group.attrs["columns"]) == columns
    shares = group["features"][:]
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert (shares[:, columns.index("fold")] == 1).all()
    assert "fold on 100% of the tiles' area, by grandqc-mpp1" in result.flags


@pytest.mark.slow
def test_processes_that_share_a_run_leave_what_one_leaves(
    two: Path, jpeg_slide: Path, small_slide: Path, tmp_path: Path
) -> None:
    torch.set_num_threads(1)  # as the processes have: a convolution's last bits depend on it
    (tmp_path / "broken.svs").write_bytes(b"II*\0 nothing more")
    slides = [small_slide, jpeg_slide, tmp_path / "broken.svs"]
    seen = []
    stores = {}
    for device in ("cpu", "cpu,cpu"):
        output = tmp_path / device.replace(",", "-")
        config = RunConfig(device=device, slide_encoder=("mean",), threads=1)
        results = Run.over(slides, output, config).execute(
            observer=lambda slide, stage, done, total: seen.append(slide)
        )
        assert [r.status for r in results] == ["done", "done", "failed"]
        stores[device] = {
            p.relative_to(output): p.read_bytes()
            for p in sorted(output.glob("*.zarr/**/*"))
            if p.is_file()
        }
    assert stores["cpu"] == stores["cpu,cpu"]
    assert {"CMU-1-Small-Region", "jpeg"} <= set(seen)


@pytest.mark.slow
def test_a_process_that_dies_costs_one_row(
    jpeg_slide: Path, small_slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import multiprocessing, os, signal, threading, time\n"
        "def watch():\n"
        "    while True:\n"
        "        time.sleep(0.01)\n"
        f"        if os.path.exists({str(tmp_path / 'out' / 'jpeg.zarr')!r}) and "
        f"not os.path.exists({str(tmp_path / 'killed')!r}):\n"
        f"            open({str(tmp_path / 'killed')!r}, 'w').close()\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
    )
    config = RunConfig(device="cpu,cpu", encoder=(), threads=1)
    run = Run.over([jpeg_slide, small_slide], tmp_path / "out", config)
    results = run.execute()
    failed = [r for r in results if r.status == "failed"]
    assert len(failed) == 1
    assert "died (SIGKILL)" in failed[0].reason
    again = run.execute()
    assert all(r.status in ("done", "unchanged") for r in again)


def test_devices_by_name() -> None:
    assert devices_of("auto") == ["auto"]
    assert devices_of("cuda:0, cuda:1") == ["cuda:0", "cuda:1"]
    with pytest.raises(InvalidConfig, match="'gpu7'"):
        devices_of("gpu7")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidConfig, match="torch sees no GPU"):
            devices_of("all")
