"""The options that several commands share, alone and in groups, and the words that options may be.

The words are spelled here once more because the modules that own them import torch; a test compares the spellings.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from blemish.inspection.exported import ExportedInspector
    from blemish.inspection.inspector import Inspector
    from blemish.run import Progress, Run
    from blemish.training.setup import FitSettings

Precision = Literal["auto", "fp32", "bf16"]
Resize = Literal["stretch", "crop", "opencv", "letterbox"]
Profile = Literal["fast", "balanced", "best"]
Poses = Literal["none", "flips", "turns", "all"]
Calibration = Literal["auto", "holdout", "crossfit", "none"]
Resolution = Literal["input", "original"]
EngineName = Literal["auto", "onnxruntime", "openvino"]
FailOn = Literal["never", "review", "reject"]

Threads = Annotated[int | None, typer.Option(help="Processor threads; default: all cores.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PrecisionOption = Annotated[Precision, typer.Option(help="How networks compute; auto says what it chose and why.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only, no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="The result as one JSON object.")]
Seed = Annotated[int, typer.Option(min=0, help="Everything random derives from it.")]
ModelFile = Annotated[Path, typer.Argument(help="A model file made by `blemish fit`.", show_default=False)]
Method = Annotated[str | None, typer.Option("-m", "--method", help="See `blemish methods`.")]
FalseReject = Annotated[
    float | None, typer.Option(help="Share of good parts that may be rejected, such as 0.01; default: 1 % or 1/(n+1).")
]
Review = Annotated[
    float | None,
    typer.Option(help="Share of good parts that may go to a person besides; default: twice as many, at most 10 %."),
]
Engine = Annotated[EngineName, typer.Option("--engine", help="What runs an exported file.")]
Weights = Annotated[
    str | None, typer.Option(help="The backbone's weights, for a model saved without them.", show_default=False)
]


def parse_milliseconds(text: str) -> float:
    """``30ms``, ``0.5s`` or ``30``, in milliseconds."""
    found = re.fullmatch(r"(\d+\.?\d*)\s*(ms|s)?", text.strip().lower())
    if found is None or not float(found[1]):
        raise typer.BadParameter(f"{text} is no time above 0 such as 30ms or 0.5s")
    return float(found[1]) * (1000 if found[2] == "s" else 1)


def check_suffix(output: Path, is_exported: bool = False) -> None:
    """A ConfigError where a model that learned is to be named like an exported one, or one exported like that."""
    from blemish.errors import ConfigError

    model, file = output.with_suffix(".blemish"), output.with_suffix(".onnx")
    if is_exported and output.suffix.casefold() == ".blemish":
        raise ConfigError(f"{output} would be taken for a model that learned, and this writes an ONNX file: -o {file}")
    if not is_exported and output.suffix.casefold() == ".onnx":
        raise ConfigError(f"this writes no ONNX file: -o {model}, and then blemish export {model} -o {output}")


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
        from blemish.run import Run, choose_device, device_name, set_threads

        set_threads(self.threads)
        device = choose_device(self.device)
        if device.type != "cpu":
            self.progress.note(f"computes on {device_name(device)}")
        return Run(seed=seed, device=device, progress=self.progress, **fields)

    def load(self, model: Path, weights: str | None, engine: EngineName = "auto") -> Inspector | ExportedInspector:
        """The inspector in a model file or an exported one, on the device or engine asked for."""
        from blemish.inspection.load import load

        return load(model, self.device, self.precision, weights, engine, self.threads)

    def load_learned(self, model: Path, weights: str | None) -> Inspector:
        """The inspector in a file that learned, not one exported, on the device asked for."""
        from blemish.inspection.inspector import load
        from blemish.run import set_threads

        set_threads(self.threads)
        return load(model, self.device, self.precision, weights)


@dataclass(frozen=True)
class Learning:
    """Option group: what learns, how long, from images of which size. Its fields are those of ``FitSettings``."""

    method: Method = None
    backbone: Annotated[str | None, typer.Option(help="See `blemish backbones`.", show_default=False)] = None
    weights: Annotated[str, typer.Option(help="pretrained, a file, or random (for tests).")] = "pretrained"
    size: Annotated[str, typer.Option(help="Input size of the network in pixels: auto, a side, or HxW.")] = "auto"
    resize: Annotated[Resize, typer.Option(help="How images come to that size.")] = "stretch"
    profile: Annotated[
        Profile | None,
        typer.Option(
            help="fast, balanced or best. Default: balanced where its weights are, else fast; none with -m, in audits."
        ),
    ] = None
    smallest_defect: Annotated[
        str | None, typer.Option(help="Width of the smallest defect to find: pixels of the images, or such as 0.3mm.")
    ] = None
    pixel: Annotated[str | None, typer.Option(help="Width of a pixel on the part, such as 0.05mm.")] = None
    tile: Annotated[int | None, typer.Option(help="Cut large images into tiles of so many pixels a side.")] = None
    tile_overlap: Annotated[
        int | None, typer.Option("--overlap", help="Pixels by which tiles overlap; an eighth by default.")
    ] = None
    roi: Annotated[Path | None, typer.Option(help="Judge only here: a mask image, or polygons in JSON.")] = None
    ignore: Annotated[Path | None, typer.Option(help="Do not judge here: a mask image, or polygons in JSON.")] = None
    poses: Annotated[
        Poses | None, typer.Option(help="Orientations of the parts: none, flips, turns or all; detected by default.")
    ] = None
    options: Annotated[
        list[str] | None, typer.Option("--set", help="A method's own option, key=value; see `blemish methods NAME`.")
    ] = None
    epochs: Annotated[
        str | None,
        typer.Option(help="Passes over the images, for trained methods; auto, for fit: chosen by painted defects."),
    ] = None
    steps: Annotated[int | None, typer.Option(help="Updates of the weights, in place of --epochs.")] = None

    def settings(self, machine: Machine) -> FitSettings:
        """All of it as ``fit`` takes it."""
        from blemish.data.units import in_pixels, parse_pixel
        from blemish.errors import ConfigError
        from blemish.training.setup import FitSettings

        pixel = None if self.pixel is None else parse_pixel(self.pixel)
        smallest = None if self.smallest_defect is None else in_pixels(self.smallest_defect, pixel)
        if smallest is not None and smallest < 1:
            raise ConfigError(f"--smallest-defect {self.smallest_defect}: no image shows less than a pixel")
        parsed = {
            "pixel": pixel,
            "smallest_defect": smallest,
            "options": parse_options(self.options or []),
            "epochs": parse_epochs(self.epochs),
            "size": parse_size(self.size),
        }
        return FitSettings(**vars(self) | parsed, precision=machine.precision)


@dataclass(frozen=True)
class Fitting(Learning):
    """Option group: what ``fit`` alone takes of them."""

    calibration: Annotated[Calibration, typer.Option(help="Where the threshold comes from.")] = "auto"
    budget: Annotated[
        float | None,
        typer.Option(
            parser=parse_milliseconds,
            metavar="TIME",
            help="Most time from file to verdict on this machine, such as 30ms.",
        ),
    ] = None
    false_reject: FalseReject = None
    review: Review = None
    cache: Annotated[str, typer.Option(help="Where features are kept while learning: memory, off or DIR.")] = "memory"
    compare: Annotated[bool, typer.Option("--compare", help="Say what the known-bad images changed.")] = False
    strict: Annotated[bool, typer.Option("--strict", help="A damaged training image is an error.")] = False


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


def parse_size(text: str) -> int | tuple[int, int] | None:
    """A side, height and width, or None for ``auto``."""
    if text == "auto":
        return None
    sides = [int(side) if side.isdecimal() else 0 for side in text.lower().split("x")]
    if len(sides) > 2 or not all(32 <= side <= 4096 for side in sides):
        message = f"{text} is neither auto, nor a side such as 448, nor height and width such as 384x512 (32 to 4096)"
        raise typer.BadParameter(message, param_hint="--size")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])
