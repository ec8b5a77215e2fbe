"""Zero-shot classes of tiles whose image embeddings are in the stores already: no pixel is read.

prompts/<set>.<encoder>@<grid>/   probabilities, similarity float32 [N, C];
                                  attrs: classes, templates, logit_scale, encoder, grid
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.durable import explained, whole_file
from coverslip.encoders.text import (
    TEMPLATES,
    Classes,
    TextEncoder,
    check_prompts,
    class_vectors,
    load_text_encoder,
    probabilities,
    similarity,
    text_spec,
)
from coverslip.engine.exports import written_once
from coverslip.engine.heat_map import draw_heat_map
from coverslip.engine.result import ClassifiedSlide
from coverslip.errors import (
    CoverslipError,
    IncompleteStage,
    InvalidConfig,
    RecipeMismatch,
    printable,
)
from coverslip.export.geojson import box_columns, write_geojson
from coverslip.settings import toml_content
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.lock import lock
from coverslip.tiling.stage_writer import json_bytes
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue
from coverslip.wsi.slide import Box

if TYPE_CHECKING:
    from coverslip.encoders.registry import EncoderSpec

PROMPT_EXPORTS = ("geojson", "png")
ROWS_PER_BLOCK = 8192
"""Tiles compared at a time, and what a crash can cost."""
SET_NAME = re.compile(r"\w[\w-]*")
UNSAFE = re.compile(r"[^\w-]+")
"""What does not go from a class's name into a file's."""


@dataclass(frozen=True)
class Prompts:
    """What is asked of all slides of a folder.

    output      folder of stores, with `report/` and `geojson/` beside them
    encoder     image-text encoder, by name
    classes     each with its names
    templates   texts around a name
    name        of this set of classes, in stores and files
    weights     as of `load_text_encoder`
    device      "auto" takes a GPU where there is one
    formats     of PROMPT_EXPORTS
    """

    output: Path
    encoder: str
    classes: Classes
    templates: Sequence[str] = TEMPLATES
    name: str = "classes"
    weights: str | Path | None = None
    device: str = "auto"
    formats: Sequence[str] = PROMPT_EXPORTS
    spec: EncoderSpec = field(init=False)

    def __post_init__(self) -> None:
        check_prompts(self.classes, self.templates)
        if not SET_NAME.fullmatch(self.name):
            raise InvalidConfig(f"a set of classes is named by letters and digits: {self.name!r}")
        if unknown := [format for format in self.formats if format not in PROMPT_EXPORTS]:
            raise InvalidConfig(f"export knows {', '.join(PROMPT_EXPORTS)}; got {unknown[0]!r}")
        object.__setattr__(self, "spec", text_spec(self.encoder))

    @cached_property
    def text(self) -> TextEncoder:
        """The text tower, loaded when the first slide needs it."""
        return load_text_encoder(self.encoder, weights=self.weights, device=self.device)

    @cached_property
    def vectors(self) -> npt.NDArray[np.float32]:
        """[C, D], a unit vector a class."""
        return class_vectors(self.text, self.classes, self.templates)

    def parameters(self) -> dict[str, Any]:
        """What decides the result, apart from the features; the classes in their order."""
        return {
            "classes": [[name, list(names)] for name, names in self.classes.items()],
            "templates": list(self.templates),
        }


def prompt_stores(prompts: Prompts) -> Iterator[tuple[str, ClassifiedSlide | CoverslipError]]:
    """Compare the features in every store of the folder with the prompts' texts, and write what
    was asked for; what is current is left alone. Yields (slide id, result or what went wrong).

    Raises InvalidConfig for a folder without stores.
    """
    output = prompts.output
    stores = sorted(output.glob("*.zarr")) if output.is_dir() else []
    if not stores:
        raise InvalidConfig(f"{output}: no stores here; coverslip features writes them")
    for path in stores:
        slide_id = path.name.removesuffix(".zarr")
        result: ClassifiedSlide | CoverslipError
        try:
            with lock(path):
                result = _prompt_store(SlideStore.open(path), slide_id, prompts)
        except CoverslipError as error:
            result = error
        yield slide_id, result


def _prompt_store(store: SlideStore, slide_id: str, prompts: Prompts) -> ClassifiedSlide:
    changed, most_probable = False, [np.empty(0, np.int64)]
    files: list[Path] = []
    for features in _feature_stages(store, prompts):
        grid = features.rpartition("@")[2]
        stage = f"prompts/{prompts.name}.{prompts.spec.name}@{grid}"
        if not store.is_current(stage, prompts.parameters(), needs=[features]):
            _compare(store, features, stage, prompts)
            changed = True
        if prompts.formats:
            exported, written = _export(store, stage, slide_id, prompts)
            changed |= exported
            files += written
        most_probable.append(store.group(stage)["probabilities"][:].argmax(axis=1))
    return ClassifiedSlide.of(
        np.concatenate(most_probable), list(prompts.classes), files, changed=changed
    )


def _feature_stages(store: SlideStore, prompts: Prompts) -> list[str]:
    """Stages of the encoder's features, one a grid; none where no grid has tiles."""
    if stages := store.stages(f"features/{prompts.spec.name}@"):
        return stages
    grids = store.stages("tiles/")
    if grids and not any(store.group(grid)["boxes"].shape[0] for grid in grids):
        return []
    held = [name.removeprefix("features/") for name in store.stages("features/")]
    raise IncompleteStage(
        store.path,
        f"holds no features of {prompts.spec.name}"
        + (f", but of {', '.join(held)}" if held else ""),
        f"run first: coverslip features SLIDES -o {prompts.output} --encoder {prompts.encoder}",
    )


def _compare(store: SlideStore, features: str, stage: str, prompts: Prompts) -> None:
    """Write the stage: cosines and probabilities, block by block."""
    check_same_weights(store, features, prompts.text)
    embeddings: Any = store.group(features)["features"]
    total, classes = embeddings.shape[0], len(prompts.classes)
    with store.stage(stage, prompts.parameters(), needs=[features]) as writer:
        for name in ("similarity", "probabilities"):
            writer.create_array(name, (total, classes), "float32", rows_per_block=ROWS_PER_BLOCK)
        for block in range(writer.done_blocks, -(-total // ROWS_PER_BLOCK)):
            rows = embeddings[block * ROWS_PER_BLOCK : (block + 1) * ROWS_PER_BLOCK]
            cosines = similarity(rows, prompts.vectors)
            columns = {
                "similarity": cosines,
                "probabilities": probabilities(cosines, prompts.text.logit_scale),
            }
            writer.write_block(block, columns)
        writer.finish(
            {
                "classes": list(prompts.classes),
                "templates": list(prompts.templates),
                "logit_scale": prompts.text.logit_scale,
                "encoder": prompts.spec.name,
                "grid": features.rpartition("@")[2],
            }
        )


def check_same_weights(store: SlideStore, features: str, text: TextEncoder) -> None:
    """Raises RecipeMismatch where images and texts were not embedded by one checkpoint."""
    made = store.record(features).parameters
    theirs, ours = str(made.get("weights_sha256", "")), text.weights_sha256
    if theirs != ours:
        problem = f"weights {theirs[:16]}, the text tower's are {ours[:16]}"
    elif json_bytes(made.get("recipe", {})) != json_bytes(text.spec.recipe()):
        problem = f"another recipe than {text.name} has now"
    else:
        return
    raise RecipeMismatch(
        f"{printable(str(store.path))}: its features of {text.name} were made with "
        f"{problem}\n"
        "  pass the --weights they were made with, or run coverslip features again"
    )


def _export(
    store: SlideStore, stage: str, slide_id: str, prompts: Prompts
) -> tuple[bool, list[Path]]:
    """The files of one stage; (whether any was written, all of them)."""
    record = f"export/{stage.replace('/', '.')}"
    tiles = f"tiles/{stage.rpartition('@')[2]}"
    needs, parameters = [stage, tiles, "tissue"], {"formats": sorted(prompts.formats)}

    def write() -> list[Path]:
        files = _draw(store, stage, slide_id, prompts) if "png" in prompts.formats else []
        if "geojson" in prompts.formats:
            files += _write_objects(store, stage, slide_id, prompts)
        return files

    return written_once(store, record, parameters, needs, prompts.output, write)


def _draw(store: SlideStore, stage: str, slide_id: str, prompts: Prompts) -> list[Path]:
    """`report/<slide>/<stage>/<number>-<class>.png`; pictures of other classes are removed."""
    folder = prompts.output / "report" / slide_id / stage
    with explained(folder):
        shutil.rmtree(folder, ignore_errors=True)
    grid = TileGrid.from_store(store.group(f"tiles/{stage.rpartition('@')[2]}"))
    polygons = Tissue.from_store(store.group("tissue")).polygons
    values = store.group(stage)["probabilities"][:]
    paths = []
    for number, name in enumerate(prompts.classes):
        path = folder / f"{number + 1:02d}-{UNSAFE.sub('-', name).strip('-')}.png"
        with whole_file(path) as aside:
            draw_heat_map(
                aside,
                values[:, number],
                grid,
                polygons,
                title=f"{slide_id}: {name}",
                label=f"probability among {len(prompts.classes)} classes",
            )
        paths.append(path)
    return paths


def _write_objects(store: SlideStore, stage: str, slide_id: str, prompts: Prompts) -> list[Path]:
    """`geojson/<slide>.prompts_<set>.<encoder>@<grid>.geojson.gz`, an object a tile."""
    group = store.group(stage)
    found, cosines = group["probabilities"][:], group["similarity"][:]
    measurements = {}
    for number, name in enumerate(prompts.classes):
        measurements[f"{name}: probability"] = found[:, number]
        measurements[f"{name}: similarity"] = cosines[:, number]
    columns = box_columns(
        store.group(f"tiles/{stage.rpartition('@')[2]}")["boxes"][:],
        model=stage,
        classes=list(prompts.classes),
        class_id=found.argmax(axis=1),
        measurements=measurements,
    )
    path = prompts.output / "geojson" / f"{slide_id}.{stage.replace('/', '_')}.geojson.gz"
    bounds = Box(*store.slide["bounds"])
    return list(write_geojson(path, columns, slide=slide_id, bounds=bounds).paths)


def classes_from(text: str) -> dict[str, tuple[str, ...]]:
    """Classes named on a command line: "tumour,stroma", or a TOML file.

    [classes]
    tumour = ["tumour", "carcinoma", "malignant epithelium"]
    stroma = "connective tissue"

    Raises InvalidConfig for a file that cannot be read or holds anything else.
    """
    path = Path(text)
    if path.suffix != ".toml":
        names = [name.strip() for name in text.split(",") if name.strip()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidConfig(f"class {twice[0]!r} is named twice")
        return {name: (name,) for name in names}
    with toml_content(path) as content:
        table = content.get("classes")
        if not isinstance(table, dict) or len(content) != 1:
            raise InvalidConfig("holds one table, [classes], with a line a class")
        classes = {}
        for name, value in table.items():
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
                raise InvalidConfig(f"class {name!r} is a text or a list of texts")
            classes[name] = tuple(names)
        return classes


def templates_from(path: Path) -> tuple[str, ...]:
    """Templates of a text file, a line each; lines that begin with # are none.

    Raises InvalidConfig where it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path}: {error}") from None
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
