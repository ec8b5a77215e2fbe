"""Kernels beside the best of PyPI, the same work in turn on one machine.

    python benchmarks/kernels.py [--only stain|fit|labels|stars|resample|gpu] [--repeat 5]

"copy" is what the machine can do at most: the same bytes read and written once. On a machine with a
GPU the row "gpu" gives the bandwidth reached beside that of a copy on the device.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from comparison import Row
from PIL import Image
from scipy import ndimage

from coverslip.kernels.labels import (
    connected_components,
    distance_transform,
    gaussian,
    label_measures,
    label_outlines,
    seeded_watershed,
)
from coverslip.kernels.resample import area_resample
from coverslip.kernels.shapes import outline_polygons, shape_measures, simplified_outlines
from coverslip.kernels.stain import EOSIN, HEMATOXYLIN, separate_stains, stain_matrix
from coverslip.kernels.stain_profile import StainNormalizer, fit_stains, reference_profile
from coverslip.kernels.star_convex import star_vertices, surviving_stars
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.stain_sample import stain_sample
from coverslip.tiling.stream import TileStream
from coverslip.tiling.tissue import find_tissue
from coverslip.wsi.opening import open_slide

SAMPLE = Path(str(files("coverslip.wsi") / "samples" / "CMU-1-Small-Region.svs"))
DATA = Path(os.environ.get("COVERSLIP_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def tissue_tiles(count: int) -> np.ndarray:
    """uint8 [count, 256, 256, 3] of the slide in the package, repeated as often as needed."""
    with open_slide(SAMPLE) as slide:
        grid = TileGrid.over(slide, tile=256, mpp=0.5, tissue=find_tissue(slide))
        found = np.concatenate([batch.pixels for batch in TileStream(slide, grid)])
    return np.resize(found, (count, *found.shape[1:]))


def macenko() -> Row:
    """Normalisation with a fit that is made once, for all."""
    tiles = tissue_tiles(100)
    profile, target = fit_stains(tiles[:40]), reference_profile()
    ours = StainNormalizer(profile, target)
    ways: dict[str, Callable[[], object]] = {}
    for name, way in (
        ("torchstain, numpy", torchstain_numpy(profile)),
        ("torchstain, torch, 2 threads", torchstain_torch(profile)),
    ):
        ways[name] = lambda way=way: [way(tile) for tile in tiles[:10]]
    for name, batched in (
        ("stainx, torch (fits every batch)", stainx(tiles)),
        ("torch-staintools (fits every tile)", torch_staintools(tiles)),
    ):
        ways[name] = lambda batched=batched: batched(tiles[:10])
    if find_spec("tiatoolbox"):
        theirs = tiatoolbox(tiles)
        ways["tiatoolbox (fits every tile)"] = lambda: theirs(tiles[:10])
    ways["coverslip, 1 thread"] = lambda: ours(tiles)
    ways["coverslip, 2 threads"] = lambda: ours(tiles, threads=2)
    ways["copy"] = tiles.copy
    row = Row("Macenko, 256 px tiles", "Mpx/s", tiles.size / 3e6, ways)
    row.shares = {name: 0.1 for name in ways if "stain" in name or "tia" in name}
    return row


def torchstain_numpy(profile: Any) -> Callable[[np.ndarray], object]:
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer

    class Fixed(NumpyMacenkoNormalizer):
        """Its own transform; only the vectors are not estimated for every tile."""

        def _NumpyMacenkoNormalizer__compute_matrices(self, image, *_: Any) -> Any:
            od, _kept = self._NumpyMacenkoNormalizer__convert_rgb2od(image, Io=240, beta=0.15)
            stains = np.array(profile.stains).T
            found = self._NumpyMacenkoNormalizer__find_concentration(od, stains)
            return stains, found, np.array(profile.max_concentration)

    normalizer = Fixed()
    return lambda tile: normalizer.normalize(tile, stains=False)[0]


def torchstain_torch(profile: Any) -> Callable[[np.ndarray], object]:
    import torch
    from torchstain.torch.normalizers import TorchMacenkoNormalizer

    class Fixed(TorchMacenkoNormalizer):
        """As above."""

        def _TorchMacenkoNormalizer__compute_matrices(self, image, *_: Any) -> Any:
            od, _kept = self._TorchMacenkoNormalizer__convert_rgb2od(image, Io=240, beta=0.15)
            stains = torch.tensor(profile.stains, dtype=torch.float32).T
            found = self._TorchMacenkoNormalizer__find_concentration(od, stains)
            return stains, found, torch.tensor(profile.max_concentration, dtype=torch.float32)

    torch.set_num_threads(2)
    normalizer = Fixed()

    def normalized(tile: np.ndarray) -> object:
        image = torch.from_numpy(tile).permute(2, 0, 1)
        return normalizer.normalize(image, stains=False)[0]

    return normalized


def stainx(tiles: np.ndarray) -> Callable[[np.ndarray], object]:
    import torch
    from stainx import Macenko

    normalizer = Macenko(device="cpu").fit(torch.from_numpy(tiles[:1]).permute(0, 3, 1, 2))
    return lambda batch: normalizer.transform(torch.from_numpy(batch).permute(0, 3, 1, 2))


def torch_staintools(tiles: np.ndarray) -> Callable[[np.ndarray], object]:
    import torch
    from torch_staintools.normalizer.factory import NormalizerBuilder

    def planes(batch: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255

    normalizer = NormalizerBuilder.build("macenko", concentration_solver="qr")
    normalizer.fit(planes(tiles[:1]))
    return lambda batch: normalizer(planes(batch))


def tiatoolbox(tiles: np.ndarray) -> Callable[[np.ndarray], object]:
    """Where it is installed: it wants an environment of its own."""
    from tiatoolbox.tools.stainnorm import MacenkoNormalizer

    normalizer = MacenkoNormalizer()
    normalizer.fit(tiles[0])
    return lambda batch: [normalizer.transform(tile) for tile in batch]


def reinhard() -> Row:
    import cv2
    from skimage.color import lab2rgb, rgb2lab

    tiles = tissue_tiles(40)
    profile, target = fit_stains(tiles[:40], "reinhard"), reference_profile()
    ours = StainNormalizer(profile, target)
    scale = np.divide(target.lab_std, profile.lab_std)
    shift = np.subtract(target.lab_mean, scale * np.array(profile.lab_mean))

    def opencv() -> None:
        for tile in tiles:
            lab = cv2.cvtColor(tile.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) * scale + shift
            moved = cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB)
            (np.clip(moved, 0, 1) * 255).astype(np.uint8)

    def scikit_image() -> None:
        for tile in tiles[:4]:
            (lab2rgb(rgb2lab(tile) * scale + shift) * 255).astype(np.uint8)

    ways: dict[str, Callable[[], object]] = {
        "scikit-image": scikit_image,
        "OpenCV": opencv,
        "coverslip, 1 thread": lambda: ours(tiles),
        "coverslip, 2 threads": lambda: ours(tiles, threads=2),
        "copy": tiles.copy,
    }
    row = Row("Reinhard in CIELAB, 256 px tiles", "Mpx/s", tiles.size / 3e6, ways)
    row.shares = {"scikit-image": 0.1}
    return row


def separation() -> Row:
    from skimage.color import rgb2hed

    tiles, matrix = tissue_tiles(40), stain_matrix(HEMATOXYLIN, EOSIN)
    ways: dict[str, Callable[[], object]] = {
        "scikit-image rgb2hed": lambda: [rgb2hed(tile) for tile in tiles],
        "coverslip, 1 thread": lambda: separate_stains(tiles, matrix),
        "copy": lambda: tiles.astype(np.float32),
    }
    return Row("colour deconvolution to float32", "Mpx/s", tiles.size / 3e6, ways)


def fitting() -> list[Row]:
    """From the opened slide to the profile; tissue is found before."""
    paths = [DATA / "slides" / "crohn-biopsy-20x.svs", SAMPLE]
    return [fitting_of(path) for path in paths if path.exists()]


def fitting_of(path: Path) -> Row:
    slide = open_slide(path)
    tissue = find_tissue(slide)
    ways: dict[str, Callable[[], object]] = {
        method: partial(lambda m: fit_stains(stain_sample(slide, tissue), m), method)
        for method in ("macenko", "vahadane", "reinhard")
    }
    width, height = slide.size
    return Row(f"stain fit, {width:,} x {height:,} px", "fits/s", 1, ways)


def nuclei_labels(side: int, count: int) -> np.ndarray:
    """int32 (side, side): about `count` discs and ellipses on a jittered lattice, none touching."""
    rng = np.random.default_rng(0)
    step = int(side / np.sqrt(count))
    labels, number = np.zeros((side, side), np.int32), 0
    v, u = np.mgrid[:step, :step]
    for y in range(0, side - step + 1, step):
        for x in range(0, side - step + 1, step):
            number += 1
            a, b = rng.uniform(0.28, 0.46, 2) * step
            cx, cy = rng.uniform(0.48, 0.52, 2) * step
            inside = ((u - cx) / a) ** 2 + ((v - cy) / b) ** 2 < 1
            labels[y : y + step, x : x + step][inside] = number
    return labels


def contours_and_measures() -> list[Row]:
    from skimage.measure import find_contours, regionprops_table

    labels = nuclei_labels(5056, 100_000)
    image = np.random.default_rng(1).random(labels.shape, np.float32)
    count = int(labels.max())
    small = labels[:500, :500]
    part = len(np.unique(small)) - 1
    names = ("area", "centroid", "perimeter", "eccentricity", "solidity", "intensity_mean")

    def scikit_image() -> None:
        regionprops_table(small, image[:500, :500], properties=names)
        for box, i in zip(ndimage.find_objects(small), range(1, part + 1), strict=False):
            if box is not None:
                find_contours(np.pad(small[box] == i, 1).astype(float), 0.5)

    def ours() -> None:
        measures, outlines = label_measures(labels, image), label_outlines(labels)
        shape_measures(outline_polygons(outlines), measures.axes)
        outline_polygons(simplified_outlines(outlines, 0.4))

    row = Row(
        f"contours, simplified, and measures of {count:,} nuclei",
        "nuclei/s",
        count,
        {"scikit-image": scikit_image, "coverslip, 1 thread": ours},
    )
    row.shares = {"scikit-image": part / count}
    return [row]


def label_kernels() -> list[Row]:
    import cv2
    from skimage.segmentation import watershed

    cv2.setNumThreads(1)  # as ours: the engine runs one kernel a thread
    labels = nuclei_labels(2048, 10_000)
    mask = ndimage.binary_dilation(labels > 0)
    image = np.random.default_rng(1).random(labels.shape, np.float32)
    bytes_ = mask.astype(np.uint8)
    ridge = gaussian(distance_transform(mask, 16), 1)
    seeds = connected_components(ridge > 3.5)
    area = mask.size / 1e6
    return [
        Row("connected components", "Mpx/s", area, {
            "SciPy": lambda: ndimage.label(mask),
            "OpenCV, 1 thread": lambda: cv2.connectedComponents(bytes_, connectivity=4),
            "coverslip": lambda: connected_components(mask), "copy": labels.copy}),
        Row("distance transform up to 16 px", "Mpx/s", area, {
            "SciPy": lambda: ndimage.distance_transform_edt(mask),
            "OpenCV, 1 thread": lambda: cv2.distanceTransform(
                bytes_, cv2.DIST_L2, cv2.DIST_MASK_PRECISE),
            "coverslip": lambda: distance_transform(mask, 16), "copy": image.copy}),
        Row("Gaussian, 2 px", "Mpx/s", area, {
            "SciPy": lambda: ndimage.gaussian_filter(image, 2, truncate=3),
            "OpenCV, 1 thread": lambda: cv2.GaussianBlur(image, (13, 13), 2),
            "coverslip": lambda: gaussian(image, 2), "copy": image.copy}),
        Row("seeded watershed", "Mpx/s", area, {
            "scikit-image": lambda: watershed(-ridge, seeds, mask=mask),
            "coverslip": lambda: seeded_watershed(-ridge, seeds, mask), "copy": labels.copy}),
    ]  # fmt: skip


def stars() -> list[Row]:
    from stardist.nms import non_maximum_suppression_sparse

    rng = np.random.default_rng(0)
    count, rays = 100_000, 32
    nuclei = rng.integers(0, 4000, (count // 10, 2)).repeat(10, axis=0)
    centre = nuclei + rng.integers(-3, 4, (count, 2))
    angle = 2 * np.pi * np.arange(rays) / rays
    shape = 1 + 0.1 * np.cos(3 * angle + rng.uniform(0, 6, (count, 1)))
    distance = (rng.uniform(7, 14, (count, 1)) * shape).astype(np.float32)
    probability = rng.permutation(count) / count
    points = centre[:, ::-1].astype(np.float32)
    star_vertices(centre, distance)
    return [
        Row(f"suppression of {count:,} star-convex polygons", "polygons/s", count, {
            "stardist (C++, all threads)": lambda: non_maximum_suppression_sparse(
                distance, probability, points, nms_thresh=0.3),
            "coverslip, 1 thread": lambda: surviving_stars(centre, distance, probability, 0.3)})
    ]  # fmt: skip


def resampling() -> list[Row]:
    import cv2

    cv2.setNumThreads(1)
    image = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
    rows = []
    for scale in (1.013, 2.0, 3.3):
        side = int(2048 / scale)
        out = np.empty((side, side, 3), np.uint8)
        picture = Image.fromarray(image)
        ways: dict[str, Callable[[], object]] = {
            "Pillow, box": lambda p=picture, s=side: p.resize((s, s), Image.Resampling.BOX),
            "OpenCV, area, 1 thread": lambda s=side: cv2.resize(
                image, (s, s), interpolation=cv2.INTER_AREA
            ),
            "coverslip": lambda o=out, k=scale: area_resample(image, (0.0, 0.0), (k, k), o),
            "copy": image.copy,
        }
        rows.append(Row(f"area-weighted resampling by {scale}", "Mpx/s", image.size / 3e6, ways))
    return rows


def on_gpu() -> None:
    """Bandwidth of the fused stain pass beside a copy on the device."""
    import cupy

    tiles = cupy.asarray(tissue_tiles(4000))
    ours = StainNormalizer(fit_stains(tissue_tiles(40)), reference_profile())
    laboratory = StainNormalizer(fit_stains(tissue_tiles(40), "reinhard"), reference_profile())
    rates = {}
    for name, work in (("copy", tiles.copy), ("Macenko", lambda: ours(tiles)),
                       ("Reinhard", lambda: laboratory(tiles))):  # fmt: skip
        times = []
        for _ in range(12):
            cupy.cuda.Device().synchronize()
            started = time.perf_counter()
            work()
            cupy.cuda.Device().synchronize()
            times.append(time.perf_counter() - started)
        rates[name] = 2 * tiles.nbytes / 1e9 / float(np.median(times[2:]))
        share = rates[name] / rates["copy"]
        print(f"| on the GPU | {name} | {rates[name]:,.0f} GB/s | {share:.0%} of a copy |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Kernels beside their peers.")
    parser.add_argument("--only", default="", help="rows with this word: stain, fit, labels, ...")
    parser.add_argument("--repeat", type=int, default=5, help="timed turns; medians are given")
    given = parser.parse_args()
    makers: list[tuple[str, Callable[[], list[Row]]]] = [
        ("stain", lambda: [macenko(), reinhard(), separation()]),
        ("fit", fitting),
        ("labels", lambda: contours_and_measures() + label_kernels()),
        ("stars", stars),
        ("resample", resampling),
    ]
    print("| what | way | median (slowest-fastest) | ratio |\n|---|---|---|---|")
    for word, make in makers:
        if given.only in word:
            for row in make():
                row.measure(given.repeat)
                print("\n".join(row.lines()), flush=True)
    if given.only in "gpu":
        try:
            import cupy

            cupy.cuda.runtime.getDeviceCount()
        except Exception as error:
            print(f"| on the GPU | not measured: {type(error).__name__} | | |")
        else:
            on_gpu()


if __name__ == "__main__":
    main()
