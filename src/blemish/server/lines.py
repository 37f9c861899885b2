"""What a station is connected to, by its settings: sources that feed it, sinks that are told."""

import hashlib
from functools import partial

from sqlalchemy import select

from blemish.server.settings import Settings
from blemish.server.sinks import Delivery, named_sinks
from blemish.server.sources import Feed
from blemish.server.sources.camera import Camera
from blemish.server.sources.folder import Folder
from blemish.server.sources.line import Line
from blemish.server.station import Station
from blemish.server.tables import inspections


def connect(here: Station, settings: Settings) -> list[Feed | Delivery]:
    """Start them all; to be closed in this order."""
    sinks = named_sinks(settings)
    here.sinks = tuple(sinks)
    feeds = []
    for model, folder in settings.watch.items():
        here.judge(model)
        feeds.append(Feed(here, model, "folder", partial(Folder, folder, settings.move, partial(_is_known, here))))
    here.cameras = {m: Feed(here, m, "camera", partial(Camera, place)) for m, place in settings.cameras.items()}
    feeds += here.cameras.values()
    feeds += [Feed(here, model, "line", partial(Line, folder)) for model, folder in settings.simulated.items()]
    return [*feeds, *(Delivery(here.store, name, make) for name, make in sinks.items())]


def _is_known(here: Station, name: str, content: bytes) -> bool:
    columns = inspections.c
    digest = hashlib.sha256(content).hexdigest()
    same = (columns.image == digest, columns.name == name, columns.source == "folder")
    return bool(here.store.rows(select(columns.id).where(*same).limit(1)))
