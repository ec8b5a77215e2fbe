"""The viewer as an ASGI application: which URL is answered by what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.middleware import Middleware
from starlette.routing import Route

from coverslip.kernels.warm_up import warm_up
from coverslip.viewer import action_routes, overlay_routes, page_files, slide_routes
from coverslip.viewer.answers import ANSWERED, fault, refused
from coverslip.viewer.page_files import PAGE, PageFiles
from coverslip.viewer.safety import Guard
from coverslip.viewer.viewer import Viewer


class _Place(Convertor[int]):
    """A level, column or row: so many digits that no slide has more."""

    regex = "[0-9]{1,8}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("place", _Place())

SLIDE = "/api/slides/{id}"
PLACE = "{level:place}/{column:place}_{row:place}"


def viewer_app(viewer: Viewer, page: Path = PAGE) -> Starlette:
    """The application; what `viewer` holds is closed when it ends.

    page   folder of the page's files
    """
    routes = [
        # most often asked first
        Route(f"{SLIDE}/tiles/{{variant}}/{PLACE}.jpg", slide_routes.tile),
        Route(f"{SLIDE}/nuclei/{{model}}/{PLACE}.bin", overlay_routes.objects),
        Route(f"{SLIDE}/nuclei/{{model}}/at", overlay_routes.object_at),
        Route(f"{SLIDE}/density/{{model}}/{PLACE}.png", overlay_routes.density),
        Route(f"{SLIDE}/heat/{{layer}}/{PLACE}.png", overlay_routes.heat),
        Route("/static/{file:path}", page_files.static),
        Route("/", page_files.index),
        Route("/api/slides", slide_routes.slide_list),
        Route(SLIDE, slide_routes.slide_facts),
        Route(f"{SLIDE}/thumbnail.jpg", slide_routes.thumbnail),
        Route(f"{SLIDE}/label.jpg", slide_routes.label),
        Route(f"{SLIDE}/outlines", overlay_routes.slide_outlines),
        Route(f"{SLIDE}/annotations", action_routes.read_annotations, methods=["GET"]),
        Route(f"{SLIDE}/annotations", action_routes.write_annotations, methods=["PUT"]),
        Route(f"{SLIDE}/click", action_routes.click, methods=["POST"]),
        Route(f"{SLIDE}/similar", action_routes.similar, methods=["POST"]),
        Route(f"{SLIDE}/prompt", action_routes.prompt, methods=["POST"]),
        Route(f"{SLIDE}/run", action_routes.run, methods=["POST"]),
        Route("/api/jobs/{job}", action_routes.job_state, methods=["GET"]),
        Route("/api/jobs/{job}", action_routes.stop_job, methods=["DELETE"]),
        Route("/api/jobs/{job}/events", action_routes.job_events),
    ]

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        warm_up(["resample", "stain"])
        viewer.catalogue.start()
        yield
        viewer.close()

    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, viewer.access)],
        exception_handlers={**dict.fromkeys(ANSWERED, refused), Exception: fault},
        lifespan=lifespan,
    )
    app.state.viewer = viewer
    app.state.files = PageFiles.of(page)
    return app
