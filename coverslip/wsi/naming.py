"""What a slide is called: its file's name without the extension."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import PurePath

DOUBLE_SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.zarr", ".ome.btf", ".tar.gz")


def file_name(path: str | PathLike[str]) -> str:
    """The last part of a path as text that any file can hold: bytes that are not UTF-8 come as
    escapes."""
    name = PurePath(fspath(path).rstrip("/")).name
    return name.encode("utf-8", "backslashreplace").decode()


def slide_name(path: str | PathLike[str]) -> str:
    """The file name without its extension; `.ome.tif` and the like count as one extension."""
    name = file_name(path)
    for suffix in DOUBLE_SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return PurePath(name).stem or name
