"""The nucleus model in the package: licensed, the same in every window, worth its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import torch

import coverslip
from coverslip.engine.nucleus_images import nucleus_images
from coverslip.heads.instances import Nuclei, concatenate, nuclei_in_window, own_windows
from coverslip.heads.network_nuclei import NetworkNuclei
from coverslip.heads.nucleus_training import nucleus_figures
from coverslip.heads.registry import DEFAULT, SHIPPED, load_nucleus_head, nucleus_head_names
from coverslip.wsi.slide import RGB

SAMPLE = Path(coverslip.__file__).parent / "wsi/samples/CMU-1-Small-Region.svs"


@pytest.fixture(scope="module")
def head() -> NetworkNuclei:
    torch.set_num_threads(1)
    found = load_nucleus_head("default", "cpu")
    assert isinstance(found, NetworkNuclei)
    return found


def windowed(head: NetworkNuclei, image: RGB, own_px: int, shift: int) -> Nuclei:
    """The image's nuclei by windows whose lattice begins at -`shift`, cut out of it."""
    height, width = image.shape[:2]
    halo = int(np.ceil(head.context_um / head.mpp / head.multiple)) * head.multiple
    origins, own = own_windows((width + shift, height + shift), (1, 1), own_px, halo)
    side, pad = own_px + 2 * halo, own_px + 4 * halo
    white = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), constant_values=255)
    parts = []
    for (x, y), box in zip(origins - shift, own - (shift, shift, 0, 0), strict=True):
        window = white[int(y) + pad :, int(x) + pad :][:side, :side]
        parts.append(nuclei_in_window(head, window, (x, y), (1, 1), box, (width, height)))
    return concatenate(parts)


def rings(nuclei: Nuclei) -> np.ndarray:
    index = np.repeat(np.arange(len(nuclei)), np.diff(nuclei.polygon_offset))
    return np.asarray(shapely.polygons(shapely.linearrings(nuclei.polygon, indices=index)))


def test_it_ships_with_its_record(head: NetworkNuclei) -> None:
    assert {"default", DEFAULT, "watershed"} <= set(nucleus_head_names())
    assert (SHIPPED / f"{DEFAULT}.safetensors").stat().st_size < 20e6
    recipe = head.recipe
    assert "CC0" in recipe.data
    assert recipe.licence == "Apache-2.0"
    assert recipe.training["steps"] > 0
    assert set(recipe.expected) == {"probability", "agreement"}


@pytest.mark.parametrize(("own_px", "shift"), [(256, 0), (304, 96), (168, 40)])
def test_the_same_nuclei_whatever_the_windows(head: NetworkNuclei, own_px: int, shift: int) -> None:
    """On the lattice that the engine cuts its windows on, in steps of the network's `multiple`."""
    with openslide.OpenSlide(SAMPLE) as slide:  # 0.499 µm/px
        pixels = np.asarray(slide.read_region((600, 1500), 0, (560, 480)))[..., :3].copy()
    fitted = head.fitted(pixels)
    whole = windowed(fitted, pixels, 560, 0)
    parts = windowed(fitted, pixels, own_px, shift)
    assert len(whole) > 150
    a, b = rings(whole), rings(parts)
    i, j = shapely.STRtree(b).query(a, predicate="intersects")
    shared = shapely.area(shapely.intersection(a[i], b[j]))
    iou = shared / (shapely.area(a[i]) + shapely.area(b[j]) - shared)
    assert 2 * (iou > 0.7).sum() / (len(a) + len(b)) > 0.99
    assert shapely.is_valid(b).all()
    touching = shapely.area(shapely.intersection(b[i], b[j]))[i != j] if len(a) == len(b) else []
    assert np.sum(touching) < 0.01 * shapely.area(b).sum()  # none twice


def test_it_is_better_than_no_training_on_images_of_another_source(
    head: NetworkNuclei, real_data: Path
) -> None:
    images = nucleus_images(real_data / "nuclei" / "monuseg", head.mpp, image_mpp=0.25)[::3]
    learned = nucleus_figures(head, images)
    plain = nucleus_figures(load_nucleus_head("watershed"), images)
    assert learned["pq"] > plain["pq"]
    assert learned["aji"] > plain["aji"]
