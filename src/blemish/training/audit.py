"""Which images of a folder that is supposed to be good are probably not.

Every image is judged by a model that never saw its group: anomalous images are few and differ from each other, so most
of the others do not know their defects. What comes out is a list, a page, and a manifest of what is left.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from blemish.data.manifest import write_manifest
from blemish.data.preprocessing import Preprocessing
from blemish.data.readers import files_of, read_training
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import folds_by_group
from blemish.errors import ConfigError, DataError, RegimeError
from blemish.inspection.overlay import Scale, fixed_scale
from blemish.registry import DEFAULT_METHOD, method_class
from blemish.run import Run, refuse_to_replace
from blemish.training.epoch_selection import AUTO
from blemish.training.profiles import resolve
from blemish.training.setup import FitSettings, build_learner, check_region, introduce, load_images, method_config

FOLDS = 5
FEWEST = 10  # below this many groups the suggested cut rests on next to nothing, which is said
SPREADS = 3.0  # so many robust standard deviations above the median an image is suspect
SIGMA = 1.4826  # from the median absolute deviation to the standard deviation of a normal distribution


@dataclass(frozen=True)
class AuditedImage:
    """One image and what a model that never saw its group says of it; ``heat`` is kept of the most suspicious alone."""

    sample: Sample
    score: float
    rank: int
    suspect: bool
    heat: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        figures = {"score": self.score, "rank": self.rank, "suspect": self.suspect}
        return {"path": str(self.sample.path), **figures, "group": self.sample.group}


@dataclass(frozen=True)
class Audit:
    """All images of a set, most suspicious first; the cut above which they are suspect, and its rule in words."""

    training: TrainingSet
    method: str
    judged: tuple[AuditedImage, ...]
    cut: float
    rule: str
    scale: Scale | None
    preparation: Preprocessing
    skipped: tuple[Path, ...]

    @property
    def suspects(self) -> tuple[AuditedImage, ...]:
        return tuple(image for image in self.judged if image.suspect)

    def sentence(self) -> str:
        return (
            f"{len(self.suspects)} of {len(self.judged)} images are suspect ({self.method}, each judged by a model "
            f"that never saw its part; {self.rule}). Look before you throw anything out."
        )


def audit(
    data: str | Path | TrainingSet, settings: FitSettings | None = None, run: Run | None = None, shown: int = 60
) -> Audit:
    """Judge every image of a folder, manifest or set by a model that never saw its group; known-bad ones are left out.

    Maps are kept of the ``shown`` most suspicious ones.
    """
    run, settings = run or Run(), settings or FitSettings()
    training = data if isinstance(data, TrainingSet) else read_training(Path(data))
    name = settings.method or DEFAULT_METHOD["clean"]
    if method_class(name).regimes == {"weak"}:
        usual = f"use -m {DEFAULT_METHOD['clean']}"
        raise RegimeError(f"{name} learns from known-bad images, and an audit has none: {usual}")
    if settings.epochs == AUTO:
        raise ConfigError("an audit takes a number of epochs: epochs=auto is fit's")
    method_config(name, settings)  # what was asked for wrongly is said before anything else
    with run.interruptible():
        introduce(training, run)
        settings = resolve(training, dataclasses.replace(settings, method=name), run)
        config = method_config(name, settings)
        if training.anomalous:
            run.progress.note(f"note: the {len(training.anomalous)} known-bad images are left out")
        images, _ = load_images(dataclasses.replace(training, samples=training.normal), settings, run)
        check_region(images.preparation)
        groups = images.groups  # copies of an image are one part: one would be judged by a model of the others
        parts = len(set(groups))
        if parts < 2:
            raise DataError(f"{training.name} shows {parts} part: an audit compares parts, so at least 2 are needed.")
        if parts < FEWEST:
            run.progress.note(f"warning: {parts} parts are few to tell good from bad by: give {FEWEST} or more")
        # Nobody has looked at what is audited, whatever its folder is called.
        learner, run = build_learner(name, config, (images, None), "contaminated", settings, run)
        learner.keep_features(range(len(images)), True, settings.cache, run)
        folds = folds_by_group(groups, min(FOLDS, parts), run.seed)
        scores, max_map_values = np.empty(len(images)), np.full(len(images), np.nan)
        maps: dict[int, NDArray[np.float32]] = {}
        for fold, inspector in learner.crossfit(folds, run, "cross-judging"):
            for scored in inspector.stream(fold, images.to_judge):
                scores[scored.item] = scored.score
                if scored.map is not None:
                    max_map_values[scored.item] = images.preparation.highest(scored.map)
                    maps[scored.item] = scored.map.copy()
                if len(maps) > shown:
                    del maps[min(maps, key=lambda i: (scores[i], -i))]
    cut, rule = suggested_cut(scores)
    judged = [
        AuditedImage(images.samples[i], float(scores[i]), rank, bool(scores[i] > cut), maps.get(int(i)))
        for rank, i in enumerate(np.argsort(-scores, kind="stable"), start=1)
    ]
    scale = fixed_scale(suggested_cut(max_map_values)[0], max_map_values) if maps else None
    skipped = tuple(path for path, _ in images.skipped)
    return Audit(training, name, tuple(judged), cut, rule, scale, images.preparation, skipped)


def suggested_cut(scores: ArrayLike) -> tuple[float, str]:
    """Above which score an image is suspect, and why.

    A tenth of bad images, however bad, hardly moves median and median absolute deviation. No rule can know how many are
    bad: the ranking is the finding, the cut is where to start looking.
    """
    values = np.asarray(scores, dtype=np.float64)
    median = float(np.median(values))
    spread = SIGMA * float(np.median(np.abs(values - median)))
    return median + SPREADS * spread, f"suggested cut: the median and {SPREADS:g} robust standard deviations"


def write_clean(result: Audit, manifest: Path) -> Path:
    """A manifest of the known-bad images and of those that are not suspect, which count as good from here on."""
    refuse_to_replace(manifest, files_of(result.training))
    clean = {image.sample.path for image in result.judged if not image.suspect}
    kept = [dataclasses.replace(s, label="normal", kind="good") for s in result.training.normal if s.path in clean]
    return write_manifest(manifest, [*kept, *result.training.anomalous])
