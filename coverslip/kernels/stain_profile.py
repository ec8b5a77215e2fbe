"""What the stains of one slide look like, and tiles recoloured as if another slide's.

A profile is fitted once per slide, from pixels sampled over all its tissue, never per tile: a tile
without nuclei must not change its own colours, nor differ from its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from coverslip.errors import InvalidConfig
from coverslip.kernels._stain_numpy import density, rgb_to_lab
from coverslip.kernels.stain import (
    EOSIN,
    HEMATOXYLIN,
    stain_matrix,
    transform_density,
    transform_lab,
)
from coverslip.kernels.stain_vectors import (
    fixed_vectors,
    macenko_vectors,
    stained_pixels,
    vahadane_vectors,
)

RGB = npt.NDArray[np.uint8]
StainMethod = Literal["macenko", "vahadane", "ruifrok", "reinhard"]
Three = tuple[float, float, float]

VECTORS: Mapping[str, Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]] = {
    "macenko": macenko_vectors,
    "vahadane": vahadane_vectors,
    "ruifrok": fixed_vectors,
    "reinhard": fixed_vectors,
}
LEAST_PIXELS = 2000
"""Stained pixels below which nothing is estimated."""
MOST_BROWN = 0.1
"""Share of brown among the dense pixels above which a slide is taken for immunohistochemistry."""
FARTHEST = 35.0
"""Degrees that an estimated vector may be away from Ruifrok's."""
CLOSEST = 5.0
"""Degrees between the two vectors below which there is only one stain."""
FAINTEST = 0.1
"""Concentration that the strongest hundredth of the pixels must exceed, of either stain."""


@dataclass(frozen=True)
class StainProfile:
    """The stains of a slide.

    method              how the vectors were found: macenko, vahadane, or ruifrok (fixed); with
                        reinhard they are fixed too, and only the LAB statistics are used
    background          grey level of clear glass, per channel
    stains              (2, 3) optical density vectors of unit length: haematoxylin, eosin
    max_concentration   99th percentile of either stain's concentration
    lab_mean, lab_std   of CIELAB over the stained pixels
    pixels              how many were used
    problems            why the profile must not be used to recolour; empty when it is sound
    """

    method: StainMethod
    background: Three
    stains: tuple[Three, Three]
    max_concentration: tuple[float, float]
    lab_mean: Three
    lab_std: Three
    pixels: int
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> StainProfile:
        """From `to_dict`, or JSON of it. Raises InvalidConfig for anything else."""
        names = {field.name for field in fields(cls)}
        try:
            if set(content) - {"problems"} != names - {"problems"}:
                raise ValueError(f"its keys must be {', '.join(sorted(names))}")
            stains = np.array(content["stains"], np.float64).reshape(2, 3)
            numbers: dict[str, Any] = {
                name: tuple(np.array(content[name], np.float64).reshape(size).tolist())
                for name, size in _SIZES.items()
            }
            if content["method"] not in get_args(StainMethod):
                raise ValueError(f"no method {content['method']!r}")
            if not all(np.isfinite(v).all() for v in (stains, *numbers.values())):
                raise ValueError("its numbers must be finite")
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InvalidConfig(f"not a stain profile: {error}") from None
        return cls(
            method=content["method"],
            stains=(tuple(stains[0].tolist()), tuple(stains[1].tolist())),
            pixels=int(content["pixels"]),
            problems=tuple(map(str, content.get("problems", ()))),
            **numbers,
        )

    @classmethod
    def from_file(cls, path: str | PathLike[str]) -> StainProfile:
        """A profile saved as JSON. Raises InvalidConfig naming the file."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, InvalidConfig) as error:
            raise InvalidConfig(f"{path}: {error}") from None


_SIZES = {"background": 3, "max_concentration": 2, "lab_mean": 3, "lab_std": 3}


def reference_profile() -> StainProfile:
    """The profile that ships: the vectors and concentrations of Macenko's own reference image.

    They are the numbers published with the method, which most of its implementations carry. The
    LAB statistics are those of CMU-1-Small-Region recoloured to them.
    """
    text = files("coverslip.kernels").joinpath("stain_reference.json").read_text(encoding="utf-8")
    return StainProfile.from_dict(json.loads(text))


def fit_stains(sample: RGB, method: StainMethod = "macenko") -> StainProfile:
    """The profile of a slide from pixels sampled over its tissue.

    sample   uint8 (..., 3); 100,000 pixels and more make a steady fit
    method   "macenko", "vahadane", "ruifrok" (fixed vectors) or "reinhard"

    Never raises for any picture: what cannot be fitted (blank, one colour, another stain) gives a
    profile with `problems`, whose vectors are Ruifrok's.
    """
    if method not in VECTORS:
        raise ValueError(f"method must be one of {', '.join(VECTORS)}, got {method!r}")
    pixels = np.ascontiguousarray(sample, np.uint8).reshape(-1, 3)
    background = glass_levels(pixels)
    densities = density(pixels, background)
    kept, brown = stained_pixels(pixels, densities)
    used, densities = pixels[kept], densities[kept]
    enough = len(used) >= LEAST_PIXELS and float(densities.std(axis=0).max()) > 1e-3
    vectors = VECTORS[method if enough else "ruifrok"](densities)
    strongest = (
        np.percentile(densities @ np.linalg.pinv(vectors), 99, axis=0) if enough else np.ones(2)
    )
    lab = rgb_to_lab(used) if len(used) else np.zeros((1, 3))
    problems = (
        _problems(vectors, strongest, brown)
        if enough
        else (f"only {len(used)} of {len(pixels)} sampled pixels are stained with H&E",)
    )
    return StainProfile(
        method=method,
        background=_three(background),
        stains=(_three(vectors[0]), _three(vectors[1])),
        max_concentration=(float(strongest[0]), float(strongest[1])),
        lab_mean=_three(lab.mean(axis=0)),
        lab_std=_three(np.maximum(lab.std(axis=0), 1e-3)),
        pixels=len(used),
        problems=problems,
    )


def glass_levels(pixels: RGB) -> npt.NDArray[np.float64]:
    """Per channel the grey level of clear glass in uint8 [N, 3]; 240 where none is to be seen.

    The median of the brightest quarter of what is bright in all channels, for pale tissue is too.
    """
    least = pixels.min(axis=1) if len(pixels) else np.empty(0, np.uint8)
    bright = least[least > 220]
    if len(bright) < max(100, len(pixels) // 2000):
        return np.full(3, 240.0)
    return np.asarray(np.median(pixels[least >= np.percentile(bright, 75)], axis=0), np.float64)


def _problems(
    vectors: npt.NDArray[np.float64], strongest: npt.NDArray[np.float64], brown: float
) -> tuple[str, ...]:
    """Why these are not the stains of an H&E slide."""
    found = []
    if brown > MOST_BROWN:
        found.append(f"{brown:.0%} of the dense pixels are brown: not H&E (immunohistochemistry?)")
    known = stain_matrix(HEMATOXYLIN, EOSIN)[:2]
    between = _degrees(vectors[0], vectors[1])
    if between < CLOSEST:
        found.append(f"the two stains are only {between:.0f} degrees apart: one may be missing")
    for name, vector, usual, strength in zip(
        ("haematoxylin", "eosin"), vectors, known, strongest, strict=True
    ):
        away = _degrees(vector, usual)
        if away > FARTHEST:
            found.append(f"what was found for {name} is {away:.0f} degrees from its usual colour")
        if strength < FAINTEST:
            found.append(f"there is hardly any {name}")
    return tuple(found)


def _degrees(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))


def _three(values: npt.NDArray[np.float64]) -> Three:
    return float(values[0]), float(values[1]), float(values[2])


@dataclass(frozen=True)
class StainNormalizer:
    """Recolours the tiles of one slide as if they were stained and scanned like another's.

    source, target   their profiles

    The source's method decides: for stain vectors, every stain's concentration (least squares, with
    negative ones kept) is scaled by the ratio of the 99th percentiles and laid out along the
    target's vectors, what belongs to neither stain is dropped, and glass becomes the target's
    glass; for Reinhard (2001), each CIELAB coordinate takes the target's mean and deviation. A
    source with `problems` is left as it is.
    """

    source: StainProfile
    target: StainProfile

    @property
    def changes(self) -> bool:
        """False where the source's fit is not to be trusted and pixels come back as they are."""
        return not self.source.problems

    @cached_property
    def density_matrix(self) -> npt.NDArray[np.float64]:
        """(3, 3): the source's densities, as a row, times this are the target's."""
        ratio = np.divide(self.target.max_concentration, self.source.max_concentration)
        inverse = np.linalg.pinv(np.array(self.source.stains))  # (3, 2)
        return np.asarray(inverse @ np.diag(ratio) @ np.array(self.target.stains))

    def __call__(self, tiles: Any, *, threads: int = 1) -> Any:
        """uint8 (..., 3) -> uint8 (..., 3), on the device where `tiles` lives."""
        if not self.changes:
            return tiles
        if self.source.method != "reinhard":
            return transform_density(
                tiles,
                self.density_matrix,
                (0, 0, 0),
                self.source.background,
                self.target.background,
                threads=threads,
            )
        scale = np.divide(self.target.lab_std, self.source.lab_std)
        shift = np.subtract(self.target.lab_mean, scale * np.array(self.source.lab_mean))
        return transform_lab(tiles, scale, shift, threads=threads)


def stain_images(tiles: Any, profile: StainProfile, *, threads: int = 1) -> tuple[Any, Any]:
    """The same tiles with haematoxylin alone and with eosin alone, each uint8 (..., 3).

    What belongs to neither stain is dropped; glass stays as it is.
    """
    stains = np.array(profile.stains)
    inverse = np.linalg.pinv(stains)  # (3, 2)
    glass = profile.background
    alone = [np.outer(inverse[:, i], stains[i]) for i in range(2)]
    first, second = (
        transform_density(tiles, m, (0, 0, 0), glass, glass, threads=threads) for m in alone
    )
    return first, second


def jittered_stains(
    tiles: Any,
    rng: np.random.Generator,
    *,
    strength: float = 0.05,
    profile: StainProfile | None = None,
) -> Any:
    """Every tile with its stains a little stronger or weaker: augmentation for training.

    tiles      uint8 [B, H, W, 3]
    strength   each tile's concentrations c become c * (1 + a) + b, where for every stain a and b
               are drawn evenly from -strength to strength
    profile    whose stains; by default Ruifrok's haematoxylin, eosin and DAB (HED)

    Returns uint8 [B, H, W, 3]. Tellez et al. 2018, "Whole-slide mitosis detection in H&E breast
    histology using PHH3 as a reference to train distilled stain-invariant CNNs", IEEE TMI 37.
    """
    rows = stain_matrix(HEMATOXYLIN, EOSIN) if profile is None else _completed(profile)
    glass = 255.0 if profile is None else profile.background
    inverse = np.linalg.inv(rows)
    out = tiles.copy()
    for i in range(len(tiles)):
        factor, shift = rng.uniform(-strength, strength, (2, 3))
        matrix = inverse @ np.diag(1 + factor) @ rows
        out[i] = transform_density(tiles[i], matrix, shift @ rows, glass, glass)
    return out


def _completed(profile: StainProfile) -> npt.NDArray[np.float64]:
    """(3, 3): the profile's stains and the direction square to them."""
    return stain_matrix(profile.stains[0], profile.stains[1])
