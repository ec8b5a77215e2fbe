"""Which annotations belong to which slide: QuPath's files, named after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from coverslip.errors import InvalidConfig
from coverslip.wsi.naming import slide_name
from coverslip.wsi.opening import open_slide, slide_paths
from coverslip.wsi.slide import Slide

Annotated = TypeVar("Annotated")
"""An image of an annotated slide, whatever is to be learned from it."""

SUFFIX = re.compile(r"\.(geojson|json|zip)(\.gz)?$", re.I)


def annotation_files(slides: Sequence[str], places: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Slide -> its annotation files, in the order of slides; those that have none are left out.

    slides   paths and URLs
    places   files, or folders of them, that are named `<slide>.geojson`, `<slide>.svs.geojson` or
             `<slide>.<anything>.geojson`, also .json and .zip, also .gz; the only file for the
             only slide may be called anything

    A file that fits several slides belongs to the one with the longest name. Raises InvalidConfig:
    a place that is not there, a file that fits two slides alike, a slide's file twice in a folder
    with another suffix.
    """
    if len(slides) == len(places) == 1 and places[0].is_file():
        return {slides[0]: (places[0],)}
    names = {slide: (slide_name(slide), PurePath(slide.rstrip("/")).name) for slide in slides}
    found: dict[str, list[Path]] = {slide: [] for slide in slides}
    for file in dict.fromkeys(file for place in places for file in _files(place)):
        if owner := _owner(file, names):
            found[owner].append(file)
    for own in found.values():
        _require_once(own)
    return {slide: tuple(own) for slide, own in found.items() if own}


def no_annotations(slides: Sequence[str], places: Sequence[Path]) -> InvalidConfig:
    """Says that none of these slides has annotations in these places, and what was looked for."""
    first = slide_name(slides[0])
    which = slides[0] if len(slides) == 1 else f"any of {len(slides)} slides, such as {slides[0]}"
    return InvalidConfig(
        f"{', '.join(map(str, places))}: no annotations of {which}\n"
        f"  QuPath's GeoJSON is wanted, named after its slide; looked for {first}.geojson and "
        f"{first}.<anything>.geojson, also .json and .zip, also .gz"
    )


def of_annotated_slides(
    slides: Sequence[str],
    annotations: Path,
    read: Callable[[Slide, Sequence[Path]], Sequence[Annotated]],
    *,
    assume_mpp: float | None = None,
) -> list[Annotated]:
    """What `read` makes of each slide and its files (see `annotation_files`), in order.

    Raises InvalidConfig where a slide has none, and what opening slides and `read` do.
    """
    paths = slide_paths(slides)
    files = annotation_files(paths, [annotations])
    if missing := [path for path in paths if path not in files]:
        raise no_annotations(missing, [annotations])
    found: list[Annotated] = []
    for path, own in files.items():
        with open_slide(path, assume_mpp=assume_mpp) as slide:
            found += read(slide, own)
    return found


def _files(place: Path) -> list[Path]:
    if place.is_dir():
        return sorted(p for p in place.iterdir() if p.is_file() and SUFFIX.search(p.name))
    if not place.exists():
        raise InvalidConfig(f"{place}: no such file or folder of annotations")
    return [place]


def _owner(file: Path, names: Mapping[str, Sequence[str]]) -> str | None:
    """The slide after one of whose names the file is called."""
    called = SUFFIX.sub("", file.name) + "."
    fitting = {
        slide: max((len(name) for name in own if called.startswith(f"{name}.")), default=0)
        for slide, own in names.items()
    }
    longest = max(fitting.values(), default=0)
    owners = [slide for slide, length in fitting.items() if 0 < length == longest]
    if len(owners) > 1:
        raise InvalidConfig(
            f"{file}: fits {owners[0]} and {owners[1]} alike\n"
            f"  name it after one of them with its suffix, {names[owners[0]][1]}.geojson, or leave "
            "the other slide out"
        )
    return owners[0] if owners else None


def _require_once(files: Sequence[Path]) -> None:
    """What is drawn in both would be learned twice, and be held out and taught at once."""
    seen: dict[Path, Path] = {}
    for file in files:
        name = file.with_name(SUFFIX.sub("", file.name))
        if name in seen:
            raise InvalidConfig(
                f"{file}: {seen[name].name} beside it has the same name\n"
                "  keep the one that counts, or tell them apart: <slide>.<anything>.geojson"
            )
        seen[name] = file
