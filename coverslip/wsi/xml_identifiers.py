"""What the XML in a slide's tags tells of a patient: OME, Philips, PerkinElmer, Leica, Ventana."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from coverslip.wsi.identifying_words import field_kind

PEOPLE = ("Experimenter", "ExperimenterGroup", "Person")
KEYS = ("Name", "Key", "K")
"""Attributes and elements that name a field whose value stands beside them."""
PLAIN = {"Creator", "TimeIncrement", "DimensionOrder", "ID", "Type", "PMSVR"}
MAX_VALUE = 4096


def xml_identifiers(text: str) -> Iterator[tuple[str, str, str]]:
    """(kind, name of the element or attribute, value) of what identifies.

    XML that cannot be parsed is itself one, of kind "comment": nobody knows what it says.
    """
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        root = fromstring(text.strip("\ufeff\0 \r\n\t").encode())
    except (ParseError, DefusedXmlException, ValueError):
        yield "comment", "XML that cannot be read", text[:MAX_VALUE]
        return
    for element in root.iter():
        yield from _in_element(element)


def _in_element(element: Any) -> Iterator[tuple[str, str, str]]:
    tag = element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
    text = (element.text or "").strip()
    named = next((element.get(key) for key in KEYS if element.get(key)), "")
    if tag == "Attribute" and named:  # Philips
        yield from _field(named, text)
        return
    for name, value in element.attrib.items():
        name = name.rpartition("}")[2]
        if not value.strip() or name in PLAIN:
            continue
        if tag in PEOPLE:
            yield "operator", f"{tag}.{name}", value
        elif tag == "Image" and name == "Name":
            yield "file name", f"{tag}.{name}", value
        elif kind := field_kind(name):
            yield kind, f"{tag}.{name}", value
    beside = {c.tag.rpartition("}")[2]: c.text or "" for c in element if isinstance(c.tag, str)}
    if "Key" in beside and "Value" in beside:  # OME's original metadata
        yield from _field(beside["Key"], beside["Value"].strip())
    if tag == "M" and named:  # OME's map annotations
        yield from _field(named, text)
    elif text:
        yield from _field(tag, text)


def _field(name: str, value: str) -> Iterator[tuple[str, str, str]]:
    picture = {"LABELIMAGE": "label", "MACROIMAGE": "macro"}.get(value)
    if name == "PIM_DP_IMAGE_TYPE" and picture:
        yield picture, name, "a picture in the XML"
    elif value and (kind := field_kind(name)):
        yield kind, name, value[:MAX_VALUE]
