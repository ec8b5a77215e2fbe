"""What all requests share: the slides, the stores, what was made before, the work in hand."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request

from coverslip.engine.processors import available_processors
from coverslip.tiling.store import SlideStore
from coverslip.viewer.annotations import Annotations
from coverslip.viewer.byte_cache import ByteCache
from coverslip.viewer.catalogue import Catalogue
from coverslip.viewer.heat_layers import HeatCells, HeatLayer, heat_layers
from coverslip.viewer.jobs import Jobs
from coverslip.viewer.safety import Access
from coverslip.viewer.shelf import Shelf, Stores
from coverslip.viewer.text_layers import TextTowers
from coverslip.viewer.work import Prepared, Work
from coverslip.wsi.slide import Box

TEXT_LAYERS = 64
"""Of all slides; the oldest goes first."""


@dataclass(frozen=True, slots=True)
class SimilarTile:
    """A tile that is like a region; its box in level-0 px."""

    slide: str
    x: int
    y: int
    w: int
    h: int
    similarity: float


Similar = Callable[[str, Box, str, int], tuple[Sequence[SimilarTile], Sequence[str]]]
"""(slide id, region, encoder or "", how many) -> tiles that are like it, best first, and what a
person should know of the answer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the viewer takes for itself.

    threads    work at a time; waiting: requests that may wait for their turn
    tiles      bytes of encoded tiles that are kept; prepared: of indices, maps and pictures
    """

    threads: int = 0
    waiting: int = 512
    tiles: int = 256 << 20
    prepared: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Layers:
    """A store's heat layers by key."""

    by_key: dict[str, HeatLayer]

    @property
    def nbytes(self) -> int:
        return 1024 * len(self.by_key)


class Viewer:
    """The state of one viewer.

    slides       (path, id) each, as `slide_ids` gives them
    output       folder of a run over them; None where there is none
    show_label   serve the label image, which may show who the patient is
    similar      finds similar tiles; None where there is nothing to search
    weights      of text towers, as of `load_text_encoder`
    """

    def __init__(
        self,
        slides: Sequence[tuple[str, str]],
        output: Path | None,
        access: Access,
        *,
        show_label: bool = False,
        similar: Similar | None = None,
        weights: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.access, self.show_label, self.similar = access, show_label, similar
        self.output = output
        self.stores = Stores(output)
        self.shelf = Shelf(slides, self.stores)
        self.catalogue = Catalogue(self.shelf)
        self.work = Work(limits.threads or available_processors() + 2, limits.waiting)
        self.prepared = Prepared(self.work, limits.prepared)
        self.tiles: ByteCache[tuple[bytes, str, dict[str, str]]] = ByteCache(limits.tiles)
        self.text_towers = TextTowers(weights)
        self.annotations = Annotations(output / "annotations") if output else None
        self.jobs = Jobs(output) if output else None
        self._text_layers: OrderedDict[tuple[str, str], HeatCells] = OrderedDict()

    def store(self, slide_id: str) -> SlideStore:
        """Raises UnknownName; HTTPException where the slide was not run."""
        self.shelf.path(slide_id)
        store = self.stores.of(slide_id)
        if store is None:
            raise HTTPException(404, f"nothing is stored of {slide_id}: coverslip run makes it")
        return store

    async def layers(self, slide_id: str) -> dict[str, HeatLayer]:
        """The heat layers of a slide by their keys; none where it was not run."""
        self.shelf.path(slide_id)
        store = self.stores.sound(slide_id)
        found: dict[str, HeatLayer] = {}
        if store is not None:
            key = ("layers", slide_id, tuple(store.record(s).hash for s in store.stages()))
            made = await self.prepared.get(key, lambda: _layers(store))
            found = dict(made.by_key)
        held = list(self._text_layers.items())
        found |= {key: cells.layer for (owner, key), cells in held if owner == slide_id}
        return found

    def keep_text_layer(self, slide_id: str, cells: HeatCells) -> str:
        """Its key, under which it can be asked for from now on."""
        key = cells.layer.key
        self._text_layers[slide_id, key] = cells
        self._text_layers.move_to_end((slide_id, key))
        while len(self._text_layers) > TEXT_LAYERS:
            self._text_layers.popitem(last=False)
        return key

    def text_layer(self, slide_id: str, key: str) -> HeatCells | None:
        """One that `keep_text_layer` was given."""
        return self._text_layers.get((slide_id, key))

    def close(self) -> None:
        """End all threads and close all slides."""
        self.catalogue.close()
        if self.jobs is not None:
            self.jobs.close()
        self.work.close()
        self.shelf.close()


def _layers(store: SlideStore) -> Layers:
    return Layers({layer.key: layer for layer in heat_layers(store)})


def viewer_of(request: Request) -> Viewer:
    """The viewer that a request is for."""
    viewer: Viewer = request.app.state.viewer
    return viewer


def slide_id_of(request: Request) -> str:
    """The slide that a request is about. Raises HTTPException (404)."""
    slide_id: str = request.path_params["id"]
    if slide_id not in viewer_of(request).shelf.paths:
        raise HTTPException(404, "no slide of that id")
    return slide_id
