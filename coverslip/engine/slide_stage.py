"""The stages that make one vector of a slide's tile embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coverslip.encoders.slide_registry import slide_encoder_spec
from coverslip.engine.clock import Clock
from coverslip.engine.config import RunConfig
from coverslip.errors import InvalidConfig
from coverslip.tiling.grid import TileGrid
from coverslip.tiling.store import SlideStore

if TYPE_CHECKING:
    from coverslip.encoders.encoder import Encoder
    from coverslip.encoders.slide_encoder import SlideEncoder
    from coverslip.engine.process import RunContext


def check_slide_encoders(config: RunConfig) -> None:
    """Raises InvalidConfig where a slide encoder is asked for without the tile encoder, or on
    other tiles, than it was made for; UnknownName."""
    for spec in map(slide_encoder_spec, config.slide_encoder):
        if spec.tile_encoder and spec.tile_encoder not in config.encoder:
            raise InvalidConfig(
                f"slide encoder {spec.name} works on embeddings of {spec.tile_encoder}: "
                f"add --encoder {spec.tile_encoder}"
            )
        wanted = (spec.tile_px or config.tile, spec.mpp or config.mpp)
        if wanted != (config.tile, config.mpp):
            raise InvalidConfig(
                f"slide encoder {spec.name} was made for tiles of {wanted[0]} px at "
                f"{wanted[1]:g} µm: --tile {wanted[0]} --mpp {wanted[1]:g}"
            )


def embed_slide(store: SlideStore, grid: TileGrid, context: RunContext, clock: Clock) -> bool:
    """Bring `slide/<slide encoder>@<encoder>@<grid>` up to date for every slide encoder and each
    tile encoder it works on; True if anything was made. A slide without tiles has none."""
    changed = False
    if not len(grid.boxes):
        return changed
    for slide_encoder in context.slide_encoders:
        for encoder in context.encoders:
            if slide_encoder.spec.tile_encoder in ("", encoder.name):
                with clock(f"slide {slide_encoder.name}"):
                    changed |= _embed(store, grid, slide_encoder, encoder)
    return changed


def _embed(
    store: SlideStore, grid: TileGrid, slide_encoder: SlideEncoder, encoder: Encoder
) -> bool:
    tiles = f"features/{encoder.name}@{grid.name}"
    name = f"slide/{slide_encoder.name}@{encoder.name}@{grid.name}"
    parameters: dict[str, Any] = {
        "recipe": slide_encoder.recipe,
        "weights_sha256": slide_encoder.weights_sha256,
    }
    if store.is_current(name, parameters, needs=[tiles]):
        return False
    features = store.group(tiles)["features"][:]
    found = slide_encoder.embed(
        features, grid.boxes[:, :2], float(grid.boxes[0, 2]), tile_encoder=encoder.name
    )
    with store.stage(name, parameters, needs=[tiles]) as stage:
        dim = len(found.embedding)
        stage.create_array("embedding", (dim,), "float32", rows_per_block=dim)
        stage.write_block(0, {"embedding": found.embedding})
        stage.finish({"dim": dim})
    return True
