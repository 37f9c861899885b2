"""The page that judging ends in: worst first, where the thresholds lie, what the map thought of each image.

Its pictures are files beside it, in ``page/``, so that thousands of images do not make one page of a gigabyte.
"""

import heapq
import io
import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from blemish.data.readers import MADE_BY, is_ours
from blemish.errors import OutputError
from blemish.inspection.judge import Judge
from blemish.inspection.output import summary
from blemish.inspection.overlay import Scale, overlay
from blemish.inspection.verdict import Verdict
from blemish.report.html import colour_scale, histogram, limits_of, write_page
from blemish.run.files import written_atomically

SHOWN, SIDE = 400, 360  # images of a page, the worst; pixels of a picture's longer side


class Gallery:
    """What a page shows, collected while images are judged: figures of all, small pictures of the worst alone."""

    def __init__(self, folder: Path, inspector: Judge, shown: int = SHOWN) -> None:
        self.folder, self.inspector, self.shown = folder, inspector, shown
        self.scores: list[float] = []
        self._worst: dict[str, list[tuple[float, int, dict[str, Any]]]] = {}  # score, less the place in order
        for file in sorted((folder / "page").glob("[0-9]*.jpg")):
            if not is_ours(file):
                problem = f"{folder / 'page'} is where a page's pictures go, and holds others, such as {file.name}"
                raise OutputError(f"{problem}: give another folder")

    def add(
        self, verdict: Verdict, drawn: Image.Image, link: str = "", title: str = "", css: str = "", section: str = ""
    ) -> None:
        """Take in an image with its overlay, which lies in the folder as ``link``, where it does.

        ``css`` are further words that the page can be filtered by; a ``section`` shows its ``shown`` worst images.
        """
        self.scores.append(verdict.score)
        worst, score = self._worst.setdefault(section, []), verdict.score if math.isfinite(verdict.score) else math.inf
        place = (score, -len(self.scores))
        if len(worst) >= self.shown and place < worst[0][:2]:
            return
        picture = {
            "title": title or "/".join(Path(verdict.source or link).parts[-2:]),
            "caption": verdict.caption,
            "css": f"{verdict.decision or ''} {css}".strip(),
            "link": quote(os.fsencode(link)),
            "small": _small(drawn),
            "seen": None if verdict.regions else self._seen(verdict),
        }
        (heapq.heappush if len(worst) < self.shown else heapq.heappushpop)(worst, (*place, picture))

    def _seen(self, verdict: Verdict) -> bytes | None:
        """The map of an image that nothing is coloured on: the same colours, from as far below the threshold."""
        if verdict.heatmap is None or verdict.scale is None:
            return None
        low = 2 * verdict.scale.threshold - verdict.scale.top
        return _small(overlay(verdict.pixels, verdict.heatmap, Scale(low, verdict.scale.threshold)))

    def sections(self) -> list[tuple[str, list[dict[str, Any]]]]:
        """Headings with their pictures, worst first; writes these as files."""
        sections, number = [], itertools.count(1)
        for section, worst in self._worst.items():
            pictures = [picture for *_, picture in sorted(worst, key=lambda entry: entry[:2], reverse=True)]
            for picture in pictures:
                name = f"page/{next(number):04}"
                for key, ending in (("small", ".jpg"), ("seen", "-map.jpg")):
                    if content := picture[key]:
                        picture[key] = name + ending
                        with written_atomically(self.folder / picture[key]) as temporary:
                            temporary.write_bytes(content)
            sections.append((section, pictures))
        return sections


def write_inspection(gallery: Gallery, decisions: Counter[str], unreadable: Sequence[tuple[str, str]]) -> Path:
    """Write ``index.html`` of images whose truth nobody knows; its path."""
    limits, scores = limits_of(gallery.inspector), np.array(gallery.scores)
    rows = [(name, f"{value:.4g}", f"{int((scores > value).sum())} of {len(scores)}") for name, value in limits.items()]
    more = len(gallery.scores) - gallery.shown
    return write_gallery(
        gallery,
        "Judged images",
        summary(decisions, len(unreadable)),
        notes=[f"The {gallery.shown} worst are shown; {more} more are in the JSON lines."] if more > 0 else [],
        tables=[(("threshold", "score", "images above it"), rows)] if rows else [],
        histogram=histogram(gallery.scores, [], limits, ("images", "")),
        filters=[(word, f"{word} ({decisions[word]})") for word in ("reject", "review", "ok") if decisions[word]],
        unreadable=unreadable,
    )


def write_gallery(gallery: Gallery, title: str, said: str, **context: Any) -> Path:
    """Write the page itself, whole or not at all; its path."""
    legend = gallery.inspector.scale and colour_scale(gallery.inspector.scale)
    facts = {"about": title, "summary": said, "promise": gallery.inspector.promise, "scale": legend}
    context = {"truth": False, "unreadable": [], "sections": gallery.sections()} | facts | context
    return write_page(gallery.folder / "index.html", f"{title}: {said}", "inspection.j2", beside=True, **context)


def _small(image: Image.Image) -> bytes:
    """A picture of at most ``SIDE`` pixels, with a mark that keeps it from being judged the next day."""
    image, file = image.convert("RGB"), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, "JPEG", quality=85, subsampling=0, comment=MADE_BY)
    return file.getvalue()
