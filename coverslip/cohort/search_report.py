"""A search's answer as JSON, as CSV, and as a page with pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import orjson

from coverslip import __version__
from coverslip.cohort.search import (
    Answer,
    ImageQuestion,
    RegionQuestion,
    SlideHit,
    SlideQuestion,
    TileHit,
    TileQuestion,
)
from coverslip.cohort.search_pictures import SlidePictures, shrunk
from coverslip.durable import replace_file, write_csv
from coverslip.engine.pages import page_environment
from coverslip.errors import InvalidConfig
from coverslip.wsi.slide import RGB, Box

TILE_SIDE, OVERVIEW_SIDE, MAP_SIDE = 256, 512, 160
"""Px of the pictures on the page: tiles, slides, and the maps that show where a tile lies."""


def write_answer(path: Path, answer: Answer, files: Sequence[str] = ()) -> None:
    """Write `.html`, `.csv` or `.json`, as the suffix says; whole or not at all.

    files   slides, and folders of slides, for the page's pictures

    Raises InvalidConfig for another suffix, StoreError where the disk refuses.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        replace_file(path, orjson.dumps(answer_as_dict(answer), option=orjson.OPT_INDENT_2))
    elif suffix == ".csv":
        write_csv(path, _rows(answer))
    elif suffix == ".html":
        with SlidePictures(answer.cohort, files) as pictures:
            replace_file(path, _html(answer, pictures).encode())
    else:
        raise InvalidConfig(f"{path}: a search is written as .html, .csv or .json")


def answer_as_dict(answer: Answer) -> dict[str, Any]:
    """JSON-able: the question, what was asked about, the index, what was found, notes."""
    record = answer.cohort.index.record
    return {
        "question": {"kind": question_kind(answer), **_plain(asdict(answer.question))},
        "box": None if answer.box is None else asdict(answer.box),
        "averaged": answer.averaged,
        "index": {
            **asdict(record.made_by),
            "kind": record.kind,
            "slides": len(record.parts),
            "tiles": record.count,
        },
        "results": [asdict(hit) for hit in answer.tiles or answer.slides],
        "notes": list(answer.notes),
    }


def question_kind(answer: Answer) -> str:
    """What was asked about: tile, region, image or slide."""
    return type(answer.question).__name__.removesuffix("Question").lower()


def _plain(question: dict[str, Any]) -> dict[str, Any]:
    """Paths as strings."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in question.items()}


def _rows(answer: Answer) -> Iterator[Sequence[object]]:
    kind = SlideHit if isinstance(answer.question, SlideQuestion) else TileHit
    yield [field.name for field in fields(kind)]
    yield from (list(asdict(hit).values()) for hit in answer.tiles or answer.slides)


@dataclass(frozen=True, slots=True)
class Card:
    """One picture of the page with its words.

    picture   data URI; "" where there is none
    marker    (left, top, width, height) of the box on the slide's map, in per cent of its sides
    """

    title: str
    place: str
    figure: str
    slide: str
    picture: str
    marker: tuple[float, float, float, float] | None


def _html(answer: Answer, pictures: SlidePictures) -> str:
    asked = _asked_card(answer, pictures)
    found = [_hit_card(answer, hit, pictures) for hit in answer.tiles or answer.slides]
    shown = sorted({card.slide for card in (asked, *found) if card.marker})
    return (
        page_environment("coverslip.cohort")
        .get_template("search.html")
        .render(
            kind=question_kind(answer),
            asked=asked,
            found=found,
            maps={slide: _map(i, slide, answer, pictures) for i, slide in enumerate(shown)},
            notes=[*answer.notes, *pictures.notes],
            facts=_facts(answer),
            made_by=answer.cohort.index.record.made_by,
            version=__version__,
        )
    )


def _facts(answer: Answer) -> list[tuple[str, str]]:
    """(figure, what it counts) for the head of the page."""
    record = answer.cohort.index.record
    exact = "every tile compared"
    near = f"{record.probes} of {record.lists} lists compared"
    return [
        (f"{len(answer.tiles or answer.slides):,}", "found"),
        (f"{record.count:,}", "tiles searched"),
        (f"{len(record.parts):,}", "slides"),
        (answer.cohort.name, exact if record.kind == "flat" else near),
    ]


def _asked_card(answer: Answer, pictures: SlidePictures) -> Card:
    question, box = answer.question, answer.box
    if isinstance(question, ImageQuestion):
        assert answer.picture is not None
        place = f"{answer.picture.shape[1]} × {answer.picture.shape[0]} px as embedded"
        figure = _counted(answer.averaged, "tile", "mean of {} tiles")
        picture = _jpeg(shrunk(answer.picture, OVERVIEW_SIDE))
        return Card(Path(question.path).name, place, figure, "", picture, None)
    if isinstance(question, SlideQuestion):
        figure = f"mosaic of {answer.averaged} tiles, by {question.grouped_by}"
        picture = _jpeg(pictures.overview(question.slide, OVERVIEW_SIDE))
        place = _whole(answer, question.slide)
        return Card(question.slide, place, figure, question.slide, picture, None)
    assert box is not None
    figure = _counted(answer.averaged, "tile", "mean of {} tiles")
    if isinstance(question, RegionQuestion) and isinstance(question.where, Path):
        figure += f" in {question.where.name}"
    most = TILE_SIDE if isinstance(question, TileQuestion) else OVERVIEW_SIDE
    picture = _jpeg(pictures.region(question.slide, box, most))
    marker = _marker(answer, question.slide, box)
    place = f"{box.w:,} × {box.h:,} px of level 0 at ({box.x:,}, {box.y:,})"
    return Card(question.slide, place, figure, question.slide, picture, marker)


def _hit_card(answer: Answer, hit: TileHit | SlideHit, pictures: SlidePictures) -> Card:
    if isinstance(hit, SlideHit):
        assert isinstance(answer.question, SlideQuestion)
        picture = _jpeg(pictures.overview(hit.slide, OVERVIEW_SIDE))
        figure = f"{answer.question.metric} distance {hit.distance:.4g}"
        place = _whole(answer, hit.slide)
        return Card(hit.slide, place, figure, hit.slide, picture, None)
    box = Box(hit.x, hit.y, hit.w, hit.h)
    picture = _jpeg(pictures.region(hit.slide, box, TILE_SIDE))
    figure, place = f"similarity {hit.similarity:.3f}", f"({hit.x:,}, {hit.y:,})"
    return Card(hit.slide, place, figure, hit.slide, picture, _marker(answer, hit.slide, box))


def _whole(answer: Answer, slide: str) -> str:
    """A slide's size."""
    facts = answer.cohort.store(slide).slide
    (w, h), (x, y) = facts["size"], facts["mpp"]
    return f"{w * x / 1000:.1f} × {h * y / 1000:.1f} mm"


def _counted(number: int, one: str, several: str) -> str:
    return one if number == 1 else several.format(number)


def _marker(answer: Answer, slide: str, box: Box) -> tuple[float, float, float, float]:
    width, height = answer.cohort.store(slide).slide["size"]
    return (
        100 * box.x / width,
        100 * box.y / height,
        100 * box.w / width,
        100 * box.h / height,
    )


@dataclass(frozen=True, slots=True)
class Map:
    """A slide in small: its number on the page, its picture as a data URI ("" where there is none),
    its sides in level-0 px."""

    number: int
    picture: str
    width: int
    height: int


def _map(number: int, slide: str, answer: Answer, pictures: SlidePictures) -> Map:
    width, height = answer.cohort.store(slide).slide["size"]
    return Map(number, _jpeg(pictures.overview(slide, MAP_SIDE)), int(width), int(height))


def _jpeg(picture: RGB | None) -> str:
    """A picture as a data URI; "" for none."""
    if picture is None:
        return ""
    import numpy as np
    from simplejpeg import encode_jpeg

    content = encode_jpeg(np.ascontiguousarray(picture), quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"
