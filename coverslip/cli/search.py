"""`coverslip search`: tiles and slides like a tile, a region, an image or a slide."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coverslip.cli.execution import print_json
from coverslip.errors import InvalidConfig, printable

if TYPE_CHECKING:
    from coverslip.cohort.search import Answer, Question


def search(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(help="Folder of stores that hold features.")],
    tile: Annotated[
        str | None, typer.Option("--tile", metavar="SLIDE:X,Y", help="The tile there (level-0 px).")
    ] = None,
    region: Annotated[
        str | None,
        typer.Option(
            "--region",
            metavar="SLIDE:X,Y,W,H",
            help="The mean of a region's tiles; a GeoJSON file may stand for X,Y,W,H.",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="FILE", help="A PNG, JPEG or TIFF.")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option("--mpp", help="µm per pixel of --image.", min=0.02, max=50)
    ] = None,
    slide: Annotated[
        str | None, typer.Option("--slide", metavar="SLIDE", help="Slides like this one.")
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder", help="Whose features, where there are several; or a recipe's .json."
        ),
    ] = "",
    grid: Annotated[
        str, typer.Option("--grid", help="On which tiles; needed where there are several.")
    ] = "",
    top: Annotated[int, typer.Option("--top", help="How many to find.", min=1, max=1000)] = 10,
    exclude_own_slide: Annotated[
        bool, typer.Option("--exclude-own-slide", help="Leave out the slide asked about.")
    ] = False,
    exclude_within: Annotated[
        float | None,
        typer.Option("--exclude-within", help="Leave out its tiles nearer than so many µm.", min=0),
    ] = None,
    index: Annotated[
        Literal["flat", "ivf"] | None,
        typer.Option(
            "--index",
            help="flat compares with every tile; ivf is faster; by default the number decides.",
        ),
    ] = None,
    mosaic: Annotated[
        Literal["embedding", "colour"] | None,
        typer.Option(
            "--mosaic", help="What --slide chooses a slide's tiles by: embedding by default."
        ),
    ] = None,
    metric: Annotated[
        Literal["euclidean", "cosine", "hamming"] | None,
        typer.Option(
            "--metric", help="Distance of --slide: euclidean by default; hamming of barcodes."
        ),
    ] = None,
    slides: Annotated[
        list[str] | None,
        typer.Option("--slides", metavar="FOLDER", help="Where slides are, for pictures; repeat."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="The encoder's checkpoint, for --image.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Of --image's encoder: auto, cpu, cuda, cuda:1.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .html page, .csv or .json of results.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Find tiles or slides that look alike, in the features that runs have stored."""
    given = {name for name, value in context.params.items() if value}
    _require_sense(given, page=results is not None and results.suffix.lower() == ".html")
    from coverslip.cohort.search import (
        ImageQuestion,
        SearchSettings,
        SlideQuestion,
    )
    from coverslip.cohort.search import search as find
    from coverslip.cohort.search_report import answer_as_dict, write_answer

    question: Question
    if tile is not None:
        question = _tile_question(tile)
    elif region is not None:
        question = _region_question(region)
    elif image is not None:
        question = ImageQuestion(image, mpp, weights, device or "auto")
    else:
        question = SlideQuestion(slide or "", mosaic or "embedding", metric or "euclidean")
    settings = SearchSettings(
        encoder=encoder,
        grid=grid,
        index=index,
        top=top,
        exclude_own_slide=exclude_own_slide,
        exclude_within_um=exclude_within or 0.0,
        files=tuple(slides or ()),
    )
    answer = find(output, question, settings, on_build=_say)
    for note in answer.notes:
        _say(note)
    if results is not None:
        write_answer(results, answer, settings.files)
    if json:
        print_json(answer_as_dict(answer))
        return
    _show(answer)
    if results is not None:
        print(f"results: {results}")


GOES_WITH = {
    "mpp": ("image",),
    "weights": ("image",),
    "device": ("image",),
    "mosaic": ("slide",),
    "metric": ("slide",),
    "exclude_own_slide": ("tile", "region"),
    "exclude_within": ("tile", "region"),
}
"""Flag -> the questions that it means something for."""


def _require_sense(given: set[str], page: bool) -> None:
    """Raises InvalidConfig for none or several questions, and for flags without a use."""
    asked = [name for name in ("tile", "region", "image", "slide") if name in given]
    if len(asked) != 1:
        raise InvalidConfig("search wants exactly one of --tile, --region, --image and --slide")
    for flag, questions in GOES_WITH.items():
        if flag in given and asked[0] not in questions:
            names = " or ".join(f"--{name}" for name in questions)
            raise InvalidConfig(f"--{flag.replace('_', '-')} goes with {names}")
    if "slides" in given and not page and "mosaic" not in given:
        raise InvalidConfig("--slides goes with a page of pictures (-o FILE.html) or with --mosaic")


def _tile_question(text: str) -> Question:
    from coverslip.cohort.search import TileQuestion

    name, place = _place(text, 2, "--tile wants SLIDE:X,Y in level-0 px")
    return TileQuestion(name, place[0], place[1])


def _region_question(text: str) -> Question:
    from coverslip.cohort.search import RegionQuestion
    from coverslip.wsi.slide import Box

    name, _, where = text.partition(":")
    if name and Path(where).suffix.lower() in (".geojson", ".json", ".gz", ".zip"):
        return RegionQuestion(name, Path(where))
    wanted = "--region wants SLIDE:X,Y,W,H in level-0 px, or SLIDE:FILE.geojson"
    name, (x, y, w, h) = _place(text, 4, wanted)
    if min(w, h) < 1:
        raise InvalidConfig(f"{wanted}; got {text!r}")
    return RegionQuestion(name, Box(int(x), int(y), int(w), int(h)))


def _place(text: str, count: int, wanted: str) -> tuple[str, list[float]]:
    """The slide's id and `count` numbers after a colon."""
    name, _, rest = text.partition(":")
    try:
        numbers = [float(number) for number in rest.split(",")]
    except ValueError:
        numbers = []
    if not name or len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise InvalidConfig(f"{wanted}; got {text!r}")
    return name, numbers


def _say(message: str) -> None:
    """A line on standard error: results alone are on standard output."""
    print(printable(message), file=sys.stderr)


def _show(answer: Answer) -> None:
    from coverslip.cli.terminal import print_table
    from coverslip.cohort.search_report import question_kind

    if question_kind(answer) == "slide":
        rows = [(str(hit.rank), hit.slide, f"{hit.distance:.4g}") for hit in answer.slides]
        print_table(("", "slide", "distance"), rows)
        return
    print_table(
        ("", "slide", "x", "y", "similarity"),
        [
            (str(hit.rank), hit.slide, str(hit.x), str(hit.y), f"{hit.similarity:.3f}")
            for hit in answer.tiles
        ],
    )
