"""The options that several commands share, alone and in groups, and the words that options may be.

The words are spelled here once more because the modules that own them import torch; a test compares the spellings.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from blemish.backbones.catalogue import DEFAULT_BACKBONE

if TYPE_CHECKING:
    from blemish.inspection.inspector import Inspector
    from blemish.run import Progress, Run

Precision = Literal["auto", "fp32", "bf16"]
Resize = Literal["stretch", "crop", "opencv", "letterbox"]
Calibration = Literal["auto", "holdout", "crossfit", "none"]
Resolution = Literal["input", "original"]
FailOn = Literal["never", "review", "reject"]

Threads = Annotated[int | None, typer.Option(help="Processor threads; default: all cores.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PrecisionOption = Annotated[Precision, typer.Option(help="How networks compute; auto says what it chose and why.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only, no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as one JSON object.")]
Seed = Annotated[int, typer.Option(help="Everything random derives from it.")]
Steps = Annotated[int | None, typer.Option(help="Updates of the weights, in place of --epochs.")]
Method = Annotated[str | None, typer.Option("-m", "--method", help="See `blemish methods`.")]
ModelFile = Annotated[Path, typer.Argument(help="A model file made by `blemish fit`.", show_default=False)]
FalseReject = Annotated[
    float | None, typer.Option(help="Share of good parts that may be rejected, such as 0.01; default: 1 % or 1/(n+1).")
]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, for a model saved without them.", show_default=False)
]


@dataclass(frozen=True)
class Machine:
    """Option group: where a command computes, and who watches."""

    device: Device = "auto"
    threads: Threads = None
    precision: PrecisionOption = "auto"
    quiet: Quiet = False

    @property
    def progress(self) -> Progress:
        """A bar for a person, lines for a log, warnings alone with ``--quiet``."""
        from blemish.run import Bar, Lines, Warnings

        if self.quiet:
            return Warnings()
        return Bar() if sys.stderr.isatty() else Lines()

    def run(self, seed: int = 0, **fields: Any) -> Run:
        """A run on the device asked for; ``fields`` are of ``Run``."""
        from blemish.run import Run, choose_device, set_threads

        set_threads(self.threads)
        return Run(seed=seed, device=choose_device(self.device), progress=self.progress, **fields)

    def load(self, model: Path, weights: str | None) -> Inspector:
        """The inspector in a model file, on the device asked for."""
        from blemish.inspection.inspector import load
        from blemish.run import set_threads

        set_threads(self.threads)
        return load(model, self.device, self.precision, weights)


@dataclass(frozen=True)
class Learning:
    """Option group: what learns, from images of which size. Its fields are those of ``FitSettings``."""

    backbone: Annotated[str, typer.Option(help="See `blemish backbones`.")] = DEFAULT_BACKBONE
    weights: Annotated[str, typer.Option(help="pretrained, a file, or random (for tests).")] = "pretrained"
    size: Annotated[int, typer.Option(min=32, max=4096, help="Pixels of a side of what the network sees.")] = 256
    resize: Annotated[Resize, typer.Option(help="How images come to that size.")] = "stretch"
    options: Annotated[
        list[str] | None, typer.Option("--set", help="A method's own option, key=value; see `blemish methods NAME`.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """Arguments of ``FitSettings``."""
        return vars(self) | {"options": parse_options(self.options or [])}


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs; a value is read as JSON where it is JSON, a comma makes a list, else it is text."""
    from blemish.errors import ConfigError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as key=value, such as --set fraction=0.1")
        try:
            options[key] = json.loads(f"[{value}]" if "," in value and value[:1] != "[" else value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def parse_epochs(text: str | None) -> int | Literal["auto"] | None:
    """A number of epochs, or ``auto``."""
    from blemish.errors import ConfigError

    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"--epochs {text}: give a whole number, or auto") from None
