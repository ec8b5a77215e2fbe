"""What in a slide's file identifies a patient, and where in the file it stands.

SVS, generic and OME TIFF, Philips, QPTIFF, NDPI, SCN, BIF: every tag of every directory, the fields
and XML in their descriptions, every picture beside the pyramid. MRXS (Slidedat.ini), VMS, DICOM
(PS3.15's confidential attributes) and the rest: the properties that OpenSlide reads of them. Plain
images: Exif and text chunks. All: the file's name.

Pixels are not looked into: a label photographed with the tissue, or pen on the glass, is not found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from coverslip.wsi.identifying_words import (
    APERIO_HEADER,
    BINARY_TAGS,
    DICOM_CONFIDENTIAL,
    NAME_PATTERNS,
    PLAIN_APERIO,
    PLAIN_TAGS,
    TAG_KINDS,
    field_kind,
)
from coverslip.wsi.naming import slide_name
from coverslip.wsi.opening import open_slide
from coverslip.wsi.slide import Slide
from coverslip.wsi.tiff_directories import is_tiff
from coverslip.wsi.tiff_tags import Directory, Tag, TiffTags
from coverslip.wsi.xml_identifiers import xml_identifiers

MAX_TEXT = 2**26
DESCRIPTION, XMP = 270, 700
PRIVATE = 32768
TEXT_TYPES = (2, 7, 1)
EXIF_PLAIN = (34665, 34853, 36864, 37121, 40960, 40961, 40962, 40963)
"""Pointers, versions, colour space and size."""
THUMBNAIL_SHAPE = 0.03
"""How far a thumbnail's proportions may be from the slide's; a label's and a macro's are not."""


@dataclass(frozen=True, slots=True)
class Identifier:
    """Something that identifies a patient, or leads to one.

    kind    label, macro, picture, barcode, patient, case, operator, place, scanner, date, ...
    where   tag, directory, property or pattern
    value   as it stands; for pictures, what they are
    """

    kind: str
    where: str
    value: str


def name_identifiers(name: str) -> list[Identifier]:
    """What in a file's name looks like a barcode, an accession number, a day, a record number."""
    found: dict[str, Identifier] = {}
    for kind, pattern in NAME_PATTERNS:
        for match in pattern.finditer(name):
            found.setdefault(match[0], Identifier(kind, "file name", match[0]))
    return list(found.values())


def identifiers_of(path: str, *, name: str | None = None) -> list[Identifier]:
    """What identifies a patient in the slide at `path`, each once.

    name   judged in place of the file's own name

    Raises SlideError.
    """
    with open_slide(path, require_mpp=False, cross_check=False) as slide:
        found = name_identifiers(slide_name(path) if name is None else name)
        if "://" not in path and is_tiff(path):
            found += _in_tiff(path, slide)
        else:
            found += _pictures(slide)
            if slide.reader == "image":
                found += _in_image(path)
        found += _in_properties(slide)
    seen: dict[tuple[str, str], Identifier] = {}
    for each in found:
        seen.setdefault((each.value, each.where.rpartition(", ")[2]), each)
    return list(seen.values())


def is_thumbnail(tags: TiffTags, number: int, size: tuple[int, int]) -> bool:
    """Whether a directory is an Aperio thumbnail: the second, untiled, of the slide's own shape.

    size   (width, height) of level 0
    """
    directory = tags.directories[number]
    if number != 1 or directory.below or 324 in directory.tags:
        return False
    words = tags.text(directory.tags[DESCRIPTION], 4096) if DESCRIPTION in directory.tags else ""
    if re.search("label|macro", words, re.IGNORECASE):
        return False
    w, h = tags.number(directory, 256), tags.number(directory, 257)
    return h > 0 and abs(w / h / (size[0] / size[1]) - 1) <= THUMBNAIL_SHAPE


def holds_no_text(code: int, tag: Tag) -> bool:
    """Whether a tag that says how pixels are stored is of a type in which no words are hidden."""
    return tag.type not in TEXT_TYPES or code in BINARY_TAGS


def _pictures(slide: Slide) -> list[Identifier]:
    return [
        Identifier(name, "associated image", "may show the label, names, a barcode")
        for name in slide.associated
        if name != "thumbnail"
    ]


def _in_tiff(path: str, slide: Slide) -> list[Identifier]:
    found: list[Identifier] = []
    levels = set(getattr(slide, "level_directories", ()))
    with TiffTags(path) as tags:
        for number, directory in enumerate(tags.directories):
            place = f"{'subdirectory' if directory.below else 'directory'} {number}"
            if levels and directory.offset not in levels and not directory.below:
                found += _picture(tags, number, slide)
            for code, tag in directory.tags.items():
                found += _in_tag(tags, code, tag, place, slide.vendor)
    return found if levels else _pictures(slide) + found


def _picture(tags: TiffTags, number: int, slide: Slide) -> Iterator[Identifier]:
    if slide.vendor == "aperio" and is_thumbnail(tags, number, slide.size):
        return
    kind = picture_kind(tags, tags.directories[number])
    yield Identifier(kind, f"directory {number}", "may show the label, names, a barcode")


def picture_kind(tags: TiffTags, directory: Directory) -> str:
    """ "label", "macro" or "picture": what a directory that is no level calls itself."""
    tag = directory.tags.get(DESCRIPTION)
    words = tags.text(tag, 4096).lower() if tag else ""
    kind = tags.number(directory, 254)
    aperio = words.startswith("aperio")
    if "label" in words or (aperio and kind == 1):
        return "label"
    return (
        "macro" if "macro" in words or "overview" in words or (aperio and kind == 9) else "picture"
    )


def _in_tag(tags: TiffTags, code: int, tag: Tag, place: str, vendor: str) -> Iterator[Identifier]:
    if not tag.count or (code in PLAIN_TAGS and holds_no_text(code, tag)):
        return
    where = f"{place}, tag {code}"
    text = tags.text(tag, MAX_TEXT) if tag.type in TEXT_TYPES else ""
    if code == DESCRIPTION or (code == XMP and "<" in text):
        yield from _in_description(text, f"{where} {'XMP' if code == XMP else 'ImageDescription'}")
    elif TAG_KINDS.get(code) == "software":
        kinds = [each.kind for each in name_identifiers(text) if each.kind != "date"]  # a version's
        if kind := field_kind(text) or next(iter(kinds), ""):
            yield Identifier(kind, where, text)
    elif code in TAG_KINDS:
        yield Identifier(TAG_KINDS[code], where, text or f"{tag.length} bytes")
    elif vendor in ("aperio", "generic-tiff") or (text.isprintable() and len(text) > 3):
        shown = text if text and text.isprintable() else f"{tag.length} bytes"
        kind = "private tag" if code >= PRIVATE else "unknown tag"
        yield Identifier(kind, where, shown)


def _in_description(text: str, where: str) -> Iterator[Identifier]:
    """What the text of a directory says: an Aperio line of fields, XML, or words."""
    if text.startswith("Aperio"):
        header, *fields = text.split("|")
        if not APERIO_HEADER.fullmatch(header):
            yield Identifier("comment", where, header.strip())
        for field in fields:
            name, sign, value = (part.strip() for part in field.partition("="))
            if value and name.lower() not in PLAIN_APERIO:
                yield Identifier(field_kind(name) or "unknown field", f"{where}: {name}", value)
            elif name and not sign:
                yield Identifier("comment", where, name)
    elif text.lstrip("\ufeff \r\n\t").startswith("<"):
        for kind, name, value in xml_identifiers(text):
            yield Identifier(kind, f"{where}: {name}", value)
    elif text.strip() and not re.fullmatch(r'\{"shape": \[[\d, ]+\]\}', text):
        yield Identifier("comment", where, text.strip())


def _in_properties(slide: Slide) -> Iterator[Identifier]:
    """Properties named as identifiers are; of our TIFF reader, whose tags are known, none."""
    if slide.reader == "tiff":
        return
    dicom = slide.vendor == "dicom"
    for name, value in slide.properties.items():
        if not value.strip() or re.match(r"openslide\.(?!comment)|coverslip\.|tiff\.", name):
            continue
        leaf = re.sub(r"\[\d+\]", "", name.rpartition(".")[2])
        kind = "DICOM" if dicom and leaf in DICOM_CONFIDENTIAL else field_kind(leaf)
        if dicom and kind == "unique id" and leaf not in DICOM_CONFIDENTIAL:
            continue  # of classes and syntaxes, the same in every file
        if kind:
            yield Identifier(kind, f"property {name}", value)


def _in_image(path: str) -> Iterator[Identifier]:
    """Text chunks, comments and Exif of a plain image."""
    from PIL import ExifTags, Image

    plain = {"icc_profile", "dpi", "gamma", "exif", "transparency", "progressive", "progression"}
    with Image.open(path) as image:
        for name, value in image.info.items():
            if isinstance(value, str | bytes) and isinstance(name, str) and value not in ("", b""):
                if name in plain:
                    continue
                shown = value if isinstance(value, str) else value.decode("utf-8", "replace")
                yield Identifier(field_kind(name) or "comment", f"image field {name}", shown)
        exif = image.getexif()
        fields = {**exif, **exif.get_ifd(ExifTags.IFD.Exif), **exif.get_ifd(ExifTags.IFD.GPSInfo)}
        for code, value in fields.items():
            name = ExifTags.TAGS.get(code, str(code))
            if code not in (*PLAIN_TAGS, *EXIF_PLAIN) and str(value).strip():
                yield Identifier(field_kind(name) or "Exif", f"Exif {name}", _shown(value))


def _shown(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def is_identifying(path: str) -> bool:
    """Whether a file's name looks as if it identified a patient."""
    return bool(name_identifiers(slide_name(os.path.basename(path))))
