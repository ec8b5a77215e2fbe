"""The stores of an output folder."""

from __future__ import annotations

from pathlib import Path

from coverslip.errors import InvalidConfig, StoreError
from coverslip.tiling.store import SlideStore


def opened_stores(output: Path, made_by: str) -> tuple[dict[str, SlideStore], dict[str, str]]:
    """The folder's stores by slide id, sorted, and those that cannot be opened, with the reason.

    made_by   the command that writes what is wanted of them

    Raises InvalidConfig where there is none at all.
    """
    paths = sorted(output.glob("*.zarr")) if output.is_dir() else []
    if not paths:
        raise InvalidConfig(f"{output}: no stores here; coverslip {made_by} writes them")
    opened, left_out = {}, {}
    for path in paths:
        slide = path.name.removesuffix(".zarr")
        try:
            opened[slide] = SlideStore.open(path)
        except StoreError as error:
            left_out[slide] = error.problem
    return opened, left_out
