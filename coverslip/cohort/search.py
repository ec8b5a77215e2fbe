"""Similar tiles and similar slides: a question to the stores of an output folder, and its answer.

answer = search(Path("OUT"), TileQuestion("case-0417", 20_480, 11_264))
for hit in answer.tiles:
    print(hit.slide, hit.x, hit.y, hit.similarity)
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from coverslip.cohort.search_image import embedded_image
from coverslip.cohort.search_index import CohortIndex, open_cohort_index
from coverslip.cohort.search_pictures import SlidePictures
from coverslip.durable import whole_file
from coverslip.encoders.loading import RECIPE_FILE
from coverslip.encoders.registry import EncoderSpec
from coverslip.encoders.search import (
    Kind,
    Metric,
    Rows,
    Vectors,
    distances,
    median_of_minimum,
    mosaic,
    unit,
)
from coverslip.errors import InvalidConfig, StoreError
from coverslip.export.geojson import region_polygons
from coverslip.tiling.grid import TileGrid
from coverslip.wsi.slide import RGB, Box

GroupedBy = Literal["embedding", "colour"]
MOSAIC_SHARE, MOSAIC_CLUSTERS = 0.05, 9
"""As in Yottixel."""


@dataclass(frozen=True, slots=True)
class TileQuestion:
    """Tiles like the one at (x, y), level-0 px, of a slide; of several there, the most central."""

    slide: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class RegionQuestion:
    """Tiles like the mean of those whose centres lie in a region of a slide.

    where   a box in level-0 px, or a QuPath GeoJSON file of polygons
    """

    slide: str
    where: Box | Path


@dataclass(frozen=True, slots=True)
class ImageQuestion:
    """Tiles like an image of a file.

    mpp       its µm per pixel; None takes what the file records
    weights   local checkpoint of the encoder, as for `load_encoder`
    device    of the encoder
    """

    path: str
    mpp: float | None = None
    weights: str | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class SlideQuestion:
    """Slides like a slide: the median, over its mosaic, of the distance to the nearest tile of the
    other's mosaic.

    grouped_by   what a mosaic's tiles are chosen by: their embeddings, or their mean colour, which
                 needs their pixels (kept in the store, or the slides)
    metric       "euclidean" (KimiaNet), "cosine", or "hamming" of barcodes (Yottixel)
    """

    slide: str
    grouped_by: GroupedBy = "embedding"
    metric: Metric = "euclidean"


Question = TileQuestion | RegionQuestion | ImageQuestion | SlideQuestion


@dataclass(frozen=True, slots=True)
class TileHit:
    """A tile that is like what was asked for: its box in level-0 px; the cosine of the two."""

    rank: int
    slide: str
    x: int
    y: int
    w: int
    h: int
    similarity: float


@dataclass(frozen=True, slots=True)
class SlideHit:
    """A slide that is like the one asked for; the smaller the distance the more."""

    rank: int
    slide: str
    distance: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found.

    question        as it was asked
    slide, box      where what was asked for lies, level-0 px; "" and None for an image
    averaged        tiles whose mean was looked for, or tiles of a slide's mosaic
    tiles, slides   what was found, best first; one of the two is empty
    cohort          the index that was asked
    notes           what a person should know: slides left out, an image that was too small, ...
    picture         the image as it was embedded; None for other questions
    """

    question: Question
    slide: str
    box: Box | None
    averaged: int
    tiles: tuple[TileHit, ...]
    slides: tuple[SlideHit, ...]
    cohort: CohortIndex
    notes: tuple[str, ...]
    picture: RGB | None = None


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How to search, and where.

    encoder, grid        names; may be left out where the folder holds only one. A recipe's .json
                         stands for its encoder
    index                "flat" or "ivf"; None keeps what is there, or takes what suits the number
    top                  how many to find
    exclude_own_slide    leave out all tiles of the slide that is asked about
    exclude_within_um    leave out its tiles that begin nearer than this; those that overlap what
                         is asked about (of polygons, the box around them) are always left out
    files                slides, and folders of slides, for pictures and colours
    """

    encoder: str = ""
    grid: str = ""
    index: Kind | None = None
    top: int = 10
    exclude_own_slide: bool = False
    exclude_within_um: float = 0.0
    files: tuple[str, ...] = field(default=())


def search(
    output: str | os.PathLike[str],
    question: Question,
    settings: SearchSettings | None = None,
    *,
    on_build: Callable[[str], None] = lambda message: None,
) -> Answer:
    """Answer a question from the stores in `output`; their index is built first where it must be.

    on_build   called with what is going to be built, and why

    Raises InvalidConfig, UnknownName (no such slide), StoreError (no tile there, or the slide is
    not in the index), RecipeMismatch (an image's encoder is not the stores').
    """
    settings = settings or SearchSettings()
    encoder = settings.encoder
    cohort = open_cohort_index(
        Path(output),
        encoder=EncoderSpec.from_json(Path(encoder)).name
        if encoder.endswith(RECIPE_FILE)
        else encoder,
        grid=settings.grid,
        kind=settings.index,
        on_build=on_build,
    )
    notes = _not_searched(cohort)
    if isinstance(question, SlideQuestion):
        return _similar_slides(cohort, question, settings, notes)
    if isinstance(question, ImageQuestion):
        image = embedded_image(
            question.path,
            cohort,
            mpp=question.mpp,
            encoder=encoder or cohort.index.record.made_by.encoder,
            weights=question.weights,
            device=question.device,
        )
        vector, averaged, own, box = image.vectors, len(image.vectors), "", None
        notes += image.notes
        picture: RGB | None = image.picture
    else:
        own, grid, picture = question.slide, cohort.tiles(question.slide), None
        chosen, box = _asked_tiles(cohort, question, grid)
        vector, averaged = cohort.vectors(own)[chosen], len(chosen)
    mean = unit(unit(vector).mean(axis=0))
    without = _left_out(cohort, own, box, settings)
    hits = nearest_tiles(cohort, mean, settings.top, without)
    return Answer(question, own, box, averaged, hits, (), cohort, tuple(notes), picture)


def _not_searched(cohort: CohortIndex) -> list[str]:
    """A line for each reason why slides of the folder are not in the index, with their names."""
    slides: dict[str, list[str]] = {}
    for slide, why in cohort.left_out.items():
        slides.setdefault(why, []).append(slide)
    return [f"not searched: {', '.join(names)}: {why}" for why, names in slides.items()]


def nearest_tiles(
    cohort: CohortIndex, vector: Vectors, top: int, leaving_out: Rows | None = None
) -> tuple[TileHit, ...]:
    """The tiles most similar to `vector` [D], best first; fewer where there are no more."""
    found = cohort.index.search(vector[None], top, leaving_out=leaving_out)
    rows = found.rows[0][found.rows[0] >= 0]
    hits = []
    for rank, ((slide, tile), cosine) in enumerate(
        zip(cohort.places(rows), found.similarity[0].tolist(), strict=False), start=1
    ):
        x, y, w, h = cohort.tiles(slide).boxes[tile].tolist()
        hits.append(TileHit(rank, slide, x, y, w, h, cosine))
    return tuple(hits)


def neighbourhood(grid: TileGrid, box: Box, within_um: float) -> npt.NDArray[np.int64]:
    """Numbers of the tiles that overlap `box`, or lie nearer to it than `within_um`, side to
    side."""
    x, y, w, h = grid.boxes.astype(np.float64).T
    across = np.maximum(x - box.right, box.x - (x + w)) * grid.slide_mpp[0]
    down = np.maximum(y - box.bottom, box.y - (y + h)) * grid.slide_mpp[1]
    overlapping = (across < 0) & (down < 0)
    apart = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    return np.flatnonzero(overlapping | (apart < within_um))


def _asked_tiles(
    cohort: CohortIndex, question: TileQuestion | RegionQuestion, grid: TileGrid
) -> tuple[npt.NDArray[np.int64], Box]:
    """Numbers of the tiles a question is about, and the box it covers. Raises StoreError."""
    x, y, w, h = grid.boxes.astype(np.float64).T
    centres = np.stack([x + w / 2, y + h / 2], axis=1)
    path = cohort.store(question.slide).path
    if isinstance(question, TileQuestion):
        around = (x <= question.x) & (question.x < x + w) & (y <= question.y) & (question.y < y + h)
        away = np.hypot(*(centres - (question.x, question.y)).T)
        best = int(np.argmin(np.where(around, away, np.inf))) if around.any() else -1
        if best < 0:
            near = grid.boxes[int(np.argmin(away))].tolist()
            raise StoreError(
                path,
                f"no tile of {cohort.grid} holds ({question.x:g}, {question.y:g})",
                f"the nearest begins at ({near[0]}, {near[1]}) and measures {near[2]} x {near[3]} "
                "px of level 0",
            )
        return np.array([best]), Box(*grid.boxes[best].tolist())
    if isinstance(question.where, Box):
        box = question.where
        inside = (
            (box.x <= centres[:, 0]) & (centres[:, 0] < box.right)
            & (box.y <= centres[:, 1]) & (centres[:, 1] < box.bottom)
        )  # fmt: skip
    else:
        inside, box = _inside_polygons(cohort, question.slide, question.where, centres)
    if not inside.any():
        raise StoreError(
            path,
            f"no tile of {cohort.grid} has its centre in {box.w} x {box.h} px at "
            f"({box.x}, {box.y})",
            "take a larger region, or one on tissue",
        )
    return np.flatnonzero(inside), box


def _inside_polygons(
    cohort: CohortIndex, slide: str, path: Path, centres: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.bool_], Box]:
    import shapely

    bounds = Box(*cohort.store(slide).slide["bounds"])
    polygons = region_polygons(path, bounds=bounds)
    if not polygons:
        raise InvalidConfig(f"{path}: holds no polygon")
    region = shapely.union_all(polygons)
    left, top, right, bottom = (round(edge) for edge in region.bounds)
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(region, centres)
    return inside, Box(left, top, right - left, bottom - top)


def _left_out(
    cohort: CohortIndex, slide: str, box: Box | None, settings: SearchSettings
) -> Rows | None:
    """Rows of the index that must not be found."""
    if box is None:
        return None
    rows = cohort.rows(slide)
    if settings.exclude_own_slide:
        return np.arange(rows.start, rows.stop)
    return rows.start + neighbourhood(cohort.tiles(slide), box, settings.exclude_within_um)


# ---------------------------------------------------------------- slides


def _similar_slides(
    cohort: CohortIndex, question: SlideQuestion, settings: SearchSettings, notes: Sequence[str]
) -> Answer:
    cohort.store(question.slide)
    with SlidePictures(cohort, settings.files) as pictures:
        mosaics = slide_mosaics(cohort, question.grouped_by, pictures)
    own = cohort.index.vectors[mosaics[question.slide]]
    far = sorted(
        (median_of_minimum(distances(own, cohort.index.vectors[rows], question.metric)), slide)
        for slide, rows in mosaics.items()
        if slide != question.slide
    )
    hits = tuple(SlideHit(i, slide, d) for i, (d, slide) in enumerate(far[: settings.top], start=1))
    return Answer(question, question.slide, None, len(own), (), hits, cohort, tuple(notes))


def slide_mosaics(
    cohort: CohortIndex, grouped_by: GroupedBy, pictures: SlidePictures
) -> dict[str, Rows]:
    """Each slide's mosaic, as rows of the index; made once and kept beside it."""
    path = cohort.index.folder / f"mosaic-{grouped_by}.npz"
    made_of = _mosaics_of(cohort)
    if (kept := _kept_mosaics(path, made_of)) is not None:
        rows, offsets = kept
    else:
        chosen = []
        for slide in cohort.stores:
            grid, first = cohort.tiles(slide), cohort.rows(slide).start
            look = (
                cohort.vectors(slide)
                if grouped_by == "embedding"
                else pictures.mean_colours(slide, grid)
            )
            places = grid.boxes[:, :2] * np.array(grid.slide_mpp)
            tiles = mosaic(look, places, share=MOSAIC_SHARE, clusters=MOSAIC_CLUSTERS)
            chosen.append(first + tiles)
        rows = np.concatenate(chosen)
        offsets = np.cumsum([0, *map(len, chosen)])
        with whole_file(path) as aside:
            np.savez(aside, allow_pickle=False, rows=rows, offsets=offsets, made_of=made_of)
    return {
        slide: rows[start:stop]
        for slide, start, stop in zip(cohort.stores, offsets, offsets[1:], strict=False)
    }


def _mosaics_of(cohort: CohortIndex) -> str:
    """What decides the mosaics, as one string."""
    parts = [(part.name, part.hash) for part in cohort.index.record.parts]
    content = f"{parts} {MOSAIC_SHARE} {MOSAIC_CLUSTERS}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _kept_mosaics(path: Path, made_of: str) -> tuple[Rows, Rows] | None:
    """Rows and where each slide's begin; None where they are absent or of another index."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            return (kept["rows"], kept["offsets"]) if str(kept["made_of"]) == made_of else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise StoreError(path, f"cannot be read ({error})", "remove it: it is made anew") from None
