"""Everything a station may be told."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ByteSize, Field, field_validator, model_validator

MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def without_password(place: str) -> str:
    """An address as people may see it: without name and password."""
    return re.sub("(?<=://)[^/]*@", "", place)


class Settings(BaseModel, frozen=True, extra="forbid"):
    """The defaults suit one line and a laptop: everything stays on this machine, and nothing is deleted."""

    models: dict[Annotated[str, Field(pattern=MODEL_NAME)], Path]  # files by the names that addresses have
    store: str = "sqlite:///station.db"  # SQLAlchemy's address of a database
    images: Path = Path("station-images")  # photographs and models are kept below it
    training: dict[str, Path] = {}  # by model: the images it learned from, which "learn again" adds to
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    hosts: tuple[str, ...] = ()  # further names by which browsers may call it; none: beyond loopback any
    tls: bool = False  # a proxy before it speaks TLS: cookies are marked Secure, and tokens are needed
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

    keep: timedelta | None = None  # verdicts, for 12h, 30d or 8w; None for ever
    keep_images: str = "all"  # or of rejected, reviewed, labelled and 1%; others go after an hour
    max_disk: ByteSize | None = None  # of photographs, such as 20G
    shifts: tuple[Annotated[int, Field(ge=0, le=23)], ...] = (6, 14, 22)  # hours of its day at which one begins

    watch: dict[str, Path] = {}  # folders by the model that judges what appears in them
    move: bool = False  # files of watched folders go to ok/, review/ or reject/
    cameras: dict[str, str] = {}  # OpenCV's number, address or file by model
    simulated: dict[str, Path] = {}  # folders whose images come round by model, for the demo
    webhooks: tuple[str, ...] = ()
    webhook_secret: str = ""
    mqtt: tuple[str, ...] = ()  # mqtt://host:port/topic
    opcua: tuple[str, ...] = ()  # opc.tcp://host:port/path

    @field_validator("keep", mode="before")
    @classmethod
    def _duration(cls, given: Any) -> Any:
        if isinstance(given, str) and not given.startswith("P"):  # which ISO 8601 has
            if not (match := re.fullmatch(r"(\d{1,5})([hdw])", given)):
                raise ValueError("give hours, days or weeks, such as 12h, 30d or 8w")
            return timedelta(**{{"h": "hours", "d": "days", "w": "weeks"}[match[2]]: int(match[1])})
        return given

    @field_validator("keep_images")
    @classmethod
    def _known_shares(cls, text: str) -> str:
        for word in text.split(","):
            if not re.fullmatch(r"all|none|rejected|reviewed|labelled|\d{1,2}(\.\d+)?%", word):
                raise ValueError(f"{word!r}: all, none, or of rejected, reviewed, labelled, 1% with commas")
        return text

    @field_validator("webhooks", "mqtt", "opcua")
    @classmethod
    def _whole_addresses(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        if not all("://" in place for place in given):
            raise ValueError("a whole address is needed, such as https://plc.local/verdicts or mqtt://broker:1883/line")
        return given

    @model_validator(mode="after")
    def _known_models(self) -> Self:
        for option in ("training", "watch", "cameras"):
            for name in getattr(self, option):
                if name not in self.models:
                    raise ValueError(f"{option} of {name}, and no model of that name is served: name one of those")
        return self

    @property
    def is_open(self) -> bool:
        """Nobody needs a token: only this machine can reach it, and no proxy hands on what comes from others."""
        return self.host in LOOPBACK and not self.tls and not self.hosts
