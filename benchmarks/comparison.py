"""Ways to do one thing, timed in turn, and the table of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Work = Callable[[], object]


@dataclass
class Row:
    """One comparison: what is done, by whom, in seconds."""

    what: str
    unit: str
    amount: float
    ways: dict[str, Work]
    turns: int | None = None  # where it wants other than the usual number
    shares: dict[str, float] = field(default_factory=dict)  # of a way that does only a part
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, repeat: int) -> None:
        """Every way once untimed, then all ways in turn, each time from another one on."""
        ways = list(self.ways.items())
        for turn in range((self.turns or repeat) + 1):
            first = turn % len(ways)
            for name, work in ways[first:] + ways[:first]:
                started = time.perf_counter()
                work()
                if turn:
                    elapsed = (time.perf_counter() - started) / self.shares.get(name, 1)
                    self.seconds.setdefault(name, []).append(elapsed)

    def lines(self) -> Iterator[str]:
        """Table lines; the first way is the one the others are compared with, turn by turn."""
        first = next(iter(self.ways))
        peer = self.seconds[first]
        for name in self.ways:
            taken = self.seconds[name]
            median = statistics.median(taken)
            low, high = self.amount / max(taken), self.amount / min(taken)
            what = self.what if name == first else ""
            ratios = [theirs / ours for theirs, ours in zip(peer, taken, strict=True)]
            ratio = "" if name == first else f"{statistics.median(ratios):.2f}x"
            speed = f"{self.amount / median:,.0f} ({low:,.0f}-{high:,.0f}) {self.unit}"
            yield f"| {what} | {name} | {speed} | {ratio} |"
