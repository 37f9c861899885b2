"""Learning: ``demo``, ``fit``, ``audit``."""

import functools
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.app import command, print_result
from blemish.cli.options import AsJson, Fitting, Learning, Machine, Quiet, Seed, Threads, check_suffix
from blemish.run.progress import printable


@command
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="For images and the page.")] = Path("demo-output"),
    threads: Threads = None,
    seed: Seed = 0,
    serve: Annotated[
        bool, typer.Option("--serve", help="Then open a station that judges its images, as a line would bring them.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of that station.")] = 8000,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Everything once, offline, on real textures with painted defects. Example: blemish demo"""
    from blemish.data.public import DEMO_CATEGORIES
    from blemish.report.demo import run_demo

    if not serve or not all((output / f"{name}.blemish").exists() for name in DEMO_CATEGORIES):
        result = run_demo(output, Machine(threads=threads, quiet=quiet).run(seed))
        print_result(result.as_dict(), as_json, result.as_text())
    if serve:
        from blemish.cli.serve import serve_demo

        serve_demo(output, [*DEMO_CATEGORIES], port, threads)


@command
def fit(
    data: Annotated[Path | None, typer.Argument(help="Layout folder, plain folder or CSV manifest.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The model file to write.")] = Path("model.blemish"),
    good: Annotated[list[str] | None, typer.Option(help="Pattern of good images, such as 'OK/*.png'.")] = None,
    anomalous: Annotated[list[str] | None, typer.Option(help="Pattern of known-bad images.")] = None,
    unlabelled: Annotated[
        list[str] | None, typer.Option(help="Pattern of images that nobody has looked at.", show_default=False)
    ] = None,
    pile: Annotated[bool, typer.Option("--pile", help="DATA is a pile that nobody has looked at.")] = False,
    *,
    fitting: Fitting,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was stopped or killed.")] = False,
    time_limit: Annotated[
        float | None, typer.Option(min=0, help="Minutes after which to stop; --resume goes on.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Begin a long training without asking.")] = False,
    without_backbone: Annotated[bool, typer.Option("--without-backbone", help="Leave its weights out.")] = False,
    seed: Seed = 0,
    machine: Machine,
    as_json: AsJson = False,
) -> None:
    """Learn what is normal and write one model file. Example: blemish fit parts/ -o parts.blemish"""
    from blemish.data.readers import files_of, read_globs, read_training
    from blemish.errors import ConfigError
    from blemish.run import check_writable, refuse_to_replace
    from blemish.training.fit import fit as learn

    patterns = good or anomalous or unlabelled
    if (data is None) == (not patterns):
        raise ConfigError("give either DATA or patterns: `blemish fit DATA` or `blemish fit --good 'OK/*.png'`")
    if pile and data is None:
        raise ConfigError("--pile is said of DATA: give patterns of what nobody has looked at with --unlabelled")
    training = read_training(data, pile) if data else read_globs(good or (), anomalous or (), unlabelled or ())
    check_suffix(output)
    refuse_to_replace(output, files_of(training))
    check_writable(output)
    run = machine.run(
        seed,
        checkpoint=output.with_name(f"{output.name}.checkpoint"),
        resume=resume,
        time_limit=None if time_limit is None else 60 * time_limit,
        confirm=None if yes or not sys.stdin.isatty() else functools.partial(typer.confirm, err=True),
    )
    inspector = learn(training, fitting.settings(machine), run)
    inspector.save(output, with_backbone=not without_backbone)
    run.forget_checkpoints()
    print_result(inspector.info() | {"model": str(output)}, as_json, f"{output}: {inspector.promise}")


@command
def audit(
    data: Annotated[Path, typer.Argument(help="A folder that is supposed to be good, or a manifest.")],
    clean: Annotated[Path | None, typer.Option(help="Manifest to write, of all images that are not suspect.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The page with pictures.")] = Path("audit.html"),
    *,
    learning: Learning,
    shown: Annotated[int, typer.Option(min=0, help="Most suspicious images with maps on the page.")] = 60,
    seed: Seed = 0,
    machine: Machine,
    as_json: Annotated[bool, typer.Option("--json", help="All images, one JSON object a line.")] = False,
) -> None:
    """Find images that are out of place, worst first. Example: blemish audit parts/ --clean parts/clean.csv"""
    from blemish.data.manifest import check_within
    from blemish.data.readers import files_of, read_training
    from blemish.errors import OutputError
    from blemish.report.audit import write_audit
    from blemish.run import check_writable, refuse_to_replace
    from blemish.training.audit import audit as search
    from blemish.training.audit import write_clean

    if clean is not None and clean.resolve() == output.resolve():
        raise OutputError(f"{clean} cannot hold both the page and the manifest: choose another name for one of them")
    training = read_training(data)
    for path in filter(None, (output, clean)):
        refuse_to_replace(path, files_of(training))
        check_writable(path)
    if clean is not None:
        check_within(clean, (sample.path for sample in training.samples))
    result = search(training, learning.settings(machine), machine.run(seed), shown)
    page = write_audit(result, output)
    written = [page] if clean is None else [page, write_clean(result, clean)]
    if as_json:
        for judged in result.judged:
            typer.echo(json.dumps(judged.as_dict()))
        return
    for judged in result.suspects:
        typer.echo(printable(f"{judged.rank:5}  {judged.score:10.4g}  {judged.sample.path}"))
    typer.echo(result.sentence())
    for path in written:
        typer.echo(f"written: {path}")
