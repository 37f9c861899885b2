"""The page that an audit ends in: the most suspicious images, with maps, to be looked at by a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from blemish.data.images import read_image
from blemish.inspection.overlay import overlay
from blemish.inspection.verdict import on_screen
from blemish.report.charts import score_histogram
from blemish.report.html import Block, block, heading, legend, picture, table, write_page
from blemish.training.audit import Audit, Judged

SIDE = 320
"""Pixels of a picture's longer side."""
UNSUSPECTED = 12
"""Pictures of what lies just below the cut: whether it lies well can only be seen on both sides of it."""


def write_audit(audit: Audit, path: Path) -> Path:
    """Write the page, whole or not at all; its path."""
    return write_page(path, f"Audit: {audit.training.name}", _blocks(audit))


def _blocks(audit: Audit) -> Iterator[Block]:
    yield heading(f"Which images of {audit.training.name} are not good?", 1)
    yield block("promise", audit.sentence())
    yield block(
        "paragraph",
        "Colour shows what no other part has at that place, on one fixed scale for all pictures. A suspect may be "
        "good and rare: a stain, an unusual light, an edge of the range. What you see decides, not the score.",
        css="soft",
    )
    suspects, rest = audit.suspects, audit.judged[len(audit.suspects) :]
    scores = [image.score for image in rest], [image.score for image in suspects]
    yield block("charts", [score_histogram(*scores, {"suggested cut": audit.cut}, "Scores: suspects below the axis")])
    yield from _pictures(audit, "Suspects, worst first", [image for image in suspects if image.heat is not None])
    below = [image for image in rest if image.heat is not None]
    yield from _pictures(audit, "Just below the cut", below[:UNSUSPECTED])
    if audit.scale is not None:
        yield legend(audit.scale, "Colour: how far above what most images show. One fixed scale for all pictures.")
    yield heading("All suspects")
    rows = [(image.rank, f"{image.score:.4g}", str(image.sample.path), image.sample.group) for image in suspects]
    yield table(("rank", "score", "image", "part"), rows, (2, 3))
    yield heading("What next")
    yield block(
        "paragraph",
        "Nothing was deleted or moved. To learn from the rest, write a manifest of it, take out or put back lines as "
        "you see fit, and fit from it.",
    )
    yield block(
        "commands",
        "blemish audit DATA --clean DATA/clean.csv    # lists all images that are not suspect\n"
        "blemish fit DATA/clean.csv -o parts.blemish",
    )


def _pictures(audit: Audit, title: str, images: Sequence[Judged]) -> Iterator[Block]:
    if not images:
        return
    shown = []
    for image in images:
        decoded = read_image(image.sample.path)
        pixels = on_screen(decoded, audit.preparation.white_level)
        if audit.scale is None or image.heat is None:
            screen = Image.fromarray(pixels)
        else:
            screen = overlay(pixels, audit.preparation.to_original(image.heat, decoded.size), audit.scale)
        screen.thumbnail((SIDE, SIDE))
        name, css = f"{image.rank}: {image.sample.path.name}", "reject" if image.suspect else "ok"
        shown.append(picture(screen, name, f"score {image.score:.4g}", css, lossy=True))
    yield heading(f"{title} ({len(images)} shown)", 3)
    yield block("pictures", shown)
