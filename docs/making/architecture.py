"""The picture of the rooms, drawn from what their modules import.

    python docs/making/architecture.py

Boxes are rooms, with how many modules they hold; a line is as thick as imports are many. Rooms
stand on the floors that tests/test_house.py holds them to. Lines to the errors are left out: all
rooms have one.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "coverslip"
PICTURE = REPOSITORY / "docs" / "architecture.svg"
FLOORS = [
    [("cli", "parse, call, show")],
    [("cohort", "many slides at once"), ("viewer", "pages in the browser")],
    [("engine", "stages, resume, report: where the rooms meet")],
    [
        ("tiling", "where tiles are, store"),
        ("encoders", "tiles → vectors"),
        ("heads", "tiles → nuclei, maps"),
        ("mil", "bags → answers"),
        ("export", "outward formats"),
    ],
    [("wsi", "what a slide is"), ("kernels", "arithmetic on pixels")],
    [("errors", "all that is raised on purpose; every room may")],
]
WIDTH, STEP, BOX = 980, 118, 62
COLOURS = ["#4a2c6d", "#7a3f8f", "#b0356f", "#2f6f8f", "#3c7d5a", "#6b6b6b"]


def imports() -> tuple[Counter[tuple[str, str]], Counter[str]]:
    """((room, room it imports) -> import statements, room -> modules)."""
    rooms = {room for floor in FLOORS for room, _ in floor}
    edges: Counter[tuple[str, str]] = Counter()
    modules: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in rooms:
            continue
        modules[room] += 1
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("coverslip."):
                other = str(node.module).split(".")[1]
                if other in rooms and other not in (room, "errors"):
                    edges[room, other] += 1
    return edges, modules


def places() -> dict[str, tuple[float, float, float, int]]:
    """Room -> (left, top, width, floor) of its box."""
    found = {}
    for floor, rooms in enumerate(FLOORS):
        gap = 26
        widest = WIDTH - 40 if floor == len(FLOORS) - 1 else 360.0
        width = min(widest, (WIDTH - 40 - gap * (len(rooms) - 1)) / len(rooms))
        left = (WIDTH - width * len(rooms) - gap * (len(rooms) - 1)) / 2
        for number, (room, _) in enumerate(rooms):
            found[room] = (left + number * (width + gap), 24 + floor * STEP, width, floor)
    return found


def picture() -> str:
    """The SVG."""
    edges, modules = imports()
    where = places()
    height = 24 + len(FLOORS) * STEP - (STEP - BOX) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" role="img">',
        "<title>The rooms of Coverslip; each imports only rooms below it</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="12" fill="#ffffff"/>',
    ]
    for (room, other), count in sorted(edges.items()):
        parts.append(_line(where[room], where[other], count))
    for floor in FLOORS:
        for room, meaning in floor:
            parts += _box(room, meaning, modules[room], where[room])
    return "\n".join([*parts, "</svg>", ""])


def _line(
    above: tuple[float, float, float, int], below: tuple[float, float, float, int], count: int
) -> str:
    """From the bottom of a box to the top of one below, leaning to where it goes."""
    lean = (below[0] + below[2] / 2 - above[0] - above[2] / 2) / WIDTH
    x0 = above[0] + above[2] * (0.5 + 0.7 * lean)
    x1 = below[0] + below[2] * (0.5 - 0.7 * lean)
    y0, y1 = above[1] + BOX, below[1]
    middle = (y0 + y1) / 2
    return (
        f'<path d="M{x0:.1f} {y0} C{x0:.1f} {middle:.0f} {x1:.1f} {middle:.0f} {x1:.1f} {y1}" '
        f'fill="none" stroke="{COLOURS[above[3]]}" stroke-opacity="0.35" '
        f'stroke-width="{1 + min(7.0, count**0.5 * 0.7):.1f}"/>'
    )


def _box(
    room: str, meaning: str, modules: int, place: tuple[float, float, float, int]
) -> list[str]:
    left, top, width, floor = place
    middle = left + width / 2
    count = f"{modules} modules" if modules > 1 else "1 module"
    return [
        f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{BOX}" rx="8" '
        f'fill="{COLOURS[floor]}"/>',
        f'<text x="{middle:.1f}" y="{top + 23}" fill="#ffffff" font-size="17" '
        f'font-weight="600" text-anchor="middle">{room}</text>',
        f'<text x="{middle:.1f}" y="{top + 40}" fill="#ffffff" font-size="12.5" '
        f'text-anchor="middle">{meaning}</text>',
        f'<text x="{middle:.1f}" y="{top + 55}" fill="#ffffff" fill-opacity="0.75" '
        f'font-size="11" text-anchor="middle">{count}</text>',
    ]


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
