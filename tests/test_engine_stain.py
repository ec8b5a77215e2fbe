"""`--stain`: the profile in the store and the report, tiles recoloured, and what becomes stale."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from coverslip.cli import main
from coverslip.engine.config import RunConfig
from coverslip.engine.run import Run
from coverslip.engine.stain_stage import target_profile
from coverslip.errors import IncompleteStage, InvalidConfig
from coverslip.kernels.stain import DAB, HEMATOXYLIN, stain_matrix
from coverslip.kernels.stain_profile import StainNormalizer, StainProfile, reference_profile
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stream import TileStream
from coverslip.wsi.opening import open_slide

CONFIG = RunConfig(encoder=(), quality=False, pixels="lossless", stain="macenko")


def profile_in(store: SlideStore) -> StainProfile:
    return StainProfile.from_dict(store.group("stain/macenko").attrs["profile"])


def test_tiles_are_recoloured_by_the_slides_profile(tmp_path: Path, small_slide: Path) -> None:
    (result,) = Run.over([small_slide], tmp_path, CONFIG).execute(debug=True)
    store = SlideStore.open(tmp_path / "CMU-1-Small-Region.zarr")
    profile = profile_in(store)
    assert profile.problems == ()
    assert result.stain == profile.to_dict()
    kept = store.group("pixels/256px_0.5mpp")["pixels"][:]
    grid = TileGrid.from_store(store.group("tiles/256px_0.5mpp"))
    with open_slide(small_slide) as slide:
        plain = np.concatenate([batch.pixels for batch in TileStream(slide, grid)])
    assert np.array_equal(kept, StainNormalizer(profile, reference_profile())(plain))
    assert not np.array_equal(kept, plain)
    picture = tmp_path / "report/CMU-1-Small-Region/stain.jpg"
    assert picture.stat().st_size > 5000
    assert "stain.jpg" in (tmp_path / "report.html").read_text()


def test_features_see_normalised_tiles(tmp_path: Path, small_slide: Path) -> None:
    from coverslip.encoders.loading import load_encoder

    config = RunConfig(quality=False, stain="reinhard")
    Run.over([small_slide], tmp_path, config).execute(debug=True)
    store = SlideStore.open(tmp_path / "CMU-1-Small-Region.zarr")
    found = store.group("features/efficientnet-lite0@256px_0.5mpp")["features"][:8]
    grid = TileGrid.from_store(store.group("tiles/256px_0.5mpp"))
    profile = StainProfile.from_dict(store.group("stain/reinhard").attrs["profile"])
    with open_slide(small_slide) as slide:
        tiles = next(iter(TileStream(slide, grid, indices=np.arange(8)))).pixels
    recoloured = StainNormalizer(profile, reference_profile())(tiles)
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    assert np.array_equal(found, encoder.encode(recoloured))
    np.testing.assert_array_equal(
        found, encoder.encode(tiles, StainNormalizer(profile, reference_profile()))
    )


def test_only_what_stands_on_the_stain_becomes_stale(tmp_path: Path, small_slide: Path) -> None:
    Run.over([small_slide], tmp_path, CONFIG).execute(debug=True)
    (again,) = Run.over([small_slide], tmp_path, CONFIG).execute(debug=True)
    assert again.status == "unchanged"
    store = tmp_path / "CMU-1-Small-Region.zarr"
    before = SlideStore.open(store).group("pixels/256px_0.5mpp")["pixels"][0]
    target = tmp_path / "target.json"
    darker = reference_profile().to_dict() | {"max_concentration": [3.0, 2.0]}
    target.write_text(json.dumps(darker))
    config = RunConfig(
        encoder=(), quality=False, pixels="lossless", stain="macenko", stain_target=str(target)
    )
    (other,) = Run.over([small_slide], tmp_path, config).execute(debug=True)
    assert other.status == "done"
    assert SlideStore.open(store).group("pixels/256px_0.5mpp")["pixels"][0].mean() < before.mean()


def test_a_slide_can_be_the_target(tmp_path: Path, small_slide: Path) -> None:
    """Its own colours, then: what is not of the two stains is dropped, the rest stays."""
    config = RunConfig(
        encoder=(), quality=False, pixels="lossless", stain="macenko", stain_target=str(small_slide)
    )
    Run.over([small_slide], tmp_path, config).execute(debug=True)
    store = SlideStore.open(tmp_path / "CMU-1-Small-Region.zarr")
    kept = store.group("pixels/256px_0.5mpp")["pixels"][:]
    grid = TileGrid.from_store(store.group("tiles/256px_0.5mpp"))
    with open_slide(small_slide) as slide:
        plain = np.concatenate([batch.pixels for batch in TileStream(slide, grid)])
    assert np.abs(kept.astype(int) - plain).mean() < 10


def test_a_store_of_an_earlier_run_can_be_the_target(tmp_path: Path, small_slide: Path) -> None:
    """One slide's colours for a cohort, without the slide."""
    Run.over([small_slide], tmp_path / "first", CONFIG).execute(debug=True)
    store = tmp_path / "first/CMU-1-Small-Region.zarr"
    config = RunConfig(encoder=(), quality=False, stain="macenko", stain_target=str(store))
    assert target_profile(config) == profile_in(SlideStore.open(store))
    absent = RunConfig(encoder=(), quality=False, stain="vahadane", stain_target=str(store))
    with pytest.raises(IncompleteStage, match="stain/vahadane"):
        target_profile(absent)


@pytest.fixture
def brown_slide(tmp_path: Path) -> Path:
    """Haematoxylin and DAB, as immunohistochemistry is."""
    rng = np.random.default_rng(0)
    mixed = np.zeros((1024, 1024, 3))
    mixed[200:900, 100:950, :2] = rng.gamma(2, 0.3, (700, 850, 2))
    level = 241 * np.exp(-mixed @ stain_matrix(HEMATOXYLIN, DAB)) - 1
    path = tmp_path / "ihc.tif"
    pixels = np.clip(level, 0, 255).astype(np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", resolution=(20000, 20000),
                     resolutionunit="CENTIMETER")  # fmt: skip
    return path


def test_immunohistochemistry_is_flagged_and_not_distorted(
    tmp_path: Path, brown_slide: Path
) -> None:
    (result,) = Run.over([brown_slide], tmp_path / "out", CONFIG).execute(debug=True)
    assert result.status == "done"
    assert any("brown" in flag for flag in result.flags)
    store = SlideStore.open(tmp_path / "out/ihc.zarr")
    assert profile_in(store).problems
    grid = TileGrid.from_store(store.group("tiles/256px_0.5mpp"))
    with open_slide(brown_slide) as slide:
        plain = np.concatenate([batch.pixels for batch in TileStream(slide, grid)])
    assert np.array_equal(store.group("pixels/256px_0.5mpp")["pixels"][:], plain)


def test_targets_that_are_none(
    tmp_path: Path, small_slide: Path, brown_slide: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.json").write_text("{}")
    for target in (tmp_path / "bad.json", brown_slide, tmp_path / "absent.svs"):
        options = ["--encoder", "none", "--stain", "macenko", "--stain-target", str(target)]
        assert main(["run", str(small_slide), "-o", str(tmp_path / "out"), *options]) == 1
        said = "".join(capsys.readouterr())
        assert target.name in said
        assert "Traceback" not in said
    with pytest.raises(InvalidConfig, match="stain-target"):
        RunConfig(stain_target="x.json")
    with pytest.raises(InvalidConfig, match="stain must be"):
        RunConfig(stain="mackenzie")  # type: ignore[arg-type]
