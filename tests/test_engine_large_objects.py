"""Glands and lumina beside nuclei, from one look at each window, whole though windows cut them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
import torch
from torch import Tensor, nn

from coverslip.engine import nucleus_output
from coverslip.engine.config import RunConfig
from coverslip.engine.run import Run
from coverslip.export.geojson import read_geojson
from coverslip.heads.cerberus import Cerberus, CerberusMaps
from coverslip.heads.instances import Nuclei
from coverslip.heads.large_objects import concatenated, pieces_in_window, whole_objects
from coverslip.heads.recipe import HeadRecipe, save_head
from coverslip.heads.segmentation import Segmentation
from coverslip.kernels.labels import connected_components
from coverslip.kernels.raster import polygon_mask
from coverslip.tiling.store import SlideStore

WIDTH, HEIGHT = 900, 760
"""Of a slide at 0.5 µm/px."""
GLANDS = [shapely.Point(330, 330).buffer(230), shapely.Point(740, 250).buffer(110),
          shapely.box(120, 620, 840, 700)]  # fmt: skip
GLAND_UM2 = [gland.buffer(3).area / 4 for gland in GLANDS]
"""The 3 px of a boundary that nobody saw are given back."""
LUMEN = shapely.Point(330, 330).buffer(90)
NUCLEI = [(x, y) for x in range(60, 860, 60) for y in (595, 715)]


class ColourObjects(nn.Module):
    """Says what it sees by colour alone: blue is nucleus, red gland, and green lumen as well."""

    multiple, reach, others = 32, 32, ("glands", "lumina")
    segmentation = Cerberus.segmentation

    def __init__(self) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(20.0))

    def forward(self, x: Tensor) -> CerberusMaps:
        red, green, blue = x.split(1, dim=1)
        lumen = (green - red - 0.2) * self.sure
        gland = torch.maximum((red - blue - 0.2) * self.sure, lumen)
        nucleus = (blue - red - 0.2) * self.sure

        def maps(inside: Tensor) -> Tensor:
            return torch.cat([-inside, inside, torch.full_like(inside, -50)], dim=1)

        return CerberusMaps(maps(nucleus), maps(gland), maps(lumen), x[:, :0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glands")
    rgb = np.full((HEIGHT, WIDTH, 3), (222, 200, 225), np.uint8)
    for gland in GLANDS:
        rgb[polygon_mask(gland, (HEIGHT, WIDTH))] = (230, 120, 120)
    rgb[polygon_mask(LUMEN, (HEIGHT, WIDTH))] = (120, 235, 130)
    for x, y in NUCLEI:
        rgb[polygon_mask(shapely.Point(x, y).buffer(9), (HEIGHT, WIDTH))] = (90, 70, 180)
    tifffile.imwrite(folder / "glands.tif", rgb, tile=(128, 128), photometric="rgb",
                     resolution=(20_000, 20_000), resolutionunit="CENTIMETER",
                     compression="deflate")  # fmt: skip
    recipe = HeadRecipe("colours", "nuclei", f"{__name__}:ColourObjects", {}, 0.5)
    save_head(folder / "colours.safetensors", recipe, ColourObjects())
    return folder


def _run(folder: Path, output: Path) -> SlideStore:
    config = RunConfig(encoder=(), quality=False, tissue=False, device="cpu", threads=1,
                       cross_check=False, nuclei=str(folder / "colours.safetensors"),
                       export=("geojson", "parquet"))  # fmt: skip
    (result,) = Run.over([folder / "glands.tif"], output, config).execute(debug=True)
    assert result.status == "done", result.reason
    return SlideStore.open(output / "glands.zarr")


def test_one_run_finds_nuclei_glands_and_lumina(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(folder, tmp_path / "whole")
    monkeypatch.setattr(nucleus_output, "OWN_PX", 128)
    seen: list[int] = []
    forward = ColourObjects.forward
    monkeypatch.setattr(ColourObjects, "forward", lambda n, x: (seen.append(1), forward(n, x))[1])
    cut = _run(folder, tmp_path / "cut")
    assert len(seen) == 8 * 6  # one look at each window
    for store in (whole, cut):
        found = {kind: Nuclei.from_columns(store.group(f"{kind}/colours"))
                 for kind in ("nuclei", "glands", "lumina")}  # fmt: skip
        assert len(found["nuclei"]) == len(NUCLEI)
        assert (len(found["glands"]), len(found["lumina"])) == (3, 1)
        np.testing.assert_allclose(np.sort(found["glands"].area_um2), np.sort(GLAND_UM2), rtol=0.01)
        np.testing.assert_allclose(found["lumina"].centroid[0], (330, 330), atol=0.5)
        assert found["lumina"].major_axis_um[0] == pytest.approx(93, rel=0.02)
        assert ((found["glands"].probability > 0.9) & (found["glands"].probability <= 1)).all()
    pair = [Nuclei.from_columns(store.group("glands/colours")) for store in (whole, cut)]
    for name in ("centroid", "area_um2", "perimeter_um", "circularity"):
        np.testing.assert_allclose(*(getattr(n, name) for n in pair), rtol=1e-3)
    objects = read_geojson(tmp_path / "cut" / "geojson" / "glands.glands_colours.geojson.gz")
    assert {o.class_name for o in objects} == {"Gland"}
    assert all(o.kind == "detection" for o in objects)
    assert "Gland: Area µm^2" in objects[0].measurements
    assert (tmp_path / "cut" / "geojson" / "glands.lumina_colours.geojson.gz").exists()
    assert (tmp_path / "cut" / "parquet" / "glands.glands_colours.parquet").exists()


def test_interrupted_between_two_stages_it_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nucleus_output, "OWN_PX", 128)
    monkeypatch.setattr(nucleus_output, "BLOCK", 5)
    _run(folder, tmp_path / "whole")
    append, written = nucleus_output.StageWriter.append_block, []

    def failing(self: Any, number: int, columns: Any) -> None:
        if len(written) == 8:  # nuclei and glands of the third block are there, its lumina are not
            raise KeyboardInterrupt
        append(self, number, columns)
        written.append(number)

    monkeypatch.setattr(nucleus_output.StageWriter, "append_block", failing)
    with pytest.raises(KeyboardInterrupt):
        _run(folder, tmp_path / "cut")
    monkeypatch.setattr(nucleus_output.StageWriter, "append_block", append)
    _run(folder, tmp_path / "cut")
    for kind in ("nuclei", "glands", "lumina"):
        groups = [tmp_path / run / "glands.zarr" / kind / "colours" for run in ("whole", "cut")]
        files = [{p.relative_to(g): p.read_bytes() for p in g.rglob("*") if p.is_file()}
                 for g in groups]  # fmt: skip
        assert files[0] == files[1]


def test_a_head_of_nuclei_alone_leaves_no_other_stage(folder: Path, tmp_path: Path) -> None:
    config = RunConfig(encoder=(), quality=False, tissue=False, cross_check=False, threads=1,
                       nuclei="watershed")  # fmt: skip
    (result,) = Run.over([folder / "glands.tif"], tmp_path, config).execute(debug=True)
    assert result.status == "done"
    store = SlideStore.open(tmp_path / "glands.zarr")
    assert store.stages("nuclei/")
    assert not store.stages("glands/")
    assert not store.stages("lumina/")


@pytest.mark.parametrize("own", [64, 150])
def test_pieces_make_the_objects_of_the_whole_image(own: int) -> None:
    random = np.random.default_rng(3)
    v, u = np.mgrid[:300, :300]
    labels = np.zeros((300, 300), np.int32)
    for number in range(1, 30):  # some touch: they stay apart, as the labels say
        x, y, r = random.integers(20, 280), random.integers(20, 280), random.integers(8, 70)
        disc = ((u - x) ** 2 + (v - y) ** 2 < r * r) & (labels == 0)
        labels[disc] = number
    parts = np.zeros_like(labels)
    for number in range(1, 30):
        own_parts = connected_components(labels == number)
        parts += np.where(own_parts > 0, own_parts + parts.max(), 0).astype(np.int32)
    area = np.bincount(parts.ravel())[1:]
    parts = np.where(np.append(0, area)[parts] >= 40, parts, 0).astype(np.int32)
    halo, found = 40, []
    padded = np.pad(parts, 300)
    for y in range(0, 300, own):
        for x in range(0, 300, own):
            view = padded[y - halo + 300 :, x - halo + 300 :][: own + 2 * halo, : own + 2 * halo]
            left, place = np.unique(view, return_inverse=True)
            number = np.arange(len(left), dtype=np.int32) + (left[0] != 0)
            seen = Segmentation.of(number[place].reshape(view.shape).astype(np.int32))
            seen = replace_probability(seen)
            found.append(pieces_in_window(seen, np.zeros(view.shape, np.float32),
                                          (x - halo, y - halo), (x, y, own, own)))  # fmt: skip
    objects = whole_objects(concatenated(found), (1.0, 1.0), 1.0, (300, 300))
    solid = [shapely.Polygon(objects.polygon[a:b]).area for a, b in
             zip(objects.polygon_offset[:-1], objects.polygon_offset[1:], strict=True)]  # fmt: skip
    wanted = np.bincount(parts.ravel())[1:]
    wanted = wanted[wanted > 0]
    assert len(objects) == len(wanted)
    covered = np.sort(objects.area_um2)
    assert (covered >= 0.95 * np.sort(wanted)).all()  # holes of others' are enclosed
    assert np.median(np.abs(covered / np.sort(wanted) - 1)) < 0.02
    assert np.isfinite(solid).all()


def replace_probability(found: Segmentation) -> Segmentation:
    return found._replace(probability=np.full(len(found.probability), 0.5, np.float32))


def test_nothing_found_is_no_object() -> None:
    assert len(whole_objects(concatenated([]), (1.0, 1.0), 1.0, (10, 10))) == 0
