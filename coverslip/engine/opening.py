"""Opening a slide as a run's configuration says."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from os import PathLike

from coverslip.engine.config import RunConfig
from coverslip.wsi.opening import open_slide, read_mpp_table
from coverslip.wsi.slide import Slide


def open_for_run(path: str | PathLike[str], config: RunConfig) -> Slide:
    """The slide at `path`, with the pixel size, colour and care that `config` asks for.

    Raises SlideError: unreadable, unsupported, broken, or without a pixel size.
    """
    return open_slide(
        path,
        assume_mpp=config.assume_mpp,
        mpp_table=_table(config.mpp_table) if config.mpp_table else None,
        trust_objective=config.trust_objective,
        icc=config.icc,
        cross_check=config.cross_check,
        read_timeout_s=config.read_timeout,
    )


@lru_cache(maxsize=4)
def _table(path: str) -> Mapping[str, tuple[float, float]]:
    return read_mpp_table(path)
