"""Tissue on a low-resolution picture, by how much light it takes away and how coloured it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from coverslip.wsi.slide import RGB

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TissueSettings:
    """What counts as tissue.

    sure, possible      score (see `tissue_score`) of pixels that start tissue, and of those that
                        continue it
    smooth_um           Gaussian that quiets noise and bridges fat lattices, µm (standard deviation)
    close_um            gaps bridged, µm
    least_tissue_um2    specks below this are dust
    least_hole_um2      holes below this are filled
    black               grey level below which unsaturated pixels are unscanned area or ink
    border_um           a component thinner than this along the picture's edge is a coverslip's edge
    """

    sure: float = 0.13
    possible: float = 0.055
    smooth_um: float = 12.0
    close_um: float = 30.0
    least_tissue_um2: float = 20_000.0
    least_hole_um2: float = 40_000.0
    black: int = 60
    border_um: float = 250.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TissueMask:
    """tissue, pen: bool [h, w]; glass: the RGB of clear glass the densities are relative to."""

    tissue: Mask
    pen: Mask
    glass: tuple[float, float, float]


def segment_tissue(image: RGB, mpp: float, settings: TissueSettings | None = None) -> TissueMask:
    """Tissue and pen on `image` ([h, w, 3]) of pixels measuring `mpp` µm. Deterministic.

    Each pixel is scored by its optical density against the slide's own glass, haematoxylin and
    eosin colours counting more than grey; tissue grows from sure pixels through possible ones
    (hysteresis), loses dust and gains small holes. Ink, the scanner's black, and coverslip edges
    are left out.
    """
    settings = settings or TissueSettings()
    glass = glass_colour(image)
    density = optical_density(image, glass)
    pen = _pen(image, density, mpp)
    black = _black(image, settings, mpp)
    excluded = pen | black
    score = tissue_score(density)
    score[excluded] = 0
    score = ndimage.gaussian_filter(score, settings.smooth_um / mpp, truncate=3)
    possible = (score > settings.possible) & ~excluded
    sure = possible & (score > settings.sure)
    tissue = _connected_to(possible, sure)
    # the picture is padded, so that closing does not eat tissue at its border
    reach = max(1, round(settings.close_um / mpp))
    tissue = _close(tissue, reach) & ~excluded
    tissue = _without_edges(tissue, score, mpp, settings)
    tissue = _without_specks(tissue, settings.least_tissue_um2 / mpp**2)
    tissue = ~_without_specks(~tissue, settings.least_hole_um2 / mpp**2) & ~excluded
    return TissueMask(tissue, pen, glass)


def glass_colour(image: RGB) -> tuple[float, float, float]:
    """The colour of clear glass: the bright mode of each channel among bright, grey pixels.

    245 where the picture shows no glass at all.
    """
    low, high = image.min(axis=-1), image.max(axis=-1)
    # pure white is padding that was never scanned
    bright = (low > 200) & (high - low < 24) & (low < 255)
    if bright.mean() < 0.002:
        return 245.0, 245.0, 245.0
    red, green, blue = (_mode(image[..., c][bright]) for c in range(3))
    return red, green, blue


def _mode(values: npt.NDArray[np.uint8]) -> float:
    counts = np.bincount(values, minlength=256).astype(np.float64)
    return float(np.argmax(np.convolve(counts, np.ones(5), mode="same")))


def optical_density(image: RGB, glass: tuple[float, float, float]) -> npt.NDArray[np.float32]:
    """[h, w, 3] natural-log density against `glass`; never negative."""
    levels = np.maximum(np.arange(256), 1.0)
    table = np.stack([np.log(g / levels) for g in glass], axis=1).clip(0).astype(np.float32)
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)


def tissue_score(density: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """[h, w]: how much the pixel looks like stained tissue.

    Green is what haematoxylin, eosin and DAB all absorb; a difference between channels tells stain
    from the grey of dust, shadow and uneven light.
    """
    green = density[..., 1]
    colour = density.max(axis=-1) - density.min(axis=-1)
    score: npt.NDArray[np.float32] = 0.5 * green + colour
    return score


def _pen(image: RGB, density: npt.NDArray[np.float32], mpp: float) -> Mask:
    """Ink: blue, green or black as no stain is, or strongly saturated red; with a margin around."""
    red, green, blue = (image[..., c].astype(np.int16) for c in range(3))
    d_red, d_green, d_blue = (density[..., c] for c in range(3))
    # haematoxylin and eosin always absorb more green than red or blue light
    green_ink = (d_red > 1.05 * d_green) & (d_blue > 0.72 * d_green) & (d_red > 0.3)
    blue_ink = (d_red > d_green * 1.18 + 0.06) & (d_blue < d_green) & (blue > 80)
    red_ink = (
        (d_red < 0.30)
        & (d_green > 0.75)
        & (d_blue > 0.75)
        & (abs(d_green - d_blue) < 0.5)
        & (red > 130)
    )
    chroma = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    black_ink = (np.maximum(np.maximum(red, green), blue) < 70) & (chroma < 26)
    ink = green_ink | blue_ink | red_ink | black_ink
    # ink is drawn by hand: strokes, not single cells
    reach = max(1, round(30 / mpp))
    crowded = ndimage.uniform_filter(ink.astype(np.float32), 2 * reach + 1) > 0.5
    strokes = _without_specks(crowded, 40_000 / mpp**2)
    return _grow(strokes, 2 * reach) if strokes.any() else strokes


def _black(image: RGB, settings: TissueSettings, mpp: float) -> Mask:
    """Unscanned black and its blurred rim, where it covers a real area."""
    dark = image.max(axis=-1) < settings.black
    dark = _without_specks(dark, 200_000 / mpp**2)
    return _grow(dark, 2) if dark.any() else dark


def _connected_to(mask: Mask, seeds: Mask) -> Mask:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    kept = np.zeros(count + 1, np.bool_)
    kept[np.unique(labels[seeds])] = True
    kept[0] = False
    result: Mask = kept[labels]
    return result


def _close(mask: Mask, reach: int) -> Mask:
    """Closing by a disc of `reach` px through two distance transforms: no cost in the radius."""
    padded = np.pad(mask, reach + 1)
    closed = ndimage.distance_transform_edt(_grow(padded, reach)) > reach
    inner: Mask = closed[reach + 1 : -reach - 1, reach + 1 : -reach - 1] | mask
    return inner


def _grow(mask: Mask, reach: int) -> Mask:
    """Dilation by a disc of `reach` px."""
    result: Mask = ndimage.distance_transform_edt(~mask) <= reach
    return result


def _without_specks(mask: Mask, least_px: float) -> Mask:
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    kept = sizes >= least_px
    kept[0] = False
    result: Mask = kept[labels]
    return result


def _without_edges(
    mask: Mask, score: npt.NDArray[np.float32], mpp: float, settings: TissueSettings
) -> Mask:
    """Without thin straight bands: a coverslip's edge is long, narrow and pale."""
    labels, _ = ndimage.label(mask)
    height, width = mask.shape
    result = mask.copy()
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        tall, wide = rows.stop - rows.start, columns.stop - columns.start
        thin, long = min(tall, wide), max(tall, wide)
        along = height if tall > wide else width
        part = labels[rows, columns] == number
        straight = thin * mpp < settings.border_um and long > 0.25 * along and long > 8 * thin
        if straight and score[rows, columns][part].mean() < 2 * settings.sure:
            result[rows, columns][part] = False
    return result
