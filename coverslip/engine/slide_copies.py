"""Copies of slides on a local disk: whole, private, within a limit, gone with their process."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import orjson

from coverslip.errors import SlideError, StoreError
from coverslip.worker_identity import fate, fate_by_name, own_marks, own_name
from coverslip.wsi.slide_parts import SlidePart, slide_parts

PIECE = 8 * 2**20
"""Bytes read at once: network storage answers few large requests faster than many small ones."""
SPARE = 10**9
SPARE_SHARE = 0.02
"""This much of the disk is left free: the smaller of the two."""
READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""A pipe put in a slide's place is not waited for."""
PREFIX = "coverslip-"
OWNER = "owner.json"

_lock = threading.Lock()
_held: Counter[tuple[int, Path]] = Counter()
"""(process, staging folder) -> bytes of copies; a limit holds for all that a process does."""


class NotCopied(Exception):
    """Why there is no copy, as what follows "was read in place: "."""


class CopyStopped(Exception):
    """Nobody waits for the copy any more; nothing of it is left."""


class SlideCopy(NamedTuple):
    """path: the slide's, within `folder`, which holds nothing else; bytes: of all its files."""

    path: str
    folder: Path
    bytes: int


class SlideCopies:
    """A folder of its own below the staging folder, and the copies in it.

    limit   bytes of all of this process's copies below the staging folder

    Folders of processes of this machine that are gone are removed first; those of other machines
    and other users are left alone. Raises StoreError where nothing can be written.
    """

    def __init__(self, staging_folder: Path, limit: int) -> None:
        self.staging_folder, self.limit = staging_folder, limit
        try:
            staging_folder.mkdir(parents=True, exist_ok=True)
            self._account = (os.getpid(), staging_folder.resolve())
            remove_abandoned_copies(staging_folder)
            prefix = f"{PREFIX}{own_name()}"
            self.folder = Path(tempfile.mkdtemp(dir=staging_folder, prefix=prefix))
            try:
                (self.folder / OWNER).write_bytes(orjson.dumps(own_marks()))
            except OSError:
                shutil.rmtree(self.folder, ignore_errors=True)
                raise
        except OSError as error:
            raise StoreError(
                staging_folder,
                f"slides cannot be copied into it: {error.strerror or error}",
                "make it writable, free space there, or choose another folder with --stage",
            ) from error
        self._copies: set[SlideCopy] = set()

    def copy(
        self, path: str, *, stopped: Callable[[], bool], make_room: Callable[[], None]
    ) -> SlideCopy:
        """A complete copy of the slide's files, each of the size and time of its original.

        stopped     asked between pieces; True ends the copying with CopyStopped
        make_room   called while other copies take the slide's room, until they do not; may raise

        Raises NotCopied, after which nothing of it is left.
        """
        try:
            parts = slide_parts(path)
            if not parts:
                raise NotCopied("it is an empty folder")
            size = sum(part.size for part in parts)
            while not self._reserve(size):
                make_room()
            return self._copied(path, parts, size, stopped)
        except SlideError as error:
            raise NotCopied(error.problem) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise NotCopied(f"it could not be copied to {self.staging_folder} ({why})") from None

    def _reserve(self, size: int) -> bool:
        """Whether there is room; it is then taken. Raises NotCopied where there can never be."""
        if size > self.limit:
            raise NotCopied(
                f"its {_gigabytes(size)} are more than the {_gigabytes(self.limit)} that may be "
                f"copied to {self.staging_folder} at once"
            )
        disk = shutil.disk_usage(self.folder)
        free = disk.free - min(SPARE, int(SPARE_SHARE * disk.total))
        with _lock:
            if size > free:
                if size > free + sum(copy.bytes for copy in self._copies):
                    raise NotCopied(
                        f"its {_gigabytes(size)} do not fit on the disk of {self.staging_folder}, "
                        f"which has {_gigabytes(disk.free)} free"
                    )
                return False
            if _held[self._account] + size > self.limit:
                return False
            _held[self._account] += size
            return True

    def _copied(
        self, path: str, parts: list[SlidePart], size: int, stopped: Callable[[], bool]
    ) -> SlideCopy:
        source, name = os.path.split(path.rstrip("/"))
        folder = None
        try:
            folder = Path(tempfile.mkdtemp(dir=self.folder, prefix=""))
            buffer = memoryview(bytearray(max(1, min(PIECE, max(p.size for p in parts) + 1))))
            for part in parts:
                target = os.path.join(folder, part.name)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                _copy_file(os.path.join(source, part.name), target, part.size, buffer, stopped)
        except BaseException:
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            self._free(size)
            raise
        copy = SlideCopy(os.path.join(folder, name), folder, size)
        with _lock:
            self._copies.add(copy)
        return copy

    def remove(self, copy: SlideCopy) -> None:
        """Remove a copy from the disk; a second time does nothing."""
        shutil.rmtree(copy.folder, ignore_errors=True)
        with _lock:
            if copy not in self._copies:
                return
            self._copies.remove(copy)
        self._free(copy.bytes)

    def _free(self, size: int) -> None:
        with _lock:
            _held[self._account] -= size

    def close(self) -> None:
        """Remove all copies and the folder."""
        for copy in list(self._copies):
            self.remove(copy)
        shutil.rmtree(self.folder, ignore_errors=True)


def _copy_file(
    source: str, target: str, size: int, buffer: memoryview, stopped: Callable[[], bool]
) -> None:
    """Raises CopyStopped, OSError; NotCopied where the source is no longer what it was."""
    handle = os.open(source, READ)
    with open(handle, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise NotCopied(f"{source} is no ordinary file")
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        copied = 0
        while not stopped():
            read = reader.readinto(buffer) or 0
            if read == 0:
                break
            copied += read
            if copied > size:
                break
            _write(writer.fileno(), buffer[:read])
        else:
            raise CopyStopped
        after = os.fstat(handle)
        if copied != size or after.st_size != size or after.st_mtime_ns != before.st_mtime_ns:
            raise NotCopied(f"{os.path.basename(source)} changed while it was copied")
    os.utime(target, ns=(before.st_atime_ns, before.st_mtime_ns))


def _write(handle: int, content: memoryview) -> None:
    while content:
        content = content[os.write(handle, content) :]


def remove_abandoned_copies(staging_folder: Path) -> None:
    """Remove the folders of this user's processes of this machine that are gone."""
    for folder in staging_folder.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # several may come to remove it at once
            found = folder.lstat()
            ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
            if stat.S_ISDIR(found.st_mode) and ours and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    owner = folder / OWNER
    try:
        marks = orjson.loads(owner.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        marks = None
    if not isinstance(marks, dict) or "pid" not in marks:
        # killed before it wrote who it was; its folder's name says as much
        return fate_by_name(folder.name.removeprefix(PREFIX)) == "gone"
    known = fate(marks)
    if known == "unknown" and marks.get("host") == socket.gethostname():
        # nothing outlives a machine's start; a container of its name may have begun after it
        import psutil

        return owner.stat().st_mtime < float(psutil.boot_time())
    return known == "gone"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3g} GB"
