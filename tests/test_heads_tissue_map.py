"""Tissue maps' network: how far it looks, what teaches it, what it learns; rasters of polygons."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
import torch

from coverslip.errors import InvalidConfig
from coverslip.heads.augmentation import Augmentation
from coverslip.heads.distance_map import DistanceMap
from coverslip.heads.normalisation import Normalisation
from coverslip.heads.recipe import HeadRecipe, load_head, save_head
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.heads.tissue_map import TissueHead, TissueMap, require_mpp
from coverslip.heads.tissue_training import TissueBatches, TissueImage, confusion_figures
from coverslip.heads.training import TrainingConfig
from coverslip.kernels.labels import connected_components, label_outlines
from coverslip.kernels.raster import mask_areas, polygon_mask
from coverslip.kernels.shapes import outline_polygons

RECIPE = HeadRecipe("small", "tissue", "tissue-map", {"filters": 4, "levels": 3, "classes": 3},
                    2.0, ("a", "b", "c"))  # fmt: skip


@pytest.mark.parametrize("levels", [2, 4, 5])
def test_nothing_beyond_its_reach_has_any_influence(levels: int) -> None:
    network = TissueMap(filters=2, levels=levels).double().eval()
    for weights in network.parameters():
        weights.data.abs_()  # so that no unit is at rest
    side = -(-2 * network.reach // network.multiple) * network.multiple + 4 * network.multiple
    found = set()
    for offset in range(0, network.multiple, max(1, network.multiple // 4)):
        x = torch.rand((1, 3, side, side), dtype=torch.float64, requires_grad=True)
        at = side // 2 + offset
        network(x).classes[0, :, at, at].sum().backward()
        assert x.grad is not None
        rows = np.flatnonzero(x.grad.abs().sum((0, 1, 3)).numpy())
        assert at - rows.min() <= network.reach
        assert rows.max() - at <= network.reach
        found |= {at - int(rows.min()), int(rows.max()) - at}
    assert max(found) > 0.5 * network.reach  # the bound is not idle


def test_unlabelled_pixels_do_not_teach() -> None:
    torch.manual_seed(0)
    network = TissueMap(filters=4, levels=2, classes=3)
    maps = network(torch.rand(2, 3, 16, 16))
    logits = maps.classes.detach().requires_grad_()
    kind = torch.randint(0, 3, (2, 16, 16)).float()
    kind[:, :, 8:] = UNKNOWN_CLASS
    (loss,) = network.losses(maps._replace(classes=logits), {"class": kind}).values()
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.all(logits.grad[..., 8:] == 0)
    assert torch.all(logits.grad[..., :8].abs().sum(1) > 0)
    changed = logits.detach().clone()
    changed[..., 8:] += 5
    (again,) = network.losses(maps._replace(classes=changed), {"class": kind}).values()
    assert torch.equal(again, loss.detach())
    nothing = torch.full((2, 16, 16), float(UNKNOWN_CLASS))
    (idle,) = network.losses(network(torch.rand(2, 3, 16, 16)), {"class": nothing}).values()
    idle.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or torch.all(p.grad == 0) for p in network.parameters())


def test_probabilities_of_any_size_and_of_the_right_file(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_head(path, RECIPE, RECIPE.network())
    head = TissueHead.load(path, "cpu")
    assert head.multiple == 4
    rgb = np.random.default_rng(0).integers(0, 255, (21, 34, 3), dtype=np.uint8)
    chance = head.fitted(rgb).probabilities(rgb)
    assert chance.shape == (3, 21, 34)
    np.testing.assert_allclose(chance.sum(axis=0), 1, atol=1e-5)
    other = tmp_path / "nuclei.safetensors"
    save_head(other, HeadRecipe("n", "nuclei", "distance-map", {"filters": 2}),
              DistanceMap(filters=2))  # fmt: skip
    with pytest.raises(InvalidConfig, match="for nuclei, not for tissue maps"):
        TissueHead.load(other)
    with pytest.raises(InvalidConfig, match="no such file"):
        TissueHead.load(tmp_path / "none.safetensors")
    with pytest.raises(InvalidConfig, match="1 to 8 µm"):
        require_mpp(0.5)
    assert load_head(path, "cpu")[0] == RECIPE


def test_rare_classes_are_drawn_as_often_as_common_ones() -> None:
    class_id = np.full((64, 64), UNKNOWN_CLASS, np.uint8)
    class_id[:, 32:] = 0
    class_id[3:6, 3:6] = 1  # class 2 is nowhere
    rgb = np.zeros((64, 64, 3), np.uint8)
    image = TissueImage(rgb, class_id, "slide", 0, Normalisation.of("imagenet", rgb))
    config = TrainingConfig(batch=8, crop=16, augmentation=Augmentation(scale=(1.0, 1.0)))
    source = TissueBatches([image], RECIPE, RECIPE.network(), config)
    kinds = [source.batch(step).targets["class"] for step in range(8)]
    seen = [set(np.unique(crop).tolist()) for batch in kinds for crop in batch]
    rare = sum(1 in crop for crop in seen)
    assert 20 <= rare <= 44  # of 64
    assert all(crop & {0, 1} for crop in seen)
    np.testing.assert_array_equal(source.batch(3).targets["class"], kinds[3])


def test_figures_are_those_of_the_counted_pixels() -> None:
    table = np.array([[8, 2, 0], [0, 5, 0], [0, 0, 0]])
    figures = confusion_figures(table, ("a", "b", "c"))
    assert figures["dice a"] == pytest.approx(16 / 18)
    assert figures["iou b"] == pytest.approx(5 / 7)
    assert np.isnan(figures["dice c"])
    assert figures["dice"] == figures["score"] == pytest.approx((16 / 18 + 10 / 12) / 2)
    assert figures["balanced_accuracy"] == pytest.approx(0.9)


def test_polygons_become_the_pixels_whose_centres_they_hold() -> None:
    random = np.random.default_rng(0)
    v, u = np.mgrid[:50, :70]
    for _ in range(20):
        discs = [
            shapely.Point(*random.uniform(0, 60, 2)).buffer(random.uniform(3, 15)) for _ in range(6)
        ]
        area = shapely.union_all(discs[:5]).difference(discs[5])
        (x, y), scale = random.uniform(-5, 5, 2).tolist(), (0.7, 1.3)
        wanted = shapely.contains_xy(area, x + (u + 0.5) * scale[0], y + (v + 0.5) * scale[1])
        np.testing.assert_array_equal(polygon_mask(area, (50, 70), (x, y), scale), wanted)
    left, right = shapely.box(0, 0, 10.5, 9), shapely.box(10.5, 0, 20, 9)
    shared = polygon_mask(left, (9, 20)).astype(int) + polygon_mask(right, (9, 20))
    assert (shared == 1).all()


@pytest.mark.parametrize("density", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_areas_of_a_mask_are_its_parts_with_their_holes(density: float) -> None:
    mask = np.random.default_rng(1).random((40, 37)) < density
    areas = mask_areas(mask, (3.0, 5.0))
    assert all(area.is_valid for area in areas)
    covered = np.zeros(mask.shape, int)
    for area in areas:
        covered += polygon_mask(area, mask.shape, (3.0, 5.0))
    np.testing.assert_array_equal(covered, mask)
    solid = outline_polygons(label_outlines(connected_components(mask)))
    shells = [shapely.Polygon(area.exterior) for area in mask_areas(mask)]
    assert {s.normalize().wkt for s in shells} == {s.normalize().wkt for s in solid}
