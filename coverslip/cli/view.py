"""`coverslip view`: slides and what was found on them, in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coverslip.cli import options
from coverslip.errors import InvalidConfig, MissingPackage

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from coverslip.viewer.viewer import Similar


def view(
    slides: options.Slides,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of a run: its results, annotations, jobs."),
    ] = None,
    recursive: options.Recursive = False,
    port: Annotated[
        int, typer.Option("--port", help="0 takes one that is free.", min=0, max=65535)
    ] = 8080,
    host: Annotated[
        str, typer.Option("--host", help="Address; others than this machine's need a token.")
    ] = "127.0.0.1",
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            envvar="COVERSLIP_TOKEN",
            help="What a visitor must know; made where it is needed and not given.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Another name this machine is reached by; repeat."),
    ] = None,
    show_label: Annotated[
        bool, typer.Option("--show-label", help="Show the label, which may name the patient.")
    ] = False,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Checkpoints of encoders that take a text.")
    ] = None,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address and open nothing.")
    ] = False,
) -> None:
    """Look at slides and at what was found on them, on a page that this machine serves."""
    try:
        from coverslip.viewer.app import viewer_app
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "anyio"):
            raise
        raise MissingPackage("the viewer", "starlette and uvicorn", "viewer") from error
    from coverslip.engine.run import slide_ids
    from coverslip.viewer.safety import Access, is_loopback, new_token
    from coverslip.viewer.serving import serve
    from coverslip.viewer.viewer import Viewer
    from coverslip.wsi.opening import slide_paths

    if output is not None and output.exists() and not output.is_dir():
        raise InvalidConfig(f"{output}: is no folder; -o names that of a run")
    found = slide_ids(slide_paths(slides, recursive=recursive))
    known = token or ("" if is_loopback(host) else new_token())
    access = Access(host, known, frozenset(allow_host or ()))

    def make() -> ASGIApp:
        viewer = Viewer(
            found,
            output,
            access,
            show_label=show_label,
            similar=_similar(output) if output else None,
            weights=weights,
        )
        return viewer_app(viewer)

    print(f"{len(found)} slides" if len(found) != 1 else "1 slide")
    serve(make, access, port, browse=not no_browser, say=lambda url: print(url, flush=True))


def _similar(output: Path) -> Similar:
    """The cohort's search, as the viewer asks it."""
    from coverslip.viewer.viewer import SimilarTile
    from coverslip.wsi.slide import Box

    def find(
        slide: str, box: Box, encoder: str, count: int
    ) -> tuple[Sequence[SimilarTile], Sequence[str]]:
        from coverslip.cohort.search import RegionQuestion, SearchSettings, search

        settings = SearchSettings(encoder=encoder, top=count)
        answer = search(output, RegionQuestion(slide, box), settings)
        tiles = [SimilarTile(t.slide, t.x, t.y, t.w, t.h, t.similarity) for t in answer.tiles]
        return tiles, answer.notes

    return find
