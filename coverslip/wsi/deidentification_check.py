"""Whether a deidentified copy is what it should be: the same pixels, and nobody's name."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

from coverslip.errors import SlideError
from coverslip.wsi.identifiers import Identifier, identifiers_of
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Slide
from coverslip.wsi.tiff_tags import Directory, TiffTags

CHUNK = 2**23
LEAST = 6
"""Bytes of a value that is looked for in the whole copy: shorter ones turn up in any pixels."""
SAMPLE, DISTINCT, SAMPLES = 48, 16, 8
"""Of each dropped picture so many samples, of so many bytes of which so many differ."""
OFFSETS, COUNTS = (324, 273), (325, 279)
PICTURES = ("label", "macro", "picture")


def check_copy(
    path: str,
    copy: str,
    found: Sequence[Identifier],
    tags: TiffTags,
    kept: Sequence[Directory],
    name: str,
) -> None:
    """Compare a copy with its original, tile by tile and as readers see it.

    found   what identifies in the original; no value of it may stand anywhere in the copy
    tags    of the original; of directories that were not kept no part may stand in the copy
    name    what the copy will be called

    Raises SlideError, which says what differs.
    """
    _check_tiles(path, copy, [directory.offset for directory in kept])
    _check_facts(path, copy)
    _check_openslide(path, copy)
    for each in identifiers_of(copy, name=name):
        raise _failed(path, f"{each.where} still tells a {each.kind}")
    needles = {**_values(found), **_pieces(tags, kept)}
    for needle in _standing_in(copy, needles):
        raise _failed(path, f"its bytes still hold {needles[needle]}")


def _check_tiles(path: str, copy: str, offsets: Sequence[int]) -> None:
    """By tifffile's directories, not by those that wrote the copy."""
    before, after = _tile_tables(path, path), _tile_tables(path, copy)
    if len(after) != len(offsets):
        raise _failed(path, f"{len(after)} directories in place of {len(offsets)}")
    for number, (offset, table) in enumerate(zip(offsets, after.values(), strict=True)):
        if _digest(path, before[offset]) != _digest(copy, table):
            raise _failed(path, f"the tiles of directory {number} are not the same bytes")


def _tile_tables(path: str, file: str) -> dict[int, tuple[Sequence[int], Sequence[int]]]:
    """Directory's offset -> offsets and lengths of its tiles."""
    from tifffile import TiffFile

    try:
        with TiffFile(file) as content:
            return {p.offset: (p.dataoffsets, p.databytecounts) for p in content.pages}
    except Exception as error:  # tifffile raises many kinds over damaged tags
        raise _failed(path, f"tags cannot be read ({type(error).__name__}: {error})") from error


def _digest(path: str, table: tuple[Sequence[int], Sequence[int]]) -> str:
    """Of all tiles in their order, each with its length; those left out count as such."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for offset, count in zip(*table, strict=True):
            data = os.pread(file.fileno(), count if offset else 0, offset)
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _check_facts(path: str, copy: str) -> None:
    with open_slide(path, require_mpp=False, cross_check=False) as before:
        facts = _facts(before)
    with open_slide(copy, require_mpp=False, cross_check=False) as after:
        _compare(path, facts, _facts(after))


def _facts(slide: Slide) -> dict[str, object]:
    return {
        "reader": slide.reader,
        "vendor": slide.vendor,
        "levels": slide.levels,
        "pixel size": slide.pixel_size,
        "objective": slide.properties.get("openslide.objective-power"),
        "ICC profile": slide.icc_profile,
    }


def _check_openslide(path: str, copy: str) -> None:
    """What OpenSlide opened, it opens as before."""
    import openslide

    seen: list[dict[str, object]] = []
    for each in (path, copy):
        try:
            with openslide.OpenSlide(each) as slide:
                names = ("vendor", "mpp-x", "mpp-y", "objective-power")
                seen.append(
                    {
                        "levels for OpenSlide": (slide.level_dimensions, slide.level_downsamples),
                        **{f"openslide.{n}": slide.properties.get(f"openslide.{n}") for n in names},
                    }
                )
        except openslide.OpenSlideError as error:
            seen.append({"OpenSlide": type(error).__name__})
    _compare(path, *seen)


def _compare(path: str, before: dict[str, object], after: dict[str, object]) -> None:
    for what in sorted({*before, *after}):
        if before.get(what) != after.get(what):
            raise _failed(path, f"{what} was {before.get(what)}, is {after.get(what)}")


def _values(found: Iterable[Identifier]) -> dict[bytes, str]:
    """Bytes that may not be in the copy -> what they are."""
    needles: dict[bytes, str] = {}
    for each in found:
        if each.kind in PICTURES:
            continue
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            needle = each.value.encode(encoding, "replace")
            if len(each.value) >= LEAST:
                needles.setdefault(needle, f"the {each.kind} of {each.where}")
    return needles


def _pieces(tags: TiffTags, kept: Sequence[Directory]) -> dict[bytes, str]:
    """Samples of the compressed pixels of pictures that were left out."""
    stay = {directory.offset for directory in kept}
    needles: dict[bytes, str] = {}
    for number, directory in enumerate(tags.directories):
        if directory.offset in stay:
            continue
        for sample in _samples(tags, directory):
            needles[sample] = f"pixels of directory {number}, which was left out"
    return needles


def _samples(tags: TiffTags, directory: Directory) -> Iterator[bytes]:
    for codes in zip(OFFSETS, COUNTS, strict=True):
        if not all(code in directory.tags for code in codes):
            continue
        offsets, counts = (tags.numbers(directory.tags[code]) for code in codes)
        strips = [(o, c) for o, c in zip(offsets, counts, strict=False) if c >= SAMPLE]
        for offset, count in strips[:: max(1, len(strips) // SAMPLES)]:
            sample = tags.bytes_at(offset + (count - SAMPLE) // 2, SAMPLE)
            if len(set(sample)) >= DISTINCT:
                yield sample


def _standing_in(path: str, needles: Iterable[bytes]) -> Iterator[bytes]:
    """Those that the file holds anywhere."""
    sought = list(needles)
    overlap = max(map(len, sought), default=0)
    with open(path, "rb") as file:
        before = b""
        while chunk := file.read(CHUNK):
            window = before + chunk
            yield from (needle for needle in sought if needle in window)
            before = window[-overlap:] if overlap else b""


def _failed(path: str, problem: str) -> SlideError:
    return SlideError(
        path,
        f"cannot be deidentified: in the copy {problem}",
        "nothing was written",
    )
