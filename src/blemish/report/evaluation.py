"""The page of an evaluation: what was missed, what was rejected in vain, and what other thresholds would do."""

import contextlib
from collections import Counter
from pathlib import Path

import numpy as np

from blemish.data.testset import load_mask
from blemish.errors import DataError
from blemish.inspection.judge import Judge
from blemish.inspection.output import summary
from blemish.report.html import histogram, limits_of
from blemish.report.inspection import Gallery, write_gallery
from blemish.training.evaluate import Evaluation, ScoredSample, as_figures

SHOWN = 100  # pictures of each section
RATES = (0.01, 0.05, 0.1)  # of the good test images, at whose scores a threshold is tried
RATES_TOLD = ("false_reject_rate", "false_review_rate", "escape_rate")
FLAGGED, SPARED = "rejected or for review", "and left alone"
SECTIONS = (f"Bad, {SPARED}", f"Good, {FLAGGED}", f"Bad, {FLAGGED}", f"Good, {SPARED}", "Bad", "Good")


def write_evaluation(inspector: Judge, evaluation: Evaluation, name: str, folder: Path) -> tuple[Path, str]:
    """Write ``index.html`` and its pictures into ``folder``; the page's path, and its heading: the counts of decisions.

    Judges what it shows once more.
    """
    calibration, limits = inspector.calibration, limits_of(inspector)
    decisions = ["" if calibration.kind == "none" else calibration.decide(image.score) for image in evaluation.judged]
    sides: dict[str, list[ScoredSample]] = {section: [] for section in SECTIONS}  # the last two without decisions
    for image, decision in zip(evaluation.judged, decisions):
        place = {"": (5, 4), "ok": (3, 0)}.get(decision, (1, 2))
        sides[SECTIONS[place[image.sample.anomalous]]].append(image)
    good, bad = (
        np.array([image.score for image in evaluation.judged if image.sample.anomalous == anomalous])
        for anomalous in (False, True)
    )
    for rate in (rate for rate in RATES if rate * good.size >= 1):
        above = int(rate * good.size + 1e-9)  # good images: no more than that share
        limits[f"above {1 - rate:.0%} of the good ones"] = float(np.sort(good)[-1 - above])
    rows = [
        (text, f"{value:.4g}", f"{(good > value).sum()} of {good.size}", f"{(bad > value).sum()} of {bad.size}")
        for text, value in limits.items()
    ]
    gallery = Gallery(folder, inspector, SHOWN)
    for section, images in sides.items():
        for image in sorted(images, key=lambda image: image.score, reverse=True)[:SHOWN]:
            verdict, truth, sample = inspector(image.sample.path), None, image.sample
            with contextlib.suppress(DataError):  # a note of the evaluation says so
                truth = None if sample.mask is None else load_mask(sample, verdict.size)
            side, of = ("bad", bad.size) if sample.anomalous else ("good", good.size)
            title = f"{sample.kind}: {sample.path.name}"
            gallery.add(verdict, verdict.overlay(truth), "", title, side, f"{section} ({len(images)} of {of})")
    counts = Counter(decisions)
    figures = [(text, f"{value:.4f}") for text, value in as_figures(evaluation.metrics).items() if value is not None]
    rates = {name: evaluation.decisions.get(name) for name in RATES_TOLD}
    figures += [(name, f"{value:.4f}") for name, value in rates.items() if value is not None]
    page = write_gallery(
        gallery,
        f"Evaluation on {name}",
        heading := summary(counts),
        notes=[*evaluation.notes, f"At most {SHOWN} pictures of each kind are shown."],
        tables=[(("threshold", "score", "good above it", "bad above it"), rows), (("figure", "value"), figures)],
        histogram=histogram(good, bad, limits_of(inspector)),
        filters=[(word, word) for word in ("reject", "review", "ok", "bad", "good")],
        truth=True,
    )
    return page, heading
