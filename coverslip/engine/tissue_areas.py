"""Annotated areas of slides, as partly labelled images that a tissue map learns from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from coverslip.engine.colour_sample import colour_sample
from coverslip.engine.nucleus_images import REGION
from coverslip.errors import InvalidConfig
from coverslip.export.geojson_reader import read_geojson
from coverslip.export.qupath_objects import QuPathObject
from coverslip.heads.normalisation import Normalisation
from coverslip.heads.recipe import HeadRecipe
from coverslip.heads.segmentation import UNKNOWN_CLASS
from coverslip.heads.tissue_training import TissueImage
from coverslip.kernels.raster import polygon_mask
from coverslip.tiling.reading import read_window
from coverslip.tiling.tissue import find_tissue
from coverslip.wsi.slide import Slide

OTHER, IGNORE = "Other", "Ignore*"
PIECE_PX = 1024
"""Side of the largest image; larger areas are cut into several."""
MARGIN_PX = 112
"""Around each, so that crops at its border see what lies beyond."""
LARGEST_PX = 600_000_000
"""Pixels of all images of a slide, which are held in memory at 4 bytes each."""


def annotated_areas(
    slide: Slide, annotations: Sequence[Path], recipe: HeadRecipe
) -> list[TissueImage]:
    """The annotated areas of a slide at the recipe's resolution.

    annotations    QuPath's GeoJSON files: polygons of the recipe's classes are labelled; what lies
                   in no such polygon, but in one of class "Region*", is "Other", if that is one of
                   the classes. All else is unknown, and so is what lies in "Ignore*"

    Of polygons that overlap the smaller one counts. Areas whose boxes meet are one region, larger
    ones are cut into several images. Raises InvalidConfig: nothing of these classes, or more than
    600 million px; InvalidGeoJSON, MissingMpp, UnreadableTile.
    """
    scale = (recipe.mpp / slide.mpp[0], recipe.mpp / slide.mpp[1])
    objects = [o for file in annotations for o in read_geojson(file, bounds=slide.bounds)]
    named = ", ".join(map(str, annotations))
    layers = _layers(objects, recipe.classes)
    regions = _regions([geometry for geometry, kind in layers if kind != UNKNOWN_CLASS])
    if not regions:
        raise InvalidConfig(
            f"{named}: no area of class {', '.join(recipe.classes)}\n"
            "  annotations are classified by these names, as --classes gives them"
        )
    pieces = [(n, box) for n, region in enumerate(regions) for box in _pieces(region, scale)]
    pixels = sum((w + 2 * MARGIN_PX) * (h + 2 * MARGIN_PX) for _, (_, _, w, h) in pieces)
    if pixels > LARGEST_PX:
        raise InvalidConfig(
            f"{named}: its areas measure {pixels / 1e6:.0f} million px at {recipe.mpp:g} "
            f"µm/px, more than {LARGEST_PX / 1e6:.0f}\n"
            "  annotate smaller areas, or train a coarser map (--mpp)"
        )
    sample = colour_sample(slide, find_tissue(slide), scale)
    normalisation = Normalisation.of(recipe.normalisation, sample)
    tree = shapely.STRtree([geometry for geometry, _ in layers])
    found = []
    for number, (x, y, w, h) in pieces:
        corner = (x * scale[0], y * scale[1])
        frame = shapely.box(*corner, (x + w) * scale[0], (y + h) * scale[1])
        within = np.sort(tree.query(frame, predicate="intersects"))
        class_id = np.full((h, w), UNKNOWN_CLASS, np.uint8)
        for geometry, kind in (layers[i] for i in within.tolist()):
            class_id[polygon_mask(geometry, (h, w), corner, scale)] = kind
        if not (class_id != UNKNOWN_CLASS).any():
            continue
        outer = ((x - MARGIN_PX) * scale[0], (y - MARGIN_PX) * scale[1])
        rgb = read_window(slide, outer, (w + 2 * MARGIN_PX, h + 2 * MARGIN_PX), scale)
        padded = np.pad(class_id, MARGIN_PX, constant_values=UNKNOWN_CLASS)
        found.append(TissueImage(rgb, padded, slide.name, number, normalisation))
    return found


def _layers(
    objects: Sequence[QuPathObject], classes: Sequence[str]
) -> list[tuple[shapely.Geometry, int]]:
    """(area, class id), those below first; what is unknown lies on top."""
    number = {name.casefold(): i for i, name in enumerate(classes)}
    areas = [
        (shapely.make_valid(o.geometry), o.class_name.casefold())
        for o in objects
        if shapely.get_dimensions(o.geometry) == 2 and o.geometry.area > 0
    ]
    areas.sort(key=lambda area: -area[0].area)
    rest = number.get(OTHER.casefold(), UNKNOWN_CLASS)
    return [
        *((g, rest) for g, name in areas if name == REGION.casefold()),
        *((g, number[name]) for g, name in areas if name in number),
        *((g, UNKNOWN_CLASS) for g, name in areas if name == IGNORE.casefold()),
    ]


def _regions(areas: Sequence[shapely.Geometry]) -> list[tuple[float, float, float, float]]:
    """Boxes x0, y0, x1, y1 around the areas; those that meet are one."""
    boxes = [shapely.box(*area.bounds) for area in areas]
    while True:
        parts = shapely.get_parts(shapely.union_all(boxes))
        joined = [shapely.box(*part.bounds) for part in parts]
        if len(joined) == len(boxes):
            break
        boxes = joined
    bounds = [tuple(map(float, box.bounds)) for box in boxes]
    return sorted((x0, y0, x1, y1) for x0, y0, x1, y1 in bounds)


def _pieces(
    region: tuple[float, float, float, float], scale: tuple[float, float]
) -> Iterator[tuple[int, int, int, int]]:
    """x, y, w, h in px of the lattice anchored at the slide's corner."""
    x0, y0 = (int(np.floor(region[i] / scale[i])) for i in (0, 1))
    x1, y1 = (int(np.ceil(region[i + 2] / scale[i])) for i in (0, 1))
    for y in range(y0, y1, PIECE_PX):
        for x in range(x0, x1, PIECE_PX):
            yield x, y, min(PIECE_PX, x1 - x), min(PIECE_PX, y1 - y)


def split_areas(
    images: Sequence[TissueImage], classes: Sequence[str], share: float, seed: int
) -> tuple[list[TissueImage], list[TissueImage]]:
    """(taught, held out): whole slides where there are several, else whole regions.

    Of the ways to hold out `share` of them the one is taken in which most classes are on both
    sides. Raises InvalidConfig where a class would be on neither, or there is nothing to hold out.
    """
    total = np.sum([image.counts(len(classes)) for image in images], axis=0)
    if missing := [name for name, count in zip(classes, total, strict=True) if not count]:
        raise InvalidConfig(f"no annotation is of class {', '.join(missing)}")
    if share <= 0:
        return list(images), []
    several = len({image.slide for image in images}) > 1
    keys = [(image.slide, -1 if several else image.region) for image in images]
    groups = sorted(set(keys))
    if len(groups) < 2:
        raise InvalidConfig(
            "one annotated region is too little to hold some out\n"
            "  annotate more regions, or set validation = 0 to train on all of it"
        )
    counts = np.zeros((len(groups), len(classes)), np.int64)
    for image, key in zip(images, keys, strict=True):
        counts[groups.index(key)] += image.counts(len(classes))
    count = min(max(round(share * len(groups)), 1), len(groups) - 1)
    random = np.random.default_rng(seed)
    draws = [random.permutation(len(groups)) for _ in range(200)]
    held = max(draws, key=lambda order: _on_both_sides(counts, order[:count]))[:count]
    out = {groups[i] for i in held.tolist()}
    return (
        [image for image, key in zip(images, keys, strict=True) if key not in out],
        [image for image, key in zip(images, keys, strict=True) if key in out],
    )


def _on_both_sides(counts: npt.NDArray[np.int64], held: npt.NDArray[np.int64]) -> tuple[int, int]:
    """How many classes are taught, and how many are held out as well."""
    there, taught = counts[held].sum(axis=0) > 0, np.delete(counts, held, axis=0).sum(axis=0) > 0
    return int(taught.sum()), int((there & taught).sum())
