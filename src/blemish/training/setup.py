"""What ``fit`` may be told, and everything that learning begins with: images at their size, a backbone, a learner."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np

from blemish.backbones.backbone import FrozenBackbone, NoBackbone, build_backbone
from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Regime
from blemish.data.loading import SEEN, PreparedImages, fitted_roi, fitted_white_level
from blemish.data.poses import Poses
from blemish.data.preprocessing import Preprocessing, ResizeMode
from blemish.data.readers import survey
from blemish.data.samples import TrainingSet
from blemish.data.tiles import Tiling
from blemish.errors import ConfigError, DataError
from blemish.inspection.calibration import Wanted
from blemish.registry import DEFAULT_METHOD, ProfileName, make_config, method_class
from blemish.run import PrecisionName, Run, choose_precision
from blemish.training.epoch_selection import AUTO
from blemish.training.learner import IN_MEMORY, Learner

Images = tuple[PreparedImages, PreparedImages | None]  # normal and known-bad
USUAL_SIZE = 256  # pixels a side where no profile is in effect: the papers'


@dataclass(frozen=True)
class FitSettings:
    """Everything that ``fit`` may be told; the defaults are what a newcomer should get.

    Attributes:
        method: a name of ``blemish methods``, or None for the regime's default.
        options: the method's own options, by name.
        backbone: a name of ``blemish backbones`` or any timm architecture; None for the profile's.
        weights: ``pretrained``, ``random`` (for tests only), or a file.
        size: pixels of a side of what the network is given, or (height, width); None for what suits the images within
            the profile's limits, and without a profile for 256.
        smallest_defect: pixels of the images that the smallest defect to be found is wide; the size then follows it.
        tile: pixels a side of tiles that images are cut into, each of which is an image of ``size`` for the network;
            None for whole images, unless ``smallest_defect`` needs more than the profile's size.
        tile_overlap: by so many pixels tiles overlap at least; None for an eighth of ``tile``.
        roi: a file of the region to judge: a mask as large as the images, not black there, or polygons in JSON.
        ignore: such a file of what is left out.
        pixel: millimetres of the part that a pixel is wide: areas are then told in mm2, too.
        poses: in which each good image is learned: ``none``, ``flips``, ``turns`` (quarters, mirrored too) or ``all``
            (12 directions); None for what the good images say, and without a profile for ``none``.
        profile: ``fast``, ``balanced`` or ``best``: backbone, size, poses and options that find more than the papers'
            settings do. By default ``balanced`` where no method is named, and none, the paper's settings, where one is.
        budget: milliseconds from an image's file to its verdict on this machine; backbone, size and memory are chosen
            to keep to it, and what that costs is said.
        resize: how images come to that size.
        crop: pixels of a side kept by ``resize="crop"``; None for 7/8 of the size.
        calibration: ``auto``, ``holdout``, ``crossfit`` or ``none``.
        false_reject: the share of good parts that may be rejected; None for the default.
        review: the share that may go to a person besides; None for twice as many, at most 10 %.
        precision: ``auto``, ``fp32`` or ``bf16``.
        strict: a damaged training image is an error, not a note.
        epochs: passes over the images, of methods that are trained; ``auto`` chooses by defects painted on good images.
        steps: the same in updates of the weights; one of both at most.
        cache: where features of training images are kept while learning: ``memory``, ``off``, or a folder for later.
        compare: say what the known-bad images changed, by learning four times more from halves.
    """

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    weights: str = "pretrained"
    size: int | tuple[int, int] | None = None
    smallest_defect: float | None = None
    tile: int | None = None
    tile_overlap: int | None = None
    roi: Path | None = None
    ignore: Path | None = None
    pixel: float | None = None
    poses: Poses | None = None
    profile: ProfileName | None = None
    budget: float | None = None
    resize: ResizeMode = "stretch"
    crop: int | None = None
    calibration: Wanted = "auto"
    false_reject: float | None = None
    review: float | None = None
    precision: PrecisionName = "auto"
    strict: bool = False
    epochs: int | Literal["auto"] | None = None
    steps: int | None = None
    cache: str = IN_MEMORY
    compare: bool = False

    def __post_init__(self) -> None:
        Preprocessing(size=USUAL_SIZE if self.size is None else self.size)  # refuses what is no size
        if self.smallest_defect is not None and not 1 <= self.smallest_defect < math.inf:
            raise ConfigError(f"a smallest defect of {self.smallest_defect} pixels: 1 or more is needed")


class Changes(TypedDict, total=False):
    """The fields of ``FitSettings`` as keyword arguments that editors can show; a test compares them."""

    method: str | None
    options: Mapping[str, Any]
    backbone: str | None
    weights: str
    size: int | tuple[int, int] | None
    smallest_defect: float | None
    tile: int | None
    tile_overlap: int | None
    roi: Path | None
    ignore: Path | None
    pixel: float | None
    poses: Poses | None
    profile: ProfileName | None
    budget: float | None
    resize: ResizeMode
    crop: int | None
    calibration: Wanted
    false_reject: float | None
    review: float | None
    precision: PrecisionName
    strict: bool
    epochs: int | Literal["auto"] | None
    steps: int | None
    cache: str
    compare: bool


def method_config(name: str, settings: FitSettings) -> Any:
    """The method's config, with the length of training in it where one is given."""
    cls, epochs, steps = method_class(name), settings.epochs, settings.steps
    if epochs is None and steps is None:
        return make_config(cls, settings.options)
    if epochs is not None and steps is not None:
        raise ConfigError(f"epochs={epochs} and steps={steps}: give one of both")
    if not {"epochs", "steps"} <= {option.name for option in dataclasses.fields(cls.Config)}:
        raise ConfigError(f"{name} is not trained in epochs or steps: leave --epochs and --steps out")
    if epochs == AUTO and cls.has_schedule:
        why = "so a look on the way says nothing of a training that ends there: give --epochs a number"
        raise ConfigError(f"{name} follows a schedule over its whole length, {why}")
    # With ``auto`` the most, until it is chosen, is what the options or the method say.
    length = {"steps": steps} if epochs in (None, AUTO) else {"epochs": epochs, "steps": None}
    return make_config(cls, {**settings.options, **length})


def introduce(training: TrainingSet, run: Run) -> None:
    run.progress.note(f"{training.name}: {training.summary()}")
    for note in (*training.notes, *survey(training.samples)):
        run.progress.note(f"note: {note}")


def load_images(training: TrainingSet, settings: FitSettings, run: Run) -> Images:
    """The images taken as normal, and the known-bad ones, decoded and prepared."""
    with run.timer.stage("images"):
        tiling, white = None, fitted_white_level(training.normal)
        if settings.tile is not None:
            usual = settings.tile // 8
            tiling = Tiling(settings.tile, usual if settings.tile_overlap is None else settings.tile_overlap)
        elif settings.tile_overlap is not None:
            raise ConfigError(f"overlap {settings.tile_overlap} is of tiles, and there are none: give --tile, too")
        roi = fitted_roi(settings.roi, settings.ignore, training.samples, white)
        preparation = Preprocessing(settings.resize, settings.size or USUAL_SIZE, settings.crop, white, tiling, roi)
        load = partial(PreparedImages, preparation=preparation, strict=settings.strict, progress=run.progress)
        normal = load(training.normal)
        if copies := len(normal) - len(set(normal.keys)):
            run.progress.note(f"warning: {copies} training images are copies of others: equal images count as one part")
        anomalous = load(training.anomalous) if training.anomalous else None
        if anomalous is not None and (both := {*normal.keys} & {*anomalous.keys}):
            example = next(sample.path.name for sample, key in zip(anomalous.samples, anomalous.keys) if key in both)
            text = f"{len(both)} images are among the good and among the known-bad ones, such as {example}"
            run.progress.note(f"warning: {text}: take them out of one")
        return normal, anomalous


def check_region(preparation: Preprocessing) -> None:
    """A DataError where the region of interest leaves less than one of a network's cells."""
    roi, tiling = preparation.roi, preparation.tiling
    if roi is None:
        return
    whole = roi.size if tiling is None else np.minimum(roi.size, tiling.side)
    seen = roi.mask.sum() * np.prod(preparation.input_size) / np.prod(whole)
    if seen < SEEN**2:
        raise DataError(
            f"the region of interest leaves {roi.mask.sum()} pixels, {seen:.1f} of what the network sees, and one of "
            f"its cells has {SEEN} x {SEEN}: draw a larger region, or cut the images into smaller tiles"
        )


def build_learner(
    name: str, config: Any, images: Images, regime: Regime, settings: FitSettings, run: Run
) -> tuple[Learner, Run]:
    """What learns, and the run with the precision of what is trained; both precisions are said with their reasons."""
    cls = method_class(name)
    if images[0].preparation.tiling is not None and images[1] is not None and cls.learns_from_anomalous(config):
        raise ConfigError(
            f"{name} learns from known-bad images, whose tiles are good but for a few: use "
            f"-m {DEFAULT_METHOD['clean']} or leave --tile out"
        )
    backbone: FrozenBackbone | NoBackbone
    if not cls.on_pixels:
        chosen = settings.backbone or DEFAULT_BACKBONE
        backbone = build_backbone(chosen, tuple(config.layers), settings.weights, run.seed)
    elif settings.backbone is None:
        backbone = NoBackbone()
    else:
        raise ConfigError(f"{name} sees pixels alone and has no use for {settings.backbone}: leave --backbone out")
    backbone.precision = choose_precision(run.device, settings.precision, backbone.dense)
    run.progress.note(f"precision: {backbone.precision.name} ({backbone.precision.reason})")
    trained = choose_precision(run.device, settings.precision, cls.gains_from_bf16(backbone, config))
    if trained.name != backbone.precision.name and {"epochs", "steps"} & vars(config).keys():
        run.progress.note(f"precision of what is trained: {trained.name} ({trained.reason})")
    teacher = FrozenTeacher(backbone.to(run.device))
    learner = Learner(name, cls, config, *images, regime, teacher, settings.poses or "none")
    return learner, dataclasses.replace(run, precision=trained)
