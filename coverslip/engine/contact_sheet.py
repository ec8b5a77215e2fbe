"""Pictures of tiles side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coverslip.durable import whole_file
from coverslip.wsi.slide import RGB

SIDE, GAP, WORDS = 160, 8, 18
"""Px of a tile, between tiles, and of the line below each."""
ACROSS = 6


def draw_contact_sheet(path: Path, tiles: Sequence[tuple[RGB, str]], title: str) -> None:
    """A PNG of tiles, each with a line of words below it, `ACROSS` in a row. Whole or not there."""
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(tiles) // ACROSS)
    across = min(ACROSS, max(1, len(tiles)))
    size = (GAP + across * (SIDE + GAP), 2 * GAP + WORDS + rows * (SIDE + WORDS + GAP))
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    draw.text((GAP, GAP), title, fill="black", font=font)
    for number, (pixels, words) in enumerate(tiles):
        row, column = divmod(number, ACROSS)
        x, y = GAP + column * (SIDE + GAP), 2 * GAP + WORDS + row * (SIDE + WORDS + GAP)
        sheet.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX), (x, y))
        draw.text((x, y + SIDE + 2), words, fill="black", font=font)
    with whole_file(path) as aside:
        sheet.save(aside, format="png")
