"""A large slide to measure on: a JPEG pyramid of real tissue, written in seconds.

    python benchmarks/pyramid.py [--side 40000] [--quality 80]

The slide is a mosaic of blocks of 1024 px: crops of the packaged slide (0.5 µm/px, so enlarged
twice, with a scanner's noise added), turned, mirrored and shifted in colour. Each block is encoded
once (its 16 tiles at level 0, its one tile at level 1, its pixels for level 2), and the blocks are
then dealt at random, so that memory holds the blocks and not the slide. Levels are 1, 4 and 16, as
scanners write them: 0.5 µm/px from 0.25 has no level of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
import tifffile
from PIL import Image

import coverslip

TILE = 256
BLOCK = 4 * TILE
BLOCKS = 40
MPP = 0.25
NOISE = 2.0  # grey levels
SAMPLE = Path(coverslip.__file__).parent / "wsi" / "samples" / "CMU-1-Small-Region.svs"
GENERATED = Path(__file__).parent / "generated"
RGB = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Block:
    """One block, encoded.

    tiles   the JPEG streams of its 4 x 4 tiles at level 0, row by row
    quarter its JPEG stream at level 1
    small   (64, 64, 3) its pixels at level 2
    """

    tiles: tuple[bytes, ...]
    quarter: bytes
    small: RGB


def pyramid(side: int = 40_000, quality: int = 80) -> Path:
    """The generated slide of `side` x `side` px at 0.25 µm/px; made when it is not there yet."""
    path = GENERATED / f"pyramid-{side}-q{quality}.tif"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        _write(partial, side, quality)
        partial.rename(path)
    return path


def _write(path: Path, side: int, quality: int) -> None:
    random = np.random.default_rng(1)
    blocks = [_block(pixels, quality) for pixels in _crops(random)]
    across = -(-side // BLOCK)
    dealt = random.integers(len(blocks), size=(across, across))
    sizes = [side, side // 4, side // 16]
    streams = [_level0(blocks, dealt, side), _level1(blocks, dealt, side)]
    small = np.concatenate(
        [np.concatenate([blocks[i].small for i in row], axis=1) for row in dealt.tolist()]
    )[: sizes[2], : sizes[2]]
    per_cm = 1e4 / MPP
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, (size, tiles) in enumerate(
            zip(sizes, [*streams, _tiles(small, quality)], strict=True)
        ):
            file.write(
                tiles,
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                compression="jpeg",
                subsampling=(2, 2),
                subfiletype=int(level > 0),
                resolution=(per_cm / 4**level, per_cm / 4**level),
                resolutionunit="CENTIMETER",
                metadata=None,
            )


def _crops(random: np.random.Generator) -> Iterator[RGB]:
    """Blocks of the packaged slide's tissue, no two alike."""
    with tifffile.TiffFile(SAMPLE) as file:
        image = file.pages[0].asarray()  # type: ignore[union-attr]
    height, width = image.shape[:2]
    side = BLOCK // 2
    for _ in range(BLOCKS):
        y, x = random.integers(height - side), random.integers(width - side)
        crop = np.rot90(image[y : y + side, x : x + side], random.integers(4))
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        density = random.uniform(0.8, 1.2, 3)  # of each colour: paler and darker stains
        table = np.round(255 * (np.arange(256)[:, None] / 255) ** density).astype(np.uint8)
        small = Image.fromarray(np.ascontiguousarray(table[crop, np.arange(3)]))
        large = np.asarray(small.resize((BLOCK, BLOCK), Image.Resampling.BICUBIC), np.float32)
        noise = random.normal(0, NOISE, large.shape[:2])[..., None]
        yield np.clip(large + noise + 0.5, 0, 255).astype(np.uint8)


def _block(pixels: RGB, quality: int) -> Block:
    quarter = _reduced(pixels, 4)
    return Block(tuple(_tiles(pixels, quality)), _jpeg(quarter, quality), _reduced(quarter, 4))


def _reduced(pixels: RGB, factor: int) -> RGB:
    side = len(pixels) // factor
    means = pixels.reshape(side, factor, side, factor, 3).mean(axis=(1, 3))
    return np.floor(means + 0.5).astype(np.uint8)


def _tiles(pixels: RGB, quality: int) -> Iterator[bytes]:
    """JPEG streams of an image's tiles, row by row; white beyond its edge."""
    for y in range(0, pixels.shape[0], TILE):
        for x in range(0, pixels.shape[1], TILE):
            part = pixels[y : y + TILE, x : x + TILE]
            tile = np.full((TILE, TILE, 3), 255, np.uint8)
            tile[: part.shape[0], : part.shape[1]] = part
            yield _jpeg(tile, quality)


def _jpeg(pixels: RGB, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")


def _level0(blocks: list[Block], dealt: npt.NDArray[np.int64], side: int) -> Iterator[bytes]:
    count = -(-side // TILE)
    for row in range(count):
        for column in range(count):
            block = blocks[dealt[row // 4, column // 4]]
            yield block.tiles[row % 4 * 4 + column % 4]


def _level1(blocks: list[Block], dealt: npt.NDArray[np.int64], side: int) -> Iterator[bytes]:
    count = -(-(side // 4) // TILE)
    for row in range(count):
        for column in range(count):
            yield blocks[dealt[row, column]].quarter


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the slide the benchmarks read.")
    parser.add_argument("--side", type=int, default=40_000, help="px of level 0")
    parser.add_argument("--quality", type=int, default=80, help="of the JPEG tiles")
    given = parser.parse_args()
    made = pyramid(given.side, given.quality)
    print(f"{made}: {made.stat().st_size / 1e6:,.0f} MB")
