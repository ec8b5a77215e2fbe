"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from coverslip.errors import StoreError

UNFINISHED = ".writing-"
"""How the names of files begin that a killed process may leave behind."""

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` in one step when the block ends without error.

    The file is flushed to disk and renamed over `path`; after an error nothing is left. Raises
    StoreError naming the path where the disk is full or the folder is not writable.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=UNFINISHED, suffix=path.suffix)
        os.close(handle)
        aside = Path(name)
        try:
            yield aside
            aside.chmod(0o644)
            flush_to_disk(aside)
            aside.replace(path)
            flush_to_disk(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step. Raises StoreError as `whole_file` does."""
    with whole_file(path) as aside:
        aside.write_bytes(content)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into StoreError with the path."""
    try:
        yield
    except OSError as error:
        kept = "; what is on disk stays resumable"
        if error.errno in FULL:
            hint = "free space, or choose another folder with -o" + kept
        elif error.errno in READ_ONLY:
            hint = "make the folder writable, or choose another one with -o" + kept
        else:
            hint = "see whether the disk is mounted and sound, then run again" + kept
        problem = f"cannot be written: {error.strerror or error}"
        raise StoreError(path, problem, hint) from error
