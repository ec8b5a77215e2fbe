"""Tiles with a class each, from image files, as data sets for probes come."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True, eq=False)
class LabelledTiles:
    """uint8 [N, H, W, 3] pixels, int64 [N] labels that number `classes`, and the files' names."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, source: Path, pattern: str = "") -> LabelledTiles:
        """From a folder with one folder per class; a folder of files whose names hold the class;
        or a CSV with the columns file (relative to it) and label.

        pattern   regular expression whose first group is the class, searched in the file's name

        Tiles of other sizes than the first are resampled to it. Raises InvalidConfig.
        """
        found = sorted(_files(source, pattern), key=lambda item: (item[1], item[0]))
        classes = sorted({label for _, label in found})
        if len(classes) < 2:
            raise InvalidConfig(
                f"{source}: labelled tiles of at least two classes are wanted, found "
                f"{len(found)} files of {len(classes)}\n"
                "  one folder per class, a CSV with the columns file and label, or a pattern"
            )
        first = _read(found[0][0])
        pixels = np.stack([_read(path, first.shape[1::-1]) for path, _ in found])
        labels = np.array([classes.index(label) for _, label in found])
        return cls(pixels, labels, tuple(classes), tuple(path.name for path, _ in found))


def _files(source: Path, pattern: str) -> Iterator[tuple[Path, str]]:
    if source.is_file():
        yield from _listed(source)
        return
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if not pattern:
            yield path, path.parent.relative_to(source).as_posix()
        elif match := re.search(pattern, path.name):
            yield path, match[1]


def _listed(table: Path) -> Iterator[tuple[Path, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            if not row.get("file") or not row.get("label"):
                raise InvalidConfig(f"{table}: line {number} wants the columns file and label")
            yield table.parent / row["file"], row["label"]


def _read(path: Path, size: tuple[int, ...] | None = None) -> npt.NDArray[np.uint8]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
            if size is not None and rgb.size != tuple(size):
                rgb = rgb.resize((size[0], size[1]), Image.Resampling.BICUBIC)
            return np.asarray(rgb)
    except OSError as error:
        raise InvalidConfig(f"{path}: the tile cannot be read ({error})") from None
