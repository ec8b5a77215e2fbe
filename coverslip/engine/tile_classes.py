"""Classes of tiles, from features that are in the stores: no pixel is read.

classes/<name>@<grid>/   probabilities float32 [N, C]; class_id uint8 [N]; attrs: classes, encoder
maps/<name>@<grid>/      classes uint8 [h, w], one px a tile, 255 where there is none; attrs: scale
                         (x, y level-0 px per px of the map), origin (x, y level-0 px of its
                         corner), classes, colours

Of slides that have no store yet, an ordinary run makes the features first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from shapely.geometry import Polygon

from coverslip.durable import whole_file
from coverslip.engine.class_colours import class_colours
from coverslip.engine.config import RunConfig
from coverslip.engine.embedding_source import source_of_features
from coverslip.engine.exports import written_once
from coverslip.engine.heat_map import NO_TILE, cells_of, draw_class_map, picture_of, places_of
from coverslip.engine.process import Observer
from coverslip.engine.result import ClassifiedSlide, SlideResult
from coverslip.engine.run import Run
from coverslip.errors import (
    CoverslipError,
    IncompleteStage,
    InvalidConfig,
    RecipeMismatch,
    StoreError,
    StoreVersion,
)
from coverslip.export.geojson import QuPathObject, box_columns, write_geojson
from coverslip.heads.tile_classifier import TileClassifier
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.lock import lock
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import Box

CLASS_EXPORTS = ("geojson", "png")
ROWS_PER_BLOCK = 8192
"""Tiles classified at a time, and what a crash can cost."""


@dataclass(frozen=True)
class Classification:
    """What is asked of all slides.

    classifier   of tiles
    formats      of CLASS_EXPORTS
    output       folder for the stores of slides that have none yet
    config       how features of those are made; `mpp` and `tile` are the classifier's, and the
                 encoder is, where none is named
    """

    classifier: TileClassifier
    formats: Sequence[str] = CLASS_EXPORTS
    output: Path | None = None
    config: RunConfig = field(default_factory=lambda: RunConfig(encoder=()))

    def __post_init__(self) -> None:
        if unknown := [format for format in self.formats if format not in CLASS_EXPORTS]:
            raise InvalidConfig(f"export knows {', '.join(CLASS_EXPORTS)}; got {unknown[0]!r}")

    def parameters(self) -> dict[str, Any]:
        """What decides the result, apart from the features."""
        return {"classifier": self.classifier.sha256}

    def run_config(self) -> RunConfig:
        """Of the run that makes the features."""
        source = self.classifier.source
        encoder = self.config.encoder or (source.encoder,)
        return replace(self.config, mpp=source.mpp, tile=source.tile_px, encoder=encoder)


def classify(
    inputs: Sequence[str],
    asked: Classification,
    *,
    recursive: bool = False,
    observer: Observer | None = None,
    on_result: Callable[[SlideResult], None] | None = None,
    debug: bool = False,
) -> Iterator[tuple[str, ClassifiedSlide | CoverslipError]]:
    """Classify the tiles of stores, of folders of stores, and of slides, whose features are made
    first; what is current is left alone. Yields (slide id, result or what went wrong).

    observer, on_result, debug   of the run over slides, as in `Run.execute`

    Raises InvalidConfig for an input that stands for nothing, or slides without an output folder.
    """
    stores: list[Path] = []
    slides: list[str] = []
    for name in inputs:
        held = _stores_in(Path(name))
        stores += held
        slides += [] if held else [name]
    if slides:
        if asked.output is None:
            raise InvalidConfig(f"{slides[0]}: a slide's features want a folder: -o OUT")
        run = Run.over(slides, asked.output, asked.run_config(), recursive=recursive)
        for row in run.execute(observer=observer, on_result=on_result, debug=debug):
            if row.status == "failed":
                yield row.slide, CoverslipError(row.reason)
            else:
                stores.append(asked.output / f"{row.slide}.zarr")
    for path in stores:
        yield classify_store(path, asked)


def classify_store(
    path: Path, asked: Classification
) -> tuple[str, ClassifiedSlide | CoverslipError]:
    """(slide id, result or what went wrong) of one store; files go beside it."""
    slide_id = path.name.removesuffix(".zarr")
    try:
        with lock(path):
            return slide_id, _classify(SlideStore.open(path), slide_id, asked)
    except CoverslipError as error:
        return slide_id, error


def _classify(store: SlideStore, slide_id: str, asked: Classification) -> ClassifiedSlide:
    changed, found = False, [np.empty(0, np.uint8)]
    files: list[Path] = []
    for features in _feature_stages(store, asked.classifier):
        name = f"{asked.classifier.name}@{features.rpartition('@')[2]}"
        changed |= _predict(store, features, f"classes/{name}", asked)
        changed |= _lay_out(store, name, asked)
        if asked.formats:
            exported, written = _export(store, name, slide_id, asked)
            changed |= exported
            files += written
        found.append(store.group(f"classes/{name}")["class_id"][:])
    return ClassifiedSlide.of(
        np.concatenate(found), asked.classifier.classes, files, changed=changed
    )


def _feature_stages(store: SlideStore, classifier: TileClassifier) -> list[str]:
    """Stages of features the classifier takes, one a grid; none where no grid has tiles.

    Raises RecipeMismatch where the encoder's features are others; IncompleteStage without any.
    """
    wanted = classifier.source
    held = store.stages(f"features/{wanted.encoder}@")
    sources = {stage: source_of_features(store, stage) for stage in held}
    if fitting := [stage for stage, source in sources.items() if not wanted.difference(source)]:
        return fitting
    grids = store.stages("tiles/")
    if grids and not any(store.group(grid)["boxes"].shape[0] for grid in grids):
        return []
    command = (
        f"coverslip features SLIDES -o {Path(store.path).parent} --encoder {wanted.encoder} "
        f"--mpp {wanted.mpp:g} --tile {wanted.tile_px}"
    )
    for source in sources.values():
        try:
            classifier.require(source, str(store.path))
        except RecipeMismatch as error:
            raise RecipeMismatch(f"{error}\n  make them by {command}") from None
    others = [name.removeprefix("features/") for name in store.stages("features/")]
    raise IncompleteStage(
        store.path,
        f"holds no features of {wanted.encoder}"
        + (f", but of {', '.join(others)}" if others else ""),
        f"run first: {command}",
    )


def _predict(store: SlideStore, features: str, stage: str, asked: Classification) -> bool:
    """Bring `stage` up to date, block by block; True if it was not."""
    parameters = asked.parameters()
    if store.is_current(stage, parameters, needs=[features]):
        return False
    classifier = asked.classifier
    embeddings: Any = store.group(features)["features"]
    total, classes = embeddings.shape[0], len(classifier.classes)
    with store.stage(stage, parameters, needs=[features]) as writer:
        writer.create_array(
            "probabilities", (total, classes), "float32", rows_per_block=ROWS_PER_BLOCK
        )
        writer.create_array("class_id", (total,), "uint8", rows_per_block=ROWS_PER_BLOCK)
        for block in range(writer.done_blocks, -(-total // ROWS_PER_BLOCK)):
            rows = embeddings[block * ROWS_PER_BLOCK : (block + 1) * ROWS_PER_BLOCK]
            found = classifier.probabilities(rows)
            class_id = found.argmax(axis=1).astype(np.uint8)
            writer.write_block(block, {"probabilities": found, "class_id": class_id})
        writer.finish(
            {
                "classes": list(classifier.classes),
                "encoder": classifier.source.encoder,
                "grid": features.rpartition("@")[2],
            }
        )
    return True


def _lay_out(store: SlideStore, name: str, asked: Classification) -> bool:
    """Bring the map `maps/<name>` up to date; True if it was not."""
    needs = [f"classes/{name}", f"tiles/{name.rpartition('@')[2]}"]
    stage, parameters = f"maps/{name}", {"missing": NO_TILE}
    if store.is_current(stage, parameters, needs=needs):
        return False
    grid = TileGrid.from_store(store.group(needs[1]))
    cells = cells_of(store.group(needs[0])["class_id"][:], grid, np.uint8(NO_TILE))
    classes = asked.classifier.classes
    with store.stage(stage, parameters, needs=needs) as writer:
        writer.create_array("classes", cells.shape, "uint8", rows_per_block=len(cells))
        if writer.done_blocks == 0:
            writer.write_block(0, {"classes": cells})
        scale = np.asarray(grid.scale)
        writer.finish(
            {
                "scale": (scale * grid.step).tolist(),
                "origin": (scale * grid.overlap / 2).tolist(),
                "classes": list(classes),
                "colours": [list(colour) for colour in class_colours(classes).values()],
                "missing": NO_TILE,
            }
        )
    return True


def _export(
    store: SlideStore, name: str, slide_id: str, asked: Classification
) -> tuple[bool, list[Path]]:
    """The files of one stage; (whether any was written, all of them)."""
    stage, tiles = f"classes/{name}", f"tiles/{name.rpartition('@')[2]}"
    folder = Path(store.path).parent
    grid = TileGrid.from_store(store.group(tiles))

    def write() -> list[Path]:
        files = []
        if "png" in asked.formats:
            files.append(_draw(store, stage, slide_id, grid, folder))
        if "geojson" in asked.formats:
            files += _write_objects(store, stage, slide_id, grid, folder)
        return files

    parameters = {"formats": sorted(asked.formats)}
    record = f"export/{stage.replace('/', '.')}"
    return written_once(store, record, parameters, [stage, tiles, "tissue"], folder, write)


def _draw(store: SlideStore, stage: str, slide_id: str, grid: TileGrid, folder: Path) -> Path:
    """`report/<slide>/<stage>.png`: the classes over the picture that the run's report has."""
    group = store.group(stage)
    class_id, classes = group["class_id"][:], list(group.attrs["classes"])
    shares = np.bincount(class_id, minlength=len(classes)) / max(len(class_id), 1)
    legend = [
        (f"{name} ({share:.0%})", colour)
        for (name, colour), share in zip(class_colours(classes).items(), shares, strict=True)
    ]
    path = folder / "report" / slide_id / f"{stage}.png"
    with whole_file(path) as aside:
        draw_class_map(
            aside,
            class_id,
            grid,
            Tissue.from_store(store.group("tissue")).polygons,
            title=f"{slide_id}: {stage.removeprefix('classes/').rpartition('@')[0]}",
            legend=legend,
            backdrop=picture_of(folder / "report" / slide_id / "overview.jpg"),
        )
    return path


def _write_objects(
    store: SlideStore, stage: str, slide_id: str, grid: TileGrid, folder: Path
) -> list[Path]:
    """`geojson/<slide>.classes_<name>@<grid>.geojson.gz`, an object a tile, and
    `<slide>.classmap_...`, an object for each connected area of a class."""
    group = store.group(stage)
    found, class_id = group["probabilities"][:], group["class_id"][:]
    classes = list(group.attrs["classes"])
    columns = box_columns(
        grid.boxes,
        model=stage,
        classes=classes,
        class_id=class_id,
        measurements={f"{name}: probability": found[:, i] for i, name in enumerate(classes)},
    )
    bounds, colours = Box(*store.slide["bounds"]), class_colours(classes)
    paths: list[Path] = []
    for what, objects in (
        ("classes", columns),
        ("classmap", class_areas(grid, class_id, found.max(axis=1), classes)),
    ):
        name = f"{slide_id}.{what}_{stage.removeprefix('classes/')}.geojson.gz"
        path = folder / "geojson" / name
        written = write_geojson(path, objects, slide=slide_id, bounds=bounds, colors=colours)
        paths += written.paths
    return paths


def class_areas(
    grid: TileGrid,
    class_id: npt.NDArray[np.uint8],
    probability: npt.NDArray[np.float32],
    classes: Sequence[str],
) -> list[QuPathObject]:
    """A detection for each connected area of a class: tiles of the class that share sides.

    class_id, probability   [N] of the grid's tiles: their most probable class

    Measured: tiles, mean probability and area on the slide.
    """
    objects = []
    mm2 = grid.slide_mpp[0] * grid.slide_mpp[1] / 1e6
    for number, name in enumerate(classes):
        for tiles, polygon in connected_tiles(grid, class_id == number):
            measured = {
                "Tiles": float(len(tiles)),
                "Mean probability": float(probability[tiles].mean()),
                "Area mm^2": polygon.area * mm2,
            }
            objects.append(QuPathObject(polygon, "detection", name, measurements=measured))
    return objects


def connected_tiles(
    grid: TileGrid, chosen: npt.NDArray[np.bool_]
) -> list[tuple[npt.NDArray[np.int64], Polygon]]:
    """(numbers of tiles, their outline in level-0 px) of each area of chosen tiles that hangs
    together by sides.

    Outlines follow the lattice of the grid, rounded to whole px, so that neighbours have no gap at
    a crooked pixel size; where tiles overlap, each stands for its middle. They end with the slide.
    """
    from scipy.ndimage import label

    if not chosen.any():
        return []
    places = places_of(grid)
    numbers, count = label(cells_of(chosen, grid, np.False_))
    mine = np.flatnonzero(chosen)
    area = numbers[places[mine, 1], places[mine, 0]]
    scale = np.asarray(grid.scale)
    low = np.floor((places * grid.step + grid.overlap / 2) * scale + 0.5)
    high = np.floor(((places + 1) * grid.step + grid.overlap / 2) * scale + 0.5)
    low, high = (np.minimum(corner, grid.slide_size) for corner in (low, high))
    cells = shapely.box(low[:, 0], low[:, 1], high[:, 0], high[:, 1])
    order = mine[np.argsort(area, kind="stable")]
    ends = np.cumsum(np.bincount(area, minlength=count + 1))
    found = []
    for start, end in pairwise(ends.tolist()):
        tiles = order[start:end]
        outline = shapely.simplify(shapely.coverage_union_all(cells[tiles]), 0)
        found += [(tiles, part) for part in shapely.get_parts(outline) if part.area > 0]
    return found


def _stores_in(path: Path) -> list[Path]:
    """The store, or all of a folder that holds any; none for slides."""
    if not path.is_dir():
        return []
    if _is_store(path):
        return [path]
    stores = sorted(path.glob("*.zarr"))
    return stores if any(map(_is_store, stores)) else []


def _is_store(path: Path) -> bool:
    try:
        SlideStore.open(path)
    except StoreVersion:
        return True
    except StoreError:
        return False
    return True
