"""Serving until stopped: a socket of our own, so that a port in use is said in words before anything is loaded."""

import contextlib
import errno
import socket
import sys
from collections.abc import Callable

import uvicorn

from blemish.errors import ConfigError
from blemish.server.app import create_app
from blemish.server.settings import Settings
from blemish.server.station import Station

CONNECTIONS = 4000  # at a time; more are refused at once
HEADER_BYTES = 32 * 1024


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


def serve(settings: Settings, ready: Callable[[str, Station], None]) -> None:
    """Serve until SIGINT or SIGTERM; what was taken is answered. ``ready`` is called with the address."""
    with bind(settings) as listening:
        station = Station(settings)
        host, port = listening.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        sys.setswitchinterval(0.001)  # a judge that gives way at each of its many small steps gets its turn back sooner
        config = uvicorn.Config(
            create_app(settings, station, lambda: ready(address, station)),
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # which say of an address what whoever sends them likes
            server_header=False,
            limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=HEADER_BYTES,
            timeout_graceful_shutdown=5,
        )
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn repeats the signal that it ended by
            uvicorn.Server(config).run([listening])
