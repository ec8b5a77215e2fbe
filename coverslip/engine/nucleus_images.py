"""Images with their nuclei: from folders as data sets come in, and from annotated slides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.engine.annotated_slides import of_annotated_slides
from coverslip.errors import InvalidConfig
from coverslip.export.geojson_reader import read_geojson
from coverslip.export.qupath_objects import QuPathObject
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.kernels.labels import consecutive_labels
from coverslip.kernels.resample import area_resample
from coverslip.tiling.reading import read_window
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from PIL import Image

RGB = npt.NDArray[np.uint8]

INSTANCES = "_instances.png"
CLASSES = "_classes.csv"
REGION = "Region*"
"""QuPath's class for areas that are not tissue of some kind."""


def images_of_sources(
    sources: Sequence[str],
    annotations: Path | None,
    mpp: float,
    classes: Sequence[str],
    *,
    image_mpp: float | None = None,
    nucleus_um2: float | None = None,
    only: Collection[str] = (),
    assume_mpp: float | None = None,
) -> list[NucleusImage]:
    """Of folders (see `nucleus_images`) or, where there are annotations, of slides (see
    `annotated_regions`)."""
    if annotations is not None:
        return of_annotated_slides(
            sources,
            annotations,
            lambda slide, files: annotated_regions(slide, files, mpp, classes, only=only),
            assume_mpp=assume_mpp,
        )
    return [
        image
        for folder in sources
        for image in nucleus_images(
            Path(folder), mpp, classes, image_mpp=image_mpp, nucleus_um2=nucleus_um2
        )
    ]


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
        rgb = image_pixels(path.with_name(path.name.replace("_instances", "")))
        labels = image_labels(path, rgb.shape[:2])
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
    """An image at 1 / `scale` of its size, with its labels."""
    nearest, left = resampled_labels(labels, scale)
    kinds = [class_id.get(n, UNKNOWN_CLASS if class_id else 0) for n in left.tolist()]
    return NucleusImage(resampled_pixels(rgb, scale), nearest, np.array(kinds, np.uint8), name)


def resampled_pixels(rgb: RGB, scale: float) -> RGB:
    """An image at 1 / `scale` of its size."""
    height, width = (max(1, round(n / scale)) for n in rgb.shape[:2])
    small = np.empty((height, width, 3), np.uint8)
    area_resample(rgb, (0.0, 0.0), (scale, scale), small)
    return small


def resampled_labels(
    labels: npt.NDArray[np.integer], scale: float
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Labels at 1 / `scale` of their size by the nearest px, numbered without gaps, and what each
    was."""
    v, u = (
        np.minimum(((np.arange(max(1, round(n / scale))) + 0.5) * scale).astype(np.int64), n - 1)
        for n in labels.shape
    )
    return consecutive_labels(labels[np.ix_(v, u)])


def image_pixels(path: Path) -> RGB:
    """An image file, uint8 [H, W, 3]. Raises InvalidConfig."""
    return np.asarray(_opened(path).convert("RGB"))


def image_labels(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """A file of labels, int64 (H, W) as its image is. Raises InvalidConfig."""
    labels = np.asarray(_opened(path), np.int64)
    if labels.shape != shape:
        raise InvalidConfig(f"{path}: labels are {labels.shape}, the image {shape}")
    return labels


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


def annotated_regions(
    slide: Slide,
    annotations: Sequence[Path],
    mpp: float,
    classes: Sequence[str],
    region_class: str = REGION,
    *,
    only: Collection[str] = (),
) -> list[NucleusImage]:
    """The regions of a slide in which somebody outlined every nucleus, at `mpp` µm per px.

    annotations    QuPath's GeoJSON files: objects of `region_class` are regions, every other
                   polygon is a nucleus of the class it is classified as; those without one, or of
                   another class, teach where nuclei are and not which
    classes        their names, in the order of class ids
    only           polygons of other classes than these are no nuclei; all are by default

    The bounding box of each region is read; what lies in the box, but not in the region, is left
    out by having every nucleus there outlined as well: draw regions as rectangles. A nucleus that
    the region's border cuts is cut. Raises InvalidConfig: no region, or no nucleus in one;
    InvalidGeoJSON, MissingMpp, UnreadableTile.
    """
    found = []
    for region in outlined_regions(slide, annotations, mpp, region_class):
        labels, names = region.drawn(only)
        if not names:
            what = f"object of class {' or '.join(only)}" if only else "nucleus"
            raise InvalidConfig(
                f"{', '.join(map(str, annotations))}: no {what} is outlined in {region.name}"
            )
        kinds = [classes.index(name) if name in classes else UNKNOWN_CLASS for name in names]
        name = f"{slide.name} {region.name}"
        found.append(NucleusImage(region.rgb, labels, np.array(kinds, np.uint8), name))
    return found


@dataclass(frozen=True, eq=False)
class OutlinedRegion:
    """A region of a slide and the outlines that reach into it.

    rgb       uint8 [H, W, 3]
    objects   in the order of their file
    origin    (x, y) of its corner, level-0 px; scale level-0 px per px
    name      "region 1" and so on
    """

    rgb: RGB
    objects: Sequence[QuPathObject]
    origin: tuple[float, float]
    scale: tuple[float, float]
    name: str

    def drawn(self, only: Collection[str] = ()) -> tuple[npt.NDArray[np.int32], list[str]]:
        """(labels int32 [H, W], the class of each) of the objects of classes `only`, all if none;
        where objects overlap, the first counts."""
        labels = np.zeros(self.rgb.shape[:2], np.int32)
        names: list[str] = []
        wanted = {name.casefold() for name in only}
        for one in self.objects:
            if wanted and one.class_name.casefold() not in wanted:
                continue
            if _draw(labels, one.geometry, self.origin, self.scale, len(names) + 1):
                names.append(one.class_name)
        return labels, names


def outlined_regions(
    slide: Slide, annotations: Sequence[Path], mpp: float, region_class: str = REGION
) -> list[OutlinedRegion]:
    """The objects of `region_class`, at `mpp` µm per px. Raises as `annotated_regions`."""
    objects = [o for file in annotations for o in read_geojson(file, bounds=slide.bounds)]
    wanted = region_class.casefold()
    regions = [o for o in objects if o.class_name.casefold() == wanted]
    outlines = [o for o in objects if o.class_name.casefold() != wanted and o.geometry.area > 0]
    if not regions:
        raise InvalidConfig(
            f"{', '.join(map(str, annotations))}: no object of class {region_class!r}\n"
            "  draw a rectangle of that class around each area in which all nuclei are outlined"
        )
    tree = shapely.STRtree([o.geometry for o in outlines])
    scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    found = []
    for number, region in enumerate(regions, 1):
        x0, y0, x1, y1 = region.geometry.bounds
        size = (max(1, round((x1 - x0) / scale[0])), max(1, round((y1 - y0) / scale[1])))
        rgb = read_window(slide, (x0, y0), size, scale)
        within = sorted(tree.query(region.geometry, predicate="intersects").tolist())
        reaching = [outlines[i] for i in within]
        found.append(OutlinedRegion(rgb, reaching, (x0, y0), scale, f"region {number}"))
    return found


def _draw(
    labels: npt.NDArray[np.int32],
    outline: shapely.Geometry,
    origin: tuple[float, float],
    scale: tuple[float, float],
    number: int,
) -> bool:
    """Give `number` to the free pixels whose centre lies in the outline; False if there is none."""
    x0, y0, x1, y1 = outline.bounds
    u = np.arange(max(0, int((x0 - origin[0]) / scale[0])),
                  min(labels.shape[1], int((x1 - origin[0]) / scale[0]) + 1))  # fmt: skip
    v = np.arange(max(0, int((y0 - origin[1]) / scale[1])),
                  min(labels.shape[0], int((y1 - origin[1]) / scale[1]) + 1))  # fmt: skip
    if not u.size or not v.size:
        return False
    x, y = np.meshgrid(origin[0] + (u + 0.5) * scale[0], origin[1] + (v + 0.5) * scale[1])
    part = labels[v[0] : v[-1] + 1, u[0] : u[-1] + 1]
    inside = shapely.contains_xy(outline, x, y) & (part == 0)
    part[inside] = number
    return bool(inside.any())
