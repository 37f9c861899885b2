"""Measuring an inspector on a test set: the only room, with the bench, where ground truth is opened.

Metrics are taken from raw scores and maps. What the product's threshold does is reported beside them, by part, with
intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from blemish.data.images import DecodedImage, read_image
from blemish.data.samples import Sample
from blemish.data.testset import TestSet, load_mask
from blemish.errors import DataError
from blemish.inspection.calibration import binomial_interval, count_rejected
from blemish.inspection.inspector import Inspector
from blemish.metrics import aupro_per_image, auroc, cue_aurocs, cue_values, image_metrics, pixel_metrics
from blemish.run import Run

At = Literal["input", "original"]
Heat = NDArray[np.float32]
Mask = NDArray[np.bool_]
THUMBNAIL = 32


@dataclass(frozen=True)
class Judged:
    """One test image with what the model said of it.

    Attributes:
        sample: the image and what is true of it.
        score: raw.
        map: at the resolution of the evaluation; None for a method without maps.
        mask: the truth at the same resolution; None where no outline is known.
    """

    sample: Sample
    score: float
    map: Heat | None
    mask: Mask | None


@dataclass(frozen=True)
class Evaluation:
    """What was found on a test set.

    Attributes:
        metrics: figures of the whole set by name; NaN where the data cannot give one.
        kinds: some of the figures for each kind of defect against all good images.
        judged: every image.
        notes: what a reader should know: kinds without masks, images left out.
    """

    metrics: dict[str, float]
    kinds: dict[str, dict[str, float]]
    decisions: dict[str, Any]
    judged: tuple[Judged, ...]
    at: At
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able figures; None for what the data cannot give."""
        return {
            **as_figures(self.metrics),
            **self.decisions,
            "kinds": {kind: as_figures(figures) for kind, figures in self.kinds.items()},
            "at": self.at,
            "images": len(self.judged),
            "anomalous": sum(one.sample.anomalous for one in self.judged),
            "notes": list(self.notes),
        }


def evaluate(
    inspector: Inspector, test: TestSet, run: Run, at: At = "input", per_image_pro: bool = False, kinds: bool = True
) -> Evaluation:
    """Judge a test set and measure.

    Args:
        inspector: needs no calibration.
        test: images with labels and, where known, masks.
        run: reports progress and counts seconds.
        at: pixel metrics at the model's input size (masks resized by nearest pixel) or at each image's own size.
        per_image_pro: add ``aupro_per_image``, the variant of the RD family.
        kinds: also figures for each kind of defect.

    Raises:
        DataError: no image can be read, or a mask has another size than its image.
    """
    with run.timer.stage("judging"):
        judged, thumbnails, unreadable = _judge(inspector, test, run, at)
    if not judged:
        raise DataError(f"no test image of {test.name} can be read")
    with run.timer.stage("metrics"):
        labels = np.array([one.sample.anomalous for one in judged])
        metrics = image_metrics(np.array([one.score for one in judged]), labels)
        cues = cue_aurocs(cue_values(thumbnails), labels)
        metrics |= {f"trivial_{cue}_auroc": value for cue, value in cues.items()}
        metrics |= _pixels(judged, per_image_pro)
        by_kind = _by_kind(judged) if kinds else {}
    return Evaluation(metrics, by_kind, _decisions(inspector, judged), tuple(judged), at, (*test.notes, *unreadable))


def as_text(found: Evaluation) -> str:
    """A few lines for a terminal."""
    lines = [f"{name:26} {value:.4f}" for name, value in found.metrics.items() if not math.isnan(value)]
    for name in ("false_reject", "escape"):
        if f"{name}_rate" in found.decisions:
            low, high = found.decisions[f"{name}_interval"]
            rate = found.decisions[f"{name}_rate"]
            lines.append(f"{name + '_rate':26} {rate:.4f}   (95 % interval {low:.3f} to {high:.3f}, by part)")
    for kind, figures in found.kinds.items():
        shown = "  ".join(f"{name} {value:.3f}" for name, value in figures.items() if not math.isnan(value))
        lines.append(f"  {kind:22} {shown}")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _judge(
    inspector: Inspector, test: TestSet, run: Run, at: At
) -> tuple[list[Judged], NDArray[np.float32], list[str]]:
    judged: list[Judged] = []
    thumbnails: list[NDArray[np.float32]] = []
    unreadable: list[str] = []
    starts = range(0, len(test.samples), 8)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in run.progress.track(starts, f"judging {test.name}"):
            loaded = list(pool.map(lambda s: _load(inspector, s), test.samples[start : start + 8]))
            unreadable += [found for found in loaded if isinstance(found, str)]
            batch = [found for found in loaded if not isinstance(found, str)]
            if not batch:
                continue
            images = torch.stack([image for _, _, image in batch])
            thumbnails.append(_thumbnails(images))
            prediction = inspector.predict(images)
            for i, (sample, raster, _) in enumerate(batch):
                heat = None if prediction.map is None else prediction.map[i].numpy()
                judged.append(_one(inspector, sample, raster.size, float(prediction.score[i]), heat, at))
    return judged, np.concatenate(thumbnails) if thumbnails else np.empty((0,), np.float32), unreadable


def _load(inspector: Inspector, sample: Sample) -> tuple[Sample, DecodedImage, Tensor] | str:
    try:
        raster = read_image(sample.path)
        return sample, raster, inspector.preparation.prepare(raster)
    except DataError as error:
        return f"left out {sample.path.name}: {error}"


def _one(
    inspector: Inspector, sample: Sample, size: tuple[int, int], score: float, heat: Heat | None, at: At
) -> Judged:
    preparation = inspector.preparation
    outlined = heat is not None and (sample.mask is not None or not sample.anomalous)
    mask = load_mask(sample, size) if outlined else None
    if at == "original":
        return Judged(sample, score, None if heat is None else preparation.to_original(heat, size), mask)
    return Judged(sample, score, heat, None if mask is None else preparation.prepare_mask(mask))


def _thumbnails(images: Tensor) -> NDArray[np.float32]:
    small: NDArray[np.float32] = F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="area").mean(1).numpy()
    return small


def _pixels(judged: Sequence[Judged], per_image_pro: bool) -> dict[str, float]:
    """Pixel metrics over the images whose outline is known; all NaN where no defect has one."""
    known = [(one.map, one.mask) for one in judged if one.map is not None and one.mask is not None]
    if not any(mask.any() for _, mask in known):
        names = ("pixel_auroc", "pixel_ap", "pixel_fpr95", "aupro", "aupro_05")
        return dict.fromkeys(names, math.nan)
    maps, masks = [heat for heat, _ in known], [mask for _, mask in known]
    if len({heat.shape for heat in maps}) == 1:
        figures = pixel_metrics(np.stack(maps), np.stack(masks))
    else:
        figures = pixel_metrics(maps, masks)
    if per_image_pro:
        figures["aupro_per_image"] = aupro_per_image(maps, masks)
    return figures


def _by_kind(judged: Sequence[Judged]) -> dict[str, dict[str, float]]:
    good = [one for one in judged if not one.sample.anomalous]
    kinds = sorted({one.sample.kind for one in judged if one.sample.anomalous})
    found = {}
    for kind in kinds:
        some = [*good, *(one for one in judged if one.sample.anomalous and one.sample.kind == kind)]
        labels = np.array([one.sample.anomalous for one in some])
        pixels = _pixels(some, per_image_pro=False)
        found[kind] = {
            "images": float(labels.sum()),
            "image_auroc": auroc(np.array([one.score for one in some]), labels),
            **{name: pixels[name] for name in ("pixel_auroc", "aupro")},
        }
    return found


def _decisions(inspector: Inspector, judged: Sequence[Judged]) -> dict[str, Any]:
    """What the calibrated threshold does here, by part; empty without calibration."""
    if inspector.calibration.kind == "none":
        return {}
    calibration = inspector.calibration
    found: dict[str, Any] = {
        "promise": calibration.sentence(),
        "calibration": calibration.kind,
        "calibration_parts": calibration.n,
        "promised_rate": calibration.expected_false_reject,
        "promised_bound": calibration.false_reject_bound,
    }
    for name, anomalous in (("false_reject", False), ("escape", True)):
        some = [one for one in judged if one.sample.anomalous == anomalous]
        if not some:
            continue
        groups = [one.sample.group for one in some]
        decided = [calibration.decide(one.score) for one in some]
        rejected = [decision == "reject" for decision in decided]
        # A good part is rejected with any of its images; a bad one escapes with all of them.
        count, parts = count_rejected(rejected, groups)
        flagged, _ = count_rejected([decision != "ok" for decision in decided], groups)
        count = parts - count if anomalous else count
        found |= {f"{name}_rate": count / parts, f"{name}_count": count, f"{name}_parts": parts}
        found[f"{name}_interval"] = list(binomial_interval(count, parts))
        found[f"{name}_images"] = sum(rejected) if not anomalous else len(rejected) - sum(rejected)
        found["bad_judged_ok_rate" if anomalous else "good_flagged_rate"] = (
            (parts - flagged) / parts if anomalous else flagged / parts
        )
    return found


def as_figures(figures: dict[str, float]) -> dict[str, float | None]:
    """JSON-able: None for what the data cannot give."""
    return {name: None if math.isnan(value) else value for name, value in figures.items()}
