"""The web application of a station, and what the station is connected to."""

import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from blemish import __version__
from blemish.server import api, api_models, pages
from blemish.server.access import Guard
from blemish.server.api import PROBLEMS, Here, Viewer, sends
from blemish.server.care import Caretaker
from blemish.server.problems import answer_problems
from blemish.server.settings import Settings
from blemish.server.sinks import Delivery, named_sinks
from blemish.server.sources import Camera, Feed, Folder, Line
from blemish.server.station import Station
from blemish.server.teaching import Teacher


def create_app(settings: Settings, station: Station | None = None, ready: Callable[[], None] | None = None) -> FastAPI:
    """The application; its station is opened at once, and closed when the application ends."""
    station = station or Station(settings)
    teacher = Teacher(station)
    parts = [*_connect(station, settings), Caretaker(station), teacher, station]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            if ready is not None:
                ready()
            yield
        finally:
            for part in parts:
                await run_in_threadpool(part.close)

    app = FastAPI(
        title="Blemish: the inspection station",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
        responses=PROBLEMS,
    )
    app.state.station, app.state.teacher = station, teacher
    app.add_middleware(Guard, settings=settings)
    answer_problems(app, pages.problem_page)
    for addresses in (api, api_models, pages):
        app.include_router(addresses.router)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """The process is alive."""
        return {"alive": True, "version": __version__}

    @app.get("/readyz")
    def readyz() -> dict[str, Any]:
        """Models are loaded and the store answers; else 503."""
        station.store.rows(select(1))
        return {"ready": True, "models": [*station.judges]}

    @app.get("/metrics", **sends("text/plain"))
    def metrics(here: Here, person: Viewer) -> Response:
        """For Prometheus."""
        return Response(here.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _connect(here: Station, settings: Settings) -> list[Feed | Delivery]:
    """Start what feeds the station and what is told of verdicts; to be closed in this order."""
    sinks = named_sinks(settings)
    here.sinks = tuple(sinks)
    feeds = [
        Feed(here, model, "folder", partial(Folder, folder, settings.move, here.has_judged))
        for model, folder in settings.watch.items()
    ]
    here.cameras = {m: Feed(here, m, "camera", partial(Camera, place)) for m, place in settings.cameras.items()}
    feeds += here.cameras.values()
    feeds += [Feed(here, model, "line", partial(Line, folder)) for model, folder in settings.simulated.items()]
    return [*feeds, *(Delivery(here.store, name, make) for name, make in sinks.items())]
