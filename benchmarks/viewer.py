"""Tiles per second of `coverslip view` and of openslide-python's own Deep Zoom server, by turns.

    pip download --no-deps --no-binary :all: openslide-python && tar xzf openslide_python-*.tar.gz
    python benchmarks/viewer.py --peer openslide_python-*/examples/deepzoom/deepzoom_server.py

50 clients on loopback walk over the slide at random, each to a tile beside the one before, a level
in or a level out, one request at a time over a connection that stays open where the server keeps
it. First visits are of tiles that nobody has asked for, so that no server has them; repeated ones
are of those that were just visited. Both servers run as they are started from a shell, on the
processors that the clients run on, too; the file lies in the system's memory for both.

--peer-python names a Python that has flask and openslide-python, if this one has not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from pyramid import pyramid

import coverslip

CLIENTS = 50
FINEST = 6
"""Levels that are walked over: the finest, and those above it."""
Place = tuple[int, int, int]


@dataclass
class Walk:
    """The next tiles of all clients, none of which was asked for before.

    last    the level of full resolution; side of the slide's tiles, px
    """

    size: tuple[int, int]
    last: int
    side: int
    seed: int
    visited: dict[Place, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def grid(self, level: int) -> tuple[int, int]:
        across, down = (math.ceil(n / 2 ** (self.last - level)) for n in self.size)
        return math.ceil(across / self.side), math.ceil(down / self.side)

    def after(self, place: Place | None) -> Place | None:
        """A tile beside `place`, in, out, or, where all of those were visited, anywhere; None where
        nearly all of the slide's were."""
        near: list[Place] = []
        if place is not None:
            level, x, y = place
            near = [(level, x + 1, y), (level, x - 1, y), (level, x, y + 1), (level, x, y - 1),
                    (level + 1, 2 * x, 2 * y), (level - 1, x // 2, y // 2)]  # fmt: skip
            near = [each for each in near if each not in self.visited and self.holds(each)]
        found = near[self.random.integers(len(near))] if near else self.anywhere()
        if found is not None:
            self.visited[found] = None
        return found

    def anywhere(self) -> Place | None:
        for _ in range(1000):
            level = self.last - int(self.random.integers(FINEST))
            across, down = self.grid(level)
            place = (level, int(self.random.integers(across)), int(self.random.integers(down)))
            if place not in self.visited:
                return place
        return None

    def holds(self, place: Place) -> bool:
        level, x, y = place
        if not self.last - FINEST < level <= self.last:
            return False
        across, down = self.grid(level)
        return 0 <= x < across and 0 <= y < down


@dataclass
class Server:
    """One of the two.

    path    of a tile, with level, column and row to be put in
    side    of its tiles, px
    """

    name: str
    command: Sequence[str]
    path: str
    side: int
    port: int = 0

    @contextlib.contextmanager
    def running(self) -> Iterator[psutil.Process]:
        process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            if not self.port:
                assert process.stdout is not None
                for line in process.stdout:
                    if found := re.search(rb"http://\S+", line):
                        self.port = urlsplit(found[0].decode()).port or 0
                        break
            for _ in range(300):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", self.port), 1),
                ):
                    break
                if process.poll() is not None:
                    raise RuntimeError(f"{self.name} has ended with status {process.returncode}")
                time.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


class Client:
    """One connection, opened again where the server closes it."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def get(self, place: Place) -> int:
        """Bytes of a tile."""
        path = self._server.path.format(level=place[0], column=place[1], row=place[2])
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(
                "127.0.0.1", self._server.port
            )
        assert self._reader is not None
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (s.partition(":") for s in lines[1:])
        }
        body = await self._reader.readexactly(int(headers["content-length"]))
        if " 200 " not in lines[0] or body[:2] != b"\xff\xd8":
            raise RuntimeError(f"{self._server.name}: {path}: {lines[0]}: {body[:200]!r}")
        if headers.get("connection", "").lower() == "close" or lines[0].startswith("HTTP/1.0"):
            await self.close()
        return len(body)

    async def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
        self._reader = self._writer = None


@dataclass
class Visits:
    """What became of many requests.

    seconds      each took
    processor    seconds that the server was at work
    """

    seconds: list[float] = field(default_factory=list)
    bytes: int = 0
    elapsed: float = 0.0
    processor: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.seconds) / self.elapsed

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return 1e3 * float(np.percentile(self.seconds, share))


def visited(
    server: Server, process: psutil.Process, walk: Walk, seconds: float, again: Sequence[Place]
) -> Visits:
    """As `visits`, with what it cost the server."""
    before = process.cpu_times()
    found = asyncio.run(visits(server, walk, seconds, again))
    after = process.cpu_times()
    found.processor = after.user + after.system - before.user - before.system
    return found


async def visits(server: Server, walk: Walk, seconds: float, again: Sequence[Place]) -> Visits:
    """Requests of all clients at once for so long: of `again`, or of what nobody has visited."""
    found = Visits()
    started = time.perf_counter()

    async def walker(number: int) -> None:
        client, place, random = Client(server), None, np.random.default_rng(number)
        while time.perf_counter() - started < seconds:
            place = again[random.integers(len(again))] if again else walk.after(place)
            if place is None:
                break
            asked = time.perf_counter()
            size = await client.get(place)
            found.bytes += size
            found.seconds.append(time.perf_counter() - asked)
        await client.close()

    await asyncio.gather(*(walker(number) for number in range(CLIENTS)))
    found.elapsed = time.perf_counter() - started
    return found


def servers(slide: Path, peer: Path, peer_python: str) -> list[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = coverslip.open_slide(slide).name
    ours = [sys.executable, "-m", "coverslip", "view", str(slide), "--port", "0", "--no-browser"]
    theirs = [peer_python, str(peer), "-l", "127.0.0.1", "-p", str(port), str(slide)]
    tiles = f"/api/slides/{name}/tiles/original/{{level}}/{{column}}_{{row}}.jpg"
    return [
        Server("openslide-python deepzoom_server", theirs,
               "/slide_files/{level}/{column}_{row}.jpeg", 254, port),
        Server("coverslip view", ours, tiles, 256),
    ]  # fmt: skip


def measured(
    server: Server, size: tuple[int, int], seconds: float, turn: int
) -> tuple[Visits, Visits, float]:
    """(first visits, repeated visits, MB that the server held in the end)."""
    walk = Walk(size, (max(size) - 1).bit_length(), server.side, seed=turn)
    server.port = server.port if server.side == 254 else 0
    with server.running() as process:
        # the first tile opens the slide, compiles, imports
        asyncio.run(visits(server, Walk(size, walk.last, server.side, seed=99), 1.0, ()))
        first = visited(server, process, walk, seconds, ())
        repeated = visited(server, process, walk, seconds, list(walk.visited)[-2000:])
        held = process.memory_info().rss / 1e6
    return first, repeated, held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, help="deepzoom_server.py")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--slide", type=Path, nargs="*", default=[], help="besides the generated")
    parser.add_argument("--side", type=int, default=40_000, help="px of the generated slide")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    print(f"{CLIENTS} clients, {given.seconds:g} s each, medians of {given.turns} turns\n")
    print("| slide | visits | server | tiles/s | ratio | median, ms | 99th percentile, ms "
          "| server's processor, ms a tile | kB a tile |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for slide in (pyramid(given.side), *given.slide):
        size = coverslip.open_slide(slide).size
        both = servers(slide, given.peer, given.peer_python)
        found: dict[tuple[str, str], list[Visits]] = {}
        memory: dict[str, float] = {}
        for turn in range(given.turns):
            for server in both[:: 1 - 2 * (turn % 2)]:
                first, repeated, memory[server.name] = measured(server, size, given.seconds, turn)
                found.setdefault(("first", server.name), []).append(first)
                found.setdefault(("repeated", server.name), []).append(repeated)
        for kind in ("first", "repeated"):
            peer_rates = [v.rate for v in found[kind, both[0].name]]
            for server in both:
                rows = found[kind, server.name]
                ratios = [v.rate / peer for v, peer in zip(rows, peer_rates, strict=True)]
                cells = [
                    f"{statistics.median(v.rate for v in rows):,.0f}",
                    f"{statistics.median(ratios):.1f}x",
                    f"{statistics.median(v.percentile(50) for v in rows):,.0f}",
                    f"{statistics.median(v.percentile(99) for v in rows):,.0f}",
                    f"{statistics.median(1e3 * v.processor / len(v.seconds) for v in rows):.2f}",
                    f"{sum(v.bytes for v in rows) / sum(len(v.seconds) for v in rows) / 1e3:.1f}",
                ]
                print(f"| {slide.name} | {kind} | {server.name} | {' | '.join(cells)} |")
        for name, held in memory.items():
            print(f"| {slide.name} | memory | {name} | {held:,.0f} MB | | | | | |", flush=True)


if __name__ == "__main__":
    main()
