"""The area that two polygons of whole coordinates share, as Clipper 6 measures it.

A line sweeps over the edges of both (Vatti 1992), from vertex to vertex. Where edges cross, the
crossing is rounded to whole units, and what is cut out goes through the rounded points: that moves
the area of nuclei by a percent or so. Whoever wants the nuclei of the package stardist, which
measures overlaps with Clipper, needs these roundings and no better ones. What Clipper does to
pieces afterwards, where they touch themselves or each other, is left out: it changes the area of
one pair of nuclei in 50,000, by a px.

Numba keeps what it compiled by the date of the outermost function's file: whoever changes these
modules has to empty `__pycache__`.
"""

from __future__ import annotations

from coverslip.kernels.clipping_edges import (
    ABOVE,
    BACK_X,
    BACK_Y,
    CROSS_LEFT,
    CROSS_RIGHT,
    CROSS_X,
    CROSS_Y,
    FLAT,
    FRONT_X,
    FRONT_Y,
    LEVELS,
    LINE,
    LOW_X,
    LOW_Y,
    NONE,
    NOW_X,
    NOW_Y,
    ORDER,
    OTHER,
    OWN,
    PIECE,
    START_LEFT,
    START_RIGHT,
    START_Y,
    SWEPT,
    TOP_X,
    TOP_Y,
    Integers,
    State,
    crossing,
    enter_polygon,
    level,
    slope,
    x_at,
)
from coverslip.kernels.clipping_line import (
    begin_piece,
    beside,
    climb,
    end_piece,
    enter,
    extend,
    leave,
    meet,
    parallel,
    partner,
    place,
    put_in_order,
    swap,
    wind,
)
from coverslip.kernels.compiled import compiled


@compiled
def shared_area(a: Integers, b: Integers, s: State) -> float:
    """Of polygons int64 [R, 2] (x, y), both filled wherever they wind.

    s   `clipping_edges.new_state(R)`, to be used again for other pairs

    0 if one of them has no area, or if roundings leave the sweep without a way on.
    """
    s[-1, :] = 0
    if not enter_polygon(a, 0, s) or not enter_polygon(b, len(a), s):
        return 0.0
    _sort_down(LEVELS, LEVELS, s[-1, LEVELS], s)
    _sort_down(START_Y, START_RIGHT, s[-1, START_Y], s)
    y, known = s[0, LEVELS], _start(s[0, LEVELS], 0, s)
    for k in range(1, s[-1, LEVELS]):
        if s[k, LEVELS] < y:
            y = s[k, LEVELS]
            _pass_flat(s)
            if not (_cross(y, s) and _rise(y, s)):
                return 0.0
            known = _start(y, known, s)
    area = 0.0
    for p in range(s[-1, SWEPT]):
        swept = s[p, SWEPT] + s[p, BACK_X] * s[p, FRONT_Y] - s[p, BACK_Y] * s[p, FRONT_X]
        area += abs(swept) / 2
    return area


@compiled
def _sort_down(first: int, last: int, count: int, s: State) -> None:
    """The lists from column `first` to `last`, by the first; equals stay in their order."""
    for i in range(1, count):
        k = i
        while k > 0 and s[k - 1, first] < s[k, first]:
            for column in range(first, last + 1):
                s[k, column], s[k - 1, column] = s[k - 1, column], s[k, column]
            k -= 1


@compiled
def _start(y: int, known: int, s: State) -> int:
    """The chains that start at y enter the line; how many have been met."""
    while known < s[-1, START_Y] and s[known, START_Y] == y:
        left, right = s[known, START_LEFT], s[known, START_RIGHT]
        known += 1
        enter(left, 0, s)
        enter(right, place(left, s) + 1, s)
        wind(left, s)
        s[right, OWN], s[right, OTHER] = s[left, OWN], s[left, OTHER]
        x = s[left, LOW_X]
        if abs(s[left, OWN]) == 1 and s[left, OTHER] != 0:
            begin_piece(left, right, x, y, s)
        if level(right, s):
            _wait(right, s)
        cuts, i = s[left, PIECE] != NONE, beside(left, -1, s)
        if (
            cuts and i != NONE and s[i, NOW_X] == x and s[i, PIECE] != NONE
            and parallel(i, s[i, LOW_X], s[i, LOW_Y], left, x, y, s)
        ):  # fmt: skip
            extend(i, x, y, s)
        i, j = beside(right, -1, s), beside(left, 1, s)
        if (
            i != left and cuts and s[i, PIECE] != NONE
            and parallel(i, s[i, NOW_X], s[i, NOW_Y], right, s[right, LOW_X], y, s)
        ):  # fmt: skip
            extend(i, s[right, LOW_X], y, s)
        while j != right:
            meet(right, j, x, y, s)
            j = beside(j, 1, s)
    return known


@compiled
def _wait(i: int, s: State) -> None:
    s[s[-1, FLAT], FLAT] = i
    s[-1, FLAT] += 1


@compiled
def _pass_flat(s: State) -> None:
    """Pass along the level edges that wait, the last one first."""
    while s[-1, FLAT]:
        s[-1, FLAT] -= 1
        i = s[s[-1, FLAT], FLAT]
        step = 1 if s[i, LOW_X] < s[i, TOP_X] else -1
        above = s[i, ABOVE]
        last = partner(i, s) if above == NONE else NONE
        ended, j = False, beside(i, step, s)
        while j != NONE and not ended:
            x = s[j, NOW_X]
            if (x - s[i, TOP_X]) * step > 0 or (
                x == s[i, TOP_X] and above != NONE and slope(j, s) < slope(above, s)
            ):
                break
            if s[i, PIECE] != NONE:
                extend(i, x, s[j, NOW_Y], s)
            if j == last:
                ended = True
                if s[i, PIECE] != NONE:
                    end_piece(i, j, s[i, TOP_X], s[i, TOP_Y], s)
                leave(j, s)
            else:
                meet(i if step > 0 else j, j if step > 0 else i, x, s[i, NOW_Y], s)
                following = beside(j, step, s)
                swap(i, j, s)
                j = following
        cuts = s[i, PIECE] != NONE
        if cuts:
            extend(i, s[i, TOP_X], s[i, TOP_Y], s)
        if above == NONE:
            leave(i, s)
        else:
            climb(i, s)
            if cuts:
                _touch(above, LOW_X, s)


@compiled
def _touch(i: int, column: int, s: State) -> None:
    """Where an edge begins on a parallel one beside it, the piece of that has a point as well."""
    x, y = s[i, LOW_X], s[i, LOW_Y]
    for step in (-1, 1):
        j = beside(i, step, s)
        if j == NONE or s[j, PIECE] == NONE or s[j, NOW_X] != x or s[j, NOW_Y] != y:
            continue
        if y > s[j, TOP_Y] and parallel(j, s[j, column], s[j, column + 1], i, x, y, s):
            extend(j, x, y, s)
            return


@compiled
def _cross(y: int, s: State) -> bool:
    """Bring edges into the order in which they reach y; False if no exchange of neighbours does."""
    count, found = s[-1, LINE], 0
    for k in range(count):
        i = s[k, LINE]
        s[k, ORDER], s[i, NOW_X] = i, x_at(i, y, s)
    for last in range(count, 1, -1):
        before = found
        for k in range(last - 1):
            i, j = s[k, ORDER], s[k + 1, ORDER]
            if s[i, NOW_X] > s[j, NOW_X]:
                cross_x, cross_y = crossing(i, j, s)
                if cross_y < y:
                    cross_x, cross_y = x_at(i, y, s), y
                s[found, CROSS_LEFT], s[found, CROSS_RIGHT] = i, j
                s[found, CROSS_X], s[found, CROSS_Y] = cross_x, cross_y
                s[k, ORDER], s[k + 1, ORDER] = j, i
                found += 1
        if found == before:
            break
    if found > 1 and not put_in_order(found, s):
        return False
    for k in range(found):
        i, j = s[k, CROSS_LEFT], s[k, CROSS_RIGHT]
        meet(i, j, s[k, CROSS_X], s[k, CROSS_Y], s)
        swap(i, j, s)
    return True


@compiled
def _rise(y: int, s: State) -> bool:
    """Edges that end at y give way to what is above; False if of two that end one cuts alone."""
    k = 0
    while k < s[-1, LINE]:
        i = s[k, LINE]
        above, last = s[i, ABOVE], NONE
        ends = s[i, TOP_Y] == y
        if ends and above == NONE:
            last = partner(i, s)
            if last == NONE or not level(last, s):
                before = s[k - 1, LINE] if k else NONE
                if not _end(i, last, s):
                    return False
                k = place(before, s) + 1 if before != NONE else 0
                continue
        if ends and above != NONE and level(above, s):
            climb(i, s)
            if s[above, PIECE] != NONE:
                extend(above, s[above, LOW_X], s[above, LOW_Y], s)
            _wait(above, s)
        else:
            s[i, NOW_X], s[i, NOW_Y] = x_at(i, y, s), y
        k += 1
    _pass_flat(s)
    for k in range(s[-1, LINE]):
        i = s[k, LINE]
        above = s[i, ABOVE]
        if s[i, TOP_Y] == y and above != NONE:
            if s[i, PIECE] != NONE:
                extend(i, s[i, TOP_X], s[i, TOP_Y], s)
            climb(i, s)
            if s[above, PIECE] != NONE:
                _touch(above, NOW_X, s)
    return True


@compiled
def _end(i: int, last: int, s: State) -> bool:
    """A chain ends, and its partner if that is on the line; what is between them crosses."""
    x, y = s[i, TOP_X], s[i, TOP_Y]
    if last == NONE or place(last, s) == NONE:
        if s[i, PIECE] != NONE:
            extend(i, x, y, s)
        leave(i, s)
        return True
    j = beside(i, 1, s)
    while j != NONE and j != last:
        meet(i, j, x, y, s)
        swap(i, j, s)
        j = beside(i, 1, s)
    cuts = s[i, PIECE] != NONE
    if cuts != (s[last, PIECE] != NONE):
        return False
    if cuts:
        end_piece(i, last, x, y, s)
    leave(i, s)
    leave(last, s)
    return True
