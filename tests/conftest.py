"""Slides whose pixels are their own address, as arrays and as files; and the real ones."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tifffile

import coverslip
from coverslip.errors import UnreadableTile
from coverslip.wsi.slide import RGB, Box, Level, PixelSize, Slide

REPOSITORY = Path(coverslip.__file__).parent.parent
BEYOND = 77
"""What an array slide's tiles hold beyond their level's edge; no test may ever see it."""


def _address_pixels(width: int, height: int) -> RGB:
    """(height, width, 3) uint8 in which every pixel spells its own (x, y).

    red = x mod 256, green = y mod 256, blue = high nibbles. Read any region back
    losslessly and the pixels themselves say whether it is the region you asked for.
    """
    y, x = np.mgrid[:height, :width]
    return np.stack([x & 255, y & 255, (x >> 8) << 4 | y >> 8], axis=-1).astype(np.uint8)


def _averaged(image: RGB, factor: int) -> RGB:
    """Means of factor x factor px, halves up; what does not fill a whole square is cut off."""
    h, w = image.shape[0] // factor, image.shape[1] // factor
    whole = image[: h * factor, : w * factor].reshape(h, factor, w, factor, 3)
    return np.floor(whole.mean(axis=(1, 3)) + 0.5).astype(np.uint8)


class ArraySlide(Slide):
    """A slide held in memory: any pyramid, any native tile, with counters and faults.

    decoded    how often each (level, column, row) was decoded
    broken     tiles that raise UnreadableTile
    left_out   tiles the "file" holds no bytes for
    """

    reader, vendor = "array", "tests"

    def __init__(
        self,
        image: RGB,
        *,
        tile: tuple[int, int] = (64, 64),
        downsamples: Sequence[int] = (),
        reductions: int = 0,
        mpp: tuple[float, float] | None = (0.25, 0.25),
    ) -> None:
        self.path = self.name = "array"
        self.images = [image, *(_averaged(image, d) for d in downsamples)]
        self.levels = tuple(
            Level((pixels.shape[1], pixels.shape[0]), (float(d), float(d)), tile, reductions)
            for pixels, d in zip(self.images, (1, *downsamples), strict=True)
        )
        self.pixel_size = None if mpp is None else PixelSize(*mpp, "given")
        self.bounds = Box(0, 0, *self.levels[0].size)
        self.properties = {}
        self.decoded: Counter[tuple[int, int, int]] = Counter()
        self.broken: set[tuple[int, int, int]] = set()
        self.left_out: set[tuple[int, int, int]] = set()

    def decode_tile(self, level: int, column: int, row: int, reduction: int = 0) -> RGB | None:
        place = (level, column, row)
        self.decoded[place] += 1
        if place in self.broken:
            raise UnreadableTile(self.path, level, column, row, "broken on purpose")
        if place in self.left_out:
            return None
        width, height = self.levels[level].tile
        whole = np.full((height, width, 3), BEYOND, np.uint8)
        part = self.images[level][row * height :, column * width :][:height, :width]
        whole[: part.shape[0], : part.shape[1]] = part
        return _averaged(whole, 2**reduction) if reduction else whole


@pytest.fixture(autouse=True, scope="module")
def torch_threads() -> Iterator[None]:
    """What a test file does to torch's threads ends with it."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch := sys.modules.get("torch"):
        granted = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
        torch.set_num_threads(before or granted)


@pytest.fixture(scope="session")
def address_pixels() -> Callable[[int, int], RGB]:
    """(width, height) -> pixels that spell their own (x, y)."""
    return _address_pixels


@pytest.fixture(scope="session")
def array_slide() -> type[ArraySlide]:
    """The class of slides held in memory."""
    return ArraySlide


@pytest.fixture(scope="session")
def address_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1500 x 1100 px at 0.25 µm/px, levels 1, 2, 4, deflate tiles of 256 px; all lossless."""
    path = tmp_path_factory.mktemp("slides") / "address.tif"
    return _write_pyramid(path, _address_pixels(1500, 1100), (1, 2, 4))


@pytest.fixture(scope="session")
def crooked_slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1501 x 1103 px: no level divides level 0 evenly, so the sizes' ratios differ in x and y."""
    path = tmp_path_factory.mktemp("slides") / "crooked.tif"
    return _write_pyramid(path, _address_pixels(1501, 1103), (1, 4, 16), tile=(128, 64))


@pytest.fixture(scope="session")
def jpeg_slide(tmp_path_factory: pytest.TempPathFactory, small_slide: Path) -> Path:
    """1500 x 1100 px of real tissue at 0.25 µm/px, levels 1 and 4, JPEG tiles of 256 px."""
    with tifffile.TiffFile(small_slide) as file:
        image = file.pages[0].asarray()[500:1600, 300:1800]
    path = tmp_path_factory.mktemp("slides") / "jpeg.tif"
    return _write_pyramid(path, np.ascontiguousarray(image), (1, 4), jpeg=True)


@pytest.fixture(scope="session")
def small_slide() -> Path:
    """The real slide in the package: Aperio, JPEG tiles of 240 px, 2220 x 2967 px, one level."""
    return Path(coverslip.__file__).parent / "wsi" / "samples" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real data: COVERSLIP_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("COVERSLIP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent (set COVERSLIP_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_slides(real_data: Path) -> list[Path]:
    """Real slides of several scanners and compressions."""
    slides = sorted(p for p in (real_data / "slides").glob("*") if p.is_file())
    if not slides:
        pytest.skip(f"no real slides in {real_data / 'slides'}")
    return slides


def _write_pyramid(
    path: Path,
    image: RGB,
    downsamples: Sequence[int],
    *,
    tile: tuple[int, int] = (256, 256),
    jpeg: bool = False,
) -> Path:
    with tifffile.TiffWriter(path) as file:
        for d in downsamples:
            level = _averaged(image, d)
            resolution = 1e4 / 0.25 / d  # px per centimetre
            file.write(
                iter(_jpeg_tiles(level, tile)) if jpeg else level,
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile[1], tile[0]),
                photometric="ycbcr" if jpeg else "rgb",
                compression="jpeg" if jpeg else "deflate",
                subsampling=(2, 2) if jpeg else None,
                subfiletype=int(d > 1),
                resolution=(resolution, resolution),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def _jpeg_tiles(image: RGB, tile: tuple[int, int]) -> list[bytes]:
    """JPEG streams of the tiles, row by row; at the edges the last pixel goes on."""
    width, height = tile
    down, across = -image.shape[0] % height, -image.shape[1] % width
    whole = np.pad(image, ((0, down), (0, across), (0, 0)), mode="edge")
    return [
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(whole[y : y + height, x : x + width]), 90, colorsubsampling="420"
        )
        for y in range(0, image.shape[0], height)
        for x in range(0, image.shape[1], width)
    ]


@pytest.fixture
def spoiled(tmp_path: Path, small_slide: Path) -> Path:
    """A copy of the real slide with the bytes of its native tile (column 4, row 6) zeroed."""
    path = tmp_path / "spoiled.svs"
    path.write_bytes(small_slide.read_bytes())
    with tifffile.TiffFile(path) as file:
        page, number = file.pages[0], 6 * 10 + 4
        offset, count = page.dataoffsets[number], page.databytecounts[number]
    with open(path, "r+b") as content:
        content.seek(offset)
        content.write(bytes(count))
    return path
