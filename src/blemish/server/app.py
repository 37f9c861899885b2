"""The web application of a station, what the station is connected to, and serving it until it is stopped."""

import asyncio
import contextlib
import errno
import math
import socket
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from blemish import __version__
from blemish.errors import BlemishError, ConfigError, StoreError
from blemish.server import api, api_models, pages
from blemish.server.access import Guard
from blemish.server.api import PROBLEMS, StationDep, Viewer, sends
from blemish.server.care import Maintenance
from blemish.server.settings import Settings
from blemish.server.sinks import Delivery, named_sinks
from blemish.server.sources import Camera, Feed, Folder, Line
from blemish.server.station import Station
from blemish.server.teaching import Relearner

CONNECTIONS = 4000  # at a time; more are refused at once
OWN_FILES, BACKLOG = 200, 100  # files that the station may have open besides; connections accepted in one go
HEAD_SECONDS = 20  # for the whole head of a request, and for reading anything of an answer
HEADER_BYTES = 32 * 1024
FAILURES = (BlemishError, HTTPException, MemoryError, RequestValidationError, ClientDisconnect, Exception)


def serve(settings: Settings, ready: Callable[[str, Station], None]) -> None:
    """Serve until SIGINT or SIGTERM; what was taken is answered. ``ready`` is called with the address."""
    needs = {"watchfiles": settings.watch, "cv2": settings.cameras, "paho": settings.mqtt, "asyncua": settings.opcua}
    for package, places in needs.items():
        if places and find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    with bind(settings) as listening:  # before anything is loaded, so that a port in use is said at once
        station = Station(settings)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        connections = min(CONNECTIONS, max(20, _files_at_most() - OWN_FILES))
        sys.setswitchinterval(0.001)  # a judge that gives way at each of its many small steps gets its turn back sooner
        config = uvicorn.Config(
            create_app(settings, station, lambda: ready(address, station)),
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # which say of an address what whoever sends them likes
            server_header=False,
            http=_Impatient,
            limit_concurrency=connections,
            backlog=BACKLOG,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=math.ceil(settings.seconds),
        )
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn repeats the signal that it ended by
            _Server(config, station.events.close).run([listening])


def _files_at_most() -> int:
    """How many files and connections this process may have open, after it has asked for as many as it can need."""
    try:
        import resource
    except ImportError:  # Windows
        return 2 * CONNECTIONS
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = 2 * CONNECTIONS if most == unlimited else min(most, 2 * CONNECTIONS)
    if limit != unlimited and limit < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            limit = wanted
    return 2 * CONNECTIONS if limit == unlimited else limit


class _Impatient(H11Protocol):
    """Ends connections beyond the limit, and those that send no whole head, or read nothing of an answer, in time.

    Each holds one of few places, and memory.
    """

    _ending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            transport.abort()
        else:
            self._ending = self.loop.call_later(HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._wait_no_longer()
        elif self._ending is None and self.conn.trailing_data[0]:
            self._ending = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(self.transport.get_write_buffer_size())

    def _wait_no_longer(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _watch(self, unread: int) -> None:
        if unread:
            self.loop.call_later(HEAD_SECONDS, self._look_again, unread)

    def _look_again(self, before: int) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread >= before:
            self.transport.abort()
        else:
            self._watch(unread)


class _Server(uvicorn.Server):
    """Told to end, it first ends what would never end by itself, then waits for those whose images are judged."""

    def __init__(self, config: uvicorn.Config, end_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_streams = end_streams

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_streams()
        await super().shutdown(sockets)


def bind(settings: Settings) -> socket.socket:
    """A listening socket; a ConfigError where the address is taken or not this machine's."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # asyncio turns Nagle's algorithm off, which costs 40 ms an answer, only where the protocol is named.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((settings.host, settings.port))
    except OSError as error:
        listening.close()
        where = f"{settings.host} port {settings.port}"
        advice = "another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "an address of this machine"
        raise ConfigError(f"{where} cannot be listened to ({error.strerror}): give {advice}") from error
    listening.listen(2048)
    return listening


def create_app(settings: Settings, station: Station | None = None, ready: Callable[[], None] | None = None) -> FastAPI:
    """The application; its station is opened at once, and closed when the application ends."""
    station = station or Station(settings)
    relearner = Relearner(station)
    parts = [*_connect(station, settings), Maintenance(station), relearner, station]

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
        exception_handlers=dict.fromkeys(FAILURES, pages.answer_problem),
    )
    app.state.station, app.state.relearner = station, relearner
    app.add_middleware(Guard, settings=settings)
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
        if not station.store.is_held:
            raise StoreError(f"another station may be at work on {station.store.name}")
        return {"ready": True, "models": [*station.judges]}

    @app.get("/metrics", **sends("text/plain"))
    def metrics(station: StationDep, person: Viewer) -> Response:
        """For Prometheus."""
        return Response(station.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _connect(station: Station, settings: Settings) -> list[Feed | Delivery]:
    """Start what feeds the station and what is told of verdicts; to be closed in this order."""
    sinks = named_sinks(settings)
    station.sinks = tuple(sinks)
    before = station.judged_before
    folders = {m: partial(Folder, p, settings.move, partial(before, m)) for m, p in settings.watch.items()}
    station.feeds = [
        *(Feed(station, model, "folder", make) for model, make in folders.items()),
        *(Feed(station, model, "camera", partial(Camera, place)) for model, place in settings.cameras.items()),
        *(Feed(station, model, "line", partial(Line, place)) for model, place in settings.simulated.items()),
    ]
    return [*station.feeds, *(Delivery(station.store, name, make) for name, make in sinks.items())]
