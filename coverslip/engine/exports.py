"""The outward formats of one slide, written from its store, each whole or absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coverslip.durable import whole_file
from coverslip.engine.class_colours import class_colours
from coverslip.engine.clock import Clock
from coverslip.engine.heat_map import picture_of
from coverslip.engine.result import SlideResult
from coverslip.engine.tissue_map_export import StoredMap, draw_map, map_areas, stored_maps
from coverslip.export.geojson import (
    MEASUREMENT_NAMES,
    PolygonColumns,
    box_columns,
    tissue_objects,
    write_geojson,
)
from coverslip.export.hdf5 import (
    TileTable,
    trident_folder,
    write_clam_coords,
    write_clam_features,
    write_clam_tensor,
    write_stamp,
    write_trident_coords,
    write_trident_features,
    write_trident_slide,
)
from coverslip.export.parquet import write_nuclei_parquet, write_tiles_parquet
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.shards import file_sum
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import Box

if TYPE_CHECKING:
    from coverslip.engine.process import RunContext


@dataclass(frozen=True, slots=True)
class StoredSlide:
    """A slide's complete results, as exporters want them."""

    store: SlideStore
    slide_id: str
    folder: Path

    @property
    def bounds(self) -> Box:
        return Box(*self.store.slide["bounds"])

    def grids(self) -> list[str]:
        """Names of the grids the store holds."""
        return [name.removeprefix("tiles/") for name in self.store.stages("tiles/")]

    def tile_table(self, grid: str) -> TileTable:
        tiles = TileGrid.from_store(self.store.group(f"tiles/{grid}"))
        return TileTable(
            self.slide_id,
            tiles.boxes,
            tiles.tile,
            tiles.overlap,
            tiles.mpp,
            tiles.slide_mpp,
            tiles.slide_size,
        )

    def features(self, grid: str) -> dict[str, Any]:
        """Encoder name -> its features on `grid`, a Zarr array [N, D]."""
        stages = [s for s in self.store.stages("features/") if s.endswith(f"@{grid}")]
        return {
            stage.removeprefix("features/").rpartition("@")[0]: self.store.group(stage)["features"]
            for stage in stages
        }

    def slide_embeddings(self, grid: str) -> dict[str, Any]:
        """ "<slide encoder>_<encoder>" -> the slide's embedding [D] from its tiles on `grid`."""
        stages = [s for s in self.store.stages("slide/") if s.endswith(f"@{grid}")]
        return {
            "_".join(stage.removeprefix("slide/").split("@")[:2]): self.store.group(stage)[
                "embedding"
            ]
            for stage in stages
        }

    def tile_columns(self, grid: str) -> dict[str, Any]:
        """Tissue fraction and, where measured, quality of the tiles of `grid`."""
        columns = {"tissue_fraction": self.store.group(f"tiles/{grid}")["tissue_fraction"][:]}
        if f"quality/{grid}" in self.store.stages("quality/"):
            quality = self.store.group(f"quality/{grid}")
            columns |= {name: quality[name][:] for name in ("focus", "pen", "brightness")}
        return columns


def write_exports(
    store: SlideStore, context: RunContext, clock: Clock, result: SlideResult
) -> bool:
    """Write every configured format that is absent or stale; True if anything was written."""
    stored = StoredSlide(store, result.slide, context.output)
    changed = False
    for format in context.config.export:

        def write(format: str = format) -> list[Path]:
            with clock(f"export {format}"):
                return sorted(WRITERS[format](stored), key=Path.as_posix)

        written, files = written_once(
            store,
            f"export/{format}",
            {"format": format},
            export_needs(store),
            context.output,
            write,
        )
        result.files.extend(file.relative_to(context.output).as_posix() for file in files)
        changed |= written
    return changed


def draw_maps(store: SlideStore, folder: Path, clock: Clock, result: SlideResult) -> bool:
    """`report/<slide>/maps/<model>.png` of every tissue map; True if anything was written."""
    changed = False
    for stage in stored_maps(store):
        pictures = folder / "report" / result.slide

        def write(stage: str = stage, pictures: Path = pictures) -> list[Path]:
            title = f"{result.slide}: {stage.removeprefix('maps/')}"
            with clock("tissue map's picture"), whole_file(pictures / f"{stage}.png") as aside:
                draw_map(aside, store, stage, title, picture_of(pictures / "overview.jpg"))
            return [pictures / f"{stage}.png"]

        record = f"export/{stage.replace('/', '.')}"
        drawn, files = written_once(
            store, record, {"format": "png"}, [stage, "tissue"], folder, write
        )
        result.files.extend(file.relative_to(folder).as_posix() for file in files)
        changed |= drawn
    return changed


def written_once(
    store: SlideStore,
    record: str,
    parameters: Mapping[str, Any],
    needs: Sequence[str],
    folder: Path,
    write: Callable[[], list[Path]],
) -> tuple[bool, list[Path]]:
    """The files that stage `record` stands for: written where they are absent or stale.

    folder   below which all of them are

    Returns (whether they were written now, the files).
    """
    files = current_files(store, record, parameters, needs, folder)
    if files is not None:
        return False, files
    with store.stage(record, parameters, needs=needs) as writer:
        files = write()
        names = [file.relative_to(folder).as_posix() for file in files]
        sums = [list(file_sum(file)) for file in files]
        writer.finish({"files": names, "sums": sums})
    return True, files


def current_files(
    store: SlideStore,
    record: str,
    parameters: Mapping[str, Any],
    needs: Sequence[str],
    folder: Path,
) -> list[Path] | None:
    """The files that stage `record` stands for, below `folder`; None where one of them is absent or
    stale."""
    if not store.is_current(record, parameters, needs=needs):
        return None
    files = [folder / file for file in store.group(record).attrs["files"]]
    return files if all(file.exists() for file in files) else None


OUTLINED = {"nuclei": "Nucleus", "glands": "Gland", "lumina": "Lumen"}
"""Stages of outlined objects -> how their measurements call one."""
ANSWERS = ("export/", "prompts/", "classes/", "predictions/")
"""Stages whose exports are their own, and so are those of what stands on them."""


def export_needs(store: SlideStore) -> list[str]:
    """What run exports show."""
    return [
        name
        for name in store.stages()
        if not name.startswith(ANSWERS)
        and not any(need.startswith(ANSWERS) for need in store.record(name).needs)
    ]


def export_geojson(stored: StoredSlide) -> list[Path]:
    """`geojson/<slide>.<what>.geojson.gz` for tissue, each tile grid, each
    nucleus model and each tissue map."""
    store, folder = stored.store, stored.folder / "geojson"
    tissue = Tissue.from_store(store.group("tissue"))
    written = [
        write_geojson(
            folder / f"{stored.slide_id}.tissue.geojson.gz",
            tissue_objects(tissue.polygons),
            slide=stored.slide_id,
            bounds=stored.bounds,
        )
    ]
    for grid in stored.grids():
        names = {"tissue_fraction": "Tissue fraction", "focus": "Focus", "pen": "Pen fraction",
                 "brightness": "Brightness"}  # fmt: skip
        measured = {names[k]: v for k, v in stored.tile_columns(grid).items()}
        boxes = store.group(f"tiles/{grid}")["boxes"][:]
        columns = box_columns(boxes, model=grid, measurements=measured)
        path = folder / f"{stored.slide_id}.tiles_{grid}.geojson.gz"
        written.append(write_geojson(path, columns, slide=stored.slide_id, bounds=stored.bounds))
    for kind, model in _outlined(store):
        path = folder / f"{stored.slide_id}.{kind}_{model}.geojson.gz"
        columns = _outline_columns(store.group(f"{kind}/{model}"), model, OUTLINED[kind])
        written.append(write_geojson(path, columns, slide=stored.slide_id, bounds=stored.bounds))
    for stage in stored_maps(store):
        found = StoredMap.of(store, stage)
        path = folder / f"{stored.slide_id}.tissuemap_{found.name}.geojson.gz"
        colours = class_colours(found.classes)
        written.append(
            write_geojson(
                path, map_areas(found), slide=stored.slide_id, bounds=stored.bounds, colors=colours
            )
        )
    return [path for result in written for path in result.paths]


def _outlined(store: SlideStore) -> list[tuple[str, str]]:
    """(kind, model) of every stage that holds outlines."""
    return [
        (kind, stage.removeprefix(f"{kind}/"))
        for kind in OUTLINED
        for stage in store.stages(f"{kind}/")
    ]


def _outline_columns(group: Any, model: str, noun: str) -> PolygonColumns:
    arrays = dict(group.arrays())
    return PolygonColumns(
        model=model,
        centroid=arrays["centroid"],
        polygon_offset=arrays["polygon_offset"],
        polygon=arrays["polygon"],
        kind="detection",
        classes=list(group.attrs["classes"]),
        class_id=arrays["class_id"],
        measurements={
            MEASUREMENT_NAMES[name].replace("Nucleus", noun): array
            for name, array in sorted(arrays.items())
            if name in MEASUREMENT_NAMES
        },
    )


def export_trident(stored: StoredSlide) -> list[Path]:
    """`h5/<20x_256px_0px_overlap>/{patches,features_<encoder>,slide_features_<slide encoder>}/`,
    as TRIDENT lays a job out."""
    paths = []
    for grid in stored.grids():
        tiles = stored.tile_table(grid)
        folder = stored.folder / "h5" / trident_folder(tiles)
        path = folder / "patches" / f"{stored.slide_id}_patches.h5"
        write_trident_coords(path, tiles)
        paths.append(path)
        for encoder, features in stored.features(grid).items():
            path = folder / f"features_{encoder}" / f"{stored.slide_id}.h5"
            write_trident_features(path, tiles, features, encoder)
            paths.append(path)
        for name, embedding in stored.slide_embeddings(grid).items():
            path = folder / f"slide_features_{name}" / f"{stored.slide_id}.h5"
            write_trident_slide(path, tiles, embedding[:], name)
            paths.append(path)
    return paths


def export_clam(stored: StoredSlide) -> list[Path]:
    """`clam/<grid>/patches/` and `clam/<grid>/<encoder>/{h5_files,pt_files}/`."""
    paths = []
    for grid in stored.grids():
        tiles, folder = stored.tile_table(grid), stored.folder / "clam" / grid
        write_clam_coords(path := folder / "patches" / f"{stored.slide_id}.h5", tiles)
        paths.append(path)
        for encoder, features in stored.features(grid).items():
            h5 = folder / encoder / "h5_files" / f"{stored.slide_id}.h5"
            pt = folder / encoder / "pt_files" / f"{stored.slide_id}.pt"
            write_clam_features(h5, tiles, features)
            write_clam_tensor(pt, features[:])
            paths += [h5, pt]
    return paths


def export_stamp(stored: StoredSlide) -> list[Path]:
    """`stamp/<encoder>-<recipe hash>/<slide>.h5`."""
    paths = []
    for grid in stored.grids():
        tiles = stored.tile_table(grid)
        for encoder, features in stored.features(grid).items():
            digest = stored.store.record(f"features/{encoder}@{grid}").hash[:8]
            path = stored.folder / "stamp" / f"{encoder}-{digest}" / f"{stored.slide_id}.h5"
            write_stamp(path, tiles, features, encoder, digest)
            paths.append(path)
    return paths


def export_parquet(stored: StoredSlide) -> list[Path]:
    """`parquet/<slide>.tiles_<grid>.parquet` and, for nuclei, glands and lumina,
    `parquet/<slide>.nuclei_<model>.parquet`."""
    paths, folder = [], stored.folder / "parquet"
    for grid in stored.grids():
        boxes = np.asarray(stored.store.group(f"tiles/{grid}")["boxes"][:])
        path = folder / f"{stored.slide_id}.tiles_{grid}.parquet"
        write_tiles_parquet(path, boxes, stored.tile_columns(grid), stored.slide_id)
        paths.append(path)
    for kind, model in _outlined(stored.store):
        path = folder / f"{stored.slide_id}.{kind}_{model}.parquet"
        group = stored.store.group(f"{kind}/{model}")
        classes = list(group.attrs["classes"])
        write_nuclei_parquet(path, dict(group.arrays()), stored.slide_id, model, classes)
        paths.append(path)
    return paths


WRITERS: dict[str, Callable[[StoredSlide], list[Path]]] = {
    "geojson": export_geojson,
    "h5": export_trident,
    "clam": export_clam,
    "stamp": export_stamp,
    "parquet": export_parquet,
}
"""Format, as `--export` names it -> what writes it; returns the files."""
