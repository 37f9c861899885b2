"""The command line: thin. Results go to standard output, everything else to standard error.

Nothing heavy is imported until a command needs it, so that every ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from blemish.cli_options import (
    AsJson,
    Calibration,
    Device,
    FailOn,
    FalseReject,
    Model,
    Precision,
    PrecisionOption,
    Quiet,
    Resize,
    Resolution,
    Seed,
    Threads,
    Weights,
)

if TYPE_CHECKING:
    from blemish.run import Progress, Run

FAILED, WRONG, REJECTED = 1, 2, 3


class Commands(TyperGroup):
    """Turns what Blemish raises on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from blemish.errors import BlemishError, ConfigError

        try:
            return super().invoke(ctx)
        except ConfigError as error:
            _say(f"blemish: {error}")
            raise typer.Exit(WRONG) from None
        except BlemishError as error:
            _say(f"blemish: {error}")
        except KeyboardInterrupt:
            _say("blemish: stopped; nothing half-written is left behind")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            _say(f"blemish: standard output cannot be written: {error.strerror}")
        raise typer.Exit(FAILED)


app = typer.Typer(
    name="blemish",
    cls=Commands,
    help="Finds and outlines what is wrong in a picture, having learned what right looks like.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", help="Folder for the images and the page.")] = Path("demo-output"),
    threads: Threads = None,
    quiet: Quiet = False,
    seed: Seed = 0,
) -> None:
    """Everything once, offline, on real textures with painted defects. Example: blemish demo"""
    from blemish.report.demo import run_demo

    typer.echo(run_demo(output, _run(quiet, threads=threads, seed=seed)))


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
    size: Annotated[int, typer.Option(help="Pixels of a side of what the network sees.")] = 256,
    resize: Annotated[Resize, typer.Option(help="How images come to that size.")] = Resize.stretch,
    calibration: Annotated[Calibration, typer.Option(help="Where the threshold comes from.")] = Calibration.auto,
    false_reject: FalseReject = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="A method's own option, key=value.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images, for methods that are trained.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates of the weights, in place of --epochs.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was stopped or killed.")] = False,
    time_limit: Annotated[
        float | None, typer.Option(help="Minutes after which to stop; --resume goes on.", show_default=False)
    ] = None,
    cache: Annotated[str, typer.Option(help="Where features are kept while learning: memory, off or DIR.")] = "memory",
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
    from blemish.data.readers import read_globs, read_training
    from blemish.errors import ConfigError
    from blemish.inspection.fitting import FitSettings
    from blemish.inspection.fitting import fit as learn
    from blemish.run import check_writable

    patterns = good or anomalous or unlabelled
    if (data is None) == (not patterns):
        raise ConfigError("give either DATA or patterns: `blemish fit DATA` or `blemish fit --good 'OK/*.png'`")
    training = read_training(data, nobody_looked) if data else read_globs(good or (), anomalous or (), unlabelled or ())
    check_writable(output)
    settings = FitSettings(
        method=method,
        options=_options(option or []),
        backbone=backbone,
        weights=weights,
        size=size,
        resize=resize.value,
        calibration=calibration.value,
        false_reject=false_reject,
        precision=precision.value,
        strict=strict,
        epochs=epochs,
        steps=steps,
        cache=cache,
    )
    run = dataclasses.replace(
        _run(quiet, device, threads, seed),
        checkpoint=output.with_name(f"{output.name}.checkpoint"),
        resume=resume,
        time_limit=None if time_limit is None else 60 * time_limit,
    )
    inspector = learn(training, settings, run)
    inspector.save(output, with_backbone=not without_backbone)
    run.forget_checkpoints()
    _result(inspector.info() | {"model": str(output)}, as_json, f"{output}: {inspector.calibration.sentence()}")


@app.command()
def inspect(
    model: Model,
    images: Annotated[list[Path], typer.Argument(help="Images or folders of images.", show_default=False)],
    output: Annotated[Path | None, typer.Option("-o", help="Folder for overlays.")] = None,
    maps: Annotated[Path | None, typer.Option(help="Folder for raw anomaly maps, 32-bit TIFF.")] = None,
    csv: Annotated[Path | None, typer.Option(help="File for regions, one row each.")] = None,
    fail_on: Annotated[FailOn, typer.Option(help="Exit with code 3 if one is judged so.")] = FailOn.never,
    smallest_area: Annotated[int | None, typer.Option(help="Ignore regions of fewer original pixels.")] = None,
    weights: Weights = None,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = Precision.auto,
    quiet: Quiet = False,
) -> None:
    """Judge images: one JSON line each. Example: blemish inspect parts.blemish new/*.png -o overlays/"""
    from blemish.errors import CalibrationError
    from blemish.inspection.delivery import deliver

    inspector = _load(model, device, threads, precision, weights, smallest_area)
    if fail_on is not FailOn.never and inspector.calibration.kind == "none":
        raise CalibrationError(f"--fail-on {fail_on.value} needs decisions. {inspector.calibration.sentence()}")
    decisions, unreadable = deliver(inspector, images, typer.echo, _progress(quiet), output, maps, csv)
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
    from blemish.inspection.evaluation import as_text
    from blemish.inspection.evaluation import evaluate as measure

    inspector = _load(model, device, threads, precision, weights)
    found = measure(inspector, open_test_set(data), _run(quiet, device, threads), at.value, per_image_pro)
    _result(found.as_dict(), as_json, as_text(found))


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
    from blemish.inspection.delivery import recalibrated

    inspector = _load(model, device, threads, Precision.auto, weights)
    fresh = recalibrated(inspector, good, false_reject, _run(quiet, device, threads))
    fresh.save(output)
    _result(fresh.info() | {"model": str(output)}, as_json, f"{output}: {fresh.calibration.sentence()}")


@app.command()
def info(model: Model, weights: Weights = None, as_json: AsJson = False) -> None:
    """What a model is: method, data, promise, sizes, digests. Example: blemish info parts.blemish"""
    inspector = _load(model, "cpu", None, Precision.auto, weights)
    found = inspector.info()
    _result(found, as_json, "\n".join(f"{key:18} {_plain(value)}" for key, value in found.items()))


@app.command()
def audit(
    data: Annotated[Path, typer.Argument(help="A folder that is supposed to be good, or a manifest.")],
    method: Annotated[str | None, typer.Option("-m", "--method", help="See `blemish methods`.")] = None,
    clean: Annotated[Path | None, typer.Option(help="Manifest to write, of all images that are not suspect.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page with pictures.")] = Path("audit.html"),
    backbone: Annotated[str, typer.Option(help="See `blemish backbones`.")] = "efficientnet_lite0",
    weights: Annotated[str, typer.Option(help="pretrained, a file, or random (for tests).")] = "pretrained",
    size: Annotated[int, typer.Option(help="Pixels of a side of what the network sees.")] = 256,
    resize: Annotated[Resize, typer.Option(help="How images come to that size.")] = Resize.stretch,
    option: Annotated[list[str] | None, typer.Option("--set", help="A method's own option, key=value.")] = None,
    shown: Annotated[int, typer.Option(min=0, help="Most suspicious images with maps on the page.")] = 60,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = Precision.auto,
    as_json: Annotated[bool, typer.Option("--json", help="All images, one JSON object a line.")] = False,
    quiet: Quiet = False,
) -> None:
    """Which images of a good folder are not, worst first. Example: blemish audit parts/ --clean parts/clean.csv"""
    from blemish.data.readers import read_training, refuse_to_replace
    from blemish.inspection.audit import audit as search
    from blemish.inspection.audit import write_clean
    from blemish.inspection.fitting import FitSettings
    from blemish.report.audit import write_audit
    from blemish.run import check_writable

    training = read_training(data)
    for path in filter(None, (output, clean)):
        refuse_to_replace(path, training.root)
        check_writable(path)
    settings = FitSettings(
        method=method,
        options=_options(option or []),
        backbone=backbone,
        weights=weights,
        size=size,
        resize=resize.value,
        precision=precision.value,
    )
    found = search(training, settings, _run(quiet, device, threads, seed), shown)
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


@app.command()
def contaminate(
    data: Annotated[Path, typer.Argument(help="A set with good training images and bad test images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The manifest to write, beside the images.")],
    ratio: Annotated[float, typer.Option(help="Bad images for each training image.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Fixes which parts are drawn.")] = 0,
) -> None:
    """An unlabelled pile with known bad ones in it. Example: blemish contaminate parts/ -o parts/pile.csv"""
    from blemish.data.protocols import contaminate as draw
    from blemish.data.protocols import write_contaminated
    from blemish.data.readers import read_training
    from blemish.data.testset import open_test_set

    found = draw(read_training(data), open_test_set(data), ratio, seed)
    pile, overlap = write_contaminated(found, output)
    typer.echo(f"{pile}: {len(found.drawn)} of {len(found.training.samples)} training images are bad; no overlap")
    typer.echo(f"{overlap}: the test set with overlap, for the same model")


@app.command()
def bench(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML, such as recipes/quick.toml.", show_default=False)],
    results: Annotated[Path, typer.Option(help="Folder of the ledger that rows are added to.")] = Path("results"),
    reports: Annotated[Path, typer.Option(help="Folder for the report; keep it out of git.")] = Path("reports"),
    data: Annotated[Path | None, typer.Option(help="Folder the sets lie in; default: $BLEMISH_DATA.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--afresh", help="Skip jobs whose rows stand, or run them once more.")
    ] = True,
    only: Annotated[list[str] | None, typer.Option(help="Jobs whose title matches, such as '*screw*'.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time; they share the cores.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs and their time, run nothing.")] = False,
    device: Device = "auto",
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Methods x data sets x seeds, a ledger, a report. Example: blemish bench recipes/quick.toml --jobs 2"""
    from blemish.bench.session import open_session
    from blemish.report.bench import write_reports

    session = open_session(recipe, results, data, only or (), afresh=not resume)
    if dry_run:
        typer.echo("\n".join(session.dry_run(jobs)))
        return
    tally = session.run(jobs, threads, device, _progress(quiet))
    for path in write_reports(session.summary(), session.results, reports):
        typer.echo(path)
    for failure in tally.failed:
        _say(f"failed: {failure}")
    if tally.failed or not session.chosen:
        raise typer.Exit(FAILED)


@app.command()
def methods(as_json: AsJson = False) -> None:
    """The methods there are, one line each. Example: blemish methods"""
    from blemish.registry import METHODS

    _table({name: {"regime": e.regime, "idea": e.idea, "paper": e.paper} for name, e in METHODS.items()}, as_json)


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """The backbones there are, one line each. Example: blemish backbones"""
    from blemish.backbones.catalogue import BACKBONES

    rows = {name: {"weights": e.origin, "licence": e.licence, "note": e.note} for name, e in BACKBONES.items()}
    _table(rows, as_json)


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """The data sets that Blemish knows, one line each. Example: blemish datasets"""
    from blemish.data.public import datasets as known

    _table({name: {"shows": shows, "source": source} for name, shows, source in known()}, as_json)


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed for a stated reason, 2 wrong arguments, 3 a reject."""
    app()


def _load(
    model: Path,
    device: str,
    threads: int | None,
    precision: Precision,
    weights: str | None,
    smallest_area: int | None = None,
) -> Any:
    from blemish.inspection.inspector import load
    from blemish.run import set_threads

    set_threads(threads)
    inspector = load(model, device, precision.value, weights)
    return inspector if smallest_area is None else dataclasses.replace(inspector, smallest_area=smallest_area)


def _run(quiet: bool, device: str = "auto", threads: int | None = None, seed: int = 0) -> Run:
    from blemish.run import Run, choose_device, set_threads

    set_threads(threads)
    return Run(seed=seed, device=choose_device(device), progress=_progress(quiet))


def _progress(quiet: bool) -> Progress:
    from blemish.run import Bar, Lines, Silent

    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else Lines()


def _options(pairs: list[str]) -> dict[str, Any]:
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


def _result(found: dict[str, Any], as_json: bool, text: str) -> None:
    typer.echo(json.dumps(found) if as_json else text)


def _table(rows: dict[str, dict[str, str]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows))
        return
    width = max(len(name) for name in rows)
    for name, row in rows.items():
        typer.echo(f"{name:{width}}  " + " | ".join(row.values()))


def _plain(value: Any) -> str:
    return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
