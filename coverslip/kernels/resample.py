"""Area-weighted resampling: every output pixel is the mean of the light that falls on it."""

from __future__ import annotations

from typing import Any

from coverslip.kernels.backend import Backend, implementation


def area_resample(
    image: Any,
    origin: tuple[float, float],
    scale: tuple[float, float],
    out: Any,
    *,
    backend: Backend | None = None,
) -> None:
    """Fill `out` with the means of `image` over a lattice of rectangles.

    image     (H, W, 3) uint8, or a batch (B, H, W, 3)
    origin    (x, y) of the lattice's corner in image px; may lie between pixels or outside
    scale     (x, y) image px per output px, above 0; below 1 enlarges
    out       (h, w, 3) uint8, or (B, h, w, 3), written in place
    backend   overrides the choice; for tests and benchmarks

    Output pixel (u, v) is the mean of the image over [x + u·sx, x + (u + 1)·sx) by
    [y + v·sy, y + (v + 1)·sy), each image pixel weighted by the area it shares; halves round up.
    What lies outside the image counts as white (255).
    """
    if image.ndim != out.ndim or image.shape[:-3] != out.shape[:-3]:
        raise ValueError(f"image {image.shape} and out {out.shape} must be batches of one length")
    kernel = implementation("resample", image, backend)
    for one, into in zip(image, out, strict=True) if image.ndim == 4 else [(image, out)]:
        kernel.area_resample(one, origin, scale, into)
