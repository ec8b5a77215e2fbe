"""Coverslip: slides in; tiles, embeddings, nuclei and QuPath files out.

    import coverslip

    slide = coverslip.open_slide("case-0417.svs")
    tissue = coverslip.find_tissue(slide)
    grid = coverslip.TileGrid.over(slide, tile=256, mpp=0.5, tissue=tissue)
    encoder = coverslip.load_encoder("efficientnet-lite0")
    for batch in coverslip.TileStream(slide, grid):
        features = encoder.encode(batch.pixels)

Names load when first touched, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coverslip.cohort.cohort import Cohort as Cohort
    from coverslip.encoders.encoder import Encoder as Encoder
    from coverslip.encoders.loading import load_encoder as load_encoder
    from coverslip.encoders.registry import EncoderSpec as EncoderSpec
    from coverslip.encoders.slide_encoder import SlideEncoder as SlideEncoder
    from coverslip.encoders.slide_encoder import load_slide_encoder as load_slide_encoder
    from coverslip.encoders.text import load_text_encoder as load_text_encoder
    from coverslip.encoders.text import zero_shot_classifier as zero_shot_classifier
    from coverslip.engine.bags import open_bags as open_bags
    from coverslip.engine.clicks import ClickedObject as ClickedObject
    from coverslip.engine.clicks import ClickSegmenter as ClickSegmenter
    from coverslip.engine.clicks import segment_click as segment_click
    from coverslip.engine.clinical import ClinicalTable as ClinicalTable
    from coverslip.engine.config import RunConfig as RunConfig
    from coverslip.engine.mil_run import run_study as run_study
    from coverslip.engine.mil_study import Study as Study
    from coverslip.engine.mil_study import StudyConfig as StudyConfig
    from coverslip.engine.run import Run as Run
    from coverslip.errors import CoverslipError as CoverslipError
    from coverslip.export.geojson import read_geojson as read_geojson
    from coverslip.export.geojson import write_geojson as write_geojson
    from coverslip.kernels.stain_profile import StainNormalizer as StainNormalizer
    from coverslip.kernels.stain_profile import StainProfile as StainProfile
    from coverslip.kernels.stain_profile import fit_stains as fit_stains
    from coverslip.kernels.stain_profile import reference_profile as reference_profile
    from coverslip.tiling.grid import TileGrid as TileGrid
    from coverslip.tiling.reading import read_region as read_region
    from coverslip.tiling.reading import thumbnail as thumbnail
    from coverslip.tiling.stain_sample import stain_sample as stain_sample
    from coverslip.tiling.store import SlideStore as SlideStore
    from coverslip.tiling.stream import TileStream as TileStream
    from coverslip.tiling.tissue import Tissue as Tissue
    from coverslip.tiling.tissue import find_tissue as find_tissue
    from coverslip.wsi.opening import open_slide as open_slide
    from coverslip.wsi.slide import Box as Box
    from coverslip.wsi.slide import Level as Level
    from coverslip.wsi.slide import Slide as Slide

__version__ = "0.1.0"

_home = {
    "Box": "wsi.slide",
    "ClickSegmenter": "engine.clicks",
    "ClickedObject": "engine.clicks",
    "ClinicalTable": "engine.clinical",
    "Cohort": "cohort.cohort",
    "CoverslipError": "errors",
    "Encoder": "encoders.encoder",
    "EncoderSpec": "encoders.registry",
    "Level": "wsi.slide",
    "Run": "engine.run",
    "RunConfig": "engine.config",
    "Slide": "wsi.slide",
    "SlideEncoder": "encoders.slide_encoder",
    "SlideStore": "tiling.store",
    "StainNormalizer": "kernels.stain_profile",
    "StainProfile": "kernels.stain_profile",
    "Study": "engine.mil_study",
    "StudyConfig": "engine.mil_study",
    "TileGrid": "tiling.grid",
    "TileStream": "tiling.stream",
    "Tissue": "tiling.tissue",
    "find_tissue": "tiling.tissue",
    "fit_stains": "kernels.stain_profile",
    "load_encoder": "encoders.loading",
    "load_slide_encoder": "encoders.slide_encoder",
    "load_text_encoder": "encoders.text",
    "open_bags": "engine.bags",
    "open_slide": "wsi.opening",
    "read_geojson": "export.geojson",
    "read_region": "tiling.reading",
    "reference_profile": "kernels.stain_profile",
    "run_study": "engine.mil_run",
    "segment_click": "engine.clicks",
    "stain_sample": "tiling.stain_sample",
    "thumbnail": "tiling.reading",
    "write_geojson": "export.geojson",
    "zero_shot_classifier": "encoders.text",
}
"""Public name -> the module it lives in."""

__all__ = ["__version__", *sorted(_home)]


def __getattr__(name: str) -> object:
    try:
        module = _home[name]
    except KeyError:
        raise AttributeError(f"module 'coverslip' has no attribute {name!r}") from None
    return getattr(import_module(f"coverslip.{module}"), name)


def __dir__() -> list[str]:
    return __all__
