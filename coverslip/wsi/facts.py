"""What may be told about a slide: geometry and reading, nothing that identifies a patient."""

from __future__ import annotations

from typing import Any

from coverslip.wsi.slide import Slide


def slide_facts(slide: Slide) -> dict[str, Any]:
    """JSON-able facts for `info` and for the store; no path, no metadata text, no dates."""
    size = slide.pixel_size
    return {
        "name": slide.name,
        "size": list(slide.size),
        "mpp": None if size is None else [size.x, size.y],
        "mpp_source": None if size is None else size.source,
        "vendor": slide.vendor,
        "reader": slide.reader,
        "levels": [
            {
                "size": list(level.size),
                "downsample": list(level.downsample),
                "tile": list(level.tile),
                "reductions": level.reductions,
            }
            for level in slide.levels
        ],
        "bounds": [slide.bounds.x, slide.bounds.y, slide.bounds.w, slide.bounds.h],
        "associated": sorted(slide.associated),
        "icc_profile": slide.icc_profile is not None,
        "colour": slide.properties.get("coverslip.colour", "as stored"),
        "cross_check": slide.properties.get("coverslip.cross-check", ""),
    }
