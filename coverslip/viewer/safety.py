"""Who may ask, and how: nothing reaches the viewer that did not pass here.

Host        the name in the URL must be this machine's: a page elsewhere whose name was pointed at
            this address (DNS rebinding) is refused
token       beyond this machine, ?token=... once; then a cookie that other sites cannot send
changes     need a header that forms and simple requests cannot have, JSON, and this very origin
bodies      are cut off at a size that each path allows
answers     tell the browser to load nothing from elsewhere, to guess no types, to be in no frame
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coverslip.errors import InvalidConfig

COOKIE = "coverslip"
LEAST_TOKEN = 16
READING = ("GET", "HEAD")
CHANGING = ("POST", "PUT", "DELETE")
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
JSON_TYPES = ("application/json", "application/geo+json")


@dataclass(frozen=True)
class Access:
    """From where the viewer may be asked.

    host    address it is bound to
    token   what a stranger must know; empty on this machine alone
    names   further names it is reached by, behind a proxy for instance
    """

    host: str = "127.0.0.1"
    token: str = field(default="", repr=False)
    names: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.token and len(self.token) < LEAST_TOKEN:
            raise InvalidConfig(f"a token has at least {LEAST_TOKEN} characters; leave it out and "
                                "one is made")  # fmt: skip
        if not self.local and not self.token:
            raise InvalidConfig(f"{self.host} can be reached from other machines: that needs a "
                                "token")  # fmt: skip

    @property
    def local(self) -> bool:
        """Whether the address is this machine's own, which no other machine reaches."""
        return is_loopback(self.host)

    def knows(self, name: str) -> bool:
        """Whether a URL may call this machine so."""
        name = name.casefold()
        if name == "localhost" or name in {known.casefold() for known in self.names}:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return not self.local and name in own_names()
        # rebinding needs a name: an address in the URL is the address that was asked
        return not self.local or address.is_loopback

    @property
    def cookie(self) -> str:
        """What a browser shows once it has shown the token."""
        return hmac.new(self.token.encode(), b"coverslip viewer", hashlib.sha256).hexdigest()


@cache
def own_names() -> tuple[str, str]:
    """What this machine calls itself, in full and alone; asked once, for a name server may be
    slow."""
    return socket.getfqdn().casefold(), socket.gethostname().casefold()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


def new_token() -> str:
    """One that nobody guesses."""
    return secrets.token_urlsafe(24)


class Refused(Exception):
    """A request that must not be answered; `status` and text go back."""

    def __init__(self, status: int, problem: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem)
        self.status, self.headers = status, headers or {}


class Guard:
    """ASGI middleware: see the head of this file."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADER_BYTES]
            await send(message)

        try:
            self._check(scope)
        except Refused as refused:
            await _answer(guarded, refused)
            return
        await self._app(scope, receive, guarded)

    def _check(self, scope: Scope) -> None:
        headers = _headers(scope["headers"])
        host = _one(headers, "host")
        if not self._access.knows(_name(host)):
            raise Refused(421, "this name is not the viewer's; use the URL that it printed")
        if self._access.token:
            self._check_token(scope, headers)
        site = headers.get("sec-fetch-site", ["none"])[0]
        method = scope["method"]
        if method in READING:
            if site not in ("none", "same-origin") and scope["path"].startswith("/api/"):
                raise Refused(403, "asked by another site's page")
            return
        if method not in CHANGING:
            raise Refused(405, f"no method {method}", {"allow": ", ".join(READING + CHANGING)})
        origin = headers.get("origin", [""])[0]
        if site not in ("none", "same-origin") or (origin and urlsplit(origin).netloc != host):
            raise Refused(403, "asked by another site's page")
        if headers.get("x-coverslip") != ["1"]:
            raise Refused(403, "requests that change something carry the header X-Coverslip: 1")
        kind = headers.get("content-type", [""])[0].partition(";")[0].strip().lower()
        if kind not in JSON_TYPES:
            raise Refused(415, "requests that change something are application/json")

    def _check_token(self, scope: Scope, headers: dict[str, list[str]]) -> None:
        """Raises Refused: without the token; with it in the address, towards the page without."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and scope["method"] in READING:
            if not _equal(given[0], self._access.token):
                raise Refused(401, "this is not the viewer's token")
            rest = urlencode([pair for pair in query if pair[0] != "token"])
            raise Refused(
                303,
                "go on without the token in the address",
                {
                    "location": f"/?{rest}" if rest else "/",
                    "set-cookie": f"{COOKIE}={self._access.cookie}; Path=/; HttpOnly; "
                    "SameSite=Strict",
                    "cache-control": "no-store",
                },
            )
        if not any(
            _equal(value, self._access.cookie)
            for line in headers.get("cookie", [])
            for name, _, value in (part.strip().partition("=") for part in line.split(";"))
            if name == COOKIE
        ):
            raise Refused(401, "open the URL that the viewer printed, with its ?token=...")


def _equal(given: str, wanted: str) -> bool:
    """In a time that does not tell how much of it was right."""
    return hmac.compare_digest(given.encode(), wanted.encode())


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in raw:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return found


def _one(headers: MutableMapping[str, list[str]], name: str) -> str:
    values = headers.get(name, [])
    if len(values) != 1:
        raise Refused(400, f"a request has one header {name}")
    return values[0]


def _name(host: str) -> str:
    """The host of "host:port"; an IPv6 address stands in brackets."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


async def _answer(send: Any, refused: Refused) -> None:
    body = orjson.dumps({"error": str(refused)})
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        # what was sent along is not read, so the connection cannot go on
        "connection": "close",
        **refused.headers,
    }
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


_HEADER_BYTES = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
