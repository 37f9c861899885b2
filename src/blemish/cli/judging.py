"""Judging: ``inspect``, ``evaluate``, ``audit``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.app import FAILED, REJECTED, app, load_model, make_progress, make_run, parse_options, print_result
from blemish.cli.options import (
    AsJson,
    Device,
    FailOn,
    Model,
    Precision,
    PrecisionOption,
    Quiet,
    Resize,
    Resolution,
    Seed,
    Size,
    Threads,
    Weights,
)


@app.command()
def inspect(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Images or folders of images.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for overlays.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for raw anomaly maps, 32-bit TIFF.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for regions, one row each.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with code 3 if one is judged so.")] = FailOn.never,
    smallest_area: Annotated[int | None, typer.Option(min=0, help="Ignore regions of fewer original pixels.")] = None,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = Precision.auto,
    as_json: Annotated[bool, typer.Option("--json", help="Standard output is JSON with or without it.")] = True,
    quiet: Quiet = False,
) -> None:
    """Judge images: one JSON line each. Example: blemish inspect parts.blemish new/*.png -o overlays/"""
    from blemish.errors import CalibrationError, OutputError
    from blemish.inspection.output import deliver

    del as_json  # taken because every other command takes it
    if csv is not None and csv.resolve() == model.resolve():
        raise OutputError(f"{csv} is the model and would be replaced: choose another name")
    inspector = load_model(model, device, threads, precision, weights, smallest_area)
    if fail_on is not FailOn.never and inspector.calibration.kind == "none":
        raise CalibrationError(f"--fail-on {fail_on.value} needs decisions. {inspector.calibration.sentence()}")
    decisions, unreadable = deliver(inspector, images, typer.echo, make_progress(quiet), output, maps, csv)
    bad = {"never": set(), "review": {"review", "reject"}, "reject": {"reject"}}[fail_on.value]
    if unreadable:
        raise typer.Exit(FAILED)
    if bad & decisions:
        raise typer.Exit(REJECTED)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[Path, typer.Argument(help="A set with test images and, for pixel metrics, masks.")],
    at: Annotated[Resolution, typer.Option(help="Where pixel metrics are measured.")] = Resolution.input,
    per_image_pro: Annotated[bool, typer.Option("--per-image-pro", help="Also AU-PRO as the RD family does.")] = False,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = Precision.auto,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on a test set. Example: blemish evaluate parts.blemish parts/ --json"""
    from blemish.data.testset import open_test_set
    from blemish.training.evaluate import as_text
    from blemish.training.evaluate import evaluate as measure

    inspector = load_model(model, device, threads, precision, weights)
    found = measure(inspector, open_test_set(data), make_run(quiet, device, threads), at.value, per_image_pro)
    print_result(found.as_dict(), as_json, as_text(found))


@app.command()
def audit(
    data: Annotated[Path, typer.Argument(help="A folder that is supposed to be good, or a manifest.")],
    method: Annotated[str | None, typer.Option("-m", "--method", help="See `blemish methods`.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Manifest to write, of all images that are not suspect.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page with pictures.")] = Path("audit.html"),
    backbone: Annotated[str, typer.Option(help="See `blemish backbones`.")] = "efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="pretrained, a file, or random (for tests).")] = "pretrained",
    size: Size = 256,
    resize: Annotated[Resize, typer.Option(help="How images come to that size.")] = Resize.stretch,
    option: Annotated[list[str] | None, typer.Option("--set", help="A method's own option, key=value.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images, for methods that are trained.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of the weights, in place of --epochs.")] = None,
    shown: Annotated[int, typer.Option(min=0, help="Most suspicious images with maps on the page.")] = 60,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = Precision.auto,
    as_json: Annotated[bool, typer.Option("--json", help="All images, one JSON object a line.")] = False,
    quiet: Quiet = False,
) -> None:
    """Which images of a good folder are not, worst first. Example: blemish audit parts/ --clean parts/clean.csv"""
    from blemish.data.manifest import check_within
    from blemish.data.readers import read_training, refuse_to_replace
    from blemish.report.audit import write_audit
    from blemish.run import check_writable
    from blemish.training.audit import audit as search
    from blemish.training.audit import write_clean
    from blemish.training.fit import FitSettings

    training = read_training(data)
    for path in filter(None, (output, clean)):
        refuse_to_replace(path, training)
        check_writable(path)
    if clean is not None:
        check_within(clean, (sample.path for sample in training.samples))
    settings = FitSettings(
        method=method,
        options=parse_options(option or []),
        backbone=backbone,
        weights=weights,
        size=size,
        resize=resize.value,
        precision=precision.value,
        epochs=epochs,
        steps=steps,
    )
    found = search(training, settings, make_run(quiet, device, threads, seed), shown)
    page = write_audit(found, output)
    written = [page] if clean is None else [page, write_clean(found, clean)]
    if as_json:
        for one in found.judged:
            typer.echo(json.dumps(one.as_dict()))
        return
    for one in found.suspects:
        typer.echo(f"{one.rank:5}  {one.score:10.4g}  {one.sample.path}")
    typer.echo(found.sentence())
    for path in written:
        typer.echo(f"written: {path}")
