"""Write every method's figures into docs/guides/choosing-a-method.md, between two markers, and draw them.

python scripts/methods_table.py            writes both, from results/ledger.jsonl
python scripts/methods_table.py --check    only says whether the tables are up to date (exit code 1 if not)

Compared is what saw the same: one backbone or pixels alone, 256 pixels, the last state, the whole training set.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.bench.eta import is_timed
from blemish.bench.ledger import FILE, Ledger, Row
from blemish.bench.summary import CUES
from blemish.registry import METHODS
from blemish.report.charts import SERIES, STYLE, svg
from blemish.report.html import environment

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs/guides/choosing-a-method.md", ROOT / "docs/pictures/methods.svg"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
SETS = {
    ("magnetic_tile", ""): "tiles",
    ("mvtec_screw", "resplit_alt.csv"): "screws",
    ("crackforest_patches", ""): "cracks",
    ("elpv_mono", ""): "cells",
    ("brain_mri", ""): "brains",
}
GREY = "#7d8794"  # to be read on white and on black
SAME = {"size": 256, "resize": "stretch", "selection": "last", "calibration": "none"}
KINDS = {"magnetic_tile": 5, "mvtec_screw": 5}  # of defects, where a set has more than one
PROTOCOLS: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "Good images only": lambda asked: asked["regime"] == "clean" and not asked.get("reveal"),
    "An unlabelled pile with a bad image for every ten, which are judged as well": lambda asked: (
        asked.get("contaminate") == 0.1 and asked["overlap"]
    ),
    "The same, judged without those": lambda asked: asked.get("contaminate") == 0.1 and not asked["overlap"],
    "Good images, and a twentieth of all known to be bad, of every kind": lambda asked: (
        asked.get("reveal") == 0.05 and len(asked["kinds"]) == KINDS.get(asked["set"], 1)
    ),
}


def frame(rows: Sequence[Row]) -> pd.DataFrame:
    """A line a row that may be compared; ``name`` is the latest of the method with its options, under that protocol."""
    lines = []
    for row in rows:
        asked = row["configuration"]
        place = (asked["set"], asked["alt_split"])
        protocol = next((name for name, is_of in PROTOCOLS.items() if is_of(asked)), None)
        if protocol is None or place not in SETS or any(asked[key] != value for key, value in SAME.items()):
            continue
        if asked["backbone"] not in (DEFAULT_BACKBONE, None):  # None: it sees pixels alone
            continue
        if asked["method_version"] != METHODS[asked["method"]].version:
            continue
        judging = row["seconds"].get("judging", np.nan) / row["test"]["images"]
        timed = (row["seconds"]["fit"], 1000 * judging) if is_timed(row) else (np.nan, np.nan)
        options, name = asked["options"], row["label"]
        length = next((f", {options[unit]} {unit}" for unit in ("steps", "epochs") if options.get(unit)), "")
        cues = {cue: row["metrics"].get(f"trivial_{cue}_auroc") or 0.5 for cue in CUES}
        trivial = max(cues, key=lambda cue: abs(cues[cue] - 0.5))
        found = [row["metrics"].get(metric) for metric in ("image_auroc", "caught_at_5", "pixel_auroc", "aupro")]
        lines.append((
            protocol, asked["method"], str(sorted(options.items())), name if length in name else name + length,
            SETS[place], *(np.nan if value is None else value for value in found), trivial,
            max(cues[trivial], 1 - cues[trivial]), *timed, row.get("model_mib") or np.nan,
        ))  # fmt: skip
    columns = ["protocol", "method", "options", "name", "set", "auroc", "caught_at_5", "pixel_auroc", "aupro", "cue"]
    columns += ["cue_auroc", "fit", "judging", "size"]
    found = pd.DataFrame(lines, columns=columns)
    names = found.groupby(["protocol", "method", "options"])["name"].transform("last")
    return found.assign(name=names)


def by_method(figures: pd.DataFrame) -> pd.DataFrame:
    """A line a method with its options: image AUROC by set, the mean where there are all, times and size."""
    keys = ["method", "options", "name"]
    table = figures.pivot_table(index=keys, columns="set", values="auroc", aggfunc="mean")
    table = table.reindex(columns=list(SETS.values()))
    table["mean"] = table.mean(axis=1, skipna=False)
    table = table.join(figures.groupby(keys)[["fit", "judging", "size"]].median())
    return table.sort_values("mean", ascending=False, na_position="last").reset_index(["options"], drop=True)


def tables(figures: pd.DataFrame) -> str:
    """Markdown: a table for each protocol."""
    markdown = environment(False).get_template("markdown.j2").module
    head = ("method", *SETS.values(), "mean", "learns (s)", "an image (ms)", "model (MiB)")
    parts = []
    for protocol in PROTOCOLS:
        table = by_method(figures[figures["protocol"] == protocol])
        rows = [
            (f"[{name}](../methods/{method}.md)", *map(shown, line[: len(SETS) + 1]), *map(_rounded, line[-3:]))
            for (method, name), line in zip(table.index, table.to_numpy(), strict=True)
        ]
        cues = cue_of_sets(figures[figures["protocol"] == protocol])
        rows = [("one trivial cue", *(cues.get(of, "–") for of in SETS.values()), *["–"] * 4), *rows] if rows else []
        parts += [f"**{protocol}** (image AUROC)", markdown.tables([(head, rows)]).strip()] if rows else []
    return "\n\n".join(parts)


def cue_of_sets(figures: pd.DataFrame) -> dict[str, str]:
    """By set, the image AUROC of the trivial cue that separates it best, and which that is."""
    return {str(row.set): f"{shown(row.cue_auroc)} ({row.cue})" for row in figures.itertuples()}


def shown(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}".lstrip("0")


def _rounded(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"


@style.context(STYLE)
def picture(figures: pd.DataFrame) -> Figure:
    """Mean image AUROC against seconds of learning and milliseconds of judging; a marker's area is the model's size.

    Markers are hollow where the size is unknown.
    """
    table = by_method(figures[figures["protocol"] == next(iter(PROTOCOLS))]).dropna(subset=["mean", "fit", "judging"])
    figure = Figure((11, 5.5), layout="constrained")
    figure.suptitle("What a method finds, how long it learns, and how long it looks at an image")
    families = list(dict.fromkeys(entry.family for entry in METHODS.values()))
    panels = figure.subplots(1, 2, sharey=True, subplot_kw={"xscale": "log"})
    for axes, column, of in zip(panels, ("fit", "judging"), ("seconds of learning", "milliseconds an image")):
        axes.set(xlabel=of, ylabel="mean image AUROC" if column == "fit" else "")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        for i, ((method, name), line) in enumerate(table.iterrows()):
            colour = SERIES[families.index(METHODS[str(method)].family) % len(SERIES)]
            known = not np.isnan(line["size"])
            area = 12 + 6 * (line["size"] if known else 10)
            axes.scatter(line[column], line["mean"], area, colour if known else "none", edgecolors=colour, alpha=0.75)
            up = 1 if i % 2 else -1
            place = {"xytext": (0, up * (4 + area**0.5 / 2)), "textcoords": "offset points"}
            axes.annotate(name, (line[column], line["mean"]), ha="center", va="bottom" if up > 0 else "top", **place)
        axes.margins(0.15)
    for family in dict.fromkeys(METHODS[str(method)].family for method, _ in table.index):
        panels[0].scatter([], [], 40, SERIES[families.index(family) % len(SERIES)], label=family)
    if len(table):
        figure.legend(loc="outside lower left", ncols=4)
    for text in figure.findobj(lambda artist: hasattr(artist, "set_color") and hasattr(artist, "get_text")):
        text.set_color(GREY)
    return figure


def fresh(page: str, text: str) -> str:
    """The page with ``text`` between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name} has no {BEGIN} ... {END}: put both lines where the tables belong")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def main() -> None:
    """Write or check."""
    figures = frame(list(Ledger(ROOT / "results" / FILE).done().values()))
    page = PAGE.read_text(encoding="utf-8")
    text = fresh(page, tables(figures))
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        PICTURE.write_text(svg(picture(figures)), encoding="utf-8")
    elif page != text:
        raise SystemExit(f"{PAGE.name} is stale: run python scripts/methods_table.py")


if __name__ == "__main__":
    main()
