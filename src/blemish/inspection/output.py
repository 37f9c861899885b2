"""Verdicts to where people and machines read them: JSON lines, overlays, raw maps, regions as a table or as COCO."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from blemish.data.manifest import beside
from blemish.data.readers import MADE_BY, find_images, is_ours
from blemish.errors import ImageError, OutputError
from blemish.inspection.regions import checked_map, regions_coco, regions_csv
from blemish.run.files import LONGEST, check_writable, written_atomically

if TYPE_CHECKING:
    from blemish.inspection.judge import Judge, Source
    from blemish.inspection.verdict import Verdict
    from blemish.run import Progress


def deliver(
    inspector: Judge,
    paths: Sequence[Path],
    say: Callable[[dict[str, Any], Verdict | None], None],
    progress: Progress,
    overlays: Path | None = None,
    maps: Path | None = None,
    table: Path | None = None,
    coco: Path | None = None,
    show: Callable[[Verdict, Image.Image, str], None] | None = None,
) -> tuple[Counter[str], list[tuple[str, str]]]:
    """Judge images and write what was asked for; how often each decision occurred, and what could not be read and why.

    ``say`` gets a line of JSON for each image with its verdict, or with ``error``, which stops nothing. Nothing is
    written over an image judged. ``show`` gets each verdict with its overlay and that file's name.
    """
    images = find_images(paths)
    names = _distinct_names(images)
    listings = {
        path: listed
        for path, listed in ((table, regions_csv), (coco, lambda rows: json.dumps(regions_coco(rows))))
        if path is not None
    }
    written = list(listings)
    for folder, suffix in ((overlays, ".png"), (maps, ".tiff")):
        written += [] if folder is None else [folder / f"{name}{suffix}" for name in names.values()]
    originals = {path.resolve() for path in images}
    for path in written:
        if path.resolve() in originals:
            raise OutputError(f"{path} is an image to be judged and would be written over: choose another place")
        if path not in listings and path.exists() and not is_ours(path):
            raise OutputError(f"{path} is no picture of blemish and would be written over: choose another place")
    for path in listings:
        check_writable(path)
    decisions = Counter[str]()
    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", MADE_BY)
    unreadable: list[tuple[str, str]] = []
    rows: list[dict[str, Any]] = []

    def refuse(source: Source, error: ImageError) -> None:
        unreadable.append((str(source), str(error)))
        say({"path": str(source), "error": str(error)}, None)

    for verdict in progress.track(inspector.many(images, on_error=refuse), "inspecting", len(images)):
        decisions[verdict.decision or ""] += 1
        line, name = verdict.as_dict(), names[Path(verdict.source or "")]
        if listings:
            rows.append(line | {"path": beside(line["path"])})
        if overlays is not None:
            line["overlay"], drawn = str(overlays / f"{name}.png"), verdict.overlay()
            with written_atomically(overlays / f"{name}.png") as temporary:
                drawn.save(temporary, format="PNG", pnginfo=mark)
            if show is not None:
                show(verdict, drawn, f"{name}.png")
        if maps is not None and verdict.heatmap is not None:
            line["map"] = str(maps / f"{name}.tiff")
            with written_atomically(maps / f"{name}.tiff") as temporary:
                values = Image.fromarray(checked_map(verdict.heatmap))  # 32-bit float, for ImageJ
                values.save(temporary, format="TIFF", tiffinfo={305: MADE_BY})
        say(line, verdict)
    for path, listed in listings.items():
        with written_atomically(path) as temporary:
            temporary.write_text(listed(rows), encoding="utf-8", errors="backslashreplace")
    return decisions, unreadable


def summary(decisions: Mapping[str, int], unreadable: int = 0) -> str:
    """Such as ``50 judged: 44 ok, 6 review, 0 reject; 2 could not be judged``."""
    counts = ", ".join(f"{decisions.get(decision, 0)} {decision}" for decision in ("ok", "review", "reject"))
    judged = sum(decisions.values())
    words = (
        f"{judged} judged: {counts}"
        if set(decisions) - {""}
        else f"{judged} judged{', without decisions' * bool(judged)}"
    )
    return words + (f"; {unreadable} could not be judged" if unreadable else "")


def _distinct_names(images: Sequence[Path]) -> dict[Path, str]:
    """A file name for each image: its stem, led by its folders' names or, at last, numbered where images share one."""
    names: dict[Path, str] = {}
    unnamed = list(dict.fromkeys(images))
    for depth in range(3):
        folders = {path: [folder.name for folder in path.parents if folder.name not in ("", "..")] for path in unnamed}
        tried = {path: "_".join((*folders[path][:depth][::-1], path.stem)) for path in unnamed}
        # Some file systems take a.png and A.png for one file.
        times = Counter(name.casefold() for name in (*tried.values(), *names.values()))
        fits = {path: len(os.fsencode(name)) <= LONGEST for path, name in tried.items()}
        names |= {path: name for path, name in tried.items() if times[name.casefold()] == 1 and fits[path]}
        unnamed = [path for path in unnamed if path not in names]
    taken, numbers = {name.casefold() for name in names.values()}, itertools.count()
    for path in unnamed:
        stem = os.fsdecode(os.fsencode(path.stem)[:LONGEST])
        numbered = (f"{stem}_{path.suffix[1:]}_{number}" for number in numbers)
        names[path] = next(name for name in numbered if name.casefold() not in taken)
    return names
