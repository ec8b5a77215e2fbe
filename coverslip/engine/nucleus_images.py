"""Images with their nuclei, from folders as data sets come in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.kernels.resample import area_resample

if TYPE_CHECKING:
    from PIL import Image

INSTANCES = "_instances.png"
CLASSES = "_classes.csv"


def nucleus_images(
    folder: Path,
    mpp: float,
    classes: Sequence[str] = (),
    *,
    image_mpp: float | None = None,
    nucleus_um2: float | None = None,
    least: int = 1,
) -> list[NucleusImage]:
    """Every `<name>.png` with its `<name>_instances.png`, at `mpp` µm per px.

    folder        of RGB images, and of labels: 0 background, a number for each nucleus; beside them
                  `<name>_classes.csv` with the columns label and class where classes are known
    classes       their names, in the order of class ids
    image_mpp     µm per px of the images
    nucleus_um2   instead: the images are scaled so that their median nucleus measures this much
    least         images with fewer nuclei are left out

    Raises InvalidConfig: no image, one that cannot be read, sizes that differ, unknown classes.
    """
    if (image_mpp is None) == (nucleus_um2 is None):
        raise InvalidConfig("either the images' µm per px or the area of a nucleus has to be told")
    found = []
    for path in sorted(folder.glob("*" + INSTANCES)):
        labels = np.asarray(_opened(path), np.int64)
        rgb = np.asarray(
            _opened(path.with_name(path.name.replace("_instances", ""))).convert("RGB")
        )
        if labels.shape != rgb.shape[:2]:
            raise InvalidConfig(f"{path}: labels are {labels.shape}, the image {rgb.shape[:2]}")
        numbers = np.unique(labels[labels > 0])
        if len(numbers) < least:
            continue
        area = float(np.median(np.bincount(labels.ravel())[numbers])) if len(numbers) else 0.0
        own = image_mpp or float(np.sqrt((nucleus_um2 or 0) / max(area, 1.0)))
        class_id = _class_ids(path.with_name(path.name.replace(INSTANCES, CLASSES)), classes)
        image = resampled(rgb, labels, mpp / own, path.name.removesuffix(INSTANCES), class_id)
        found.append(image)
    if not found:
        raise InvalidConfig(f"{folder}: no <name>.png with <name>{INSTANCES} of enough nuclei")
    return found


def resampled(
    rgb: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.integer],
    scale: float,
    name: str,
    class_id: dict[int, int],
) -> NucleusImage:
    """An image at 1 / `scale` of its size; labels by the nearest px, numbered without gaps."""
    height, width = (max(1, round(n / scale)) for n in rgb.shape[:2])
    small = np.empty((height, width, 3), np.uint8)
    area_resample(rgb, (0.0, 0.0), (scale, scale), small)
    v, u = (
        np.minimum(((np.arange(n) + 0.5) * scale).astype(np.int64), side - 1)
        for n, side in zip((height, width), rgb.shape[:2], strict=True)
    )
    left, place = np.unique(labels[np.ix_(v, u)], return_inverse=True)
    number = np.arange(len(left), dtype=np.int32) + (0 if left[0] == 0 else 1)
    kinds = [class_id.get(int(n), 255 if class_id else 0) for n in left if n > 0]
    return NucleusImage(
        small, number[place].reshape(height, width), np.array(kinds, np.uint8), name
    )


def _opened(path: Path) -> Image.Image:
    from PIL import Image

    try:
        image = Image.open(path)
        image.load()
        return image
    except OSError as error:
        raise InvalidConfig(f"{path}: cannot be read ({error})") from None


def _class_ids(path: Path, classes: Sequence[str]) -> dict[int, int]:
    """Label -> class id; empty where nobody told."""
    import csv

    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return {int(row["label"]): list(classes).index(row["class"]) for row in rows}
    except (KeyError, ValueError) as error:
        raise InvalidConfig(
            f"{path}: columns label and class are wanted, classes among {', '.join(classes)} "
            f"({error})"
        ) from None
