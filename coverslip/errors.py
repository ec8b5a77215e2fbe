"""Everything the engine raises on purpose.

CoverslipError
├── SlideError               something about one slide file; carries .path
│   ├── UnsupportedSlide         no reader recognises the file
│   │   └── NotRgb                   its pixels are of a kind that would be shown wrongly
│   ├── BrokenSlide              a reader recognises the file, but its structure is damaged
│   ├── MissingMpp               the file does not say how large a pixel is
│   ├── ImplausibleMpp           it says so, but no microscope makes such pixels
│   ├── UnreadableTile           one native tile could not be decoded; carries its position
│   └── ReaderTimeout            a read took so long that it was killed
├── StoreError               something about one slide's store on disk; carries .path
│   ├── StoreVersion             written by a schema this engine does not know
│   ├── StoreBusy                another process holds the store's lock
│   └── IncompleteStage          the stage asked for is absent or not complete
├── RecipeMismatch           an encoder differs from the one that made what the store holds
├── InvalidGeoJSON           a GeoJSON file cannot be understood; carries .path
├── InvalidConfig            a configuration file or flag combination that means nothing
├── MissingPackage           an optional package is needed; says how to get it
├── NotEnoughMemory          a device's memory does not hold what has to be in it
├── MissingWeights           a model's weights are not here; says which file to put where
└── UnknownName              a name not in a registry; lists the near misses
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from os import PathLike, fspath


class CoverslipError(Exception):
    """Base of every deliberate exception: what happened, to which file, what to do next."""


class SlideError(CoverslipError):
    """Something about one slide file, named in `path`; `hint` says what to do next."""

    def __init__(self, path: str | PathLike[str], problem: str, hint: str = "") -> None:
        self.path = fspath(path)
        self.problem = problem
        self.hint = hint
        super().__init__(f"{printable(self.path)}: {problem}" + (f"\n  {hint}" if hint else ""))


class UnsupportedSlide(SlideError):
    """No reader recognises the file."""


class NotRgb(UnsupportedSlide):
    """Pixels that another reader would take, and show in wrong colours."""


class BrokenSlide(SlideError):
    """A reader recognises the file, but its structure is damaged or absurd."""


class MissingMpp(SlideError):
    """The file does not say how many microns a pixel measures."""

    def __init__(self, path: str | PathLike[str], looked_at: str = "") -> None:
        seen = f" ({looked_at})" if looked_at else ""
        super().__init__(
            path,
            f"no microns per pixel (mpp) in its metadata{seen}",
            "pass it if you know it: --assume-mpp 0.25 (Python: open_slide(path, mpp=0.25)), "
            "or list it in a table with columns slide,mpp: --mpp-table FILE",
        )


class ImplausibleMpp(SlideError):
    """The recorded pixel size is zero, negative, not a number, or out of any scanner's range."""


class UnreadableTile(SlideError):
    """One native tile could not be read or decoded.

    level, column, row   the tile's place in its level's native grid
    """

    def __init__(
        self, path: str | PathLike[str], level: int, column: int, row: int, problem: str
    ) -> None:
        self.level, self.column, self.row = level, column, row
        super().__init__(
            path,
            f"native tile at level {level}, column {column}, row {row} cannot be decoded: "
            f"{problem}",
            "--on-bad-tile blank goes on without it and records its position",
        )

    def __reduce__(self) -> tuple[object, ...]:
        cause = self.problem.partition("cannot be decoded: ")[2]
        return type(self), (self.path, self.level, self.column, self.row, cause)


class ReaderTimeout(SlideError):
    """A read took longer than the watchdog allows, and its process was killed."""


class StoreError(CoverslipError):
    """Something about one slide's store on disk, named in `path`."""

    def __init__(self, path: str | PathLike[str], problem: str, hint: str = "") -> None:
        self.path = fspath(path)
        self.problem = problem
        self.hint = hint
        super().__init__(f"{printable(self.path)}: {problem}" + (f"\n  {hint}" if hint else ""))


class StoreVersion(StoreError):
    """Written by a version of the schema this engine does not know."""


class StoreBusy(StoreError):
    """Another living process holds the store's lock."""


class IncompleteStage(StoreError):
    """The stage asked for is absent or was never completed."""


class RecipeMismatch(CoverslipError):
    """An encoder differs from the one that made the features a store already holds."""


class InvalidGeoJSON(CoverslipError):
    """A GeoJSON file that cannot be understood, named in `path`."""

    def __init__(self, path: str | PathLike[str], problem: str) -> None:
        self.path = fspath(path)
        super().__init__(f"{printable(self.path)}: {problem}")


class InvalidConfig(CoverslipError):
    """A configuration file or a combination of flags that means nothing."""


class MissingPackage(CoverslipError):
    """An optional package is needed; the message says how to install it."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(f"{what} needs {package}\n  pip install 'coverslip[{extra}]'")


class NotEnoughMemory(CoverslipError):
    """A device's memory does not hold a network and one tile."""


class MissingWeights(CoverslipError):
    """A model's weights are not on this machine; the message says which file to put where."""


class UnknownName(CoverslipError):
    """A name that is in no registry, with the names that look like it."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = get_close_matches(name, names, n=3, cutoff=0.5)
        advice = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names)}"
        self.kind, self.name = kind, name
        super().__init__(f"no {kind} named {name!r}; {advice}")


def printable(text: str) -> str:
    """`text` on one line: control characters and broken encodings written as escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text
    )
