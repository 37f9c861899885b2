"""Verdicts to where people and machines read them: JSON lines, overlays, raw maps, a table of regions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from blemish.contract import Label
from blemish.data.images import EXTENSIONS
from blemish.data.loading import PreparedImages
from blemish.data.samples import Sample
from blemish.errors import DataError, ImageError, OutputError
from blemish.inspection.inspector import Inspector, Source
from blemish.inspection.regions import regions_csv
from blemish.inspection.render import save_heatmap
from blemish.inspection.verdict import Verdict
from blemish.run import Progress, Run, written_atomically


def deliver(
    inspector: Inspector,
    paths: Sequence[Path],
    say: Callable[[str], None],
    progress: Progress,
    overlays: Path | None = None,
    maps: Path | None = None,
    table: Path | None = None,
) -> tuple[set[str], int]:
    """Judge images and write what was asked for; one JSON line each through ``say``.

    An image that cannot be read gets a line with ``error`` and stops nothing.

    Returns:
        The decisions that occurred, and how many images could not be read.

    Raises:
        DataError: there is no image at the paths given.
        OutputError: a result cannot be written.
    """
    images = find_images(paths)
    names = _distinct_names(images)
    decisions: set[str] = set()
    unreadable: list[Source] = []
    rows: list[Verdict] = []

    def refuse(source: Source, error: ImageError) -> None:
        unreadable.append(source)
        say(json.dumps({"path": str(source), "error": str(error)}))

    for verdict in inspector.many(progress.track(images, "inspecting"), on_error=refuse):
        decisions.add(verdict.decision or "")
        line = verdict.as_dict()
        stem = names[Path(verdict.source or "")]
        if overlays is not None:
            line["overlay"] = str(_write_picture(verdict, overlays / f"{stem}.png"))
        if maps is not None and verdict.heatmap is not None:
            save_heatmap(maps / f"{stem}.tiff", verdict.heatmap)
            line["map"] = str(maps / f"{stem}.tiff")
        if table is not None:
            rows.append(verdict)
        say(json.dumps(line))
    if table is not None:
        with written_atomically(table) as temporary:
            temporary.write_text(regions_csv([row.as_dict() for row in rows]), encoding="utf-8")
    return decisions, len(unreadable)


def recalibrated(inspector: Inspector, good: Sequence[Path], false_reject: float | None, run: Run) -> Inspector:
    """The inspector with a threshold from these good images, each of them a part of its own.

    Raises:
        DataError: there is no image at the paths given.
        CalibrationError: they are too few for the rate asked for.
    """
    label: Label = "normal"
    samples = [Sample(path, label, str(path), "good") for path in find_images(good)]
    images = PreparedImages(samples, inspector.preparation, progress=run.progress)
    return inspector.calibrated(images, [sample.group for sample in images.samples], run, false_reject)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The files named, and every image below the folders named, in order.

    Raises:
        DataError: nothing is there.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS and p.name[0] != ".")
        else:
            found.append(path)
    if not found:
        raise DataError(f"no image in {', '.join(str(path) for path in paths)}: name image files, or folders of them")
    return found


def _distinct_names(images: Sequence[Path]) -> dict[Path, str]:
    """A file name for each image, led by its folder's where two images share one."""
    stems = [path.stem for path in images]
    return {
        path: path.stem if stems.count(path.stem) == 1 else "_".join((*path.parts[-3:-1], path.stem)) for path in images
    }


def _write_picture(verdict: Verdict, path: Path) -> Path:
    try:
        with written_atomically(path) as temporary:
            verdict.overlay().save(temporary, format="PNG")
    except ValueError as error:
        raise OutputError(f"{path} was not written: {error}") from error
    return path
