"""Overlays over HTTP: objects, densities, heat maps, outlines; each tagged by its stage's hash."""

from __future__ import annotations

import math
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from coverslip.tiling.store import SlideStore
from coverslip.viewer.answers import CHECKED, Json, check_tag, not_here, tagged
from coverslip.viewer.deep_zoom import DeepZoom
from coverslip.viewer.heat_layers import HeatCells, heat_cells
from coverslip.viewer.object_index import NOUNS, ObjectIndex, object_index
from coverslip.viewer.object_outlines import ObjectOutlines, object_outlines
from coverslip.viewer.object_tiles import Density, object_bytes
from coverslip.viewer.outlines import tissue_outlines
from coverslip.viewer.viewer import Viewer, slide_id_of, viewer_of

BINARY, PNG = "application/octet-stream", "image/png"
Place = tuple[int, int, int]


async def objects(request: Request) -> Response:
    """GET /api/slides/{id}/nuclei/{model}/{level}/{column}_{row}.bin?detail=points|polygons"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    detail = request.query_params.get("detail", "polygons")
    if detail not in ("points", "polygons"):
        raise HTTPException(400, f"detail is points or polygons, got {detail!r}")
    store, stage = _objects_asked(request, viewer, slide_id)
    _, place = _place(request, store)
    tag = _tag(store, stage, detail, place)
    check_tag(request, tag, CHECKED)
    index = await _index(viewer, slide_id, store, stage)
    outlines = None
    if detail == "polygons":
        outlines = await _outlines(viewer, slide_id, store, stage, index)
    content = await viewer.work(request, lambda: object_bytes(index, *place, outlines))
    return tagged(content, BINARY, tag, CHECKED)


async def density(request: Request) -> Response:
    """GET /api/slides/{id}/density/{model}/{level}/{column}_{row}.png?class=k"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    store, stage = _objects_asked(request, viewer, slide_id)
    _, place = _place(request, store)
    text = request.query_params.get("class")
    if text is not None and not (text.isascii() and text.isdigit() and len(text) <= 3):
        raise HTTPException(400, f"class is a number from 0 on, got {text!r}")
    class_id = None if text is None else int(text)
    tag = _tag(store, stage, f"density-{text}", place)
    check_tag(request, tag, CHECKED)
    index = await _index(viewer, slide_id, store, stage)
    if class_id is not None and class_id >= len(index.classes):
        raise not_here(f"no class {class_id}; there are {len(index.classes)}")
    key = ("density", slide_id, stage, store.record(stage).hash, class_id)
    counted = await viewer.prepared.get(key, lambda: Density(index.zoom, index.codes_of(class_id)))
    content = await _kept(request, viewer, (slide_id, tag), lambda: counted.png(*place))
    return tagged(content, PNG, tag, CHECKED)


async def object_at(request: Request) -> Response:
    """GET /api/slides/{id}/nuclei/{model}/at?x=&y="""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    store, stage = _objects_asked(request, viewer, slide_id)
    x, y = _number(request, "x"), _number(request, "y")
    if x is None or y is None:
        raise HTTPException(400, "wants x and y, level-0 px")
    index = await _index(viewer, slide_id, store, stage)
    outlines = await _outlines(viewer, slide_id, store, stage, index)
    row = await viewer.work(request, outlines.at, x, y)
    if row is None:
        raise not_here("nothing is there")
    class_id = int(index.class_id[row])
    return Json(
        {
            "index": row,
            "class": class_id,
            "class_name": index.classes[class_id] if class_id < len(index.classes) else "",
            "probability": index.probability[row] / 255,
            "centroid": index.centroid[row],
            "measurements": index.measurements(row),
            "polygon": outlines.polygon(row).round(2),
        }
    )


async def heat(request: Request) -> Response:
    """GET /api/slides/{id}/heat/{layer}/{level}/{column}_{row}.png?low=&high=

    Colours go between the layer's limits; values below `low` or above `high` are clear.
    """
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    key = request.path_params["layer"]
    low, high = _number(request, "low"), _number(request, "high")
    shown = None
    if low is not None or high is not None:
        shown = (-math.inf if low is None else low, math.inf if high is None else high)
    store = viewer.store(slide_id)
    zoom, place = _place(request, store)
    cells, version = await _cells(viewer, slide_id, store, key)
    tag = f'"{version}-{key}-{shown}-{place[0]}-{place[1]}-{place[2]}"'
    check_tag(request, tag, CHECKED)
    content = await _kept(request, viewer, (slide_id, tag), lambda: cells.png(zoom, *place, shown))
    return tagged(content, PNG, tag, CHECKED)


async def _cells(
    viewer: Viewer, slide_id: str, store: SlideStore, key: str
) -> tuple[HeatCells, str]:
    """(a layer's values, what changes when they are made anew)."""
    if (kept := viewer.text_layer(slide_id, key)) is not None:
        return kept, kept.digest
    layer = (await viewer.layers(slide_id)).get(key)
    if layer is None:
        raise not_here("no such layer")
    version = store.record(layer.stage).hash[:16]
    made = ("heat", slide_id, key, version)
    return await viewer.prepared.get(made, lambda: heat_cells(store, layer)), version


async def slide_outlines(request: Request) -> Response:
    """GET /api/slides/{id}/outlines"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    store = viewer.stores.of(slide_id)
    return Json(await viewer.work(request, tissue_outlines, store))


def _objects_asked(request: Request, viewer: Viewer, slide_id: str) -> tuple[SlideStore, str]:
    """(store, stage) of the objects that the URL names: "model", or "glands:model"."""
    name = request.path_params["model"]
    kind, mark, model = name.partition(":")
    stage = f"{kind}/{model}" if mark and kind in NOUNS else f"nuclei/{name}"
    store = viewer.store(slide_id)
    if stage not in store.stages():
        raise not_here("no such model")
    return store, stage


def _place(request: Request, store: SlideStore) -> tuple[DeepZoom, Place]:
    """The tile asked for. Raises HTTPException (404) where the pyramid has none such."""
    asked = request.path_params
    zoom = DeepZoom((int(store.slide["size"][0]), int(store.slide["size"][1])))
    place = (asked["level"], asked["column"], asked["row"])
    if not zoom.holds(*place):
        raise not_here("no such tile")
    return zoom, place


async def _index(viewer: Viewer, slide_id: str, store: SlideStore, stage: str) -> ObjectIndex:
    kind, _, model = stage.partition("/")
    zoom = DeepZoom((int(store.slide["size"][0]), int(store.slide["size"][1])))
    key = ("objects", slide_id, stage, store.record(stage).hash)
    return await viewer.prepared.get(key, lambda: object_index(store, kind, model, zoom))


async def _outlines(
    viewer: Viewer, slide_id: str, store: SlideStore, stage: str, index: ObjectIndex
) -> ObjectOutlines:
    """Read when first asked for: a view from far off does without."""
    key = ("outlines", slide_id, stage, store.record(stage).hash)
    return await viewer.prepared.get(key, lambda: object_outlines(store, stage, index))


async def _kept(
    request: Request, viewer: Viewer, key: tuple[str, str], make: Callable[[], bytes]
) -> bytes:
    """A picture from the tiles that are kept, or made now."""
    found = viewer.tiles.get(key)
    if found is None:
        content = await viewer.work(request, make)
        viewer.tiles.put(key, (content, key[1], {}), len(content) + 512)
        return content
    return found[0]


def _tag(store: SlideStore, stage: str, what: str, place: Place) -> str:
    """Changes when the stage is made anew."""
    level, column, row = place
    return f'"{store.record(stage).hash[:16]}-{what}-{level}-{column}-{row}"'


def _number(request: Request, name: str) -> float | None:
    """A finite number of the query; None where it is not given."""
    text = request.query_params.get(name)
    if text is None or text == "":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise HTTPException(400, f"{name} is a number, got {text[:40]!r}")
    return value
