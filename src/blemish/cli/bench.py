"""Comparing methods: ``contaminate``, ``reveal``, ``bench``."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from blemish.cli.app import FAILED, command, print_result, say
from blemish.cli.options import AsJson, Device, Machine, Quiet, Threads

PUBLISHED = Path("results")  # the ledger that comes with the repository; nobody's own rows go there unasked


@command
def contaminate(
    data: Annotated[Path, typer.Argument(help="A set with good training images and bad test images.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The manifest to write, beside the images.")],
    ratio: Annotated[float, typer.Option(help="Bad images for each training image.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Fixes which parts are drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """An unlabelled pile with known bad ones in it. Example: blemish contaminate parts/ -o parts/pile.csv"""
    from blemish.data.protocols import contaminate as draw
    from blemish.data.protocols import write_manifests
    from blemish.data.readers import read_training
    from blemish.data.testset import open_test_set
    from blemish.run import check_writable

    check_writable(output)
    drawn = draw(read_training(data), open_test_set(data), ratio, seed)
    pile, overlap = write_manifests(drawn, output)
    bad, images = len(drawn.drawn), len(drawn.training.samples)
    print_result(
        {"no_overlap": str(pile), "overlap": str(overlap), "training_images": images, "bad": bad},
        as_json,
        f"{pile}: {bad} of {images} training images are bad; no overlap\n"
        f"{overlap}: the test set with overlap, for the same model",
    )


@command
def reveal(
    data: Annotated[Path, typer.Argument(help="A set with good training images and bad ones in training or test.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Manifests to write beside the images, a name each.")],
    ratio: Annotated[float, typer.Option(help="Share of known-bad images in the training set.")] = 0.05,
    kinds: Annotated[int, typer.Option(help="Kinds of defect that are known: 1 is every kind in turn.")] = 1,
    seed: Annotated[int, typer.Option(help="Fixes which kinds and parts are drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a manifest.")] = False,
) -> None:
    """Training sets with a few known-bad images. Example: blemish reveal parts/ -o parts/few.csv"""
    from blemish.data.protocols import kinds_to_label, label_anomalies, write_manifests
    from blemish.data.readers import read_training
    from blemish.data.testset import open_test_set
    from blemish.run import check_writable

    check_writable(output)
    training, test = read_training(data), open_test_set(data)
    draws = [  # all before the first is written
        (number, chosen, label_anomalies(training, test, ratio, chosen, seed, number))
        for number, chosen in enumerate(kinds_to_label(training, test, kinds, seed))
    ]
    for number, chosen, drawn in draws:
        kind = re.sub(r'[\\/:*?"<>|\x00-\x1f\ud800-\udfff]', "-", chosen[0])  # what a file's name cannot have
        kind += f"-{number}" * (kind != chosen[0])
        name = f"{output.stem}-{kind if kinds == 1 else f'draw{number}'}"
        known_bad = len(drawn.drawn)
        for path in write_manifests(drawn, output.with_stem(name)):
            written = {"manifest": str(path), "known_bad": known_bad, "kinds": list(chosen)}
            print_result(written, as_json, f"{path}: {known_bad} bad images labelled, of {', '.join(chosen)}")


@command
def bench(
    recipe: Annotated[Path, typer.Argument(help="A recipe in TOML, such as recipes/quick.toml.", show_default=False)],
    results: Annotated[Path, typer.Option(help="Folder of the ledger that rows are added to.")] = Path("bench-results"),
    reports: Annotated[Path, typer.Option(help="Folder for the report; keep it out of git.")] = Path("reports"),
    data: Annotated[Path | None, typer.Option(help="Folder the sets lie in; default: $BLEMISH_DATA.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--afresh", help="Skip jobs whose rows stand, or run them once more.")
    ] = True,
    reproduce: Annotated[
        bool, typer.Option("--reproduce", help="Also print what is published in results/ and the difference.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Jobs whose title matches, such as '*screw*'.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time; they share the cores.")] = 1,
    only_list: Annotated[bool, typer.Option("--dry-run", help="Print the jobs and their time, run nothing.")] = False,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Methods x data sets x seeds, a ledger, a report. Example: blemish bench recipes/quick.toml --jobs 2"""
    from blemish.bench.eta import dry_run
    from blemish.bench.jobs import digest, plan
    from blemish.bench.ledger import FILE, Ledger
    from blemish.bench.recipe import load_recipe
    from blemish.bench.runner import run_jobs
    from blemish.bench.summary import reproduction_table, summarise
    from blemish.errors import ConfigError
    from blemish.report.bench import write_reports
    from blemish.run import check_writable

    asked = load_recipe(recipe)
    published = summarise(asked, Ledger(PUBLISHED / FILE).rows() if reproduce else ())
    if reproduce and (not published.rows or results.resolve() == PUBLISHED.resolve()):
        needed = "call it in a clone of the repository, with one of its recipes and other --results"
        raise ConfigError(f"--reproduce measures anew what {PUBLISHED / FILE} has rows of: {needed}")
    (planned, missing), ledger = plan(asked, results, data, only or ()), Ledger(results / FILE)
    if only_list:
        prospect, text = dry_run(planned, missing, ledger.rows(), jobs, afresh=not resume)
        print_result(prospect, as_json, text)
        return
    check_writable(reports / f"{asked.name}.html")
    progress = Machine(quiet=quiet).progress
    for what, reason in missing.items():
        progress.note(f"absent: {what}: {reason}")
    done, failed = run_jobs(planned, results, progress, jobs, threads, device, afresh=not resume)
    # Of what was planned, figures of the images that are here: others may have the same names.
    own = {experiment.signature: experiment.key for job in planned for experiment in job.experiments}
    rows = [row for row in ledger.rows() if own.get(digest(row.get("configuration", {})), row["key"]) == row["key"]]
    here = summarise(asked, rows, missing)
    written = [str(path) for path in write_reports(here, results, reports)]
    outcome: dict[str, Any]
    outcome, lines = {"reports": written, "done": done, "failed": failed}, list(written)
    if reproduce:
        header, cells = reproduction_table(here, published)
        outcome["reproduced"] = [dict(zip(header, row)) for row in cells]
        outcome["notes"] = dataclasses.replace(here, rows=(*here.rows, *published.rows)).warnings()
        lines += ["  ".join(row) for row in (header, *cells)] + [f"note: {note}" for note in outcome["notes"]]
    print_result(outcome, as_json, "\n".join(lines))
    for failure in failed:
        say(f"failed: {failure}")
    if failed or not planned:
        raise typer.Exit(FAILED)
