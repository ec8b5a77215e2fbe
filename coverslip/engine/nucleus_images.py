"""Images with their nuclei: from folders as data sets come in, and from annotated slides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.errors import InvalidConfig
from coverslip.export.geojson_reader import read_geojson
from coverslip.heads.nucleus_training import NucleusImage
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.kernels.resample import area_resample
from coverslip.tiling.reading import read_window
from coverslip.wsi.opening import open_slide, slide_paths
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from PIL import Image

Annotated = TypeVar("Annotated")
"""An image of an annotated slide, whatever is to be learned from it."""

INSTANCES = "_instances.png"
CLASSES = "_classes.csv"
REGION = "Region*"
"""QuPath's class for areas that are not tissue of some kind."""


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
    kinds = [class_id.get(int(n), UNKNOWN_CLASS if class_id else 0) for n in left if n > 0]
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


def annotated_regions(
    slide: Slide,
    annotations: Path,
    mpp: float,
    classes: Sequence[str],
    region_class: str = REGION,
) -> list[NucleusImage]:
    """The regions of a slide in which somebody outlined every nucleus, at `mpp` µm per px.

    annotations    QuPath's GeoJSON: objects of `region_class` are regions, every other polygon is
                   a nucleus of the class it is classified as; those without one, or of another
                   class, teach where nuclei are and not which
    classes        their names, in the order of class ids

    The bounding box of each region is read; what lies in the box, but not in the region, is left
    out by having every nucleus there outlined as well: draw regions as rectangles. A nucleus that
    the region's border cuts is cut. Raises InvalidConfig: no region, or no nucleus in one;
    InvalidGeoJSON, MissingMpp, UnreadableTile.
    """
    objects = read_geojson(annotations, bounds=slide.bounds)
    wanted = region_class.casefold()
    regions = [o for o in objects if o.class_name.casefold() == wanted]
    nuclei = [o for o in objects if o.class_name.casefold() != wanted and o.geometry.area > 0]
    if not regions:
        raise InvalidConfig(
            f"{annotations}: no object of class {region_class!r}\n"
            "  draw a rectangle of that class around each area in which all nuclei are outlined"
        )
    tree = shapely.STRtree([o.geometry for o in nuclei])
    scale = (mpp / slide.mpp[0], mpp / slide.mpp[1])
    found = []
    for number, region in enumerate(regions, 1):
        x0, y0, x1, y1 = region.geometry.bounds
        size = (max(1, round((x1 - x0) / scale[0])), max(1, round((y1 - y0) / scale[1])))
        rgb = read_window(slide, (x0, y0), size, scale)
        labels = np.zeros(size[::-1], np.int32)
        kinds: list[int] = []
        for i in sorted(tree.query(region.geometry, predicate="intersects").tolist()):
            if _draw(labels, nuclei[i].geometry, (x0, y0), scale, len(kinds) + 1):
                name = nuclei[i].class_name
                kinds.append(classes.index(name) if name in classes else UNKNOWN_CLASS)
        if not kinds:
            raise InvalidConfig(f"{annotations}: no nucleus is outlined in region {number}")
        name = f"{slide.name} region {number}"
        found.append(NucleusImage(rgb, labels, np.array(kinds, np.uint8), name))
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


def annotations_of(slide: str, annotations: Path) -> Path:
    """The slide's GeoJSON: the file itself, or `<stem>.geojson`, `.geojson.gz` or `.json` in a
    folder. Raises InvalidConfig."""
    if annotations.is_file():
        return annotations
    stem = Path(slide).stem
    for suffix in (".geojson", ".geojson.gz", ".json"):
        if (path := annotations / f"{stem}{suffix}").exists():
            return path
    raise InvalidConfig(f"{annotations}: holds no {stem}.geojson for {Path(slide).name}")


def of_annotated_slides(
    slides: Sequence[str],
    annotations: Path,
    read: Callable[[Slide, Path], Sequence[Annotated]],
    *,
    assume_mpp: float | None = None,
) -> list[Annotated]:
    """What `read` makes of each slide and its annotations (see `annotations_of`), in order.

    Raises InvalidConfig where a slide has none, and what opening slides and `read` do.
    """
    found: list[Annotated] = []
    for path in slide_paths(slides):
        with open_slide(path, assume_mpp=assume_mpp) as slide:
            found += read(slide, annotations_of(path, annotations))
    return found
