"""Comparing methods: ``contaminate``, ``reveal``, ``bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blemish.cli.app import FAILED, command, print_result, say
from blemish.cli.options import AsJson, Device, Quiet, Threads, make_progress


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
    from blemish.data.protocols import write_contaminated
    from blemish.data.readers import read_training
    from blemish.data.testset import open_test_set

    drawn = draw(read_training(data), open_test_set(data), ratio, seed)
    pile, overlap = write_contaminated(drawn, output)
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
    from blemish.data.protocols import kinds_to_label, label_anomalies, write_labelled
    from blemish.data.readers import read_training
    from blemish.data.testset import open_test_set

    training, test = read_training(data), open_test_set(data)
    for number, chosen in enumerate(kinds_to_label(training, test, kinds, seed)):
        drawn = label_anomalies(training, test, ratio, chosen, seed, number)
        name = f"{output.stem}-{chosen[0] if kinds == 1 else f'draw{number}'}"
        for path in write_labelled(drawn, output.with_stem(name)):
            written = {"manifest": str(path), "known_bad": drawn.labels, "kinds": list(chosen)}
            print_result(written, as_json, f"{path}: {drawn.labels} bad images labelled, of {', '.join(chosen)}")


@command
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
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Methods x data sets x seeds, a ledger, a report. Example: blemish bench recipes/quick.toml --jobs 2"""
    from blemish.bench.session import open_session
    from blemish.report.bench import write_reports

    session = open_session(recipe, results, data, only or (), afresh=not resume)
    if dry_run:
        prospect = session.prospect(jobs)
        print_result(prospect.as_dict(), as_json, prospect.as_text())
        return
    tally = session.run(jobs, threads, device, make_progress(quiet))
    written = [str(path) for path in write_reports(session.summary(), session.results, reports)]
    print_result({"reports": written, "done": tally.done, "failed": tally.failed}, as_json, "\n".join(written))
    for failure in tally.failed:
        say(f"failed: {failure}")
    if tally.failed or not session.chosen:
        raise typer.Exit(FAILED)
