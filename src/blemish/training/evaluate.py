"""Measuring an inspector on a test set: the only room, with the bench, where ground truth is opened.

Metrics are taken from raw scores and maps; what the product's threshold does is reported beside them, by group.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from blemish.data.images import read_image
from blemish.data.samples import Sample
from blemish.data.testset import TestSet, load_mask, open_test_set
from blemish.errors import DataError, ImageError
from blemish.inspection.calibration import group_scores
from blemish.inspection.judge import Judge
from blemish.metrics import aupro_per_image, auroc, caught_at, cue_aurocs, cue_values, image_metrics, pixel_metrics
from blemish.run import Run

At = Literal["input", "original"]
PIXEL_FIGURES = ("pixel_auroc", "pixel_ap", "pixel_fpr95", "aupro", "aupro_05")
THUMBNAIL = 32  # pixels a side, in which the trivial cues are measured
TELLS, ENOUGH = 0.9, 8  # AUROC of such a cue, and images of either kind, from which a person is told
Inside = NDArray[np.bool_] | None  # where images are judged, at the resolution of the evaluation


@dataclass(frozen=True)
class ScoredSample:
    """One test image with what the model said of it; map and truth are None where there are none."""

    sample: Sample
    score: float
    map: NDArray[np.float32] | None  # at the resolution of the evaluation
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Evaluation:
    """What was measured on a test set; NaN where the data cannot give a figure."""

    metrics: dict[str, float]
    kinds: dict[str, dict[str, float]]  # some of the metrics for each kind of defect against all normal images
    decisions: dict[str, Any]  # what the calibrated threshold does; empty without calibration
    judged: tuple[ScoredSample, ...]
    at: At
    notes: tuple[str, ...]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of 95 %, of those metrics that have one

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; None for what the data cannot give."""
        return {
            **as_figures(self.metrics),
            **{f"{name}_interval": list(ends) for name, ends in self.intervals.items() if not math.isnan(ends[0])},
            **self.decisions,
            "kinds": {kind: as_figures(figures) for kind, figures in self.kinds.items()},
            "at": self.at,
            "images": len(self.judged),
            "anomalous": sum(image.sample.anomalous for image in self.judged),
            "notes": list(self.notes),
        }


def evaluate(
    inspector: Judge,
    test: TestSet | str | Path,
    run: Run | None = None,
    at: At = "input",
    per_image_pro: bool = False,
    kinds: bool = True,
) -> Evaluation:
    """Judge a test set and measure.

    Args:
        inspector: needs no calibration.
        test: a folder or manifest with labels and, where known, masks; or such a set read before.
        run: reports progress and counts seconds; silent by default.
        at: pixel metrics at the model's input size (masks resized by nearest pixel) or at each image's own size, as
            those of a model that judges in tiles always are.
        per_image_pro: add ``aupro_per_image``, the variant of the RD family.
        kinds: also figures for each kind of defect.

    Raises:
        DataError: no image can be read. One whose mask is unusable is left out of the pixel metrics, with a note.
    """
    test, run = test if isinstance(test, TestSet) else open_test_set(Path(test)), run or Run()
    judged: list[ScoredSample] = []
    thumbnails: list[NDArray[np.float32]] = []
    notes, unusable, preparation = list(test.notes), list[str](), inspector.preparation
    if at != "original" and (preparation.tiling is not None or preparation.resize == "letterbox"):
        at, why = "original", "at which tiles give maps" if preparation.tiling is not None else "without margins"
        notes.append(f"pixel metrics are measured at the images' own sizes, {why}")
    inside = None if preparation.roi is None else preparation.roi.mask
    inside = inside if inside is None or at == "original" else preparation.prepare_mask(inside)

    def leave_out(sample: Sample, error: ImageError) -> None:
        notes.append(f"left out {sample.path.name}: {error}")

    with run.timer.stage("judging"):
        samples = run.progress.track(test.samples, f"judging {test.name}")
        for scored in inspector.stream(samples, lambda sample: read_image(sample.path), on_error=leave_out):
            prepared = scored.prepared
            if scored.image is not None and not isinstance(prepared, Tensor):
                prepared = preparation.prepare(scored.image)
            thumbnails.append(F.interpolate(prepared[None], (THUMBNAIL, THUMBNAIL), mode="area").mean(1).numpy())
            sample, map_, mask = scored.item, scored.map, None
            size = scored.image.size if scored.image is not None else preparation.input_size
            if map_ is not None and (sample.mask is not None or not sample.anomalous):
                try:
                    mask = load_mask(sample, size)
                except DataError as error:
                    unusable.append(str(error))
            if at == "original":
                map_ = None if map_ is None else preparation.to_original(map_, size)
            elif mask is not None:
                mask = preparation.prepare_mask(mask)
            judged.append(ScoredSample(sample, scored.score, map_, mask))
    if not judged:
        raise DataError(f"no test image of {test.name} can be read")
    if unusable:
        notes.append(
            f"{len(unusable)} images are left out of the pixel metrics for their masks, such as: {unusable[0]}"
        )
    with run.timer.stage("metrics"):
        labels = np.array([image.sample.anomalous for image in judged])
        cues = cue_aurocs(cue_values(np.concatenate(thumbnails)), labels)
        cue, tells = max(cues.items(), key=lambda item: abs(item[1] - 0.5))
        if max(tells, 1 - tells) >= TELLS and min(labels.sum(), (~labels).sum()) >= ENOUGH:
            text = f"{cue} alone tells good from bad images here (AUROC {max(tells, 1 - tells):.2f})"
            notes.append(f"{text}: the image AUROC says little of the model, so look at what it outlines")
        metrics = image_metrics(np.array([image.score for image in judged]), labels)
        caught = _caught(judged)
        metrics |= {name: share for name, (share, _) in caught.items()}
        metrics |= {f"trivial_{cue}_auroc": value for cue, value in cues.items()}
        metrics |= _pixel_figures(judged, inside, per_image_pro)
        by_kind = _by_kind(judged, inside) if kinds else {}
    decisions = {} if inspector.calibration.kind == "none" else _decisions(inspector, judged)
    intervals = {name: ends for name, (_, ends) in caught.items()}
    return Evaluation(metrics, by_kind, decisions, tuple(judged), at, tuple(notes), intervals)


def as_text(evaluation: Evaluation) -> str:
    lines = []
    for name, value in evaluation.metrics.items():
        interval = "   (95 % interval {:.3f} to {:.3f}, by part)".format(*evaluation.intervals.get(name, (0, 0)))
        lines += [] if math.isnan(value) else [f"{name:26} {value:.4f}{interval * (name in evaluation.intervals)}"]
    for name in ("false_reject", "false_review", "escape"):
        if (rate := evaluation.decisions.get(f"{name}_rate")) is not None:
            low, high = evaluation.decisions[f"{name}_interval"]
            lines.append(f"{name + '_rate':26} {rate:.4f}   (95 % interval {low:.3f} to {high:.3f}, by part)")
    for kind, figures in evaluation.kinds.items():
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if not math.isnan(value))
        lines.append(f"  {kind:22} {shown}")
    return "\n".join([*lines, *(f"note: {note}" for note in evaluation.notes)])


def as_figures(figures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in figures.items()}


def _pixel_figures(judged: Sequence[ScoredSample], inside: Inside, per_image_pro: bool = False) -> dict[str, float]:
    """Pixel metrics over the images whose outline is known; all NaN where no defect has one, or none is judged."""
    known = [(image.map, image.mask) for image in judged if image.map is not None and image.mask is not None]
    if not any((mask if inside is None else mask & inside).any() for _, mask in known):
        return dict.fromkeys(PIXEL_FIGURES, math.nan)
    maps, masks = [map_ for map_, _ in known], [mask for _, mask in known]
    same_size = len({map_.shape for map_ in maps}) == 1
    figures = pixel_metrics(np.stack(maps), np.stack(masks), inside) if same_size else pixel_metrics(maps, masks)
    if per_image_pro:
        figures["aupro_per_image"] = aupro_per_image(maps, masks, inside=inside)
    return figures


def _caught(judged: Sequence[ScoredSample]) -> dict[str, tuple[float, tuple[float, float]]]:
    """``caught_at_5`` and ``caught_at_1`` with their intervals, by group; one that is good and bad counts as both."""
    by_group = {}
    for anomalous in (False, True):
        images = [image for image in judged if image.sample.anomalous == anomalous]
        by_group[anomalous] = group_scores([image.score for image in images], [image.sample.group for image in images])
    scores, labels = np.concatenate([*by_group.values()]), np.repeat([False, True], [*map(len, by_group.values())])
    return {f"caught_at_{percent}": caught_at(scores, labels, percent / 100) for percent in (5, 1)}


def _by_kind(judged: Sequence[ScoredSample], inside: Inside) -> dict[str, dict[str, float]]:
    kinds = {}
    for kind in sorted({image.sample.kind for image in judged if image.sample.anomalous}):
        images = [image for image in judged if not image.sample.anomalous]
        images += [image for image in judged if image.sample.anomalous and image.sample.kind == kind]
        labels = np.array([image.sample.anomalous for image in images])
        pixels = _pixel_figures(images, inside)
        kinds[kind] = {
            "images": float(labels.sum()),
            "image_auroc": auroc(np.array([image.score for image in images]), labels),
            **{name: pixels[name] for name in ("pixel_auroc", "aupro")},
        }
    return kinds


def _decisions(inspector: Judge, judged: Sequence[ScoredSample]) -> dict[str, Any]:
    """What the calibrated threshold does here, by group."""
    calibration = inspector.calibration
    figures: dict[str, Any] = {
        "promise": inspector.promise,
        "calibration": calibration.kind,
        "calibration_parts": calibration.n,
        "promised_rate": calibration.expected_false_reject,
        "promised_bound": calibration.false_reject_bound,
        "promised_review": calibration.expected_false_review,
    }
    for anomalous in (False, True):
        images = [image for image in judged if image.sample.anomalous == anomalous]
        if not images:
            continue
        groups = [image.sample.group for image in images]
        decisions = np.array([calibration.decide(image.score) for image in images])
        # A normal group is rejected with any of its images; an anomalous one escapes with all of them.
        rejected, flagged = (group_scores(some, groups) > 0 for some in (decisions == "reject", decisions != "ok"))
        counted = (
            {"escape": ~rejected} if anomalous else {"false_reject": rejected, "false_review": flagged & ~rejected}
        )
        for name, which in counted.items():
            count, parts = int(which.sum()), len(which)
            interval = binomtest(count, parts).proportion_ci()
            figures |= {f"{name}_rate": count / parts, f"{name}_count": count, f"{name}_parts": parts}
            figures[f"{name}_interval"] = [float(interval.low), float(interval.high)]
        is_wrong = (decisions == "reject") != anomalous
        figures["escape_images" if anomalous else "false_reject_images"] = int(is_wrong.sum())
        name, share = ("bad_judged_ok_rate", ~flagged) if anomalous else ("good_flagged_rate", flagged)
        figures[name] = float(share.mean())
    return figures
