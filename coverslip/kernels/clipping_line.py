"""Edges as the sweeping line meets them, from the left, and the pieces that they cut out.

Only areas are kept: of a piece its two open ends, and twice the area swept between them.
"""

from __future__ import annotations

from coverslip.kernels.clipping_edges import (
    ABOVE,
    BACK_X,
    BACK_Y,
    CROSS_LEFT,
    CROSS_RIGHT,
    CROSS_Y,
    FRONT_X,
    FRONT_Y,
    LAST,
    LEFT,
    LINE,
    LOW_X,
    LOW_Y,
    NEXT,
    NONE,
    NOW_X,
    NOW_Y,
    ORDER,
    OTHER,
    OWN,
    PIECE,
    POLYGON,
    RIGHT,
    SIDE,
    SWEPT,
    TOP_X,
    TOP_Y,
    TURN,
    State,
    level,
    slope,
    x_at,
)
from coverslip.kernels.compiled import compiled


@compiled
def place(i: int, s: State) -> int:
    """Where on the line an edge is, or NONE."""
    for k in range(s[-1, LINE]):
        if s[k, LINE] == i:
            return k
    return NONE


@compiled
def beside(i: int, step: int, s: State) -> int:
    """The edge to the left (-1) or right (1) of an edge, or NONE."""
    k = place(i, s) + step
    return int(s[k, LINE]) if 0 <= k < s[-1, LINE] else NONE


@compiled
def swap(i: int, j: int, s: State) -> None:
    a, b = place(i, s), place(j, s)
    if a != NONE and b != NONE:
        s[a, LINE], s[b, LINE] = j, i


@compiled
def leave(i: int, s: State) -> None:
    k = place(i, s)
    if k != NONE:
        s[-1, LINE] -= 1
        for m in range(k, s[-1, LINE]):
            s[m, LINE] = s[m + 1, LINE]


@compiled
def enter(i: int, k: int, s: State) -> None:
    """From place k on, before the first edge that is right of it."""
    s[i, NOW_X], s[i, NOW_Y] = s[i, LOW_X], s[i, LOW_Y]
    while k < s[-1, LINE]:
        other = s[k, LINE]
        if s[i, NOW_X] != s[other, NOW_X]:
            before = s[i, NOW_X] < s[other, NOW_X]
        elif s[i, TOP_Y] > s[other, TOP_Y]:
            before = s[i, TOP_X] < x_at(other, s[i, TOP_Y], s)
        else:
            before = s[other, TOP_X] > x_at(i, s[other, TOP_Y], s)
        if before:
            break
        k += 1
    for m in range(s[-1, LINE], k, -1):
        s[m, LINE] = s[m - 1, LINE]
    s[k, LINE] = i
    s[-1, LINE] += 1


@compiled
def climb(i: int, s: State) -> int:
    """What follows an edge upwards, in its place."""
    above = s[i, ABOVE]
    for column in range(SIDE, PIECE + 1):
        s[above, column] = s[i, column]
    s[above, NOW_X], s[above, NOW_Y] = s[above, LOW_X], s[above, LOW_Y]
    s[place(i, s), LINE] = above
    return int(above)


@compiled
def partner(i: int, s: State) -> int:
    """The edge that ends where this one does, at the top of both chains, or NONE."""
    for step in (NEXT, LAST):
        j = s[i, step]
        if s[j, TOP_X] == s[i, TOP_X] and s[j, TOP_Y] == s[i, TOP_Y] and s[j, ABOVE] == NONE:
            return int(j)
    return NONE


@compiled
def wind(i: int, s: State) -> None:
    """Count how often the polygons wind around what is right of an edge that entered."""
    here = place(i, s)
    k = here - 1
    while k >= 0 and s[s[k, LINE], POLYGON] != s[i, POLYGON]:
        k -= 1
    turn = s[i, TURN]
    s[i, OWN], s[i, OTHER] = turn, 0
    if k >= 0:
        last = s[k, LINE]
        own = s[last, OWN]
        if own * s[last, TURN] >= 0 or abs(own) > 1:
            s[i, OWN] = own if s[last, TURN] * turn < 0 else own + turn
        s[i, OTHER] = s[last, OTHER]
    for m in range(k + 1, here):
        s[i, OTHER] += s[s[m, LINE], TURN]


@compiled
def meet(i: int, j: int, x: int, y: int, s: State) -> None:
    """Edge i crosses to the right of j at (x, y)."""
    alike = s[i, POLYGON] == s[j, POLYGON]
    if alike:
        own = s[i, OWN] + s[j, TURN]
        s[i, OWN] = own if own else -s[i, OWN]
        own = s[j, OWN] - s[i, TURN]
        s[j, OWN] = own if own else -s[j, OWN]
    else:
        s[i, OTHER] += s[j, TURN]
        s[j, OTHER] -= s[i, TURN]
    rim_i, rim_j = abs(s[i, OWN]) <= 1, abs(s[j, OWN]) <= 1
    cuts_i, cuts_j = s[i, PIECE] != NONE, s[j, PIECE] != NONE
    begins = False
    if cuts_i and cuts_j and not (alike and rim_i and rim_j):
        end_piece(i, j, x, y, s)
    elif cuts_i or cuts_j:
        if (rim_i or not cuts_j) and (rim_j or not cuts_i):
            for k in (i, j):
                if s[k, PIECE] != NONE:
                    extend(k, x, y, s)
            s[i, SIDE], s[j, SIDE] = s[j, SIDE], s[i, SIDE]
            s[i, PIECE], s[j, PIECE] = s[j, PIECE], s[i, PIECE]
    elif rim_i and rim_j:
        if not alike:
            begins = True
        elif s[i, OWN] != 0 and s[j, OWN] != 0:
            begins = s[i, OTHER] != 0 and s[j, OTHER] != 0
        else:
            s[i, SIDE], s[j, SIDE] = s[j, SIDE], s[i, SIDE]
    if begins:
        begin_piece(i, j, x, y, s)


@compiled
def put_in_order(found: int, s: State) -> bool:
    """Crossings from the lowest up, each of two edges that are neighbours by then."""
    count = s[-1, LINE]
    for k in range(count):
        s[k, ORDER] = s[k, LINE]
    for i in range(1, found):
        k = i
        while k > 0 and s[k - 1, CROSS_Y] < s[k, CROSS_Y]:
            _exchange(k, k - 1, s)
            k -= 1
    for k in range(found):
        for m in range(k, found):
            i, j = s[m, CROSS_LEFT], s[m, CROSS_RIGHT]
            at = 0
            while s[at, ORDER] != i and s[at, ORDER] != j:
                at += 1
            if at + 1 < count and (s[at + 1, ORDER] == i or s[at + 1, ORDER] == j):
                break
        else:
            return False
        _exchange(k, m, s)
        s[at, ORDER], s[at + 1, ORDER] = s[at + 1, ORDER], s[at, ORDER]
    return True


@compiled
def _exchange(k: int, m: int, s: State) -> None:
    for column in range(CROSS_LEFT, CROSS_Y + 1):
        s[k, column], s[m, column] = s[m, column], s[k, column]


@compiled
def extend(i: int, x: int, y: int, s: State) -> None:
    """The piece of an edge reaches (x, y)."""
    p = s[i, PIECE]
    if s[i, SIDE] == LEFT:
        s[p, SWEPT] += x * s[p, FRONT_Y] - y * s[p, FRONT_X]
        s[p, FRONT_X], s[p, FRONT_Y] = x, y
    else:
        s[p, SWEPT] += s[p, BACK_X] * y - s[p, BACK_Y] * x
        s[p, BACK_X], s[p, BACK_Y] = x, y


@compiled
def begin_piece(i: int, j: int, x: int, y: int, s: State) -> None:
    """Between two edges, from (x, y) upwards."""
    left, right = (i, j) if level(j, s) or slope(i, s) > slope(j, s) else (j, i)
    p = s[-1, SWEPT]
    s[-1, SWEPT] += 1
    s[p, FRONT_X], s[p, FRONT_Y], s[p, BACK_X], s[p, BACK_Y], s[p, SWEPT] = x, y, x, y, 0
    s[left, PIECE], s[right, PIECE], s[left, SIDE], s[right, SIDE] = p, p, LEFT, RIGHT
    other = beside(left, -1, s)
    if other == right:
        other = beside(right, -1, s)
    if other != NONE and s[other, PIECE] != NONE and s[other, TOP_Y] < y and s[left, TOP_Y] < y:
        at = x_at(left, y, s)
        if x_at(other, y, s) == at and parallel(other, at, y, left, at, y, s):
            extend(other, x, y, s)


@compiled
def parallel(i: int, ix: int, iy: int, j: int, jx: int, jy: int, s: State) -> bool:
    """Whether the ways from (ix, iy) to the top of edge i and from (jx, jy) to that of j are."""
    return bool((iy - s[i, TOP_Y]) * (jx - s[j, TOP_X]) == (ix - s[i, TOP_X]) * (jy - s[j, TOP_Y]))


@compiled
def end_piece(i: int, j: int, x: int, y: int, s: State) -> None:
    """At (x, y), where two edges meet; if they bound two pieces, these become one."""
    extend(i, x, y, s)
    if s[i, PIECE] != s[j, PIECE]:
        if s[i, PIECE] > s[j, PIECE]:
            i, j = j, i
        kept, gone = s[i, PIECE], s[j, PIECE]
        _append(kept, gone, s[i, SIDE], s[j, SIDE], s)
        s[i, PIECE] = s[j, PIECE] = NONE
        for k in range(s[-1, LINE]):
            m = s[k, LINE]
            if s[m, PIECE] == gone:
                s[m, PIECE], s[m, SIDE] = kept, s[i, SIDE]
                break
    s[i, PIECE] = s[j, PIECE] = NONE


@compiled
def _append(p: int, q: int, side: int, q_side: int, s: State) -> None:
    """Piece q joined to that side of p by that side of its own; nothing is left of it."""
    fx, fy, bx, by, swept = s[q, FRONT_X], s[q, FRONT_Y], s[q, BACK_X], s[q, BACK_Y], s[q, SWEPT]
    for column in range(FRONT_X, SWEPT + 1):
        s[q, column] = 0
    if side == q_side:  # backwards
        fx, fy, bx, by, swept = bx, by, fx, fy, -swept
    if side == LEFT:
        s[p, SWEPT] += swept + bx * s[p, FRONT_Y] - by * s[p, FRONT_X]
        s[p, FRONT_X], s[p, FRONT_Y] = fx, fy
    else:
        s[p, SWEPT] += swept + s[p, BACK_X] * fy - s[p, BACK_Y] * fx
        s[p, BACK_X], s[p, BACK_Y] = bx, by
