"""The colours that classes have in pictures and in QuPath."""

from __future__ import annotations

from collections.abc import Sequence

from coverslip.export.qupath_objects import PALETTE, Color

COLOURS: Sequence[Color] = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189), (140, 86, 75),
    (227, 119, 194), (188, 189, 34), (23, 190, 207), (255, 187, 120), (152, 223, 138),
    (197, 176, 213),
)  # fmt: skip
"""For classes that the palette does not know, by turns; Tableau's."""


def class_colours(classes: Sequence[str]) -> dict[str, Color]:
    """A colour a class: QuPath's own where it has one, else one that is told from the others."""
    free = [name for name in classes if name not in PALETTE]
    turns = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(free)}
    return {name: PALETTE.get(name) or turns[name] for name in classes}
