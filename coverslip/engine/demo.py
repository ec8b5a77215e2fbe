"""The whole job on the slide in the package."""

from __future__ import annotations

from pathlib import Path

from coverslip.engine.config import RunConfig
from coverslip.engine.process import Observer
from coverslip.engine.result import SlideResult
from coverslip.engine.run import Run

SAMPLE = Path(__file__).parents[1] / "wsi" / "samples" / "CMU-1-Small-Region.svs"
"""A genuine Aperio slide of 2220 x 2967 px from the OpenSlide test data, CC0."""


def run_demo(output: Path, observer: Observer | None = None) -> SlideResult:
    """Tissue, tiles, embeddings, nuclei, GeoJSON and HDF5 of the sample slide, in `output`."""
    config = RunConfig(nuclei="watershed", export=("geojson", "h5"))
    (result,) = Run.over([SAMPLE], output, config).execute(observer=observer)
    return result
