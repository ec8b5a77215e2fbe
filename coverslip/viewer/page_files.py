"""The page's own files: a table made at the start, so that no request ever names a path."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from coverslip.viewer.answers import CHECKED, check_tag, not_here, tagged

PAGE = Path(__file__).parent / "page"
FOREVER = "private, max-age=31536000, immutable"
KINDS = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json", ".map": "application/json", ".svg": "image/svg+xml",
    ".png": "image/png", ".jpg": "image/jpeg", ".ico": "image/x-icon", ".woff2": "font/woff2",
    ".txt": "text/plain; charset=utf-8", ".md": "text/plain; charset=utf-8",
    ".webmanifest": "application/manifest+json",
}  # fmt: skip
REFERENCE = re.compile(rb"(?<=[\"'])/static/([\w./@-]+)(?=[\"'])")


@dataclass(frozen=True)
class PageFiles:
    """The files below a folder, by their names from there on; links are left out.

    digests   of their contents
    """

    folder: Path
    digests: dict[str, str]

    @classmethod
    def of(cls, folder: Path = PAGE) -> PageFiles:
        """Those that are there now."""
        paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink()]
        return cls(folder, {p.relative_to(folder).as_posix(): _digest(p) for p in paths})

    def index(self) -> bytes:
        """index.html, in which every file of ours is named with its digest: a browser may keep
        those for ever."""
        if "index.html" not in self.digests:
            raise HTTPException(404, "this installation has no page; the API under /api/ works")

        def named(found: re.Match[bytes]) -> bytes:
            digest = self.digests.get(found[1].decode())
            return found[0] + (f"?v={digest}".encode() if digest else b"")

        return REFERENCE.sub(named, (self.folder / "index.html").read_bytes())


def _digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


async def index(request: Request) -> Response:
    """GET /"""
    files: PageFiles = request.app.state.files
    content = files.index()
    tag = f'"{hashlib.blake2b(content, digest_size=8).hexdigest()}"'
    check_tag(request, tag, CHECKED)
    return tagged(content, KINDS[".html"], tag, CHECKED)


async def static(request: Request) -> Response:
    """GET /static/{file}"""
    files: PageFiles = request.app.state.files
    name = request.path_params["file"]
    if name not in files.digests:
        raise not_here("no such file")
    path = files.folder / name
    content = path.read_bytes()
    # of what is there now: files change under a running server only while the page is written
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    cache = FOREVER if request.query_params.get("v") == digest else CHECKED
    check_tag(request, f'"{digest}"', cache)
    kind = KINDS.get(path.suffix.lower(), "application/octet-stream")
    return tagged(content, kind, f'"{digest}"', cache)
