"""Sources that are labelled for some tasks: folders of images, of tissue classes, outlined slides.

A source is told in one word, as a command takes it:

  images=FOLDER,mpp=0.25       <name>.png with any of <name>_nuclei.png, <name>_glands.png and
                               <name>_lumina.png: 0 background, a number for each object; and
                               <name>_instances.png, which are nuclei, or as instances=glands says
  tissue=FOLDER,mpp=0.5        a folder of images for each tissue class
  slides=SLIDES,annotations=QUPATH,nuclei=Tumor+Immune cells,glands=Gland
                               a file, folder or glob, and QuPath's GeoJSON: within objects of class
                               Region* (or as region= says), all objects of these classes are
                               outlined; what has no classes is unknown

Each may have its share of the crops, share=2 beside others' 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from coverslip.engine.annotated_slides import of_annotated_slides
from coverslip.engine.labelled_tiles import LabelledTiles
from coverslip.engine.nucleus_images import (
    REGION,
    image_labels,
    image_pixels,
    outlined_regions,
    resampled_labels,
    resampled_pixels,
)
from coverslip.errors import InvalidConfig, UnknownName
from coverslip.heads.cerberus import OBJECTS
from coverslip.heads.multitask_training import MultitaskImage, MultitaskSource
from coverslip.wsi.slide import Slide

KEYS: Mapping[str, tuple[str, ...]] = {
    "images": ("mpp", "instances"),
    "tissue": ("mpp",),
    "slides": ("annotations", "region", *OBJECTS),
}
"""What may be told of each kind of source, besides its share."""
INSTANCES = "instances"
NEXT = re.compile(r",(?=[a-z]+=)")
"""A comma that is none of a path."""


def multitask_source(text: str, mpp: float, *, assume_mpp: float | None = None) -> MultitaskSource:
    """What the source called `text` holds, at `mpp` µm per px (see the module).

    Raises InvalidConfig, UnknownName, and what opening slides does.
    """
    told = dict(part.partition("=")[::2] for part in NEXT.split(text))
    kind = next(iter(told))
    if kind not in KEYS or not told[kind]:
        raise InvalidConfig(
            f"{text}: a source begins with {', '.join(f'{name}=' for name in KEYS)}\n"
            "  for example images=FOLDER,mpp=0.25"
        )
    if unknown := [key for key in told if key not in (kind, "share", *KEYS[kind])]:
        raise InvalidConfig(
            f"{text}: {kind} know no {unknown[0]}=, but {', '.join((*KEYS[kind], 'share'))}"
        )
    share = _number(text, told, "share") if "share" in told else 1.0
    if kind == "slides":
        classes = {task: told[task].split("+") for task in OBJECTS if told.get(task)}
        if not classes or not told.get("annotations"):
            raise InvalidConfig(
                f"{text}: annotations= and the classes of some of {', '.join(OBJECTS)} are wanted"
            )
        images = outlined_slides(
            [told[kind]], Path(told["annotations"]), mpp, classes,
            region_class=told.get("region", REGION), assume_mpp=assume_mpp,
        )  # fmt: skip
    elif kind == "tissue":
        images = tissue_tiles(Path(told[kind]), mpp, _number(text, told, "mpp"))
    else:
        instances = told.get(INSTANCES, "nuclei")
        images = labelled_images(Path(told[kind]), mpp, _number(text, told, "mpp"), instances)
    return MultitaskSource(images, share, Path(told[kind]).name)


def _number(text: str, told: Mapping[str, str], key: str) -> float:
    try:
        value = float(told[key])
    except (KeyError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise InvalidConfig(f"{text}: {key}= must be a number above 0, got {told.get(key)!r}")
    return value


def labelled_images(
    folder: Path, mpp: float, image_mpp: float, instances: str = "nuclei"
) -> list[MultitaskImage]:
    """Every `<name>.png` of a folder with the labels beside it.

    instances   which objects `<name>_instances.png` holds

    Raises InvalidConfig: none, a file that cannot be read, sizes that differ; UnknownName.
    """
    if instances not in OBJECTS:
        raise UnknownName("task", instances, OBJECTS)
    files: dict[str, dict[str, Path]] = {}
    for suffix, task in (*((task, task) for task in OBJECTS), (INSTANCES, instances)):
        for path in sorted(folder.glob(f"*_{suffix}.png")):
            of_image = files.setdefault(path.name.removesuffix(f"_{suffix}.png"), {})
            if task in of_image:
                raise InvalidConfig(f"{path}: {of_image[task].name} holds {task} as well")
            of_image[task] = path
    if not files:
        suffixes = ", ".join(f"<name>_{task}.png" for task in (*OBJECTS, INSTANCES))
        raise InvalidConfig(f"{folder}: no <name>.png with any of {suffixes}")
    scale, found = mpp / image_mpp, []
    for name, paths in sorted(files.items()):
        rgb = image_pixels(folder / f"{name}.png")
        labels = {
            task: resampled_labels(image_labels(path, rgb.shape[:2]), scale)[0]
            for task, path in paths.items()
        }
        found.append(MultitaskImage(resampled_pixels(rgb, scale), labels, None, name))
    return found


def tissue_tiles(folder: Path, mpp: float, tile_mpp: float) -> list[MultitaskImage]:
    """Every image of a folder with a folder for each class, by whose name it goes. All are held in
    memory. Raises InvalidConfig."""
    tiles = LabelledTiles.read(folder)
    return [
        MultitaskImage(resampled_pixels(rgb, mpp / tile_mpp), {}, tiles.classes[label], name)
        for rgb, label, name in zip(tiles.pixels, tiles.labels, tiles.names, strict=True)
    ]


def outlined_slides(
    slides: Sequence[str],
    annotations: Path,
    mpp: float,
    classes: Mapping[str, Sequence[str]],
    *,
    region_class: str = REGION,
    assume_mpp: float | None = None,
) -> list[MultitaskImage]:
    """The regions of slides in which all objects of some tasks are outlined.

    annotations   QuPath's GeoJSON, or a folder of files named after the slides
    classes       by task, what its objects are classified as

    Raises InvalidConfig: no region, or of a task nothing in any; what opening slides does.
    """

    def read(slide: Slide, files: Sequence[Path]) -> list[MultitaskImage]:
        return [
            MultitaskImage(
                region.rgb,
                {task: region.drawn(names)[0] for task, names in classes.items()},
                None,
                f"{slide.name} {region.name}",
            )
            for region in outlined_regions(slide, files, mpp, region_class)
        ]

    found = of_annotated_slides(slides, annotations, read, assume_mpp=assume_mpp)
    for task, names in classes.items():
        if not any(np.any(image.labels[task]) for image in found):
            raise InvalidConfig(
                f"{annotations}: no object of class {' or '.join(names)} in any {region_class}\n"
                f"  {task}= gives the names that they have in QuPath, joined by +"
            )
    return found
