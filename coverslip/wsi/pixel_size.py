"""How large a pixel is: a recorded chain of sources, never a guess.

The first source that speaks wins: the user's table or argument, the vendor's own key, OME-XML, the
TIFF resolution, and (only where the user allows it) the objective's power. What a source says is
checked for plausibility and then taken exactly: 0.265 µm stays 0.265 µm.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

from coverslip.errors import ImplausibleMpp
from coverslip.wsi.slide import PixelSize

PLAUSIBLE = (0.02, 50.0)
"""µm per px at level 0: finer than any light microscope resolves, coarser than any overview."""
FLATBED = 100.0
"""µm per px: TIFF resolutions this coarse (72, 96, 150 dpi...) describe paper, not glass."""
UNITS = {
    "": 1.0,
    "µm": 1.0,
    "um": 1.0,
    "micrometer": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
}
"""Unit, as OME writes it -> µm."""


def pixel_size_of(
    path: str, properties: Mapping[str, str], trust_objective: bool = False
) -> PixelSize | None:
    """What the file's metadata say, or None where they say nothing.

    Raises ImplausibleMpp where the first source to speak says something no scanner makes.
    """
    sources: list[Callable[[Mapping[str, str]], PixelSize | None]] = [
        _vendor_key,
        _ome_xml,
        _tiff_resolution,
    ]
    if trust_objective:
        sources.append(_objective)
    for source in sources:
        if (found := source(properties)) is not None:
            return checked(path, found)
    return None


def checked(path: str, size: PixelSize) -> PixelSize:
    """`size`, if a microscope could have made such pixels. Raises ImplausibleMpp."""
    low, high = PLAUSIBLE
    for value in (size.x, size.y):
        if not (math.isfinite(value) and low <= value <= high):
            raise ImplausibleMpp(
                path,
                f"its pixel size of {value:g} µm ({size.source}) is not a microscope's",
                "give the right one in a table with columns slide,mpp: --mpp-table FILE",
            )
    if abs(size.x / size.y - 1) > 0.2:
        raise ImplausibleMpp(
            path,
            f"its pixels measure {size.x:g} x {size.y:g} µm ({size.source}): far from square",
            "give the right size in a table with columns slide,mpp: --mpp-table FILE",
        )
    return size


def _number(text: str) -> float | None:
    """A number as scanners write it, also with a decimal comma; None for what is none."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return None


def _vendor_key(properties: Mapping[str, str]) -> PixelSize | None:
    if "aperio.MPP" in properties:
        value = _number(properties["aperio.MPP"])
        if value is not None:
            return PixelSize(value, value, "aperio.MPP")
    if "philips.DICOM_PIXEL_SPACING" in properties:  # mm, row spacing (y) first
        spacing = [
            _number(part)
            for part in re.findall(r"[\d.eE+-]+", properties["philips.DICOM_PIXEL_SPACING"])
        ]
        if len(spacing) == 2 and spacing[0] is not None and spacing[1] is not None:
            return PixelSize(spacing[1] * 1e3, spacing[0] * 1e3, "philips.DICOM_PIXEL_SPACING")
    x, y = properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
    if x is not None and y is not None:
        across, down = _number(x), _number(y)
        if across is not None and down is not None:
            return PixelSize(across, down, "openslide.mpp-x")
    return None


def _ome_xml(properties: Mapping[str, str]) -> PixelSize | None:
    description = properties.get("tiff.ImageDescription", "")
    if "PhysicalSizeX" not in description[:200_000]:
        return None
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(description)
    except (ParseError, DefusedXmlException, ValueError):
        return None
    for element in root.iter():
        if element.tag.rpartition("}")[2] == "Pixels":
            x, y = (
                _number(element.get("PhysicalSizeX", "")),
                _number(element.get("PhysicalSizeY", "")),
            )
            unit_x = UNITS.get(element.get("PhysicalSizeXUnit", "µm"))
            unit_y = UNITS.get(element.get("PhysicalSizeYUnit", "µm"))
            if x is None or y is None or unit_x is None or unit_y is None:
                return None
            return PixelSize(x * unit_x, y * unit_y, "OME-XML")
    return None


def _tiff_resolution(properties: Mapping[str, str]) -> PixelSize | None:
    """Pixels per inch or centimetre; figures that describe printed paper say nothing."""
    unit = {"inch": 25_400.0, "centimeter": 10_000.0}.get(properties.get("tiff.ResolutionUnit", ""))
    x = _number(properties.get("tiff.XResolution", ""))
    y = _number(properties.get("tiff.YResolution", ""))
    if unit is None or x is None or y is None or not x > 0 or not y > 0:
        return None
    if unit / x >= FLATBED or round(x, 3) in (72, 96, 100, 150, 200, 300, 600, 1200, 2400):
        return None
    return PixelSize(unit / x, unit / y, "TIFF resolution")


def _objective(properties: Mapping[str, str]) -> PixelSize | None:
    power = _number(properties.get("openslide.objective-power", ""))
    if power is None or not power > 0:
        return None
    return PixelSize(10 / power, 10 / power, f"objective power {power:g}")
