"""Star-convex polygons: every vertex is seen from the centre, one at each of R even angles.

Coordinates are array ones: pixel centres at whole numbers. Vertex k of a polygon is its centre +
distance k · (cos, sin)(2 pi k / R) in (x, y), as StarDist (Schmidt et al. 2018) has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.kernels.backend import Backend, implementation

Floats = npt.NDArray[Any]

FARTHEST = 2**24
"""px: up to where float32 tells whole px apart. No vertex that is compared is farther from its
centre, whatever a network says."""


def star_vertices(centre: Floats, distance: Floats) -> npt.NDArray[np.float64]:
    """Vertices float64 [N, R, 2] (x, y) for centres [N, 2] (x, y) and distances [N, R]."""
    centre, distance = _checked(centre, distance)
    angle = 2 * np.pi * np.arange(distance.shape[1]) / distance.shape[1]
    rays = np.stack([np.cos(angle), np.sin(angle)], axis=1)  # (r, 2)
    return np.asarray(centre[:, None] + distance[:, :, None] * rays)


def surviving_stars(
    centre: Floats,
    distance: Floats,
    probability: Floats,
    threshold: float,
    *,
    backend: Backend | None = None,
) -> npt.NDArray[np.bool_]:
    """Greedy non-maximum suppression: bool [N], True for the polygons that stay.

    centre        [N, 2] (x, y); distance [N, R], above 0
    probability   [N]; the most probable polygon stays and suppresses what it overlaps, and so on.
                  Of equals the first goes first
    threshold     two polygons overlap if their intersection is more than this share of the smaller

    As the package stardist has it, to the bit: vertices are cut to whole px, towards 0, and the
    intersection is what Clipper makes of them (`coverslip.kernels.clipping`). Between equals the
    package leaves the choice to an unstable sort, which differs from processor to processor.
    """
    centre, distance = _checked(centre, distance)
    order = np.argsort(-np.asarray(probability, np.float64), kind="stable")
    centre = centre[order].astype(np.float32)
    distance = np.minimum(distance[order], FARTHEST).astype(np.float32)
    kernel = implementation("star_convex", distance, backend)
    kept = np.zeros(len(centre), np.bool_)
    reach = distance.max(axis=1, initial=0)
    kept[order] = kernel.survivors(whole_vertices(centre, distance), centre, reach, threshold)
    return kept


def whole_vertices(centre: Floats, distance: Floats) -> npt.NDArray[np.int64]:
    """Vertices int64 [N, R, 2] (x, y) in whole px, cut towards 0 from float32, angles included."""
    rays = distance.shape[1]
    angle = np.float32(2 * np.pi / rays) * np.arange(rays, dtype=np.float32)
    turn = np.stack([np.cos(angle, dtype=np.float64), np.sin(angle, dtype=np.float64)], axis=1)
    way = distance.astype(np.float32)[:, :, None] * turn.astype(np.float32)
    return np.asarray((centre.astype(np.float32)[:, None] + way).astype(np.int64))


def star_labels(
    centre: Floats,
    distance: Floats,
    probability: Floats,
    shape: tuple[int, int],
    *,
    backend: Backend | None = None,
) -> npt.NDArray[np.int32]:
    """Polygons drawn into an image: int32 (H, W), polygon i as label i + 1, 0 elsewhere.

    Where polygons overlap the more probable one is on top. A pixel is drawn if its centre lies in
    the polygon.
    """
    centre, distance = _checked(centre, distance)
    order = np.argsort(np.asarray(probability, np.float64), kind="stable")
    kernel = implementation("star_convex", distance, backend)
    vertices = star_vertices(centre, distance)[order]
    labels = (order + 1).astype(np.int32)
    return np.asarray(kernel.drawn(vertices, centre[order], labels, shape), np.int32)


def ray_distances(
    labels: npt.NDArray[np.integer[Any]],
    rays: int,
    step: int = 1,
    *,
    backend: Backend | None = None,
) -> npt.NDArray[np.float32]:
    """How far each object reaches from each of its pixels: float32 (H / step, W / step, rays).

    labels   int (H, W), 0 background
    step     every how many pixels, from the first, distances are wanted

    Along ray k, at angle 2 pi k / rays, pixel by pixel until the label changes or the image ends;
    the border lies half a pixel beyond the last. 0 in the background. As StarDist's training
    targets (Schmidt et al. 2018).
    """
    kernel = implementation("star_convex", labels, backend)
    return np.asarray(kernel.ray_distances(np.asarray(labels, np.int32), rays, step))


def _checked(
    centre: Floats, distance: Floats
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    centre, distance = np.asarray(centre, np.float64), np.asarray(distance, np.float64)
    if centre.ndim != 2 or centre.shape[1] != 2 or distance.ndim != 2 or distance.shape[1] < 3:
        raise ValueError(f"wanted [N, 2] and [N, 3 or more], got {centre.shape}, {distance.shape}")
    if len(centre) != len(distance):
        raise ValueError(f"{len(centre)} centres but {len(distance)} rows of distances")
    if not (np.isfinite(centre).all() and (distance > 0).all() and np.isfinite(distance).all()):
        raise ValueError("centres must be finite, distances finite and above 0")
    return centre, distance
