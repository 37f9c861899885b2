"""Which images of a folder that is supposed to be good are probably not.

A model that has seen an image says little about it: a memory of patches finds each of its own again. So the parts are
divided into folds, and every image is judged by a model that never saw its part. Bad images are few and differ from
each other, so most of the others do not know their defects.

Nothing is deleted or moved: what comes out is a list, a page to look at, and a manifest of what is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.backbones.teacher import FrozenTeacher
from blemish.data.manifest import write_manifest
from blemish.data.preprocessing import Preprocessing
from blemish.data.readers import read_training, refuse_to_replace, survey
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import folds_by_group
from blemish.errors import ConfigError, DataError, RegimeError
from blemish.inspection.calibration import uncalibrated
from blemish.inspection.inspector import Inspector
from blemish.inspection.overlay import Scale, fixed_scale
from blemish.registry import DEFAULT_METHOD, make_config, method_class
from blemish.run import Run, Silent
from blemish.training.epoch_selection import AUTO
from blemish.training.fit import FitSettings, build_for, method_options
from blemish.training.learner import Learner, PreparedSet

FOLDS = 5
FEWEST = 10
"""Below this many parts the suggested cut rests on next to nothing, which is said."""

SPREADS = 3.0
"""How many robust standard deviations above the median an image is suspect."""

SIGMA = 1.4826
"""From the median absolute deviation to the standard deviation of a normal distribution."""

BATCH = 8


@dataclass(frozen=True)
class Judged:
    """One image and what the models that never saw its part think of it.

    Attributes:
        sample: which image.
        score: raw, higher is more suspicious; of one fold's model, whose scales are alike but not the same.
        rank: 1 for the most suspicious.
        suspect: whether it lies above the suggested cut.
        heat: the anomaly map at the network's size, for the most suspicious ones; None for others, and for methods
            without maps.
    """

    sample: Sample
    score: float
    rank: int
    suspect: bool
    heat: NDArray[np.float32] | None = dataclasses.field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """What ``audit --json`` prints of it."""
        return {
            "path": str(self.sample.path),
            "score": self.score,
            "rank": self.rank,
            "suspect": self.suspect,
            "group": self.sample.group,
        }


@dataclass(frozen=True)
class Audit:
    """All images of a set, most suspicious first.

    Attributes:
        training: the set.
        method: that judged them.
        judged: most suspicious first.
        cut: images that score above it are suspect.
        rule: where the cut comes from, in words.
        scale: the one colour scale of all maps; None without maps.
        preparation: of images and maps.
        skipped: files that cannot be read.
    """

    training: TrainingSet
    method: str
    judged: tuple[Judged, ...]
    cut: float
    rule: str
    scale: Scale | None
    preparation: Preprocessing
    skipped: tuple[Path, ...]

    @property
    def suspects(self) -> tuple[Judged, ...]:
        """What lies above the cut, most suspicious first."""
        return tuple(one for one in self.judged if one.suspect)

    def sentence(self) -> str:
        """The outcome, for people."""
        return (
            f"{len(self.suspects)} of {len(self.judged)} images are suspect ({self.method}, each judged by a model "
            f"that never saw its part; {self.rule}). Look before you throw anything out."
        )


def audit(
    data: str | Path | TrainingSet, settings: FitSettings | None = None, run: Run | None = None, shown: int = 60
) -> Audit:
    """Judge every image of a set by a model that never saw its part.

    Args:
        data: a folder, a manifest or a set read before. Good and unlabelled images are audited; known-bad ones are
            left out.
        settings: method, options, backbone, size; calibration is not used. PatchCore unless a method is named.
        run: seed, device, progress.
        shown: of how many, the most suspicious ones, maps are kept.

    Raises:
        DataError: there are fewer than two parts.
        RegimeError: the method needs labels.
        ConfigError: an unknown method, backbone, option or value.
    """
    run, settings = run or Run(), settings or FitSettings()
    training = data if isinstance(data, TrainingSet) else read_training(Path(data))
    with run.interruptible():
        learner, run = _learner(training, settings, run)
        scores, max_map_values, heat = _cross_judged(learner, shown, run)
    cut, rule = suggested_cut(scores)
    order = np.lexsort((np.arange(len(scores)), -scores))
    images = learner.images.normal
    judged = [
        Judged(images.samples[i], float(scores[i]), rank, bool(scores[i] > cut), heat.get(int(i)))
        for rank, i in enumerate(order, start=1)
    ]
    scale = None if max_map_values is None else fixed_scale(suggested_cut(max_map_values)[0], max_map_values)
    skipped = tuple(path for path, _ in images.skipped)
    return Audit(training, learner.name, tuple(judged), cut, rule, scale, images.preparation, skipped)


def suggested_cut(scores: NDArray[Any]) -> tuple[float, str]:
    """Above which score an image is suspect, and why.

    The median plus three robust standard deviations (the median absolute deviation, scaled): a tenth of bad images,
    however bad, hardly moves either, where mean and standard deviation would follow them. No rule can know how many
    are bad: the ranking is the finding, the cut is where to start looking.

    Args:
        scores: of each image.
    """
    values = np.asarray(scores, dtype=np.float64)
    median = float(np.median(values))
    spread = SIGMA * float(np.median(np.abs(values - median)))
    return median + SPREADS * spread, f"suggested cut: the median and {SPREADS:g} robust standard deviations"


def write_clean(found: Audit, manifest: Path) -> Path:
    """Write a manifest of the images that are not suspect, to fit from; unlabelled ones count as good from here on.

    Known-bad images stay what they are. Test images are not listed: evaluate on the set itself.

    Args:
        found: what the audit gave.
        manifest: where to, in a folder that holds the images.

    Raises:
        ManifestError: an image lies outside the manifest's folder, or the manifest is what the set was read by.
        OutputError: it cannot be written.
    """
    refuse_to_replace(manifest, found.training)
    left = {one.sample.path for one in found.judged if not one.suspect}
    kept = [dataclasses.replace(s, label="normal", kind="good") for s in found.training.normal if s.path in left]
    return write_manifest(manifest, [*kept, *found.training.anomalous])


def _learner(training: TrainingSet, settings: FitSettings, run: Run) -> tuple[Learner, Run]:
    """What learns from parts of the set, as a pile that nobody has looked at."""
    name = settings.method or DEFAULT_METHOD["clean"]
    cls = method_class(name)
    if cls.regimes == {"weak"}:
        other = DEFAULT_METHOD["clean"]
        raise RegimeError(f"{name} learns from known-bad images, and an audit has none: use -m {other}")
    if settings.epochs == AUTO:
        raise ConfigError("an audit takes a number of epochs: epochs=auto is fit's")
    config = make_config(cls, method_options(name, cls, settings))
    run.progress.note(f"{training.name}: {training.summary()}")
    for note in (*training.notes, *survey(training.samples)):
        run.progress.note(f"note: {note}")
    if training.anomalous:
        run.progress.note(f"note: the {len(training.anomalous)} known-bad images are left out")
    pile = dataclasses.replace(training, samples=training.normal)
    with run.timer.stage("images"):
        images = PreparedSet.of(pile, settings.resize, settings.size, settings.crop, settings.strict, run)
    parts = len(set(images.groups))
    if parts < 2:
        raise DataError(f"{training.name} shows {parts} part: an audit compares parts, so at least 2 are needed.")
    if parts < FEWEST:
        run.progress.note(f"warning: {parts} parts are few to tell good from bad by: from {FEWEST} on it makes sense")
    images = dataclasses.replace(images, regime="contaminated")
    backbone, run = build_for(settings, cls, config, run)
    learner = Learner(name, cls, config, images, FrozenTeacher(backbone))
    learner.keep_features(range(len(images.normal)), True, settings.cache, run)
    return learner, run


def _cross_judged(
    learner: Learner, shown: int, run: Run
) -> tuple[NDArray[Any], NDArray[Any] | None, dict[int, NDArray[np.float32]]]:
    """Scores and map maxima of all images, the latter None without maps, and the maps of the highest scores."""
    images = learner.images
    everything = range(len(images.normal))
    scores, max_map_values = np.empty(len(everything)), np.empty(len(everything))
    heat: dict[int, NDArray[np.float32]] = {}
    has_maps = True
    folds = folds_by_group(images.groups, min(FOLDS, len(set(images.groups))), run.seed)
    shown_folds = folds if learner.is_trained else run.progress.track(folds, "cross-judging")
    for number, fold in enumerate(shown_folds, start=1):
        part = run if learner.is_trained else dataclasses.replace(run, progress=Silent())
        method = learner.learn(sorted(set(everything) - set(fold)), part.scoped(f"fold {number} of {len(folds)}"))
        inspector = Inspector(method, learner.name, images.preparation, uncalibrated(), {})
        for indices, found, maps in _predictions(inspector, images, fold):
            scores[indices] = found
            if maps is None:
                has_maps = False
                continue
            max_map_values[indices] = maps.max(axis=(1, 2))
            heat |= dict(zip(indices, maps))
            heat = {i: heat[i] for i in sorted(heat, key=lambda i: -scores[i])[:shown]}
    return scores, max_map_values if has_maps else None, heat


def _predictions(
    inspector: Inspector, images: PreparedSet, indices: Sequence[int]
) -> Iterator[tuple[list[int], NDArray[Any], NDArray[Any] | None]]:
    """Batch by batch: which images, their scores ``b``, their maps ``b h w``."""
    for start in range(0, len(indices), BATCH):
        some = list(indices[start : start + BATCH])
        prediction = inspector.predict(images.normal.batch(some).images)
        maps = None if prediction.map is None else prediction.map.numpy()
        yield some, prediction.score.numpy(), maps
