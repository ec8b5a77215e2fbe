"""How much the tiles of a slide are like a text: heat maps made while somebody looks."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from coverslip.encoders.registry import encoder_names, encoder_spec
from coverslip.encoders.text import TEMPLATES, TextEncoder, load_text_encoder, similarity
from coverslip.engine.prompts import check_same_weights
from coverslip.errors import IncompleteStage, InvalidConfig, UnknownName
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore
from coverslip.viewer.heat_layers import HeatCells, HeatLayer, grid_cells, spread

OPEN_CLIP = "open_clip_"
"""How stores call the encoders that open_clip knows."""
LONGEST = 500
"""Characters of a text."""


class TextTowers:
    """Text towers by encoder, each loaded once. Safe to share between threads.

    weights   as of `load_text_encoder`; None for the hub's
    """

    def __init__(self, weights: str | None) -> None:
        self._weights = weights
        self._towers: dict[str, TextEncoder] = {}
        self._turn = threading.Lock()

    def cells(self, store: SlideStore, encoder: str, text: str) -> HeatCells:
        """The cosine of every tile's embedding and the text's, the mean over `TEMPLATES`.

        encoder   as features are named in stores

        Raises UnknownName, IncompleteStage, RecipeMismatch, MissingWeights, MissingPackage,
        InvalidConfig.
        """
        text = " ".join(text.split())
        if not 0 < len(text) <= LONGEST:
            raise InvalidConfig(f"a text has 1 to {LONGEST} characters, got {len(text)}")
        name = text_encoder(encoder)
        if name is None:
            raise UnknownName("encoder with a text tower", encoder, _with_towers())
        stages = store.stages(f"features/{encoder}@")
        if not stages:
            raise IncompleteStage(store.path, f"holds no features of {encoder}", "run it first")
        with self._turn:
            if name not in self._towers:
                weights = Path(self._weights) if self._weights else None
                self._towers[name] = load_text_encoder(name, weights=weights)
            tower = self._towers[name]
            check_same_weights(store, stages[0], tower)
            vector = tower.encode([t.replace("{}", text) for t in TEMPLATES]).mean(axis=0)
        cosines = similarity(np.asarray(store.group(stages[0])["features"][:]), vector[None])[:, 0]
        grid = stages[0].rpartition("@")[2]
        layer = HeatLayer(encoder, text, "prompt", "", grid, "similarity", limits=spread(cosines))
        return grid_cells(layer, cosines, TileGrid.from_store(store.group(f"tiles/{grid}")))


def text_encoder(name: str) -> str | None:
    """The encoder, as it is loaded, whose features a store calls `name`; None without a tower."""
    if name.startswith(OPEN_CLIP):
        return f"open_clip:{name.removeprefix(OPEN_CLIP)}"
    return name if name in _with_towers() else None


def _with_towers() -> list[str]:
    return [name for name in encoder_names() if encoder_spec(name).text]
