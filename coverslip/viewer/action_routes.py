"""What a person does over HTTP: annotate, click, search, ask by text, run a stage."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from coverslip.engine.clicks import ClickedObject, segment_click
from coverslip.viewer.annotations import MOST_BYTES, Annotations
from coverslip.viewer.answers import CHECKED, Json, body_of, check_tag, json_of, not_here, tagged
from coverslip.viewer.jobs import Job, Jobs, stages_from
from coverslip.viewer.viewer import Viewer, slide_id_of, viewer_of
from coverslip.wsi.slide import Box

GEOJSON = "application/geo+json"
MOST_CLICKS = 64
MOST_SIMILAR = 200
LOOK_S, BEAT_S = 0.2, 15.0
"""Between two looks at a job, and between two words to a page that waits for one."""


async def read_annotations(request: Request) -> Response:
    """GET /api/slides/{id}/annotations"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    kept = _annotations(viewer)

    def work() -> tuple[bytes, str]:
        with viewer.shelf.lent(slide_id) as opened:
            bounds = opened.slide.bounds
        return kept.read(slide_id, bounds)

    content, version = await viewer.work(request, work)
    check_tag(request, f'"{version}"', CHECKED)
    return tagged(content, GEOJSON, f'"{version}"', CHECKED)


async def write_annotations(request: Request) -> Response:
    """PUT /api/slides/{id}/annotations with If-Match: the tag of what they were made from"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    kept = _annotations(viewer)
    known = request.headers.get("if-match", "").strip()
    if not known:
        raise HTTPException(428, "wants If-Match: the ETag of the annotations as they were read")
    content = await body_of(request, MOST_BYTES)

    def work() -> tuple[int, str]:
        with viewer.shelf.lent(slide_id) as opened:
            bounds = opened.slide.bounds
        return kept.write(slide_id, content, bounds, known.removeprefix("W/").strip('"'))

    count, version = await viewer.work(request, work)
    return Json({"count": count}, headers={"etag": f'"{version}"'})


async def click(request: Request) -> Response:
    """POST /api/slides/{id}/click"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    content = await json_of(request)
    points, exclude = (_points(content.get(name, []), name) for name in ("points", "exclude"))
    squiggle = content.get("squiggle", False)
    if not points or not isinstance(squiggle, bool):
        raise HTTPException(400, "wants points, and squiggle true or false")

    def work() -> list[ClickedObject | None]:
        with viewer.shelf.lent(slide_id) as opened:
            return segment_click(opened.slide, points, squiggle=squiggle, exclude=exclude)

    try:
        found = await viewer.work(request, work)
    except ValueError as error:  # a point off the slide, a line too long
        raise HTTPException(400, str(error)) from None
    return Json({"objects": [_clicked(each) for each in found]})


async def similar(request: Request) -> Response:
    """POST /api/slides/{id}/similar"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    if viewer.similar is None:
        raise HTTPException(409, "nothing to search: start the viewer with -o, a run's folder")
    content = await json_of(request)
    box, count = _numbers(content.get("box"), 4), content.get("count", 20)
    encoder = content.get("encoder") or ""
    if box is None or min(box[2:]) <= 0:
        raise HTTPException(400, "box is [x, y, w, h], level-0 px, with a width and a height")
    if type(count) is not int or not 1 <= count <= MOST_SIMILAR:
        raise HTTPException(400, f"count is 1 to {MOST_SIMILAR}")
    if not isinstance(encoder, str) or encoder.endswith(".json"):
        raise HTTPException(400, "encoder is a name")
    left, top = math.floor(box[0]), math.floor(box[1])
    region = Box(left, top, math.ceil(box[0] + box[2]) - left, math.ceil(box[1] + box[3]) - top)
    tiles, remarks = await viewer.work(request, viewer.similar, slide_id, region, encoder, count)
    return Json({"tiles": list(tiles), "remarks": list(remarks)})


async def prompt(request: Request) -> Response:
    """POST /api/slides/{id}/prompt"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    content = await json_of(request)
    encoder, text = content.get("encoder"), content.get("text")
    if not isinstance(encoder, str) or not isinstance(text, str):
        raise HTTPException(400, "wants encoder and text")
    store = viewer.store(slide_id)
    cells = await viewer.work(request, viewer.text_towers.cells, store, encoder, text)
    key = viewer.keep_text_layer(slide_id, cells)
    return Json({**cells.layer.to_dict(), "layer": key})


async def run(request: Request) -> Response:
    """POST /api/slides/{id}/run"""
    viewer, slide_id = viewer_of(request), slide_id_of(request)
    jobs = _jobs(viewer)
    stages = stages_from((await json_of(request)).get("stages"))
    job = await viewer.work(request, jobs.start, viewer.shelf.path(slide_id), slide_id, stages)
    return Json({"job": job.id}, 202)


async def job_state(request: Request) -> Response:
    """GET /api/jobs/{job}"""
    return Json(_job(request).to_dict())


async def stop_job(request: Request) -> Response:
    """DELETE /api/jobs/{job}: it ends at its next word; what it has written stays"""
    job = _job(request)
    _jobs(viewer_of(request)).stop(job)
    return Json(job.to_dict(), 202)


async def job_events(request: Request) -> Response:
    """GET /api/jobs/{job}/events: an event whenever something has changed, until the job is over"""
    return StreamingResponse(
        _events(request, _job(request)),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


async def _events(request: Request, job: Job) -> AsyncIterator[bytes]:
    told: dict[str, Any] = {}
    silent = 0.0
    while not await request.is_disconnected():
        over, state = job.over, job.to_dict()
        if state != told:
            yield b"data: " + orjson.dumps(state) + b"\n\n"
            told, silent = state, 0.0
        elif silent > BEAT_S:
            yield b": still there\n\n"
            silent = 0.0
        if over:
            return
        await asyncio.sleep(LOOK_S)
        silent += LOOK_S


def _annotations(viewer: Viewer) -> Annotations:
    if viewer.annotations is None:
        raise HTTPException(409, "annotations want a folder: start the viewer with -o OUT")
    return viewer.annotations


def _jobs(viewer: Viewer) -> Jobs:
    if viewer.jobs is None:
        raise HTTPException(409, "a run wants a folder: start the viewer with -o OUT")
    return viewer.jobs


def _job(request: Request) -> Job:
    job = _jobs(viewer_of(request)).get(request.path_params["job"])
    if job is None:
        raise not_here("no such job")
    return job


def _points(content: Any, name: str) -> list[tuple[float, float]]:
    pairs = [_numbers(pair, 2) for pair in content] if isinstance(content, list) else [None]
    if len(pairs) > MOST_CLICKS or any(pair is None for pair in pairs):
        raise HTTPException(400, f"{name} is a list of at most {MOST_CLICKS} [x, y], level-0 px")
    return [(pair[0], pair[1]) for pair in pairs if pair is not None]


def _numbers(content: Any, count: int) -> list[float] | None:
    """So many finite numbers; None for anything else."""
    if not isinstance(content, list) or len(content) != count:
        return None
    if any(type(value) not in (int, float) for value in content):
        return None
    found = [float(value) for value in content]
    return found if all(abs(value) < 1e9 for value in found) else None


def _clicked(found: ClickedObject | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "polygon": np.asarray(found.polygon.exterior.coords)[:-1].round(2).tolist(),
        "area_um2": found.area_um2,
        "probability": found.probability,
        "whole": found.whole,
    }
