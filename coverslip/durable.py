"""Files that are either whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from coverslip.errors import StoreError
from coverslip.worker_identity import fate_by_name, own_name

UNFINISHED = ".writing-"
"""How the names of files begin that a killed process may leave behind; where it ran and its number
follow."""
LEFT_OVER_S = 86_400.0
"""No file is written for so long: one that old is nobody's, wherever it was begun."""

READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to; it becomes `path` in one step when the block ends without error.

    The file is flushed to disk and renamed over `path`; after an error nothing is left. Raises
    StoreError naming the path where the disk is full or the folder is not writable.
    """
    with explained(path):
        make_folder(path.parent)
        prefix = unfinished_prefix()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
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


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are absent, so that they outlast a power cut."""
    absent = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(absent):
        flush_to_disk(each.parent)


def unfinished_prefix() -> str:
    """How names begin of what this process has not finished writing."""
    return f"{UNFINISHED}{own_name()}"


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that are gone left unfinished in a folder, not below it.

    Of a process that cannot be asked for from here, what is a day old.
    """
    if not folder.is_dir():
        return
    with explained(folder):
        for path in folder.glob(f"{UNFINISHED}*"):
            known = fate_by_name(path.name.removeprefix(UNFINISHED))
            with contextlib.suppress(FileNotFoundError):
                if known == "gone" or (
                    known == "unknown" and abs(time.time() - path.stat().st_mtime) > LEFT_OVER_S
                ):
                    path.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step. Raises StoreError as `whole_file` does."""
    with whole_file(path) as aside:
        aside.write_bytes(content)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Put rows at `path` in one step, lines ending alike on every system. Raises StoreError as
    `whole_file` does."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    replace_file(path, text.getvalue().encode())


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
