"""The viewer on a port, until somebody stops it."""

from __future__ import annotations

import asyncio
import socket
import webbrowser
from collections.abc import Callable
from contextlib import closing

from starlette.types import ASGIApp

from coverslip.errors import InvalidConfig, MissingPackage
from coverslip.viewer.safety import Access, own_names

MOST_HEAD = 64 << 10
"""Bytes of a request before its body."""
MOST_CONNECTIONS = 1024
GRACE_S = 2
"""For requests that are still being answered when the viewer ends."""


def listening(access: Access, port: int) -> socket.socket:
    """A socket on the address; port 0 takes a free one. Raises InvalidConfig: taken, or no such
    address."""
    host = access.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise InvalidConfig(
            f"{access.host}:{port} cannot be listened on: {error}\n"
            "  choose another port with --port, 0 for any that is free"
        ) from None


def address(access: Access, port: int) -> str:
    """The URL to open: of this machine where the viewer listens on all of its addresses."""
    host = access.host.strip("[]")
    if host in ("0.0.0.0", "::"):  # nosec B104
        host = own_names()[0]
    host = f"[{host}]" if ":" in host else host
    return f"http://{host}:{port}/" + (f"?token={access.token}" if access.token else "")


def serve(
    make: Callable[[], ASGIApp],
    access: Access,
    port: int,
    *,
    browse: bool,
    say: Callable[[str], None],
) -> None:
    """Serve an application until interrupted.

    make     the application, made once the port is ours
    browse   open the page in the browser of this machine
    say      is told the URL

    Raises InvalidConfig, MissingPackage.
    """
    try:
        import uvicorn

        protocol = _bounded_protocol()
    except ImportError as error:
        raise MissingPackage("the viewer", "uvicorn and httptools", "viewer") from error
    with closing(listening(access, port)) as ours:
        url = address(access, ours.getsockname()[1])
        settings = uvicorn.Config(
            make(),
            http=protocol,
            ws="none",
            log_level="warning",
            access_log=False,  # it would keep tokens and the names of slides
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        say(url)
        if browse:
            webbrowser.open(url)
        uvicorn.Server(settings).run(sockets=[ours])


def _bounded_protocol() -> type[asyncio.Protocol]:
    """HTTP/1.1 by httptools, which takes heads of any length, with a limit to that."""
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class BoundedProtocol(HttpToolsProtocol):
        unfinished = 0  # bytes that have come since a head was complete or a body went on

        def data_received(self, data: bytes) -> None:
            self.unfinished += len(data)
            super().data_received(data)
            if self.unfinished > MOST_HEAD:
                self.transport.close()

        def on_headers_complete(self) -> None:
            self.unfinished = 0
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self.unfinished = 0
            super().on_body(body)

    return BoundedProtocol
