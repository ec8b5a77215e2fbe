"""Memory for batches, used again as soon as their consumers let go of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Sheets:
    """Lends arrays of one shape, uint8.

    What is lent belongs to the borrower for as long as the array or any view of it lives; then it
    may be lent again. Fresh memory would be zeroed by the kernel page by page, at a twelfth of the
    time that decoding takes.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._spare: list[npt.NDArray[np.uint8]] = []

    def lend(self) -> npt.NDArray[np.uint8]:
        """An array of unknown content."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(self._shape, np.uint8)
        return np.asarray(_Sheet(memory, self._spare))


class _Sheet:
    """What a lent array keeps alive; it hands the memory back when it dies."""

    def __init__(self, memory: npt.NDArray[np.uint8], spare: list[npt.NDArray[np.uint8]]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._spare = memory, spare

    def __del__(self) -> None:
        self._spare.append(self._memory)
