"""Slides over HTTP: the list, the facts, the tiles, thumbnail and label."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from coverslip import __version__
from coverslip.errors import CoverslipError, printable
from coverslip.viewer.answers import LASTING, Json, check_tag, not_here, tagged
from coverslip.viewer.catalogue import SlideLine, slide_entry, stages_of, told
from coverslip.viewer.deep_zoom import TILE
from coverslip.viewer.object_index import object_facts, object_stages
from coverslip.viewer.slide_tiles import (
    Overview,
    Recolour,
    jpeg_of,
    slide_overview,
    slide_tile,
    thumbnail_jpeg,
    wants_overview,
)
from coverslip.viewer.stains import ORIGINAL, RECOLOURED, VARIANTS, slide_stains, stored_stains
from coverslip.viewer.text_layers import text_encoder
from coverslip.viewer.viewer import Viewer, slide_id_of, viewer_of

PATIENCE_S = 3.0
"""How long the list waits for slides that were not looked into yet."""
JPEG = "image/jpeg"
DAMAGE = "x-coverslip-damage"
"""Header of a tile of which a part cannot be read, and is white: why."""


async def slide_list(request: Request) -> Response:
    """GET /api/slides: also `pending`, the slides not looked into yet, whose size is null."""
    viewer = viewer_of(request)
    return Json(await viewer.work(request, _slide_list, viewer))


def _slide_list(viewer: Viewer) -> dict[str, Any]:
    lines = viewer.catalogue.lines(PATIENCE_S)
    entries = [
        {
            "id": slide_id,
            **slide_entry(viewer.shelf, slide_id, lines.get(slide_id)),
            "thumbnail": f"/api/slides/{quote(slide_id, safe='')}/thumbnail.jpg",
        }
        for slide_id in viewer.shelf.paths
    ]
    encoders = {
        stage.removeprefix("features/").rpartition("@")[0]
        for entry in entries
        for stage in entry["stages"]
        if stage.startswith("features/")
    }
    return {
        "slides": entries,
        "pending": len(entries) - len(lines),
        "text": sorted(name for name in encoders if text_encoder(name)),
        "output": viewer.output is not None,
        "search": viewer.similar is not None,
        "version": __version__,
    }


async def slide_facts(request: Request) -> Response:
    """GET /api/slides/{id}"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    facts = await viewer.work(request, _slide_facts, viewer, slide_id)
    layers = await viewer.layers(slide_id)
    return Json({**facts, "heat": [layer.to_dict() for layer in layers.values()]})


def _slide_facts(viewer: Viewer, slide_id: str) -> dict[str, Any]:
    store = viewer.stores.sound(slide_id)
    with viewer.shelf.lent(slide_id) as opened:
        slide, zoom = opened.slide, opened.zoom
        size = slide.pixel_size
        mpp = (size.x, size.y) if size else None
        facts = {
            "size": slide.size,
            "mpp": mpp,
            "tile": TILE,
            "levels": zoom.levels,
            "variants": VARIANTS if size else [ORIGINAL],
            "bounds": (slide.bounds.x, slide.bounds.y, slide.bounds.w, slide.bounds.h),
            "label": viewer.show_label and "label" in slide.associated,
        }
        bounds = slide.bounds
    annotations, problem = 0, None
    if viewer.annotations is not None:
        try:
            annotations = viewer.annotations.count(slide_id, bounds)
        except CoverslipError as error:
            problem = f"its annotations: {told(error)}"
    entry = slide_entry(viewer.shelf, slide_id, SlideLine(slide.size, mpp))
    return {
        "id": slide_id,
        **entry,
        **facts,
        "problem": entry["problem"] or problem,
        "stages": stages_of(store),
        "nuclei": [
            {"model": object_key(kind, model), **object_facts(store, kind, model)}
            for kind, model in object_stages(store)
        ] if store else [],
        "outlines": bool(store and store.stages("tissue")),
        "annotations": annotations,
    }  # fmt: skip


def object_key(kind: str, model: str) -> str:
    """What stands for a stage of objects in URLs: nuclei by their model's name alone."""
    return model if kind == "nuclei" else f"{kind}:{model}"


async def tile(request: Request) -> Response:
    """GET /api/slides/{id}/tiles/{variant}/{level}/{column}_{row}.jpg"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    asked = request.path_params
    variant, place = asked["variant"], (asked["level"], asked["column"], asked["row"])
    recolour, look = None, ""
    if variant != ORIGINAL:
        recolour, look = await _recolour(viewer, slide_id, variant)
    key = (slide_id, variant, look, place)
    found = viewer.tiles.get(key)
    if found is None:
        found = await _made(request, viewer, slide_id, place, recolour, f"{variant}{look}")
        viewer.tiles.put(key, found, len(found[0]) + 512)
    else:
        check_tag(request, found[1], LASTING)
    return tagged(found[0], JPEG, found[1], LASTING, found[2])


class _OverviewWanted(Exception):
    """A tile has to be cut from a picture of the whole slide."""


async def _made(
    request: Request,
    viewer: Viewer,
    slide_id: str,
    place: tuple[int, int, int],
    recolour: Recolour | None,
    look: str,
) -> tuple[bytes, str, dict[str, str]]:
    """(JPEG, tag, headers)."""

    def work(overview: Overview | None) -> tuple[bytes, str, dict[str, str]]:
        with viewer.shelf.lent(slide_id) as opened:
            if not opened.zoom.holds(*place):
                raise not_here("no such tile")
            tag = f'"{opened.version}-{look}-{place[0]}-{place[1]}-{place[2]}"'
            check_tag(request, tag, LASTING)
            if overview is None and wants_overview(opened.slide, opened.zoom, place[0]):
                raise _OverviewWanted
            made = slide_tile(opened, *place, recolour=recolour, overview=overview)
        damage = printable(made.damage).encode("ascii", "backslashreplace").decode()
        return made.jpeg, tag, {DAMAGE: damage} if damage else {}

    try:
        return await viewer.work(request, work, None)
    except _OverviewWanted:
        overview = await viewer.prepared.get(("overview", slide_id), lambda: _overview(
            viewer, slide_id))  # fmt: skip
        return await viewer.work(request, work, overview)


def _overview(viewer: Viewer, slide_id: str) -> Overview:
    with viewer.shelf.lent(slide_id) as opened:
        return slide_overview(opened)


async def _recolour(viewer: Viewer, slide_id: str, variant: str) -> tuple[Recolour, str]:
    """(what is done to the pixels, what changes where another fit is stored)."""
    if variant not in RECOLOURED:
        raise not_here(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    store = viewer.stores.sound(slide_id)
    stage = stored_stains(store)
    look = store.record(stage).hash[:12] if store and stage else "fitted"

    def fit() -> Any:
        with viewer.shelf.lent(slide_id) as opened:
            return slide_stains(opened.slide, store)

    stains = await viewer.prepared.get(("stains", slide_id, look), fit)
    return stains.recolour(variant), look


async def thumbnail(request: Request) -> Response:
    """GET /api/slides/{id}/thumbnail.jpg"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    found = viewer.tiles.get((slide_id, "thumbnail"))
    if found is None:

        def work() -> tuple[bytes, str, dict[str, str]]:
            with viewer.shelf.lent(slide_id) as opened:
                tag = f'"{opened.version}-thumbnail"'
                check_tag(request, tag, LASTING)
                return thumbnail_jpeg(opened), tag, {}

        found = await viewer.work(request, work)
        viewer.tiles.put((slide_id, "thumbnail"), found, len(found[0]) + 512)
    check_tag(request, found[1], LASTING)
    return tagged(found[0], JPEG, found[1], LASTING)


async def label(request: Request) -> Response:
    """GET /api/slides/{id}/label.jpg: 403 unless the viewer was started to show it."""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    if not viewer.show_label:
        raise HTTPException(403, "labels may show who the patient is; --show-label serves them")

    def work() -> bytes:
        with viewer.shelf.lent(slide_id) as opened:
            if "label" not in opened.slide.associated:
                raise not_here("this slide has no label image")
            return jpeg_of(opened.slide.associated_image("label"))

    content = await viewer.work(request, work)
    return Response(content, headers={"content-type": JPEG, "cache-control": "no-store"})
