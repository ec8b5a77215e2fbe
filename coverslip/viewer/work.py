"""Work beside the event loop: so much at a time, so much waiting, and none for who has left."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from coverslip.viewer.byte_cache import ByteCache

Result = TypeVar("Result")


class Asker(Protocol):
    """A request, as far as it tells that its sender has gone."""

    @property
    def receive(self) -> Callable[[], Awaitable[Any]]: ...


class TooBusy(Exception):
    """More is waiting already than may wait."""


class AskerLeft(Exception):
    """Who asked has closed the connection before the work began."""


class Work:
    """Runs functions in threads.

    threads   functions at a time
    waiting   requests that may wait for their turn; a further one raises TooBusy

    A request whose sender leaves while it waits loses its place: nothing is done for it. Belongs
    to the event loop that calls it.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="viewer")
        self._free, self._most = threads, waiting
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    async def __call__(
        self, asker: Asker | None, function: Callable[..., Result], *arguments: Any
    ) -> Result:
        """`function(*arguments)` in a thread. Raises TooBusy, AskerLeft, and what it raises.

        asker   None for work that nobody can walk away from
        """
        await self._turn(asker)
        coming = asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)
        # the place is free when the thread is, even where the waiting task was cancelled
        coming.add_done_callback(lambda _: self._give_back())
        return await asyncio.shield(coming)

    async def _turn(self, asker: Asker | None) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._queue) >= self._most:
            raise TooBusy
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        leaving = asyncio.create_task(_left(asker))
        try:
            await asyncio.wait({turn, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                raise AskerLeft
        except BaseException:
            if turn.done():  # cancelled in the moment its turn came
                self._give_back()
            else:
                self._queue.remove(turn)
            raise
        finally:
            leaving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await leaving

    def _give_back(self) -> None:
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._free += 1

    def close(self) -> None:
        """End the threads; what runs is waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)


async def _left(asker: Asker | None) -> None:
    """Returns when the sender has closed the connection."""
    if asker is None:
        await asyncio.Event().wait()
        return
    while (await asker.receive())["type"] != "http.disconnect":
        pass


class Measured(Protocol):
    """Knows how much memory it takes."""

    @property
    def nbytes(self) -> int: ...


class Prepared:
    """What takes long to make, made once however many ask for it at the same time.

    limit   bytes that are kept; those not asked for longest go first. A single thing larger than
            that is made again each time
    """

    def __init__(self, work: Work, limit: int) -> None:
        self._work = work
        self._kept: ByteCache[Any] = ByteCache(limit)
        self._coming: dict[Hashable, asyncio.Task[Any]] = {}

    async def get(self, key: Hashable, make: Callable[[], Result]) -> Result:
        """What `make` returns, of that key; it has `nbytes`. Raises what `make` raises, TooBusy."""
        kept: Result | None = self._kept.get(key)
        if kept is not None:
            return kept
        task = self._coming.get(key)
        if task is None:
            task = asyncio.create_task(self._make(key, make))
            self._coming[key] = task
            task.add_done_callback(lambda done: self._arrived(key, done))
        # others may wait for it too, so who leaves does not stop it
        made: Result = await asyncio.shield(task)
        return made

    async def _make(self, key: Hashable, make: Callable[[], Any]) -> Any:
        made = await self._work(None, make)
        self._kept.put(key, made, made.nbytes)
        return made

    def _arrived(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        self._coming.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, also where everyone who asked has left
