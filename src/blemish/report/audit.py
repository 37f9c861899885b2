"""The page that an audit ends in: the most suspicious images, with maps, to be looked at by a person."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from blemish.data.images import read_image
from blemish.inspection.overlay import overlay
from blemish.inspection.verdict import on_screen
from blemish.report.charts import score_histogram
from blemish.report.html import (
    charts,
    commands,
    figure,
    heading,
    legend,
    paragraph,
    pictures,
    promise,
    table,
    write_page,
)
from blemish.training.audit import Audit, Judged

SIDE = 320
"""Pixels of a picture's longer side."""
UNSUSPECTED = 12
"""Pictures of what lies just below the cut: whether it lies well can only be seen on both sides of it."""


def write_audit(found: Audit, path: Path) -> Path:
    """Write the page, whole or not at all; its path.

    Raises:
        OutputError: the folder is read-only or the disk is full.
    """
    return write_page(path, f"Audit: {found.training.name}", _body(found))


def _body(found: Audit) -> Iterator[str]:
    yield heading(f"Which images of {found.training.name} are not good?", 1)
    yield promise(found.sentence())
    yield paragraph(
        "Colour shows what no other part has at that place, on one fixed scale for all pictures. A suspect may be "
        "good and rare: a stain, an unusual light, an edge of the range. What you see decides, not the score.",
        "soft",
    )
    suspects = found.suspects
    rest = found.judged[len(suspects) :]
    marks = {"suggested cut": found.cut}
    scores = [one.score for one in rest], [one.score for one in suspects]
    yield charts([score_histogram(*scores, marks, "Scores: suspects below the axis")])
    yield from _pictures(found, "Suspects, worst first", [one for one in suspects if one.heat is not None])
    yield from _pictures(found, "Just below the cut", [one for one in rest if one.heat is not None][:UNSUSPECTED])
    if found.scale is not None:
        yield legend(found.scale, "Colour: how far above what most images show. One fixed scale for all pictures.")
    yield heading("All suspects")
    rows = [(one.rank, f"{one.score:.4g}", str(one.sample.path), one.sample.group) for one in suspects]
    yield table(("rank", "score", "image", "part"), rows, (2, 3))
    yield heading("What next")
    yield paragraph(
        "Nothing was deleted or moved. To learn from the rest, write a manifest of it, take out or put back lines as "
        "you see fit, and fit from it."
    )
    yield commands(
        "blemish audit DATA --clean DATA/clean.csv    # lists all images that are not suspect\n"
        "blemish fit DATA/clean.csv -o parts.blemish"
    )


def _pictures(found: Audit, title: str, some: list[Judged]) -> Iterator[str]:
    if some:
        yield heading(f"{title} ({len(some)} shown)", 3)
        yield pictures([_figure(found, one) for one in some])


def _figure(found: Audit, one: Judged) -> str:
    title, css = f"{one.rank}: {one.sample.path.name}", "reject" if one.suspect else "ok"
    return figure(_picture(found, one), title, f"score {one.score:.4g}", css, lossy=True)


def _picture(found: Audit, one: Judged) -> Image.Image:
    """The image under its map, shrunk for the page."""
    raster = read_image(one.sample.path)
    pixels = on_screen(raster, found.preparation.white_level)
    if found.scale is None or one.heat is None:
        picture = Image.fromarray(pixels)
    else:
        picture = overlay(pixels, found.preparation.to_original(one.heat, raster.size), found.scale)
    picture.thumbnail((SIDE, SIDE))
    return picture
