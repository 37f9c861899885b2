"""What a profile makes of a set of images: backbone, size, poses and options, each with its reason in words.

Whether parts lie in any direction is found by defects painted on held-out good images. Where they do, turned copies of
the others bring the good ones closer to what was learned, and the painted ones stand out more; where they do not, the
copies only take places in the memory. Known-bad images, where there are enough, take the place of painted ones.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blemish.backbones.backbone import build_backbone
from blemish.backbones.networks import choose_levels
from blemish.contract import Regime
from blemish.data.images import read_header
from blemish.data.loading import SEEN, PreparedImages, fitting_size
from blemish.data.poses import MEANING, Poses
from blemish.data.samples import TrainingSet
from blemish.data.splits import folds_by_group, shuffled_names, split_by_group
from blemish.data.tiles import SMALLEST as SMALLEST_TILE
from blemish.errors import ConfigError, ImageError, WeightsError
from blemish.registry import DEFAULT_METHOD, DEFAULT_PROFILE, METHODS, PROFILES, Profile, method_class, nearest_name
from blemish.run import Run, Silent
from blemish.training.learner import Learner
from blemish.training.painted import score_painted
from blemish.training.setup import USUAL_SIZE, FitSettings, build_learner, load_images, method_config

TRIED: tuple[Poses, ...] = ("none", "all")
TRIAL_SIZES, TRIAL_MEMORY = (128, 256), 2000  # pixels a side and patches, which are enough to tell
FEWEST, ENOUGH = 6, 12  # groups: of fewer, a third says nothing; of so many, one third says enough
MOST = 30  # groups that are looked at: each is learned in 12 directions
PAINTED = 4  # defects on each held-out image
SMALLEST = 1e-6  # score: an image that was learned itself has none
GAIN = 0.25  # deviations: a smaller difference may be chance


def resolve(training: TrainingSet, settings: FitSettings, run: Run) -> FitSettings:
    """``settings`` with everything filled in that its profile, or the default one, leaves to the images.

    Raises:
        ConfigError: the method named has none of the profile's options.
        WeightsError: the backbone of a profile asked for is not at hand; the default profile gives way to a smaller.
    """
    name = settings.profile or (None if settings.method else DEFAULT_PROFILE)
    if name is None:
        return _tiled(training, settings, settings.size or USUAL_SIZE, run)
    method = settings.method or DEFAULT_METHOD[training.regime]
    if not has_profiles(method):
        able = ", ".join(name for name in METHODS if has_profiles(name))
        raise ConfigError(f"{method} has no profiles, which {able} have: give --backbone and --size instead")
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name!r}: {nearest_name(name, PROFILES)}")
    profile, smallest = PROFILES[name], PROFILES["fast"]
    if settings.backbone is not None:
        idea = "with the backbone named"
        profile = dataclasses.replace(smallest, idea=idea, backbone=settings.backbone, limits=profile.limits)
    elif settings.weights == "pretrained":
        try:
            build_backbone(profile.backbone, profile.options["layers"])
        except WeightsError as error:
            if settings.profile is not None:
                raise
            run.progress.note(f"note: the profile {name} finds more, but {error} Until then: the profile fast")
            name, profile = "fast", smallest
    poses = settings.poses
    if poses is None and training.regime != "contaminated":
        small = dataclasses.replace(smallest, limits=TRIAL_SIZES, options={**smallest.options, "memory": TRIAL_MEMORY})
        trial = FitSettings(method, resize=settings.resize, precision=settings.precision)
        if settings.crop is not None and isinstance(whole := settings.size or profile.limits[1], int):
            trial = dataclasses.replace(trial, crop=max(1, settings.crop * TRIAL_SIZES[1] // max(1, whole)))
        trial = dataclasses.replace(trial, roi=settings.roi, ignore=settings.ignore)
        quiet = dataclasses.replace(run, progress=Silent())
        poses, why = _choose_poses(method, training, with_profile(small, training, trial, quiet, method), run)
        run.progress.note(why)
    if poses == "all" and settings.backbone is None and "layers" not in settings.options:
        profile = profile.turned or profile
    settled = with_profile(
        profile, training, dataclasses.replace(settings, profile=name, poses=poses or "none"), run, method
    )
    known = _options(method).difference(settings.options)
    if profile.tried and training.regime == "weak" and known.issuperset(profile.tried):
        settled = _choose_options(method, training, settled, profile, run)
    height, width = np.broadcast_to(settled.size or 0, 2)
    run.progress.note(f"profile: {name} ({profile.idea}: {settled.backbone} at {width} x {height} pixels)")
    return settled


def has_profiles(method: str) -> bool:
    """Whether it remembers patches of a network's levels as PatchCore does."""
    return {"layers", "memory", "fraction"} <= _options(method)


def _options(method: str) -> set[str]:
    return {option.name for option in dataclasses.fields(method_class(method).Config)}


def with_profile(profile: Profile, training: TrainingSet, settings: FitSettings, run: Run, method: str) -> FitSettings:
    """Size, backbone and options; whatever ``settings`` says itself stays."""
    backbone = settings.backbone or profile.backbone
    known = _options(method)
    options = {key: value for key, value in profile.options.items() if key in known} | dict(settings.options)
    stride = choose_levels(backbone, options["layers"])[-1].stride
    size: int | tuple[int, int]
    notes: list[str] = []
    if settings.resize == "crop":  # one number, as the middle of images of any aspect is a square
        size = profile.limits[1] if settings.size is None else settings.size
    elif settings.size is None:
        low, high = profile.limits
        limits = (low, high if settings.smallest_defect is None else 2 * high)
        size, notes = fitting_size(training.samples, limits, stride, settings.smallest_defect, settings.tile)
        if notes and settings.smallest_defect is not None and settings.tile is None:
            side, notes = high // stride * stride, []
            size, settings = (side, side), _tiled(training, settings, side, run)
    else:
        height, width = (settings.size, settings.size) if isinstance(settings.size, int) else settings.size
        size = max(1, round(height / stride)) * stride, max(1, round(width / stride)) * stride
        becomes = f"{width} x {height} becomes {size[1]} x {size[0]}: the network's cells are {stride} pixels wide"
        notes = [becomes] if size != (height, width) else []
    for note in notes:
        run.progress.note(f"note: {note}")
    return dataclasses.replace(settings, backbone=backbone, options=options, size=size)


def _tiled(training: TrainingSet, settings: FitSettings, size: int | tuple[int, int], run: Run) -> FitSettings:
    """With tiles in which ``smallest_defect`` is seen at ``size``, where images are larger and none were asked for."""
    if settings.smallest_defect is None or settings.tile is not None or settings.resize == "crop":
        return settings
    tile = max(SMALLEST_TILE, int(np.sqrt(np.prod(np.broadcast_to(size, 2))) * settings.smallest_defect / SEEN))
    with contextlib.suppress(ImageError):
        if max(read_header(training.samples[0].path)[0]) > tile:
            why = f"a defect of {settings.smallest_defect:g} pixels is to be seen"
            run.progress.note(f"note: images are judged in tiles of {tile} pixels a side, as {why}; --tile chooses")
            return dataclasses.replace(settings, tile=tile)
    return settings


@dataclass(frozen=True)
class Trial:
    """What learns, which good images are held out in turn, and known-bad ones where there are enough."""

    learner: Learner
    folds: Sequence[Sequence[int]]
    known_bad: PreparedImages | None

    def stand_out(self, poses: Poses, run: Run) -> float:
        """Deviations by which known-bad images, or painted defects, score above good ones that were not learned.

        Each fold's are its own model's; the mean over folds.
        """
        learner, apart = dataclasses.replace(self.learner, poses=poses), []
        for held in self.folds:
            inspector = learner.learn(sorted({*range(len(learner.normal))} - {*held}), run)
            unseen = learner.normal.subset(held)
            good, bad = inspector.scores(unseen, run)[0], np.empty(0)
            if self.known_bad is None:
                bad = np.array([painted.score for painted in score_painted(inspector, unseen, PAINTED, run.seed)])
            else:
                bad = inspector.scores(self.known_bad, run)[0]
            good, bad = (np.log(np.maximum(scores, SMALLEST)) for scores in (good, bad))
            if len(bad) == 0:  # no painted defect left a trace
                continue
            apart.append((bad.mean() - good.mean()) / max(1e-9, np.sqrt((bad.var() + good.var()) / 2)))
        return float(np.mean(apart or [0.0]))


def _choose_options(
    method: str, training: TrainingSet, settings: FitSettings, profile: Profile, run: Run
) -> FitSettings:
    """``settings``, with what the profile tries where known-bad images stand out more with it, and why, in words."""
    quiet = dataclasses.replace(run, progress=Silent())
    trial, _ = begin_trial(method, training, settings, quiet)
    if trial is None or trial.known_bad is None:
        return settings
    learner, poses = trial.learner, settings.poses or "none"
    learner.keep_features(range(len(learner.normal)), True, settings.cache, quiet)
    more = dataclasses.replace(learner, config=dataclasses.replace(learner.config, **profile.tried))
    trials = run.progress.track((dataclasses.replace(trial, learner=more), trial), f"trying {profile.tried_as}")
    try:
        changed, usual = (one.stand_out(poses, quiet.scoped(f"options {number}")) for number, one in enumerate(trials))
    except ConfigError:  # they do not go with an option that was asked for
        return settings
    keeps = changed > usual + GAIN
    run.progress.note(
        f"known-bad images score {usual:.2f} standard deviations above held-out good images, {changed:.2f} with "
        f"{profile.tried_as}, which needs {GAIN} more: it is {'kept' if keeps else 'left out'}"
    )
    return dataclasses.replace(settings, options={**settings.options, **profile.tried}) if keeps else settings


def begin_trial(method: str, training: TrainingSet, settings: FitSettings, run: Run) -> tuple[Trial | None, int]:
    """What such settings are tried on, None where there are fewer than ``FEWEST`` good parts; and their number."""
    names = shuffled_names((sample.group for sample in training.normal), run.seed, "poses")[:MOST]
    looked = tuple(sample for sample in training.normal if sample.group in set(names))
    images = load_images(dataclasses.replace(training, samples=looked + training.anomalous), settings, run)
    regime: Regime = "contaminated" if training.regime == "contaminated" else "clean"
    learner, _ = build_learner(method, method_config(method, settings), images, regime, settings, run)
    if (parts := len(set(learner.groups))) < FEWEST:
        return None, parts
    folds = folds_by_group(learner.groups, 3, run.seed)
    if parts >= ENOUGH:
        folds = [split_by_group(learner.groups, 1 / 3, run.seed)[1]]
    known_bad = images[1] if images[1] is not None and len(images[1]) >= FEWEST else None
    return Trial(learner, folds, known_bad), parts


def _choose_poses(method: str, training: TrainingSet, settings: FitSettings, run: Run) -> tuple[Poses, str]:
    """Whether to learn the good images in all directions, and why, in words."""
    quiet = dataclasses.replace(run, progress=Silent())
    trial, parts = begin_trial(method, training, settings, quiet)
    if trial is None:
        return "none", f"poses: {parts} good parts are too few to tell: each photograph is learned as it is"
    what = "painted defects" if trial.known_bad is None else "known-bad images"
    tried = run.progress.track(TRIED, "trying poses")
    apart = {poses: trial.stand_out(poses, quiet.scoped(f"poses {poses}")) for poses in tried}
    best: Poses = "all" if apart["all"] > apart["none"] + GAIN else "none"
    lie = "as photographed" if best == "none" else "in any direction"
    return best, (
        f"poses: your parts lie {lie}: each photograph is learned {MEANING[best]} ({what} score {apart['none']:.2f} "
        f"standard deviations above {sum(map(len, trial.folds))} held-out good images, {apart['all']:.2f} with turned "
        f"copies, which need {GAIN} more)"
    )
