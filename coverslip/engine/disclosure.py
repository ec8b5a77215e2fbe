"""What a run may write of where things lie and what slides' metadata say: nothing, unless asked.

Errors and settings name files with their folders, and folders are called after patients, studies
and people. On the terminal they stay; in the journal and the report files are named alone.
`keep_identifiers` is the way to ask: the word "paths", and names of slide properties
(`aperio.Date`, `aperio.*`, `*`), which then stand in the store, among the slide's facts, as
`identifiers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from coverslip.wsi.identifiers import is_identifying
from coverslip.wsi.opening import SUFFIXES

PATHS = "paths"
FOLDERS = re.compile(r"(?<![\w/:.<\\])/(?:[^/\n:'\"<>|]+/)+")
"""An absolute path up to its last part; folders' names may hold spaces."""
SLIDE_URL = re.compile(
    r"[a-z][a-z0-9+.-]*://[^\s'\"]*?([^\s'\"/?#]+(?:"
    + "|".join(map(re.escape, sorted(SUFFIXES)))
    + r"))(?:[?#](?:[^\s'\"]*[^\s'\":])?)?",
    re.IGNORECASE,
)
"""A slide's address; it may hold a bucket's name, and a signature that opens it."""


def without_folders(text: str) -> str:
    """`text` with absolute paths and slides' URLs cut to the file's name."""
    return FOLDERS.sub("", SLIDE_URL.sub(r"\1", text))


def disclosed(content: Any, keep: Sequence[str]) -> Any:
    """JSON-able content as it may be written; as it is where `keep` holds "paths"."""
    if PATHS in keep:
        return content
    if isinstance(content, str):
        return without_folders(content)
    if isinstance(content, Mapping):
        return {key: disclosed(value, keep) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [disclosed(value, keep) for value in content]
    return content


def kept_properties(properties: Mapping[str, str], keep: Sequence[str]) -> dict[str, str]:
    """The slide's properties whose names fit one of `keep`, sorted."""
    patterns = [name for name in keep if name != PATHS]
    return {
        name: properties[name]
        for name in sorted(properties)
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def name_remark(paths: Sequence[str]) -> str:
    """What a person should know where files' names look as if they identified patients; or ""."""
    told = [path for path in paths if is_identifying(path)]
    if not told:
        return ""
    return (
        f"names that look as if they identified patients: {len(told)} of {len(paths)} slides'; "
        "stores, exports and reports are called after them\n  coverslip info SLIDE --phi shows "
        "what; coverslip deidentify FOLDER OUT --names CSV copies slides under other names"
    )
