"""The slide in other colours: normalised, or one stain alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from coverslip.errors import InvalidConfig
from coverslip.kernels.stain_profile import (
    StainMethod,
    StainNormalizer,
    StainProfile,
    fit_stains,
    reference_profile,
    stain_images,
)
from coverslip.tiling.stain_sample import stain_sample
from coverslip.tiling.store import SlideStore
from coverslip.tiling.tissue import Tissue, find_tissue
from coverslip.viewer.slide_tiles import Recolour
from coverslip.wsi.slide import RGB, Slide

ORIGINAL = "original"
RECOLOURED = ("normalised", "haematoxylin", "eosin")
VARIANTS = (ORIGINAL, *RECOLOURED)


@dataclass(frozen=True, slots=True)
class SlideStains:
    """A slide's stains, and the function of each variant's pixels."""

    profile: StainProfile

    @property
    def nbytes(self) -> int:
        return 1024

    def recolour(self, variant: str) -> Recolour:
        """(h, w, 3) uint8 -> the same size. Raises InvalidConfig where the fit is implausible."""
        if self.profile.problems:
            raise InvalidConfig(
                f"this slide's stains cannot be told apart: {'; '.join(self.profile.problems)}"
            )
        if variant == "normalised":
            return StainNormalizer(self.profile, reference_profile())
        which = ("haematoxylin", "eosin").index(variant)

        def alone(pixels: RGB) -> RGB:
            image: RGB = stain_images(pixels, self.profile)[which]
            return image

        return alone


def slide_stains(slide: Slide, store: SlideStore | None) -> SlideStains:
    """As a run has fitted them, or by Macenko's method from a sample of the tissue.

    Raises MissingMpp, ReaderTimeout.
    """
    if (stage := stored_stains(store)) and store:
        return SlideStains(StainProfile.from_dict(store.group(stage).attrs["profile"]))
    if store and store.stages("tissue"):
        tissue = Tissue.from_store(store.group("tissue"))
    else:
        tissue = find_tissue(slide)
    return SlideStains(fit_stains(stain_sample(slide, tissue)))


def stored_stains(store: SlideStore | None) -> str | None:
    """The stage that holds a fit; Macenko's before the others."""
    stages = store.stages("stain/") if store else []
    return next((f"stain/{m}" for m in get_args(StainMethod) if f"stain/{m}" in stages), None)
