"""Judging: ``inspect``, ``evaluate``, ``calibrate``."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blemish.cli.app import FAILED, REJECTED, command, print_result
from blemish.cli.options import (
    AsJson,
    Engine,
    FailOn,
    FalseReject,
    Machine,
    ModelFile,
    Resolution,
    Review,
    Weights,
    check_suffix,
)
from blemish.run.progress import printable

if TYPE_CHECKING:
    from blemish.inspection.verdict import Verdict


@command
def inspect(
    model: ModelFile,
    images: Annotated[list[Path], typer.Argument(help="Images or folders of images.", show_default=False)],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for overlays and a page, index.html.")
    ] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for raw anomaly maps, 32-bit TIFF.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for regions, one row each.")] = None,
    coco: Annotated[Path | None, typer.Option(help="File for regions as COCO detection JSON.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with code 3 if one is judged so.")] = "never",
    smallest_area: Annotated[
        str | None, typer.Option(help="Ignore smaller regions, such as 30px or 0.2mm2; original pixels without a unit.")
    ] = None,
    pixel: Annotated[str | None, typer.Option(help="Width of a pixel on the part, in place of the model's.")] = None,
    weights: Weights = None,
    engine: Engine = "auto",
    *,
    machine: Machine,
    as_json: Annotated[
        bool, typer.Option("--json", help="JSON lines on a terminal, too; files and pipes get them.")
    ] = False,
) -> None:
    """Judge images; pipes and files get JSON lines. Example: blemish inspect parts.blemish new/*.png -o overlays/"""
    from blemish.data.units import in_pixels, parse_pixel
    from blemish.errors import CalibrationError, OutputError
    from blemish.inspection.output import deliver, summary
    from blemish.run import refuse_to_replace

    is_json = as_json or not sys.stdout.isatty()
    say = (lambda line, _: typer.echo(json.dumps(line))) if is_json else _for_people
    for path in filter(None, (csv, coco)):
        refuse_to_replace(path, {"the model": [model]})
    if csv is not None and coco is not None and csv.resolve() == coco.resolve():
        raise OutputError(f"{csv} cannot hold both the table and COCO JSON: choose another name for one of them")
    inspector = machine.load(model, weights, engine)
    if pixel is not None:
        inspector = dataclasses.replace(inspector, pixel=parse_pixel(pixel))
    if smallest_area is not None:
        inspector = dataclasses.replace(inspector, smallest_area=in_pixels(smallest_area, inspector.pixel, 2))
    if fail_on != "never" and inspector.calibration.kind == "none":
        raise CalibrationError(f"--fail-on {fail_on} needs decisions. {inspector.calibration.sentence()}")
    progress, gallery = machine.progress, None
    if output is not None:
        from blemish.report.inspection import Gallery, write_inspection

        gallery = Gallery(output, inspector)
    show = None if gallery is None else gallery.add
    decisions, unreadable = deliver(inspector, images, say, progress, output, maps, csv, coco, show)
    if gallery is not None:
        progress.note(f"the page: {write_inspection(gallery, decisions, unreadable)}")
    progress.note(summary(decisions, len(unreadable)))
    failing = {"never": (), "review": ("review", "reject"), "reject": ("reject",)}[fail_on]
    if unreadable:
        raise typer.Exit(FAILED)
    if any(decisions[decision] for decision in failing):
        raise typer.Exit(REJECTED)


def _for_people(line: dict[str, Any], verdict: "Verdict | None") -> None:
    """In one line that fits on a terminal."""
    told = verdict.caption if verdict else line["error"]
    text = told if line["path"] in told else f"{line['path']}: {told}"
    typer.echo(printable(text).replace("\n", "\\n"))  # which a file's name may hold


@command
def evaluate(
    model: ModelFile,
    data: Annotated[Path, typer.Argument(help="A set with test images and, for pixel metrics, masks.")],
    at: Annotated[Resolution, typer.Option(help="Where pixel metrics are measured.")] = "input",
    per_image_pro: Annotated[bool, typer.Option("--per-image-pro", help="Also AU-PRO as the RD family does.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for a page, index.html.")] = None,
    weights: Weights = None,
    engine: Engine = "auto",
    *,
    machine: Machine,
    as_json: AsJson = False,
) -> None:
    """Measure a model on a test set. Example: blemish evaluate parts.blemish parts/ --json"""
    from blemish.data.testset import open_test_set
    from blemish.run import check_writable
    from blemish.training.evaluate import as_text
    from blemish.training.evaluate import evaluate as measure

    if output is not None:
        check_writable(output / "index.html")
    inspector = machine.load(model, weights, engine)
    test, run = open_test_set(data), machine.run()
    result = measure(inspector, test, run, at, per_image_pro)
    if output is not None:
        from blemish.report.evaluation import write_evaluation

        page, decided = write_evaluation(inspector, result, test.name, output)
        run.progress.note(f"the page: {page}")
        run.progress.note(decided)
    print_result(result.as_dict(), as_json, as_text(result))


@command
def calibrate(
    model: ModelFile,
    good: Annotated[list[Path], typer.Argument(help="Good images that the model did not learn from, or folders.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The calibrated model to write.", show_default=False)],
    false_reject: FalseReject = None,
    review: Review = None,
    weights: Weights = None,
    *,
    machine: Machine,
    as_json: AsJson = False,
) -> None:
    """A new threshold without refitting. Example: blemish calibrate old.blemish good/ -o new.blemish"""
    from blemish.data.readers import find_images
    from blemish.run import check_writable, refuse_to_replace

    refuse_to_replace(output, {"one of the good images": find_images(good)})
    check_writable(output)
    learned = machine.load_learned(model, weights)
    check_suffix(output)
    fresh = learned.calibrated(good, false_reject, machine.run(), review)
    fresh.save(output)
    print_result(fresh.info() | {"model": str(output)}, as_json, f"{output}: {fresh.promise}")
