"""The files that stores were made of.

A store does not know where its slide lies. Whoever wants its pixels says where slides are, and they
are matched by name and fingerprint.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from coverslip.errors import SlideError
from coverslip.tiling.store import SlideStore
from coverslip.wsi.fingerprint import fingerprint
from coverslip.wsi.naming import slide_name
from coverslip.wsi.opening import open_slide, slide_paths
from coverslip.wsi.slide import Slide


class SlideFiles:
    """Opens slides, each once; to be closed.

    inputs   slides, and folders that are looked through
    notes    why a slide is not there; grows as they are asked for
    """

    def __init__(self, inputs: Sequence[str]) -> None:
        self._paths = slide_paths(inputs, recursive=True) if inputs else []
        self._fingerprints: dict[str, str] = {}
        self._slides: dict[str, Slide | None] = {}
        self._open = ExitStack()
        self.notes: list[str] = []

    def slide(self, name: str, store: SlideStore) -> Slide | None:
        """The file of a store, open; None, with a note, where it is not here."""
        if name not in self._slides:
            self._slides[name] = self._opened(name, store)
        return self._slides[name]

    def _opened(self, name: str, store: SlideStore) -> Slide | None:
        path = self._matching_file(store)
        if path is None:
            where = "among --slides" if self._paths else "(say where with --slides FOLDER)"
            self.notes.append(f"no picture of {name}: its slide is not {where}")
            return None
        colour = store.slide.get("colour", "as stored") != "as stored"
        x, y = store.slide["mpp"]
        try:
            opened = open_slide(path, mpp=(x, y), icc=colour, cross_check=False)
        except SlideError as error:
            self.notes.append(f"no picture of {name}: {error.problem}")
            return None
        return self._open.enter_context(opened)

    def _matching_file(self, store: SlideStore) -> str | None:
        """The path of the slide that a store was made of: the file of its name, if its fingerprint
        is the store's; else any with that fingerprint."""
        name, wanted = str(store.slide["name"]).casefold(), store.slide["fingerprint"]
        for path in sorted(self._paths, key=lambda path: slide_name(path).casefold() != name):
            if path not in self._fingerprints:
                self._fingerprints[path] = fingerprint(path)
            # a URL has no fingerprint, and goes by its name alone
            same_name = slide_name(path).casefold() == name
            if self._fingerprints[path] == wanted and (wanted or same_name):
                return path
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
