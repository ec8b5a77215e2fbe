"""Opening a slide: the reader is chosen by content, in one place."""

from __future__ import annotations

import csv
import glob
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from coverslip.errors import (
    BrokenSlide,
    InvalidConfig,
    MissingMpp,
    NotRgb,
    SlideError,
    UnknownName,
    UnsupportedSlide,
)
from coverslip.wsi.cross_check import compare_with_second_reader
from coverslip.wsi.naming import slide_name as slide_name
from coverslip.wsi.pixel_size import checked, pixel_size_of
from coverslip.wsi.slide import PixelSize, Slide

READERS = {
    "remote": "coverslip.wsi.remote",
    "tiff": "coverslip.wsi.tiff",
    "ome-zarr": "coverslip.wsi.ome_zarr",
    "openslide": "coverslip.wsi.openslide_reader",
    "image": "coverslip.wsi.image",
}
"""Reader -> module with `can_read(path) -> bool` and `open(path) -> Slide`, in the order asked."""

SUFFIXES = frozenset(
    {
        *(".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".vms", ".vmu", ".scn", ".bif"),
        *(".svslide", ".czi", ".dcm", ".qptiff", ".zarr", ".png", ".jpg", ".jpeg", ".bmp", ".jp2"),
    }
)
"""What counts as a slide when a folder is listed."""


def open_slide(
    path: str | PathLike[str],
    *,
    mpp: float | tuple[float, float] | None = None,
    assume_mpp: float | None = None,
    mpp_table: Mapping[str, tuple[float, float]] | None = None,
    trust_objective: bool = False,
    require_mpp: bool = True,
    icc: bool = False,
    reader: str | None = None,
    cross_check: bool = True,
    read_timeout_s: float = 60.0,
) -> Slide:
    """Open the slide at a path or URL.

    mpp               µm per level-0 pixel, whatever the file says
    assume_mpp        µm per level-0 pixel, where the file says nothing
    mpp_table         file name or stem -> (x, y) µm; overrides the file (see `read_mpp_table`)
    trust_objective   take 10 / power µm where nothing but the objective's power is recorded
    require_mpp       False opens a slide of unknown pixel size; its `mpp` then raises MissingMpp
    icc               transform pixels from the embedded ICC profile to sRGB
    reader            ask only this reader
    cross_check       compare one tile with a second reader
    read_timeout_s    seconds after which a read by a foreign library is killed

    Raises UnsupportedSlide, BrokenSlide, MissingMpp, ImplausibleMpp.
    """
    path = fspath(path)
    slide = _open(path, reader, read_timeout_s)
    try:
        slide.pixel_size = _pixel_size(slide, mpp, assume_mpp, mpp_table, trust_objective)
        if slide.pixel_size is None and require_mpp:
            raise MissingMpp(path)
        if cross_check and slide.reader == "tiff":
            compare_with_second_reader(slide)
        if icc and slide.icc_profile:
            from coverslip.wsi.icc import IccSlide

            return IccSlide(slide)
    except BaseException:
        slide.close()
        raise
    return slide


def _open(path: str, reader: str | None, read_timeout_s: float) -> Slide:
    modules = _readers()
    if "://" in path:
        modules = {"remote": modules["remote"]}
    else:
        _check_file(path)
    if reader is not None:
        if reader not in modules:
            raise UnknownName("reader", reader, modules)
        modules = {reader: modules[reader]}
    refusals: list[SlideError] = []
    for name, place in modules.items():
        module: Any = import_module(place)
        try:
            if module.can_read(path):
                if name == "openslide":
                    return module.open(path, timeout_s=read_timeout_s)  # type: ignore[no-any-return]
                return module.open(path)  # type: ignore[no-any-return]
        except SlideError as error:
            refusals.append(error)
            if isinstance(error, NotRgb):
                break
    broken = [error for error in refusals if isinstance(error, BrokenSlide)]
    if broken or refusals:
        raise (broken or refusals)[0]
    raise UnsupportedSlide(
        path, "no reader recognises the file", "is it a whole-slide image, and complete?"
    )


def _check_file(path: str) -> None:
    """Raises UnsupportedSlide or BrokenSlide for what cannot even be looked into."""
    try:
        if os.path.isdir(path):
            if not any(
                os.path.exists(os.path.join(path, n)) for n in ("zarr.json", ".zgroup", ".zattrs")
            ):
                raise UnsupportedSlide(path, "is a folder, not a slide", "name the slides in it")
            return
        # a pipe would be waited for, a device may never end
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnsupportedSlide(path, "is no ordinary file (a pipe, socket or device)")
        if path.lower().endswith(".mrxs") and not os.path.isdir(os.path.splitext(path)[0]):
            raise BrokenSlide(
                path,
                "the folder of its name, which holds its pixels, is not beside it",
                "copy both",
            )
        with open(path, "rb") as file:
            if not file.read(1):
                raise BrokenSlide(path, "is empty (0 bytes)", "copy it again")
    except OSError as error:
        raise UnsupportedSlide(
            path, f"cannot be opened: {error.strerror or error}", "check the path and permissions"
        ) from None
    except ValueError as error:  # a name with a NUL byte
        raise UnsupportedSlide(path, f"cannot be opened: {error}") from None


@cache
def _readers() -> dict[str, str]:
    """Our readers, then those of installed packages (entry points `coverslip.slides`)."""
    others = {point.name: point.value for point in entry_points(group="coverslip.slides")}
    return {**others, **READERS}


def _pixel_size(
    slide: Slide,
    mpp: float | tuple[float, float] | None,
    assume_mpp: float | None,
    table: Mapping[str, tuple[float, float]] | None,
    trust_objective: bool,
) -> PixelSize | None:
    if mpp is not None:
        x, y = (mpp, mpp) if isinstance(mpp, int | float) else mpp
        return checked(slide.path, PixelSize(x, y, "given"))
    file = os.path.basename(slide.path)
    if table and (listed := table.get(file) or table.get(slide.name)):
        return checked(slide.path, PixelSize(*listed, "mpp table"))
    found = slide.pixel_size or pixel_size_of(slide.path, slide.properties, trust_objective)
    if found is not None:
        return checked(slide.path, found)
    if assume_mpp is not None:
        return checked(slide.path, PixelSize(assume_mpp, assume_mpp, "assumed"))
    return None


def read_mpp_table(path: str | PathLike[str]) -> dict[str, tuple[float, float]]:
    """A CSV with columns slide and mpp (or mpp_x, mpp_y): file name or stem -> (x, y) µm.

    Raises InvalidConfig naming the line that means nothing.
    """
    table: dict[str, tuple[float, float]] = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for row in rows:
                x = row.get("mpp") or row.get("mpp_x") or ""
                y = row.get("mpp") or row.get("mpp_y") or ""
                try:
                    table[row["slide"].strip()] = (float(x), float(y))
                except (KeyError, ValueError, AttributeError):
                    raise InvalidConfig(
                        f"{fspath(path)}, line {rows.line_num}: wants columns slide,mpp (a number)"
                    ) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InvalidConfig(f"{fspath(path)}: cannot be read: {error}") from None
    return table


def slide_paths(inputs: Iterable[str], *, recursive: bool = False) -> list[str]:
    """The slides that files, folders, globs and URLs stand for; sorted within each, none twice.

    A file named outright is kept whatever its suffix, so that a wrong one is reported. Raises
    InvalidConfig for a glob or folder that stands for nothing.
    """
    found: dict[str, None] = {}
    for name in inputs:
        for path in _expanded(name, recursive):
            found.setdefault(path)
    return list(found)


def _expanded(name: str, recursive: bool) -> list[str]:
    if "://" in name or os.path.isfile(name):
        return [name]
    if os.path.isdir(name):
        if _is_slide(Path(name)):
            return [name]
        paths = [os.fspath(path) for path in _listed(Path(name), recursive)]
        if not paths:
            hint = "" if recursive else "; --recursive looks into its folders"
            raise InvalidConfig(f"{name}: no slides in this folder{hint}")
        return paths
    if glob.has_magic(name):
        paths = sorted(glob.glob(name, recursive=recursive))
        if not paths:
            raise InvalidConfig(f"{name}: matches nothing")
        return paths
    return [name]


def _listed(folder: Path, recursive: bool) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if _is_slide(entry):
            yield entry
        # the folder beside an .mrxs holds its pixels, not slides
        elif (
            recursive
            and entry.is_dir()
            and not entry.is_symlink()
            and not entry.with_suffix(".mrxs").exists()
        ):
            yield from _listed(entry, recursive)


def _is_slide(path: Path) -> bool:
    if path.suffix.lower() not in SUFFIXES:
        return False
    if path.is_dir():
        # one of our own stores is no slide
        return path.suffix.lower() == ".zarr" and (
            path.name.lower().endswith(".ome.zarr") or (path / ".zattrs").exists()
        )
    return True
