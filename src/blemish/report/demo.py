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
from blemish.report.html import Block, block, heading, legend, picture, table, write_page
from blemish.run import Run
from blemish.training.evaluate import Evaluation, Judged, evaluate
from blemish.training.fit import FitSettings, fit

SHOWN = 6


@dataclass(frozen=True)
class Texture:
    """One category of the demo, learned and measured."""

    name: str
    inspector: Inspector
    evaluation: Evaluation
    seconds: float

    def decided(self, anomalous: bool) -> dict[str, list[Judged]]:
        """The good or the bad test images by decision, the strangest first."""
        by: dict[str, list[Judged]] = {"reject": [], "review": [], "ok": []}
        for judged in sorted(self.evaluation.judged, key=lambda judged: -judged.score):
            if judged.sample.anomalous == anomalous:
                by[self.inspector.calibration.decide(judged.score)].append(judged)
        return by


@dataclass(frozen=True)
class Demo:
    """What the demo came to: where the page was written, and what was learned."""

    page: Path
    textures: tuple[Texture, ...]

    def as_dict(self) -> dict[str, Any]:
        """The page, and for each texture its metrics and the seconds that learning it took."""
        textures = {t.name: {**t.evaluation.metrics, "seconds": round(t.seconds, 2)} for t in self.textures}
        return {"page": str(self.page), "textures": textures}

    def as_text(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{'':10} {'image AUROC':>12} {'pixel AUROC':>12} {'AU-PRO':>8} {'learned in':>11}"]
        for texture in self.textures:
            m = texture.evaluation.metrics
            figures = f"{m['image_auroc']:12.3f} {m['pixel_auroc']:12.3f} {m['aupro']:8.3f}"
            lines.append(f"{texture.name:10} {figures} {texture.seconds:9.1f} s")
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
    textures = []
    for folder in write_demo(output / "data", run.seed):
        own = Run(run.seed, run.device, run.precision, run.progress)
        inspector = fit(folder, settings, own)
        inspector.save(output / f"{folder.name}.blemish")
        evaluation = evaluate(inspector, open_test_set(folder), own)
        seconds = sum(own.timer.seconds.get(stage, 0) for stage in ("images", "fit", "calibration"))
        textures.append(Texture(folder.name, inspector, evaluation, seconds))
    page = write_page(output / "index.html", "Blemish: the demo", _blocks(textures))
    return Demo(page, tuple(textures))


def _blocks(textures: Sequence[Texture]) -> Iterator[Block]:
    yield heading("What Blemish learned in a minute", 1)
    yield block(
        "paragraph",
        f"{len(textures)} real textures. From each, Blemish saw only good crops; then it judged crops it had never "
        "seen, some of them with painted defects. Nothing left this machine, and nothing was tuned on the test crops.",
    )
    yield block("contents", [(texture.name, texture.name) for texture in textures])
    yield heading("The figures", anchor="figures")
    header = ("texture", "image AUROC", "trivial AUROC", "pixel AUROC", "AU-PRO", "defects: reject, review, ok")
    yield table((*header, "good: reject, review, ok", "learned in"), [_figures(texture) for texture in textures])
    for note in (
        "Trivial AUROC is what mean brightness, contrast or gradient alone would reach (the strongest of the three): "
        "near 0.5, the set is not solved by a lamp. AU-PRO weighs small defects as much as large ones.",
        "With only a dozen places to calibrate on, a texture's threshold is its strangest good place: few good crops "
        "are rejected, and what lies just below goes to review. A hundred parts of your own make it far sharper.",
        "A word of honesty: all crops of a texture come from one photograph, so they are not independent parts, and "
        "the rates below are illustrative. On your own parts, one photograph each, they mean what they say.",
    ):
        yield block("paragraph", note, css="soft")
    for texture in textures:
        yield from _section(texture)
    yield heading("The same with your own photographs", anchor="yours")
    yield block(
        "commands",
        "blemish fit photos/good -o parts.blemish          # 30 good photographs are a start\n"
        "blemish inspect parts.blemish new/ -o overlays/   # one JSON line and one picture each\n"
        "blemish info parts.blemish                        # what it promises, and on how many parts that rests",
    )
    yield block("paragraph", "Folders in MVTec-AD layout, patterns (--good 'OK/*.png') and CSV manifests work as well.")


def _figures(texture: Texture) -> tuple[str, ...]:
    m = texture.evaluation.metrics
    cues = (m[f"trivial_{cue}_auroc"] for cue in ("brightness", "contrast", "gradient"))
    decisions = (", ".join(str(len(judged)) for judged in texture.decided(side).values()) for side in (True, False))
    return (
        texture.name,
        f"{m['image_auroc']:.3f}",
        f"{max(max(cue, 1 - cue) for cue in cues):.2f}",
        f"{m['pixel_auroc']:.3f}",
        f"{m['aupro']:.3f}",
        *decisions,
        f"{texture.seconds:.1f} s",
    )


def _section(texture: Texture) -> Iterator[Block]:
    calibration, provenance = texture.inspector.calibration, texture.inspector.provenance
    good, bad = texture.decided(anomalous=False), texture.decided(anomalous=True)
    goods, bads = sum(map(len, good.values())), sum(map(len, bad.values()))
    yield heading(texture.name.capitalize(), anchor=texture.name)
    yield block(
        "paragraph",
        f"Learned from {provenance['images']} good crops of {provenance['groups']} places in the photograph; "
        f"tested on {goods} good and {bads} bad crops of another part of it.",
    )
    yield block("promise", calibration.sentence())
    limits = {"reject above": calibration.threshold, "review above": calibration.review_threshold}
    marks = {name: value for name, value in limits.items() if value is not None and math.isfinite(value)}
    scores, bad_scores = ([judged.score for some in side.values() for judged in some] for side in (good, bad))
    yield block("charts", [score_histogram(scores, bad_scores, marks, f"Scores of the test crops: {texture.name}")])
    rows = [
        (kind, int(figures["images"]), *(f"{figures[name]:.3f}" for name in ("image_auroc", "pixel_auroc", "aupro")))
        for kind, figures in texture.evaluation.kinds.items()
    ]
    yield table(("defect", "images", "image AUROC", "pixel AUROC", "AU-PRO"), rows)
    alarms = [*good["reject"], *good["review"]]
    for title, images, caption in (
        ("Defects rejected", _of_each_kind(bad["reject"]), f"{len(bad['reject'])} of {bads}"),
        ("Defects sent to review", _of_each_kind(bad["review"]), f"{len(bad['review'])} of {bads}"),
        ("Defects missed", bad["ok"][::-1], f"{len(bad['ok'])} of {bads}, least suspicious first"),
        ("False alarms", alarms, f"{len(good['reject'])} rejected, {len(good['review'])} sent to review, of {goods}"),
        ("Good, and left alone", good["ok"], f"{len(good['ok'])} of {goods}, strangest first"),
    ):
        if images:
            yield heading(f"{title} ({caption})", 3)
            yield block("pictures", [_picture(texture.inspector, judged) for judged in images[:SHOWN]])
    if texture.inspector.scale is not None:
        share = round(1 / (calibration.expected_false_reject or 1))
        ticks = [(texture.inspector.scale.threshold, f"reached by 1 good part in {share}")]
        words = "One fixed scale for all pictures of this model. A ring: where to look on a part that goes to review."
        yield legend(texture.inspector.scale, words, ticks, truth=True)


def _picture(inspector: Inspector, judged: Judged) -> Block:
    verdict, truth = inspector(judged.sample.path), None
    if judged.sample.mask is not None:
        truth = load_mask(judged.sample, read_image(judged.sample.path).size)
    count = len(verdict.regions)
    caption = f"score {verdict.score:,.0f}, p {verdict.p_value:.2f}, {count} region{'s' * (count != 1)}"
    title = f"{verdict.decision}: {judged.sample.kind}"
    return picture(verdict.overlay(truth), title, caption, verdict.decision or "")


def _of_each_kind(images: Sequence[Judged]) -> list[Judged]:
    """The clearest find of each kind."""
    first: dict[str, Judged] = {}
    for judged in images:
        first.setdefault(judged.sample.kind, judged)
    return list(first.values())
