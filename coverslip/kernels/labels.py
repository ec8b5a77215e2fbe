"""From pixels to objects: smoothing, thresholds, distances, seeds, watershed, outlines, measures.

Labels are int32, 0 is background. Every kernel but `connected_components` and `seeded_watershed`
looks a stated number of pixels far, and gives bit for bit the same wherever the image begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.backend import Backend, implementation

Labels = npt.NDArray[np.int32]


def gaussian(image: Any, sigma: float, *, backend: Backend | None = None) -> Any:
    """`image` (H, W) float32 smoothed by a Gaussian cut off at 3 `sigma` px; float32.

    Beyond the border lies the border's own value. `sigma` 0 changes nothing.
    """
    weights = _gaussian_weights(sigma, 3)
    return separable_filter(image, weights, weights, backend=backend)


def laplacian_of_gaussian(image: Any, sigma: float, *, backend: Backend | None = None) -> Any:
    """How much a pixel stands out from its surroundings at the scale `sigma` px.

    image   (H, W) float32

    Returns (H, W) float32, -sigma² (d²/dx² + d²/dy²) of the Gaussian-smoothed image (Lindeberg
    1998): largest in the middle of bright discs of radius sigma · √2, 0 where the image is flat.
    The filter is cut off at 4 sigma; beyond the border lies the border's own value.
    """
    smooth = _gaussian_weights(sigma, 4)
    x = np.arange(len(smooth)) - len(smooth) // 2
    curved = smooth * (1 - (x / sigma) ** 2)
    curved -= smooth * curved.sum()  # exactly 0 on flat ground, though cut off
    down = separable_filter(image, curved, smooth, backend=backend)
    return down + separable_filter(image, smooth, curved, backend=backend)


def separable_filter(
    image: Any,
    down: npt.NDArray[np.float64],
    across: npt.NDArray[np.float64],
    *,
    backend: Backend | None = None,
) -> Any:
    """`image` (H, W) float32 correlated with two lines of weights, of one odd length; float32."""
    return implementation("labels", image, backend).separable_filter(image, down, across)


def _gaussian_weights(sigma: float, cut: float) -> npt.NDArray[np.float64]:
    """A Gaussian's weights up to `cut` standard deviations, with sum 1."""
    reach = int(np.ceil(cut * sigma))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-9)) ** 2)
    return np.asarray(weights / weights.sum())


def local_threshold(
    image: Any,
    radius: int,
    level: Any,
    means: tuple[float, float],
    prior: float,
    *,
    backend: Backend | None = None,
) -> Any:
    """Half way between the means of what is above and what is below `level` in the neighbourhood.

    image     (H, W) float32, between -100 and 100
    radius    half the side of the square neighbourhood, px; the image's border cuts it off
    level     what divides the two classes to begin with: a number, or (H, W) float32
    means     of the class below and above, anywhere
    prior     their weight, as a share of the neighbourhood; above 0, for a class may be absent

    Returns (H, W) float32. One step of Ridler & Calvard (1978), seen from every pixel.
    """
    kernel = implementation("labels", image, backend)
    level = np.broadcast_to(np.asarray(level, np.float32), image.shape)
    return kernel.local_threshold(image, radius, level, means, prior)


def connected_components(mask: Any, *, backend: Backend | None = None) -> Any:
    """The 4-connected parts of `mask` (H, W) bool, numbered from 1 in raster order; int32."""
    return implementation("labels", mask, backend).connected_components(mask)


def largest_parts(labels: Labels, *, backend: Backend | None = None) -> Labels:
    """Every label (H, W) int32 cut down to its largest 4-connected part; of equals the first."""
    h, w = labels.shape
    if not labels.size:
        return labels
    # between two pixels of one label the way is open: components of a grid of twice the side
    ways = np.zeros((2 * h - 1, 2 * w - 1), np.bool_)
    ways[::2, ::2] = labels > 0
    ways[::2, 1::2] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] > 0)
    ways[1::2, ::2] = (labels[1:] == labels[:-1]) & (labels[1:] > 0)
    part = connected_components(ways, backend=backend)[::2, ::2]
    size = np.bincount(part.ravel())
    owner = np.zeros(len(size), np.int64)
    owner[part] = labels
    order = np.lexsort((np.arange(len(size)), -size, owner))
    first = np.ones(len(order), np.bool_)
    first[1:] = owner[order][1:] != owner[order][:-1]
    kept = np.zeros(len(size), np.bool_)
    kept[order[first]] = True
    return np.asarray(np.where(kept[part], labels, 0), np.int32)


def consecutive_labels(
    labels: npt.NDArray[np.integer],
) -> tuple[Labels, npt.NDArray[np.int64]]:
    """Labels numbered anew, 1 to N without gaps and in their order, and what each was: int64 [N].

    labels   any shape; 0 and below is background, and becomes 0
    """
    left, place = np.unique(labels, return_inverse=True)
    number = np.cumsum(left > 0, dtype=np.int32)
    return number[place].reshape(labels.shape), left[left > 0].astype(np.int64)


def distance_transform(mask: Any, limit: float, *, backend: Backend | None = None) -> Any:
    """Distance of every pixel of `mask` to the nearest pixel outside it, px, at most `limit`.

    Exact Euclidean between pixel centres; (H, W) float32, 0 outside the mask. What lies beyond
    the image is not outside the mask: it is unknown and counts for nothing.
    """
    return implementation("labels", mask, backend).distance_transform(mask, limit)


def opened_by_disc(mask: Any, radius: float, *, backend: Backend | None = None) -> Any:
    """What discs of `radius` px inside `mask` (H, W) bool cover; bool."""
    core = distance_transform(mask, radius + 1, backend=backend) > radius
    return distance_transform(~core, radius + 1, backend=backend) <= radius


def filled_holes(mask: Any, largest: float, *, backend: Backend | None = None) -> Any:
    """`mask` (H, W) bool with its holes of up to `largest` px filled; bool.

    A hole is a 4-connected part of the background. What touches the border is none.
    """
    holes = connected_components(~mask, backend=backend)
    small = np.bincount(holes.ravel(), minlength=1) <= largest
    small[0] = False
    for side in (holes[0], holes[-1], holes[:, 0], holes[:, -1]) if mask.size else ():
        small[side] = False
    return mask | small[holes]


def local_maxima(height: Any, mask: Any, radius: float, *, backend: Backend | None = None) -> Any:
    """Pixels of `mask` that no pixel within `radius` px exceeds, numbered in raster order.

    height   (H, W) float32; pixels outside the mask count as rivals

    Returns (H, W) int32. Of equal pixels within reach the first in raster order stays.
    """
    return implementation("labels", height, backend).local_maxima(height, mask, radius)


def seeded_watershed(height: Any, seeds: Any, mask: Any, *, backend: Backend | None = None) -> Any:
    """Flood `height` from `seeds` within `mask`, lowest first (Meyer 1991; 4-connected).

    height    (H, W) float32
    seeds     (H, W) int32, 0 where there is none
    mask      (H, W) bool; nothing is labelled outside
    backend   overrides the choice; for tests and benchmarks

    Returns (H, W) int32 with the seeds' labels. Of equally high pixels the one reached first is
    flooded first, seeds in raster order: the result is the same wherever the image is cut, as
    long as the cut is far enough away. Parts of the mask that no seed reaches stay 0.
    """
    return implementation("labels", height, backend).seeded_watershed(height, seeds, mask)


def label_depth(labels: Labels, *, backend: Backend | None = None) -> npt.NDArray[np.float32]:
    """Every pixel's distance to the border of its label as a share of the largest there.

    labels   (H, W) int32; the image's border is one, too

    Returns (H, W) float32, 0 in the background to 1.
    """
    from scipy.ndimage import find_objects

    depth = np.zeros(labels.shape, np.float32)
    for number, place in enumerate(find_objects(labels), 1):
        if place is not None:
            one = np.pad(labels[place] == number, 1)
            far = distance_transform(one, float(max(one.shape)), backend=backend)[1:-1, 1:-1]
            depth[place] += far / max(float(far.max()), 1e-6)
    return depth


@dataclass(frozen=True, slots=True)
class Outlines:
    """Polygons of M labels, one after the other.

    label    int32 [M], ascending
    offset   int64 [M + 1]: vertices of polygon i are vertex[offset[i] : offset[i + 1]]
    vertex   float64 [V, 2] (x, y); pixel (column u, row v) covers [u, u + 1) x [v, v + 1). Rings
             are not closed (the first vertex is not repeated)
    """

    label: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    vertex: npt.NDArray[np.float64]


def label_outlines(labels: Labels, *, backend: Backend | None = None) -> Outlines:
    """The outer outline of every label, through the middles of its pixels' outer edges.

    Every label must be 4-connected. Going through edge middles cuts pixel corners, so rings never
    touch themselves or their neighbours' and are always valid polygons, also where pixels
    meet only diagonally. Holes are covered.
    """
    label, offset, vertex = implementation("labels", labels, backend).label_outlines(labels)
    return Outlines(label, offset, vertex)


@dataclass(frozen=True, slots=True)
class LabelMeasures:
    """Per label, ascending, in pixels.

    label [M] int32; area [M]; centroid [M, 2] (x, y), pixel centres at .5; box [M, 4] x0, y0, x1,
    y1 (one past); mean [M] of the image; axes [M, 2] lengths of the major and minor axis of the
    ellipse with the same second moments, pixels taken as points (as scikit-image does).
    """

    label: npt.NDArray[np.int32]
    area: npt.NDArray[np.float64]
    centroid: npt.NDArray[np.float64]
    box: npt.NDArray[np.int64]
    mean: npt.NDArray[np.float64]
    axes: npt.NDArray[np.float64]


def label_means(labels: Labels, image: Any, *, backend: Backend | None = None) -> Any:
    """Mean of every channel over every label: float64 [M, C], labels ascending.

    image   (H, W, C) float32 or uint8: stain concentrations, say
    """
    sums = implementation("labels", labels, backend).label_channel_sums(labels, image)
    present = sums[:, -1] > 0
    present[:1] = False
    return sums[present, :-1] / sums[present, -1:]


def label_measures(labels: Labels, image: Any, *, backend: Backend | None = None) -> LabelMeasures:
    """Area, centroid, box, mean intensity and axes of every label, in one pass.

    image   (H, W) float32
    """
    sums = implementation("labels", labels, backend).label_sums(labels, image)
    present = np.flatnonzero(sums[:, 0] > 0)
    area, x, y, xx, yy, xy, total, x0, y0, x1, y1 = sums[present].T
    u, v = x / area, y / area
    mxx, myy, mxy = xx / area - u * u, yy / area - v * v, xy / area - u * v
    spread = np.sqrt((mxx - myy) ** 2 + 4 * mxy**2)
    major = np.sqrt(8 * np.maximum(mxx + myy + spread, 0))
    minor = np.sqrt(8 * np.maximum(mxx + myy - spread, 0))
    return LabelMeasures(
        label=present.astype(np.int32),
        area=area,
        centroid=np.stack([u + 0.5, v + 0.5], axis=1),
        box=np.stack([x0, y0, x1 + 1, y1 + 1], axis=1).astype(np.int64),
        mean=total / area,
        axes=np.stack([major, minor], axis=1),
    )
