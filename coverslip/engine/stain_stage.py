"""The stage that fits a slide's stains, and the normaliser that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coverslip.durable import replace_file
from coverslip.engine.clock import Clock
from coverslip.engine.config import RunConfig
from coverslip.engine.opening import open_for_run
from coverslip.engine.result import SlideResult
from coverslip.errors import InvalidConfig, StoreError, StoreVersion
from coverslip.kernels.stain_profile import (
    StainNormalizer,
    StainProfile,
    fit_stains,
    reference_profile,
)
from coverslip.tiling.stain_sample import (
    SAMPLE_MPP,
    SAMPLE_SIDE,
    SAMPLE_WINDOWS,
    stain_sample,
)
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue, find_tissue
from coverslip.wsi.slide import Slide

if TYPE_CHECKING:
    from coverslip.engine.process import RunContext

SHOWN = 8
"""Sampled windows in the picture of the report."""


def stain_normalizer(
    slide: Slide,
    store: SlideStore,
    tissue: Tissue,
    context: RunContext,
    clock: Clock,
    result: SlideResult,
) -> StainNormalizer | None:
    """Bring the stage `stain/<method>` up to date; None where the configuration asks for none.

    A slide whose fit is implausible is flagged, and its normaliser leaves pixels as they are.
    """
    method = context.config.stain
    if method == "none" or tissue.is_empty:
        return None
    name = f"stain/{method}"
    sample = {"mpp": SAMPLE_MPP, "side": SAMPLE_SIDE, "windows": SAMPLE_WINDOWS}
    parameters: dict[str, Any] = {"method": method, "sample": sample}
    picture = context.output / "report" / result.slide / "stain.jpg"
    pixels: npt.NDArray[np.uint8] | None = None
    if not store.is_current(name, parameters, needs=["tissue"]):
        with clock("stain"), store.stage(name, parameters, needs=["tissue"]) as stage:
            pixels = stain_sample(slide, tissue)
            stage.finish({"profile": fit_stains(pixels, method).to_dict()})
    profile = StainProfile.from_dict(store.group(name).attrs["profile"])
    normalizer = StainNormalizer(profile, context.stain_target)
    result.stain = profile.to_dict()
    result.flags += [f"stains not normalised: {problem}" for problem in profile.problems]
    if pixels is not None or not picture.exists():
        with clock("stain"):
            pixels = stain_sample(slide, tissue) if pixels is None else pixels
            _draw(picture, pixels, normalizer)
    result.stained = picture.relative_to(context.output).as_posix()
    return normalizer


def target_profile(config: RunConfig) -> StainProfile:
    """The configured target: a profile's JSON, what a store holds of its slide, a slide that is
    fitted by the same method, or the reference.

    Raises InvalidConfig where its own fit is implausible; SlideError where it cannot be read.
    """
    if not config.stain_target:
        return reference_profile()
    kind = Path(config.stain_target).suffix
    if kind == ".json":
        return StainProfile.from_file(config.stain_target)
    assert config.stain != "none"  # RunConfig refuses a target without a method
    if kind == ".zarr" and (stored := _stored_profile(config)):
        return stored
    with open_for_run(config.stain_target, config) as slide:
        profile = fit_stains(stain_sample(slide, find_tissue(slide)), config.stain)
    if profile.problems:
        raise InvalidConfig(
            f"{config.stain_target}: not usable as the target of stain normalisation: "
            f"{'; '.join(profile.problems)}"
        )
    return profile


def _stored_profile(config: RunConfig) -> StainProfile | None:
    """From a store of an earlier run; None where the folder is none of ours (an OME-Zarr slide)."""
    try:
        store = SlideStore.open(config.stain_target)
    except StoreVersion:
        raise
    except StoreError:
        return None
    stage = store.group(f"stain/{config.stain}")
    return StainProfile.from_dict(stage.attrs["profile"])


def _draw(path: Path, sample: npt.NDArray[np.uint8], normalizer: StainNormalizer) -> None:
    """Some of the sampled windows in a row, above as they are and below recoloured."""
    from simplejpeg import encode_jpeg

    shown = sample[np.unique(np.linspace(0, len(sample) - 1, SHOWN).astype(int))]
    rows = [np.concatenate(list(tiles), axis=1) for tiles in (shown, normalizer(shown))]
    replace_file(path, encode_jpeg(np.ascontiguousarray(np.concatenate(rows)), quality=88))
