"""``blemish demo``: everything once, offline, on real textures with painted defects, ending in one page."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.data.demo import write_demo
from blemish.data.images import read_image
from blemish.data.testset import load_mask, open_test_set
from blemish.inspection.inspector import Inspector
from blemish.report.html import colour_scale, histogram, limits_of, picture, write_page
from blemish.run import Run
from blemish.training.evaluate import Evaluation, ScoredSample, evaluate
from blemish.training.fit import fit
from blemish.training.setup import FitSettings

SHOWN = 6


@dataclass(frozen=True)
class Demo:
    """What the demo came to: where the page was written, and each texture's metrics and seconds of learning."""

    page: Path
    textures: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        return {"page": str(self.page), "textures": self.textures}

    def as_text(self) -> str:
        lines = [f"{'':10} {'image AUROC':>12} {'pixel AUROC':>12} {'AU-PRO':>8} {'learned in':>11}"]
        for name, m in self.textures.items():
            figures = f"{m['image_auroc']:12.3f} {m['pixel_auroc']:12.3f} {m['aupro']:8.3f}"
            lines.append(f"{name:10} {figures} {m['seconds']:9.1f} s")
        return "\n".join([*lines, f"the page: {self.page}"])


def run_demo(output: Path, run: Run, settings: FitSettings | None = None) -> Demo:
    """Write the demo set, learn each texture, judge its test images, and write the page.

    ``output`` gets ``data/``, a model for each texture, and ``index.html``. The defaults of ``settings`` are what the
    page speaks of. A ``DataError`` where scikit-image, whose photographs the demo uses, is not installed.
    """
    metrics, sections = {}, []
    for folder in write_demo(output / "data", run.seed):
        own = Run(run.seed, run.device, run.precision, run.progress)
        inspector = fit(folder, settings, own)
        inspector.save(output / f"{folder.name}.blemish")
        evaluation = evaluate(inspector, open_test_set(folder), own)
        seconds = sum(own.timer.seconds.get(stage, 0) for stage in ("images", "features", "fit", "calibration"))
        metrics[folder.name] = {**evaluation.metrics, "seconds": round(seconds, 2)}
        sections.append(_section(folder.name, inspector, evaluation, seconds))
    return Demo(write_page(output / "index.html", "Blemish: the demo", "demo.j2", textures=sections), metrics)


def _section(name: str, inspector: Inspector, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """What the page shows of a texture."""
    calibration, m = inspector.calibration, evaluation.metrics
    # The good and the bad test images by decision, the strangest first.
    normal: dict[str, list[ScoredSample]] = {"reject": [], "review": [], "ok": []}
    anomalous: dict[str, list[ScoredSample]] = {"reject": [], "review": [], "ok": []}
    for judged in sorted(evaluation.judged, key=lambda judged: -judged.score):
        (anomalous if judged.sample.anomalous else normal)[calibration.decide(judged.score)].append(judged)
    goods, bads = sum(map(len, normal.values())), sum(map(len, anomalous.values()))
    cues = [m[f"trivial_{cue}_auroc"] for cue in ("brightness", "contrast", "gradient")]
    figures = ("image_auroc", "pixel_auroc", "aupro")
    trivial, (image, *pixels) = f"{max(max(cue, 1 - cue) for cue in cues):.2f}", (f"{m[f]:.3f}" for f in figures)
    decisions = [", ".join(str(len(judged)) for judged in side.values()) for side in (anomalous, normal)]
    good_scores = [judged.score for some in normal.values() for judged in some]
    bad_scores = [judged.score for some in anomalous.values() for judged in some]
    rejected, review, missed = (len(anomalous[decision]) for decision in ("reject", "review", "ok"))
    alarms = f"{len(normal['reject'])} rejected, {len(normal['review'])} sent to review, of {goods}"
    galleries = {
        f"Defects rejected ({rejected} of {bads}; one of each kind)": _of_each_kind(anomalous["reject"]),
        f"Defects sent to review ({review} of {bads}; one of each kind)": _of_each_kind(anomalous["review"]),
        f"Defects missed ({missed} of {bads}, least suspicious first)": anomalous["ok"][::-1],
        f"Good, rejected or sent to review ({alarms})": [*normal["reject"], *normal["review"]],
        f"Good, and left alone ({len(normal['ok'])} of {goods}, strangest first)": normal["ok"],
    }
    scale = None
    if inspector.scale is not None:
        share = round(1 / (calibration.expected_false_reject or 1))
        scale = colour_scale(inspector.scale, [(inspector.scale.threshold, f"reached by 1 good part in {share}")])
    return {
        "name": name,
        "figures": (name, image, trivial, *pixels, *decisions, f"{seconds:.1f} s"),
        "provenance": inspector.provenance,
        "goods": goods,
        "bads": bads,
        "promise": inspector.promise,
        "scores": histogram(good_scores, bad_scores, limits_of(inspector)),
        "kinds": [
            (kind, int(own["images"]), *(f"{own[figure]:.3f}" for figure in figures))
            for kind, own in evaluation.kinds.items()
        ],
        "galleries": [
            (title, [_picture(inspector, judged) for judged in shown[:SHOWN]]) for title, shown in galleries.items()
        ],
        "scale": scale,
    }


def _picture(inspector: Inspector, judged: ScoredSample) -> dict[str, str]:
    verdict, truth = inspector(judged.sample.path), None
    if judged.sample.mask is not None:
        truth = load_mask(judged.sample, read_image(judged.sample.path).size)
    return picture(verdict.overlay(truth), judged.sample.kind, verdict.caption, verdict.decision or "")


def _of_each_kind(images: list[ScoredSample]) -> list[ScoredSample]:
    """The clearest find of each kind."""
    first: dict[str, ScoredSample] = {}
    for judged in images:
        first.setdefault(judged.sample.kind, judged)
    return list(first.values())
