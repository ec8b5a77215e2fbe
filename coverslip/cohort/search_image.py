"""An image from a file, as tiles of a cohort's grid, embedded by the cohort's encoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from coverslip.cohort.search_index import CohortIndex, recipe_hash
from coverslip.encoders.search import MadeBy, Vectors
from coverslip.errors import InvalidConfig
from coverslip.kernels.stain_profile import StainNormalizer, StainProfile, fit_stains
from coverslip.tiling.reading import read_region
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import RGB, Box

MOST_TILES = 1024
LEAST_SIDE = 0.5
"""Of a tile's side: a smaller image cannot be continued by mirroring it once."""
BATCH = 64


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """An image's tiles.

    vectors   float32 [N, D], one for each tile
    picture   what of the image was embedded, at the grid's pixel size
    notes     what was done to it that a person should know
    """

    vectors: Vectors
    picture: RGB
    notes: tuple[str, ...]


def embedded_image(
    path: str,
    cohort: CohortIndex,
    *,
    mpp: float | None,
    encoder: str,
    weights: str | None,
    device: str,
) -> EmbeddedImage:
    """Rescale an image to the grid's pixel size, cut whole tiles from its middle, embed them.

    mpp                        its µm per pixel; None takes what the file records
    encoder, weights, device   of the cohort's encoder, as for `load_encoder`

    An image narrower than a tile is continued by mirroring, down to half a tile. Raises
    InvalidConfig (no pixel size, too small, too large), SlideError, and RecipeMismatch where the
    encoder is not the one that made the cohort's features.
    """
    from coverslip.encoders.loading import load_encoder

    maker = cohort.index.record.made_by
    pixels, tile, notes = _at_grid_scale(path, cohort, mpp)
    network = load_encoder(encoder, weights=weights, device=device)
    loaded = MadeBy(
        network.name,
        recipe_hash(network.recipe),
        network.weights_sha256,
        maker.grid,
        maker.stain,
    )
    maker.require(loaded, f"the encoder of {path}")
    normalizer = _normalizer(pixels, cohort)
    if normalizer is not None:
        notes += [f"stains not normalised: {problem}" for problem in normalizer.source.problems]
    picture, tiles = _cut(pixels, tile)
    parts = [network.encode(tiles[i : i + BATCH], normalizer) for i in range(0, len(tiles), BATCH)]
    return EmbeddedImage(np.concatenate(parts), picture, tuple(notes))


def _at_grid_scale(path: str, cohort: CohortIndex, mpp: float | None) -> tuple[RGB, int, list[str]]:
    """The whole image at the grid's pixel size, the tile's side, and notes."""
    grid = cohort.tiles(next(iter(cohort.stores)))
    notes = []
    with open_slide(path, mpp=mpp, require_mpp=False, cross_check=False) as image:
        if image.pixel_size is None:
            raise InvalidConfig(f"{path}: does not say how large its pixels are; give --mpp")
        size = [length * own / grid.mpp for length, own in zip(image.size, image.mpp, strict=True)]
        shown = f"{size[0]:.0f} x {size[1]:.0f} px at {grid.mpp:g} µm"
        if size[0] * size[1] > MOST_TILES * grid.tile**2:
            raise InvalidConfig(
                f"{path}: {shown} are more than {MOST_TILES} tiles; crop it, or embed it with "
                "coverslip features and ask with --slide or --region"
            )
        if min(size) < LEAST_SIDE * grid.tile:
            raise InvalidConfig(
                f"{path}: {shown}; half a tile is the least, {LEAST_SIDE * grid.tile:.0f} px: give "
                "a larger image, and see whether --mpp is right"
            )
        if max(image.mpp) > 1.05 * grid.mpp:
            notes.append(
                f"the image was enlarged {max(image.mpp) / grid.mpp:.2f} times to {grid.mpp:g} µm"
            )
        if round(min(size)) < grid.tile:
            notes.append(
                f"the image ({shown}) is smaller than a tile and was continued by mirroring"
            )
        pixels = read_region(image, Box(0, 0, *image.size), grid.mpp)
    return pixels, grid.tile, notes


def _cut(pixels: RGB, tile: int) -> tuple[RGB, RGB]:
    """The middle that whole tiles cover, and the tiles [N, tile, tile, 3]."""
    short = [max(0, tile - side) for side in pixels.shape[:2]]
    margins = [(s // 2, s - s // 2) for s in short]
    pixels = np.pad(pixels, (*margins, (0, 0)), mode="symmetric")
    rows, columns = (side // tile for side in pixels.shape[:2])
    y, x = ((s - n * tile) // 2 for s, n in zip(pixels.shape[:2], (rows, columns), strict=True))
    middle = pixels[y : y + rows * tile, x : x + columns * tile]
    tiles = middle.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
    return middle, np.ascontiguousarray(tiles).reshape(-1, tile, tile, 3)


def _normalizer(pixels: RGB, cohort: CohortIndex) -> StainNormalizer | None:
    """What recolours the image as the cohort's slides were; None where they were not."""
    if not cohort.index.record.made_by.stain:
        return None
    store = next(iter(cohort.stores.values()))
    stain = store.record(f"features/{cohort.name}").parameters["stain"]
    target = StainProfile.from_dict(stain["target"])
    return StainNormalizer(fit_stains(pixels, stain["source"]["method"]), target)
