"""``blemish demo``: everything once, offline, on real textures with painted defects, ending in one page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.data.demo import write_demo
from blemish.data.images import read_image
from blemish.data.testset import load_mask, open_test_set
from blemish.inspection.inspector import Inspector
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
from blemish.run import Run
from blemish.training.evaluate import Evaluation, Judged, evaluate
from blemish.training.fit import FitSettings, fit

SHOWN = 6


@dataclass(frozen=True)
class _Lesson:
    """One category of the demo, learned and measured."""

    name: str
    folder: Path
    inspector: Inspector
    found: Evaluation
    seconds: float


@dataclass(frozen=True)
class Demo:
    """What the demo came to.

    Attributes:
        page: where it was written.
        lessons: a texture each.
    """

    page: Path
    lessons: tuple[_Lesson, ...]

    def as_dict(self) -> dict[str, Any]:
        """The page, and for each texture its metrics and the seconds that learning it took."""
        textures = {one.name: {**one.found.metrics, "seconds": round(one.seconds, 2)} for one in self.lessons}
        return {"page": str(self.page), "textures": textures}

    def as_text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{'':10} {'image AUROC':>12} {'pixel AUROC':>12} {'AU-PRO':>8} {'learned in':>11}"]
        for one in self.lessons:
            m = one.found.metrics
            figures = f"{m['image_auroc']:12.3f} {m['pixel_auroc']:12.3f} {m['aupro']:8.3f}"
            lines.append(f"{one.name:10} {figures} {one.seconds:9.1f} s")
        return "\n".join([*lines, f"the page: {self.page}"])


def run_demo(output: Path, run: Run, settings: FitSettings | None = None) -> Demo:
    """Write the demo set, learn each texture, judge its test images, and write the page.

    Args:
        output: a folder; gets ``data/``, a model for each texture, and ``index.html``.
        run: seed, device, progress.
        settings: how to fit; the defaults are what the page speaks of.

    Raises:
        OutputError: the folder is read-only or the disk is full.
        DataError: scikit-image, whose photographs the demo uses, is not installed.
    """
    lessons = []
    for folder in write_demo(output / "data", run.seed):
        own = Run(run.seed, run.device, run.precision, run.progress)
        inspector = fit(folder, settings, own)
        inspector.save(output / f"{folder.name}.blemish")
        found = evaluate(inspector, open_test_set(folder), own)
        seconds = sum(own.timer.seconds.get(stage, 0) for stage in ("images", "fit", "calibration"))
        lessons.append(_Lesson(folder.name, folder, inspector, found, seconds))
    page = write_page(output / "index.html", "Blemish: the demo", _body(lessons))
    return Demo(page, tuple(lessons))


def _body(lessons: Sequence[_Lesson]) -> Iterator[str]:
    yield heading("What Blemish learned in a minute", 1)
    yield paragraph(
        f"{len(lessons)} real textures. From each, Blemish saw only good crops; then it judged crops it had never "
        "seen, some of them with painted defects. Nothing left this machine, and nothing was tuned on the test crops."
    )
    yield "<nav>" + "".join(f"<a href='#{one.name}'>{one.name}</a>" for one in lessons) + "</nav>"
    yield heading("The figures", anchor="figures")
    yield table(
        (
            *("texture", "image AUROC", "trivial AUROC", "pixel AUROC", "AU-PRO"),
            *("defects: reject, review, ok", "good: reject, review, ok", "learned in"),
        ),
        [_figures(one) for one in lessons],
    )
    yield paragraph(
        "Trivial AUROC is what mean brightness, contrast or gradient alone would reach (the strongest of the three): "
        "near 0.5, the set is not solved by a lamp. AU-PRO weighs small defects as much as large ones.",
        "soft",
    )
    yield paragraph(
        "With only a dozen places to calibrate on, a texture's threshold is its strangest good place: few good crops "
        "are rejected, and what lies just below goes to review. A hundred parts of your own make it far sharper.",
        "soft",
    )
    yield paragraph(
        "A word of honesty: all crops of a texture come from one photograph, so they are not independent parts, and "
        "the rates below are illustrative. On your own parts, one photograph each, they mean what they say.",
        "soft",
    )
    for one in lessons:
        yield from _section(one)
    yield heading("The same with your own photographs", anchor="yours")
    yield commands(
        "blemish fit photos/good -o parts.blemish          # 30 good photographs are a start\n"
        "blemish inspect parts.blemish new/ -o overlays/   # one JSON line and one picture each\n"
        "blemish info parts.blemish                        # what it promises, and on how many parts that rests"
    )
    yield paragraph("Folders in MVTec-AD layout, patterns (--good 'OK/*.png') and CSV manifests work as well.", "soft")


def _figures(one: _Lesson) -> tuple[str, ...]:
    m = one.found.metrics
    cue = max((m[f"trivial_{c}_auroc"] for c in ("brightness", "contrast", "gradient")), key=lambda v: abs(v - 0.5))
    good, bad = _split(one.found)
    return (
        one.name,
        f"{m['image_auroc']:.3f}",
        f"{max(cue, 1 - cue):.2f}",
        f"{m['pixel_auroc']:.3f}",
        f"{m['aupro']:.3f}",
        *(", ".join(str(len(some)) for some in _decided(one.inspector, judged).values()) for judged in (bad, good)),
        f"{one.seconds:.1f} s",
    )


def _decided(inspector: Inspector, judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """The images by decision, the strangest first."""
    by: dict[str, list[Judged]] = {"reject": [], "review": [], "ok": []}
    for one in sorted(judged, key=lambda one: -one.score):
        by[inspector.calibration.decide(one.score)].append(one)
    return by


def _section(one: _Lesson) -> Iterator[str]:
    calibration = one.inspector.calibration
    provenance = one.inspector.provenance
    good, bad = _split(one.found)
    yield heading(one.name.capitalize(), anchor=one.name)
    yield paragraph(
        f"Learned from {provenance['images']} good crops of {provenance['groups']} places in the photograph; "
        f"tested on {len(good)} good and {len(bad)} bad crops of another part of it."
    )
    yield promise(calibration.sentence())
    marks = {
        name: value
        for name, value in (("reject above", calibration.threshold), ("review above", calibration.review_threshold))
        if value is not None and math.isfinite(value)
    }
    scores = [one.score for one in good], [one.score for one in bad]
    yield charts([score_histogram(*scores, marks, f"Scores of the test crops: {one.name}")])
    kinds = one.found.kinds.items()
    yield table(
        ("defect", "images", "image AUROC", "pixel AUROC", "AU-PRO"),
        [
            (kind, int(k["images"]), f"{k['image_auroc']:.3f}", f"{k['pixel_auroc']:.3f}", f"{k['aupro']:.3f}")
            for kind, k in kinds
        ],
    )
    defects, fine = _decided(one.inspector, bad), _decided(one.inspector, good)
    for decision, title in (("reject", "Defects rejected"), ("review", "Defects sent to review")):
        yield from _row(one, title, _of_each_kind(defects[decision]), f"{len(defects[decision])} of {len(bad)}")
    missed = defects["ok"][::-1]
    yield from _row(one, "Defects missed", missed[:SHOWN], f"{len(missed)} of {len(bad)}, least suspicious first")
    alarms = [*fine["reject"], *fine["review"]]
    counts = f"{len(fine['reject'])} rejected, {len(fine['review'])} sent to review, of {len(good)}"
    yield from _row(one, "False alarms", alarms[:SHOWN], counts)
    quiet = f"{len(fine['ok'])} of {len(good)}, strangest first"
    yield from _row(one, "Good, and left alone", fine["ok"][:SHOWN], quiet)
    if one.inspector.scale is not None:
        share = round(1 / (calibration.expected_false_reject or 1))
        ticks = [(one.inspector.scale.threshold, f"reached by 1 good part in {share}")]
        words = "One fixed scale for all pictures of this model. A ring: where to look on a part that goes to review."
        yield legend(one.inspector.scale, words, ticks, truth=True)


def _row(one: _Lesson, title: str, some: Sequence[Judged], caption: str) -> Iterator[str]:
    if not some:
        return
    yield heading(f"{title} ({caption})", 3)
    yield pictures(_picture(one.inspector, judged) for judged in some)


def _picture(inspector: Inspector, judged: Judged) -> str:
    verdict = inspector(judged.sample.path)
    truth = None
    if judged.sample.mask is not None:
        truth = load_mask(judged.sample, read_image(judged.sample.path).size)
    title = f"{verdict.decision}: {judged.sample.kind}"
    count = len(verdict.regions)
    caption = f"score {verdict.score:,.0f}, p {verdict.p_value:.2f}, {count} region{'s' * (count != 1)}"
    return figure(verdict.overlay(truth), title, caption, verdict.decision or "")


def _of_each_kind(found: Sequence[Judged]) -> list[Judged]:
    """The clearest find of each kind."""
    chosen: dict[str, Judged] = {}
    for judged in found:
        chosen.setdefault(judged.sample.kind, judged)
    return list(chosen.values())


def _split(found: Evaluation) -> tuple[list[Judged], list[Judged]]:
    good = [one for one in found.judged if not one.sample.anomalous]
    return good, [one for one in found.judged if one.sample.anomalous]
