"""What a slide's prediction comes from, to look at: QuPath tiles, heat maps, the tiles that count
most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coverslip.durable import whole_file
from coverslip.engine.contact_sheet import SIDE, draw_contact_sheet
from coverslip.engine.exports import written_once
from coverslip.engine.heat_map import draw_heat_map
from coverslip.engine.slide_files import SlideFiles
from coverslip.export.geojson import box_columns, write_geojson
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.reading import read_window
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import RGB, Box

TOP = 24
"""Tiles of a contact sheet."""


@dataclass(frozen=True, slots=True, eq=False)
class SlideAnswer:
    """A slide's part of a bag that was answered.

    stage           "predictions/<study>@<encoder>@<grid>"
    prediction      by name
    attention       float32 [N]: 1 is what a tile would have if all had the same
    contributions   name -> float32 [N], of models that add up
    """

    store: SlideStore
    slide: str
    stage: str
    grid: TileGrid
    prediction: dict[str, float]
    attention: npt.NDArray[np.float32]
    contributions: dict[str, npt.NDArray[np.float32]]

    @classmethod
    def of(cls, store: SlideStore, slide: str, stage: str) -> SlideAnswer:
        """As the stage holds it."""
        group = store.group(stage)
        numbers = group["prediction"][:].tolist()
        parts = group.attrs["contribution_names"]
        table = group["contributions"][:] if parts else None
        return cls(
            store,
            slide,
            stage,
            TileGrid.from_store(store.group(f"tiles/{stage.rpartition('@')[2]}")),
            dict(zip(group.attrs["names"], numbers, strict=True)),
            group["attention"][:] * np.float32(group.attrs["tiles"]),
            {} if table is None else {name: table[:, i] for i, name in enumerate(parts)},
        )

    @property
    def title(self) -> str:
        study = self.stage.removeprefix("predictions/").partition("@")[0]
        said = ", ".join(f"{name} {value:.3g}" for name, value in self.prediction.items())
        return f"{self.slide}, {study}: {said}"

    def drawn_contributions(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """One a task: to the class it predicts, else to all its logits together."""
        tasks: dict[str, list[str]] = {}
        for name in self.contributions:
            tasks.setdefault(name.partition(":")[0], []).append(name)
        for task, parts in tasks.items():
            if len(parts) > 1 and all(part in self.prediction for part in parts):
                most = max(parts, key=lambda part: self.prediction[part])
                yield most, self.contributions[most]
            else:
                yield task, np.sum([self.contributions[part] for part in parts], axis=0)


def write_pictures(
    answer: SlideAnswer, formats: Sequence[str], files: SlideFiles
) -> tuple[bool, list[Path]]:
    """The files of one slide's answer; (whether any was written, all of them).

    formats   "geojson", "png", "sheet"; the last only where the slide's file or its pixels are here
    """
    store, folder = answer.store, Path(answer.store.path).parent
    name = answer.stage.replace("/", ".")
    tiles = f"tiles/{answer.grid.name}"
    changed, found = False, []
    for format in sorted(formats):
        if format == "sheet" and not _has_pixels(answer, files):
            continue

        def write(format: str = format) -> list[Path]:
            if format == "geojson":
                return _write_objects(answer, folder)
            pictures = folder / "report" / answer.slide / answer.stage
            if format == "png":
                return _draw(answer, pictures)
            path = pictures.with_name(f"{pictures.name}.top.png")
            draw_contact_sheet(path, list(_top_tiles(answer, files)), answer.title)
            return [path]

        anew, paths = written_once(
            store, f"export/{name}.{format}", {"format": format}, [answer.stage, tiles, "tissue"],
            folder, write,
        )  # fmt: skip
        changed |= anew
        found += paths
    return changed, found


def _write_objects(answer: SlideAnswer, folder: Path) -> list[Path]:
    """`geojson/<slide>.predictions_<study>...geojson.gz`: a tile an object."""
    columns = box_columns(
        answer.grid.boxes,
        model=answer.stage,
        measurements={
            "Attention": answer.attention,
            **{f"Contribution: {name}": part for name, part in answer.contributions.items()},
        },
    )
    path = folder / "geojson" / f"{answer.slide}.{answer.stage.replace('/', '_')}.geojson.gz"
    bounds = Box(*answer.store.slide["bounds"])
    return list(write_geojson(path, columns, slide=answer.slide, bounds=bounds).paths)


def _draw(answer: SlideAnswer, pictures: Path) -> list[Path]:
    """A heat map of attention, and one for each task of what adds to what is predicted."""
    polygons = Tissue.from_store(answer.store.group("tissue")).polygons
    rank = answer.attention.argsort().argsort() / max(1, len(answer.attention) - 1)
    maps = {"attention": (rank.astype(np.float32), "share of the tiles that have less attention",
                          (0.0, 1.0))}  # fmt: skip
    for number, (name, part) in enumerate(answer.drawn_contributions()):
        most = float(np.quantile(np.abs(part), 0.99)) or 1.0
        maps[f"contribution-{number}"] = (part, f"contribution to {name}", (-most, most))
    paths = []
    for name, (values, label, limits) in maps.items():
        path = pictures.with_name(f"{pictures.name}.{name}.png")
        with whole_file(path) as aside:
            draw_heat_map(
                aside, values, answer.grid, polygons, title=answer.title, label=label,
                limits=limits,
            )  # fmt: skip
        paths.append(path)
    return paths


def _has_pixels(answer: SlideAnswer, files: SlideFiles) -> bool:
    """Whether the slide's tiles can be shown: the store keeps them, or its file is here."""
    kept = answer.store.stages(f"pixels/{answer.grid.name}")
    return bool(kept) or files.slide(answer.slide, answer.store) is not None


def _top_tiles(answer: SlideAnswer, files: SlideFiles) -> Iterator[tuple[RGB, str]]:
    """(pixels, words) of the tiles with the most attention; see `_has_pixels`."""
    order = np.argsort(-answer.attention, kind="stable")[:TOP]
    kept = f"pixels/{answer.grid.name}"
    pixels: Any = answer.store.group(kept)["pixels"] if answer.store.stages(kept) else None
    slide = None if pixels is not None else files.slide(answer.slide, answer.store)
    if pixels is None and slide is None:
        return
    for tile in order.tolist():
        x, y, width, height = answer.grid.boxes[tile].tolist()
        if slide is not None:
            picture = read_window(slide, (x, y), (SIDE, SIDE), (width / SIDE, height / SIDE),
                                  on_bad_tile="blank")  # fmt: skip
        else:
            picture = np.asarray(pixels[tile])
        yield picture, f"{answer.attention[tile]:.1f} at {x}, {y}"
