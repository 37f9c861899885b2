"""Everything a station may be told."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseModel):
    """The defaults suit one line and a laptop: everything stays on this machine, and nothing is deleted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: dict[Annotated[str, Field(pattern=MODEL_NAME)], Path]  # files by the names that addresses have
    store: str = "sqlite:///station.db"  # SQLAlchemy's address of a database
    images: Path = Path("station-images")  # photographs and models are kept below it
    training: dict[str, Path] = {}  # by model: the images it learned from, which "learn again" adds to
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    hosts: tuple[str, ...] = ()  # names by which browsers may call a station beyond loopback; none for any
    tls: bool = False  # a proxy before it speaks TLS: cookies are marked Secure
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: Annotated[int | None, Field(ge=1)] = None

    queue: Annotated[int, Field(ge=1)] = 64  # images of a model that may wait; more are refused at once
    batch: Annotated[int, Field(ge=1)] = 8  # of them that are judged together
    seconds: Annotated[float, Field(gt=0)] = 30  # until a verdict, and for a body to arrive
    max_bytes: Annotated[int, Field(ge=1)] = 64 * 2**20  # of a request's body
    max_model_bytes: Annotated[int, Field(ge=1)] = 2 * 2**30
    max_pixels: Annotated[int, Field(ge=64)] = 25_000_000  # of an image
    max_images: Annotated[int, Field(ge=1)] = 16  # of a request
    max_headers: Annotated[int, Field(ge=1)] = 64

    keep: timedelta | None = None  # verdicts; None for ever
    keep_images: str = "all"  # or of rejected, reviewed, labelled and 1%; others go after an hour
    max_disk: int | None = None  # bytes of photographs

    watch: dict[str, Path] = {}  # folders by the model that judges what appears in them
    move: bool = False  # files of watched folders go to ok/, review/ or reject/
    cameras: dict[str, str] = {}  # OpenCV's number, address or file by model
    simulated: dict[str, Path] = {}  # folders whose images come round by model, for the demo
    webhooks: tuple[str, ...] = ()
    webhook_secret: str = ""
    mqtt: tuple[str, ...] = ()  # mqtt://host:port/topic
    opcua: tuple[str, ...] = ()  # opc.tcp://host:port/path

    @field_validator("keep_images")
    @classmethod
    def _known_shares(cls, text: str) -> str:
        for word in text.split(","):
            if not re.fullmatch(r"all|none|rejected|reviewed|labelled|\d{1,2}(\.\d+)?%", word):
                raise ValueError(f"{word!r}: all, none, or of rejected, reviewed, labelled, 1% with commas")
        return text

    @property
    def is_open(self) -> bool:
        """Nobody needs a token: only this machine can reach it."""
        return self.host in LOOPBACK
