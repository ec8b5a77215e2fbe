"""What was made before, as long as there is room for it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by key; when they measure more than `limit` bytes, those not asked for longest go.

    A value larger than the whole limit is not kept. Belongs to one thread: the event loop's.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.size = limit, 0
        self._held: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> Value | None:
        """None where it is not, or no longer, there."""
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Keep a value of `size` bytes."""
        self.drop(key)
        if size > self.limit:
            return
        self._held[key] = (value, size)
        self.size += size
        while self.size > self.limit:
            _, (_, gone) = self._held.popitem(last=False)
            self.size -= gone

    def drop(self, key: Hashable) -> None:
        """Let a value go, if it is there."""
        if (held := self._held.pop(key, None)) is not None:
            self.size -= held[1]
