"""Answers over HTTP: JSON, tiles that a browser may keep, and errors that say what to do."""

from __future__ import annotations

import logging
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from coverslip.errors import (
    CoverslipError,
    InvalidConfig,
    InvalidGeoJSON,
    StoreBusy,
    UnknownName,
)
from coverslip.viewer.annotations import Changed
from coverslip.viewer.catalogue import told
from coverslip.viewer.object_tiles import TooMany
from coverslip.viewer.work import AskerLeft, TooBusy

MOST_JSON = 1 << 20
"""Bytes of a question."""
LASTING = "private, max-age=3600"
"""Of what only another file would change."""
CHECKED = "private, no-cache"
"""Of what a run may change: kept, but asked about each time."""
LEFT = 499
"""Nobody is there to read it."""

log = logging.getLogger(__name__)


class Json(Response):
    """JSON, not kept by anyone unless `headers` say so."""

    media_type = "application/json"

    def __init__(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
        super().__init__(body, status, {"cache-control": "no-store", **(headers or {})})


class Unchanged(Exception):
    """The browser holds just this; carries its tag."""

    def __init__(self, tag: str, cache: str) -> None:
        self.tag, self.cache = tag, cache


def check_tag(request: Request, tag: str, cache: str) -> None:
    """Raises Unchanged where the browser holds what `tag` names."""
    given = request.headers.get("if-none-match")
    if given and tag in (part.strip().removeprefix("W/") for part in given.split(",")):
        raise Unchanged(tag, cache)


def tagged(
    content: bytes, kind: str, tag: str, cache: str, headers: dict[str, str] | None = None
) -> Response:
    """Content that a browser may keep under its tag."""
    return Response(
        content,
        headers={"content-type": kind, "etag": tag, "cache-control": cache, **(headers or {})},
    )


def not_here(what: str) -> HTTPException:
    """404."""
    return HTTPException(404, what)


async def body_of(request: Request, most: int = MOST_JSON) -> bytes:
    """The body, refused as soon as it is longer than `most` bytes."""
    claimed = request.headers.get("content-length", "0")
    if not claimed.isdigit():
        raise HTTPException(400, "Content-Length is no number")
    parts, size = [], 0
    if len(claimed) < 20 and int(claimed) <= most:
        async for part in request.stream():
            size += len(part)
            if size > most:
                break
            parts.append(part)
        else:
            return b"".join(parts)
    raise HTTPException(413, f"more than {most:,} bytes", {"connection": "close"})


async def json_of(request: Request) -> dict[str, Any]:
    """The body as a JSON object."""
    try:
        content = orjson.loads(await body_of(request))
    except orjson.JSONDecodeError as error:
        raise HTTPException(400, f"not JSON: {error}") from None
    if not isinstance(content, dict):
        raise HTTPException(400, "wants a JSON object")
    return content


async def refused(request: Request, error: Exception) -> Response:
    """Errors that are answers."""
    if isinstance(error, HTTPException):
        return Json({"error": error.detail}, error.status_code, dict(error.headers or {}))
    if isinstance(error, Unchanged):
        return Response(status_code=304, headers={"etag": error.tag, "cache-control": error.cache})
    if isinstance(error, TooBusy):
        return Json({"error": "too much is asked at once"}, 503, {"retry-after": "1"})
    if isinstance(error, AskerLeft | ClientDisconnect):
        return Response(status_code=LEFT)
    if isinstance(error, TooMany):
        return Json({"error": str(error), "count": error.count}, 413)
    if isinstance(error, Changed):
        return Json({"error": str(error)}, 412, {"etag": f'"{error.version}"'})
    if isinstance(error, CoverslipError):
        return Json({"error": told(error)}, _status(error))
    raise error


def _status(error: CoverslipError) -> int:
    if isinstance(error, UnknownName):
        return 404 if error.kind == "slide" else 400
    if isinstance(error, InvalidConfig | InvalidGeoJSON):
        return 400
    if isinstance(error, StoreBusy):
        return 423
    return 409  # the slide, the store or this machine is not in a state for it


async def fault(request: Request, error: Exception) -> Response:
    """A fault of the engine: one line for the page, the traceback for the log."""
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return Json({"error": f"unexpected {type(error).__name__}: a fault of the viewer, whose "
                          "terminal shows where"}, 500)  # fmt: skip


ANSWERED = (
    HTTPException, Unchanged, TooBusy, AskerLeft, ClientDisconnect, TooMany, Changed,
    CoverslipError,
)  # fmt: skip
"""Exceptions that `refused` answers."""
