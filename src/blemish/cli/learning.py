"""Learning: ``demo``, ``fit``, ``calibrate``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.app import app, load_model, make_run, parse_epochs, parse_options, print_result
from blemish.cli.options import (
    AsJson,
    Calibration,
    Device,
    FalseReject,
    Model,
    Precision,
    PrecisionOption,
    Quiet,
    Resize,
    Seed,
    Size,
    Threads,
    Weights,
)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="For images and the page.")] = Path("demo-output"),
    threads: Threads = None,
    seed: Seed = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Everything once, offline, on real textures with painted defects. Example: blemish demo"""
    from blemish.report.demo import run_demo

    found = run_demo(output, make_run(quiet, threads=threads, seed=seed))
    print_result(found.as_dict(), as_json, found.as_text())


@app.command()
def fit(
    data: Annotated[Path | None, typer.Argument(help="Layout folder, plain folder or CSV manifest.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The model file to write.")] = Path("model.blemish"),
    method: Annotated[str | None, typer.Option("-m", "--method", help="See `blemish methods`.")] = None,
    good: Annotated[list[str] | None, typer.Option(help="Pattern of good images, such as 'OK/*.png'.")] = None,
    anomalous: Annotated[list[str] | None, typer.Option(help="Pattern of known-bad images.")] = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(help="Pattern of images that nobody has looked at.", show_default=False)
    ] = None,
    nobody_looked: Annotated[bool, typer.Option("--pile", help="DATA is a pile that nobody has looked at.")] = False,
    backbone: Annotated[str, typer.Option(help="See `blemish backbones`.")] = "efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="pretrained, a file, or random (for tests).")] = "pretrained",
    size: Size = 256,
    resize: Annotated[Resize, typer.Option(help="How images come to that size.")] = Resize.stretch,
    calibration: Annotated[Calibration, typer.Option(help="Where the threshold comes from.")] = Calibration.auto,
    false_reject: FalseReject = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="A method's own option, key=value.")] = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Passes over the images, for methods that are trained; auto: chosen by painted defects."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of the weights, in place of --epochs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was stopped or killed.")] = False,
    time_limit: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which to stop; --resume goes on.", show_default=False)
    ] = None,
    cache: Annotated[str, typer.Option(help="Where features are kept while learning: memory, off or DIR.")] = "memory",
    compare: Annotated[bool, typer.Option("--compare", help="Say what the known-bad images changed.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="A damaged training image is an error.")] = False,
    without_backbone: Annotated[bool, typer.Option("--without-backbone", help="Leave its weights out.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = Precision.auto,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Learn what is normal and write one model file. Example: blemish fit parts/ -o parts.blemish"""
    from blemish.data.readers import read_globs, read_training, refuse_to_replace
    from blemish.errors import ConfigError
    from blemish.run import check_writable
    from blemish.training.fit import FitSettings
    from blemish.training.fit import fit as learn

    patterns = good or anomalous or unlabelled
    if (data is None) == (not patterns):
        raise ConfigError("give either DATA or patterns: `blemish fit DATA` or `blemish fit --good 'OK/*.png'`")
    training = read_training(data, nobody_looked) if data else read_globs(good or (), anomalous or (), unlabelled or ())
    refuse_to_replace(output, training)
    check_writable(output)
    settings = FitSettings(
        method=method,
        options=parse_options(option or []),
        backbone=backbone,
        weights=weights,
        size=size,
        resize=resize.value,
        calibration=calibration.value,
        false_reject=false_reject,
        precision=precision.value,
        strict=strict,
        epochs=parse_epochs(epochs),
        steps=steps,
        cache=cache,
        compare=compare,
    )
    run = dataclasses.replace(
        make_run(quiet, device, threads, seed),
        checkpoint=output.with_name(f"{output.name}.checkpoint"),
        resume=resume,
        time_limit=None if time_limit is None else 60 * time_limit,
    )
    inspector = learn(training, settings, run)
    inspector.save(output, with_backbone=not without_backbone)
    run.forget_checkpoints()
    print_result(inspector.info() | {"model": str(output)}, as_json, f"{output}: {inspector.calibration.sentence()}")


@app.command()
def calibrate(
    model: Model,
    good: Annotated[list[Path], typer.Argument(help="Good images that the model did not learn from, or folders.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibrated model to write.", show_default=False)],
    false_reject: FalseReject = None,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """A new threshold without refitting. Example: blemish calibrate old.blemish good/ -o new.blemish"""
    from blemish.inspection.output import recalibrated

    inspector = load_model(model, device, threads, Precision.auto, weights)
    fresh = recalibrated(inspector, good, false_reject, make_run(quiet, device, threads))
    fresh.save(output)
    print_result(fresh.info() | {"model": str(output)}, as_json, f"{output}: {fresh.calibration.sentence()}")
