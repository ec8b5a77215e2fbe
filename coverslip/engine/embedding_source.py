"""What made embeddings, whether an encoder makes them now or a store holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from coverslip.errors import StoreError
from coverslip.heads.tile_classifier import EmbeddingSource
from coverslip.tiling.store import SlideStore
from coverslip.tiling.stored_rows import stored_rows

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder


def source_of_encoder(encoder: Encoder, tile_px: int, mpp: float) -> EmbeddingSource:
    """Of what `encoder` gives for tiles as they were scanned."""
    return EmbeddingSource(
        encoder.name, encoder.dim, _digest(encoder.recipe), encoder.weights_sha256, mpp, tile_px
    )


def source_of_features(store: SlideStore, stage: str) -> EmbeddingSource:
    """Of a store's stage `features/<encoder>@<grid>`. Raises StoreError."""
    encoder, _, name = stage.removeprefix("features/").rpartition("@")
    made = store.record(stage).parameters
    stain: Mapping[str, Any] | None = made.get("stain")
    try:
        grid = store.record(f"tiles/{name}").parameters["grid"]
        return EmbeddingSource(
            encoder,
            stored_rows(store.path / stage / "features").shape[1],
            _digest(made.get("recipe", {})),
            str(made.get("weights_sha256", "")),
            float(grid["mpp"]),
            int(grid["tile"]),
            _digest(stain["target"]) if stain else "",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(store.path, f"does not say what made {stage} ({error!r})") from None


def _digest(content: Mapping[str, Any]) -> str:
    """sha256, as `recipe_hash` of an encoder's recipe."""
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()
