"""Stores with made-up results, and viewers over them, for the viewer's tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient

from coverslip.engine.run import slide_ids
from coverslip.tiling.grid import TileGrid, all_boxes
from coverslip.tiling.store import SlideStore
from coverslip.viewer.app import viewer_app
from coverslip.viewer.safety import Access
from coverslip.viewer.viewer import Viewer
from coverslip.wsi.facts import slide_facts
from coverslip.wsi.opening import open_slide

HOST = "http://127.0.0.1:8080"
CHANGE = {"x-coverslip": "1"}
"""What a request that changes something has to carry."""


def new_store(folder: Path, path: Path) -> SlideStore:
    """An empty store of the slide at `path`."""
    with open_slide(path, cross_check=False) as slide:
        facts = {**slide_facts(slide), "fingerprint": path.name}
    return SlideStore.open_or_create(folder / f"{facts['name']}.zarr", facts)


def nucleus_columns(
    centroid: np.ndarray, *, radius: float = 6.0, classes: int = 2, vertices: int = 8
) -> dict[str, np.ndarray]:
    """Regular polygons around centroids [M, 2]; classes by turns."""
    count = len(centroid)
    angle = np.linspace(0, 2 * np.pi, vertices, endpoint=False)
    ring = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return {
        "centroid": centroid.astype(np.float64),
        "polygon_offset": np.arange(count + 1, dtype=np.int64) * vertices,
        "polygon": (centroid[:, None] + ring).reshape(-1, 2).astype(np.float32),
        "class_id": (np.arange(count) % classes).astype(np.uint8),
        "probability": np.linspace(0, 1, count).astype(np.float32),
        "area_um2": np.arange(count, dtype=np.float32),
    }


def add_objects(
    store: SlideStore,
    columns: dict[str, np.ndarray],
    kind: str = "nuclei",
    model: str = "made-up",
    classes: Sequence[str] = ("Neoplastic", "Connective"),
) -> None:
    """A complete stage of outlined objects."""
    with store.stage(f"{kind}/{model}", {"of": len(columns["centroid"])}) as stage:
        stage.append_block(0, columns)
        stage.finish({"model": model, "classes": list(classes)})


def add_grid(store: SlideStore, tile: int = 64, mpp: float = 0.5, overlap: int = 0) -> TileGrid:
    """A complete grid over the whole slide."""
    size, pixel = tuple(store.slide["size"]), tuple(store.slide["mpp"])
    boxes = all_boxes(size, pixel, tile, tile - overlap, mpp)
    ones = np.ones(len(boxes), np.float32)
    grid = TileGrid(size, pixel, tile, tile - overlap, mpp, 0.0, boxes, ones)
    with store.stage(f"tiles/{grid.name}", {"grid": grid.parameters()}) as stage:
        grid.write(stage)
    return grid


def add_columns(
    store: SlideStore, name: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]
) -> None:
    """A complete stage of plain arrays; another content makes it anew."""
    content = {key: array.astype(np.float64).sum() for key, array in arrays.items()}
    with store.stage(name, {"of": content}) as stage:
        for key, array in arrays.items():
            stage.create_array(key, array.shape, array.dtype.name, rows_per_block=len(array))
        stage.write_block(0, arrays)
        stage.finish(facts)


@contextmanager
def viewing(
    paths: Sequence[Path],
    output: Path | None = None,
    *,
    access: Access | None = None,
    **settings: Any,
) -> Iterator[TestClient]:
    """A client of a viewer over these slides."""
    viewer = Viewer(slide_ids([str(p) for p in paths]), output, access or Access(), **settings)
    with TestClient(viewer_app(viewer), base_url=HOST) as client:
        yield client
