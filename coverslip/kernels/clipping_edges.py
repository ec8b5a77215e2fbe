"""Two polygons as chains of edges that rise from a lowest vertex to a highest.

A line sweeps over them from the largest y to the smallest, so "low" is a large y and "above" a
smaller one. Which chain a level edge goes with is as in Clipper 6; see `clipping`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from coverslip.kernels.compiled import compiled

Integers = npt.NDArray[np.int64]
State = npt.NDArray[np.int64]
"""[rows, COLUMNS]: row i has what is known of edge i. Other columns are lists, whose lengths are in
the last row. One array, for with many the compiler takes minutes."""

X, Y, LOW_X, LOW_Y, TOP_X, TOP_Y, NOW_X, NOW_Y, POLYGON, NEXT, LAST, ABOVE = range(12)
"""Of an edge: its vertex; its ends; where the line meets it; whose it is; its neighbours around the
polygon; what follows it upwards, or NONE."""
SIDE, TURN, OWN, OTHER, PIECE = range(12, 17)
"""Of an edge on the line: the side of its piece that it is; +1 or -1, as its polygon turns; how
often its own and the other polygon wind around what is beside it; its piece, or NONE."""
LEVELS, START_Y, START_LEFT, START_RIGHT = range(17, 21)
"""Lists: y of every vertex; where two chains start, and with which edges."""
LINE, FLAT, ORDER, CROSS_LEFT, CROSS_RIGHT, CROSS_X, CROSS_Y = range(21, 28)
"""Lists: edges on the line, from the left; level ones that wait; room to sort; crossings."""
FRONT_X, FRONT_Y, BACK_X, BACK_Y, SWEPT = range(28, 33)
"""Lists: of every piece its open ends and twice the area swept from one to the other."""
COLUMNS = 33

NONE, LEFT, RIGHT = -1, 0, 1
LEVEL = -1e40
"""The slope of a level edge: left of all others."""


def new_state(rays: int) -> State:
    """Room for two polygons of so many vertices, whose edges may all cross."""
    return np.zeros((4 * rays * rays + 8 * rays + 8, COLUMNS), np.int64)


@compiled
def level(i: int, s: State) -> bool:
    return bool(s[i, LOW_Y] == s[i, TOP_Y])


@compiled
def slope(i: int, s: State) -> float:
    """x over y."""
    rise = s[i, TOP_Y] - s[i, LOW_Y]
    return float((s[i, TOP_X] - s[i, LOW_X]) / rise) if rise else LEVEL


@compiled
def rounded(value: float) -> int:
    """Halves away from 0."""
    return int(value - 0.5) if value < 0 else int(value + 0.5)


@compiled
def x_at(i: int, y: int, s: State) -> int:
    if y == s[i, TOP_Y]:
        return int(s[i, TOP_X])
    return int(s[i, LOW_X] + rounded(slope(i, s) * (y - s[i, LOW_Y])))


@compiled
def crossing(i: int, j: int, s: State) -> tuple[int, int]:
    """(x, y) of two edges, not above the end of either and not below the line."""
    a, b = slope(i, s), slope(j, s)
    if a == b:
        return x_at(i, s[i, NOW_Y], s), int(s[i, NOW_Y])
    if a == 0 or b == 0:
        upright, other, slant = (i, j, b) if a == 0 else (j, i, a)
        x = s[upright, LOW_X]
        y = rounded(x / slant + (s[other, LOW_Y] - s[other, LOW_X] / slant))
    else:
        at_a = s[i, LOW_X] - s[i, LOW_Y] * a
        at_b = s[j, LOW_X] - s[j, LOW_Y] * b
        height = (at_b - at_a) / (a - b)
        y = rounded(height)
        x = rounded(a * height + at_a) if abs(a) < abs(b) else rounded(b * height + at_b)
    top = max(s[i, TOP_Y], s[j, TOP_Y])
    if y < top:
        x, y = x_at(i if abs(a) < abs(b) else j, top, s), top
    if y > s[i, NOW_Y]:
        y = s[i, NOW_Y]
        x = x_at(j if abs(a) > abs(b) else i, y, s)
    return int(x), int(y)


@compiled
def enter_polygon(polygon: Integers, at: int, s: State) -> bool:
    """Its edges, into rows from `at` on, and where chains start; False if it has no area.

    polygon   [R, 2] (x, y); vertices between two that are on one line with them are left out
    """
    count = len(polygon)
    while (
        count > 1
        and polygon[count - 1, 0] == polygon[0, 0]
        and (polygon[count - 1, 1] == polygon[0, 1])
    ):
        count -= 1
    for i in range(at, at + count):
        s[i, X], s[i, Y] = polygon[i - at, 0], polygon[i - at, 1]
        s[i, NEXT], s[i, LAST] = i + 1, i - 1
    s[at, LAST], s[at + count - 1, NEXT] = at + count - 1, at
    first = _needed(at, s)
    if first == NONE:
        return False
    i = first
    while True:
        j = s[i, NEXT]
        low, top = (i, j) if s[i, Y] >= s[j, Y] else (j, i)
        s[i, LOW_X], s[i, LOW_Y], s[i, TOP_X], s[i, TOP_Y] = (
            s[low, X],
            s[low, Y],
            s[top, X],
            s[top, Y],
        )
        s[i, POLYGON], s[i, ABOVE], s[i, PIECE] = at, NONE, NONE
        s[s[-1, LEVELS], LEVELS] = s[i, Y]
        s[-1, LEVELS] += 1
        i = j
        if i == first:
            break
    _find_starts(first, s)
    return True


@compiled
def _needed(first: int, s: State) -> int:
    """Take needless vertices out of the ring; where it begins now, or NONE if nothing is left."""
    i = stop = first
    while True:
        after, before = s[i, NEXT], s[i, LAST]
        same = s[i, X] == s[after, X] and s[i, Y] == s[after, Y]
        if after == i or (after == before and not same):
            break
        ax, ay = s[before, X] - s[i, X], s[before, Y] - s[i, Y]
        bx, by = s[i, X] - s[after, X], s[i, Y] - s[after, Y]
        if same or ay * bx == ax * by:
            first = after if i == first else first
            s[before, NEXT], s[after, LAST] = after, before
            i = stop = after if same else before
            continue
        i = after
        if i == stop:
            break
    return NONE if s[i, NEXT] == s[i, LAST] else int(first)


@compiled
def _find_starts(i: int, s: State) -> None:
    seen = NONE
    while True:
        i = _next_start(i, s)
        if i == seen:
            return
        seen = i if seen == NONE else seen
        before = s[i, LAST]
        forward = slope(i, s) >= slope(before, s)
        left, right = (i, before) if forward else (before, i)
        s[left, TURN] = -1 if s[left, NEXT] == right else 1
        s[right, TURN] = -s[left, TURN]
        after_left = _chain(left, forward, s)
        after_right = _chain(right, not forward, s)
        k = s[-1, START_Y]
        s[k, START_Y], s[k, START_LEFT], s[k, START_RIGHT] = s[left, LOW_Y], left, right
        s[-1, START_Y] += 1
        i = after_left if forward else after_right


@compiled
def _next_start(i: int, s: State) -> int:
    """The edge after the next lowest vertex; of a level bottom, the one on its left."""
    while True:
        before = s[i, LAST]
        if (
            s[i, LOW_X] != s[before, LOW_X] or s[i, LOW_Y] != s[before, LOW_Y]
            or (s[i, X] == s[i, TOP_X] and s[i, Y] == s[i, TOP_Y])
        ):  # fmt: skip
            i = s[i, NEXT]
            continue
        if not level(i, s) and not level(before, s):
            return i
        flat = before if level(before, s) else i
        i = s[flat, NEXT]
        if s[i, TOP_Y] != s[flat, LOW_Y]:
            return int(flat if s[s[flat, LAST], LOW_X] < s[i, LOW_X] else i)


@compiled
def _chain(first: int, forward: bool, s: State) -> int:
    """Link rising edges from `first` on, around the polygon; the edge behind them."""
    step, back = (NEXT, LAST) if forward else (LAST, NEXT)
    if level(first, s) and s[s[first, back], LOW_X] != s[first, LOW_X]:
        s[first, LOW_X], s[first, TOP_X] = s[first, TOP_X], s[first, LOW_X]
    end = first
    while s[end, TOP_Y] == s[s[end, step], LOW_Y]:
        end = s[end, step]
    if level(end, s):  # it goes with the edge at its left end
        a, b = s[s[end, back], TOP_X], s[s[end, step], TOP_X]
        if a > b or (a == b and not forward):
            end = s[end, back]
    i = first
    while True:
        if i != first and level(i, s) and s[i, LOW_X] != s[s[i, back], TOP_X]:
            s[i, LOW_X], s[i, TOP_X] = s[i, TOP_X], s[i, LOW_X]
        if i == end:
            return int(s[end, step])
        s[i, ABOVE] = s[i, step]
        i = s[i, step]
