"""The options that several commands share, and the words that options may be."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Precision(StrEnum):
    """How networks compute."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Resize(StrEnum):
    """How images come to the network's size."""

    stretch = "stretch"
    crop = "crop"
    opencv = "opencv"
    letterbox = "letterbox"


class Calibration(StrEnum):
    """Where the threshold comes from."""

    auto = "auto"
    holdout = "holdout"
    crossfit = "crossfit"
    none = "none"


class Resolution(StrEnum):
    """Where pixel metrics are measured."""

    input = "input"
    original = "original"


class FailOn(StrEnum):
    """Which decision makes ``inspect`` exit with code 3."""

    never = "never"
    review = "review"
    reject = "reject"


Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="Processor threads; default: all cores.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only, no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as one JSON object.")]
PrecisionOption = Annotated[Precision, typer.Option(help="How networks compute; auto says what it chose and why.")]
Model = Annotated[Path, typer.Argument(help="A model file made by `blemish fit`.", show_default=False)]
FalseReject = Annotated[
    float | None, typer.Option(help="Share of good parts that may be rejected, such as 0.01; default: 1 % or 1/(n+1).")
]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, for a model saved without them.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.")]
Size = Annotated[int, typer.Option(min=32, max=4096, help="Pixels of a side of what the network sees.")]
