"""From a folder to an inspector: regime from the labels, method from the regime, threshold from parts held out.

No test image is opened here, and none could be: import-linter forbids this module the test sets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from blemish.backbones.backbone import TimmBackbone, build_backbone
from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Method
from blemish.data.preprocessing import ResizeMode
from blemish.data.readers import read_training, shared_files, survey
from blemish.data.samples import TrainingSet
from blemish.data.splits import folds_by_group, split_by_group
from blemish.errors import ConfigError, RegimeError
from blemish.inspection.calibration import Calibration, Plan, Wanted, calibrate, plan, uncalibrated
from blemish.inspection.inspector import Inspector
from blemish.registry import DEFAULT_METHOD, make_config, method_class, method_entry, nearest_name
from blemish.run import PrecisionName, Run, Silent, choose_precision
from blemish.training.ablation import check_comparable, compare
from blemish.training.epoch_selection import AUTO, choose_length
from blemish.training.learner import IN_MEMORY, Learner, PreparedSet
from blemish.training.provenance import provenance_of


@dataclass(frozen=True)
class FitSettings:
    """Everything that ``fit`` may be told; the defaults are what a newcomer should get.

    Attributes:
        method: a name of ``blemish methods``, or None for the regime's default.
        options: the method's own options, by name.
        backbone: a name of ``blemish backbones`` or any timm architecture.
        weights: ``pretrained``, ``random`` (for tests only), or a file.
        size: pixels of a side of what the network is given, or (height, width).
        resize: how images come to that size.
        crop: pixels of a side kept by ``resize="crop"``; None for 7/8 of the size.
        calibration: ``auto``, ``holdout``, ``crossfit`` or ``none``.
        false_reject: the share of good parts that may be rejected; None for the default.
        precision: ``auto``, ``fp32`` or ``bf16``.
        strict: a damaged training image is an error, not a note.
        epochs: how long to train, in passes over the images; for methods that are trained. ``auto``: as long as defects
            painted on held-out good images speak for, the method's own number at most.
        steps: the same in updates of the weights; one of both at most.
        cache: where features of training images are kept while learning: ``memory``, ``off``, or a folder, which
            serves later fits too.
        compare: say what the known-bad images changed, on parts held out, by learning four times more from halves.
    """

    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    backbone: str = DEFAULT_BACKBONE
    weights: str = "pretrained"
    size: int | tuple[int, int] = 256
    resize: ResizeMode = "stretch"
    crop: int | None = None
    calibration: Wanted = "auto"
    false_reject: float | None = None
    precision: PrecisionName = "auto"
    strict: bool = False
    epochs: int | Literal["auto"] | None = None
    steps: int | None = None
    cache: str = IN_MEMORY
    compare: bool = False


def fit(
    data: str | Path | TrainingSet,
    settings: FitSettings | None = None,
    run: Run | None = None,
    watch: Callable[[Inspector], None] | None = None,
    **changes: Any,
) -> Inspector:
    """Learn what is normal from a folder, a manifest or a ``TrainingSet``.

    Args:
        data: an MVTec-AD-layout folder, a plain folder of images, a CSV manifest, or a set read before.
        settings: how; the defaults are meant to be right.
        run: seed, device, progress, checkpoints. Silent on the CPU by default.
        watch: told of the model, uncalibrated, that is about to learn from everything that will be learned from:
            with ``run.on_epoch``, the way to follow it.
        changes: single settings by name, for short calls: ``fit("parts/", method="patchcore", size=320)``.

    Raises:
        DataError: there are no images to learn from.
        ConfigError: an unknown method, backbone, option or value.
        CalibrationError: the good parts cannot support the false-reject rate asked for.
        WeightsError: the backbone's weights are not on this machine.
        Cancelled: Ctrl-C, or the run's time limit; the message says how to go on.
    """
    run = run or Run()
    with run.interruptible():
        return _fit(data, settings, run, watch, changes)


def _fit(
    data: str | Path | TrainingSet,
    settings: FitSettings | None,
    run: Run,
    watch: Callable[[Inspector], None] | None,
    changes: Mapping[str, Any],
) -> Inspector:
    settings = _changed(settings or FitSettings(), changes)
    training = data if isinstance(data, TrainingSet) else read_training(Path(data))
    name = settings.method or DEFAULT_METHOD[training.regime]
    cls = method_class(name)
    config = make_config(cls, method_options(name, cls, settings))
    _introduce(training, name, cls, run)
    if run.resume and run.checkpoint is not None and not run.checkpoint.is_dir():
        run.progress.note(f"note: there is no checkpoint in {run.checkpoint}: learning begins anew")
    with run.timer.stage("images"):
        images = PreparedSet.of(training, settings.resize, settings.size, settings.crop, settings.strict, run)
    how = plan(len(set(images.groups)), settings.calibration, settings.false_reject)
    run.progress.note(f"calibration: {how.reason}")
    backbone, run = build_for(settings, cls, config, run)
    learner = Learner(name, cls, config, images, FrozenTeacher(backbone))
    if settings.compare:
        check_comparable(learner)
    inspector = partial(Inspector, name=name, preparation=images.preparation, provenance={})
    bare = partial(inspector, calibration=uncalibrated())
    before = None if watch is None else lambda method: watch(bare(method))
    kept, held = list(range(len(images.normal))), list[int]()
    if how.kind == "holdout":
        kept, held = split_by_group(images.groups, how.held_out, run.seed)
    learner.keep_features(kept, how.kind == "crossfit", settings.cache, run)
    chosen = choose_length(learner, kept, bare, run) if settings.epochs == AUTO else None
    if chosen is not None:
        run.progress.note(chosen.sentence())
        learner = dataclasses.replace(learner, config=dataclasses.replace(config, epochs=chosen.best.epoch))
    if how.kind == "holdout":
        method = learner.learn(kept, run, before)
        calibration = _calibrate_held_out(bare(method), images, held, settings, run)
    else:
        calibration = _calibrate_folds(learner, inspector, how, settings, run)
        method = learner.learn(kept, run, before)
    provenance = provenance_of(training, images, kept, settings.calibration, backbone, run)
    if chosen is not None:
        provenance["length_chosen"] = chosen.as_dict()
    if settings.compare:
        change = compare(learner, kept, bare, run)
        provenance["known_bad_changed"] = dataclasses.asdict(change)
        run.progress.note(change.sentence())
    fitted = inspector(method, calibration=calibration, provenance=provenance)
    _show_known_bad(fitted, images, run)
    return fitted


def build_for(settings: FitSettings, cls: type[Method], config: Any, run: Run) -> tuple[TimmBackbone, Run]:
    """The backbone, and the run with the precision of what is trained on it; both are said with their reasons."""
    backbone = build_backbone(settings.backbone, tuple(config.layers), settings.weights, run.seed)
    backbone.precision = choose_precision(run.device, settings.precision, backbone.dense)
    run.progress.note(f"precision: {backbone.precision.name} ({backbone.precision.reason})")
    trained = choose_precision(run.device, settings.precision, cls.gains_from_bf16(backbone, config))
    if trained.name != backbone.precision.name:
        run.progress.note(f"precision of what is trained: {trained.name} ({trained.reason})")
    return backbone.to(run.device), dataclasses.replace(run, precision=trained)


def method_options(name: str, cls: type[Method], settings: FitSettings) -> Mapping[str, Any]:
    """The method's options, with the length of training among them where one is given."""
    if settings.epochs is None and settings.steps is None:
        return settings.options
    if settings.epochs is not None and settings.steps is not None:
        raise ConfigError(f"epochs={settings.epochs} and steps={settings.steps}: give one of both")
    known = {entry.name for entry in dataclasses.fields(cls.Config)}
    if not {"epochs", "steps"} <= known:
        raise ConfigError(f"{name} is not trained in epochs or steps: leave --epochs and --steps out")
    if settings.steps is not None:
        return {**settings.options, "steps": settings.steps}
    if settings.epochs == AUTO and cls.has_schedule:
        raise ConfigError(
            f"{name} follows a schedule over its whole length, so a look on the way says nothing of a training that "
            "ends there: give --epochs a number"
        )
    if settings.epochs == AUTO:  # the most, until it is chosen, is what the options or the method say
        return {**settings.options, "steps": None}
    return {**settings.options, "epochs": settings.epochs, "steps": None}


def _calibrate_held_out(
    inspector: Inspector, images: PreparedSet, held: Sequence[int], settings: FitSettings, run: Run
) -> Calibration:
    with run.timer.stage("calibration"):
        scores, max_map_values = inspector.scores(images.normal.subset(held), run, "scoring held-out images")
    return calibrate(
        "holdout",
        scores,
        [images.groups[i] for i in held],
        max_map_values=max_map_values,
        false_reject=settings.false_reject,
        trusted=_looked_at(images, held),
    )


def _calibrate_folds(learner: Learner, inspector: Any, how: Plan, settings: FitSettings, run: Run) -> Calibration:
    """Scores of every image by a model that never saw its part."""
    if how.kind == "none":
        return uncalibrated()
    images = learner.images
    everything = range(len(images.normal))
    scores = np.empty(len(everything))
    max_map_values: NDArray[Any] | None = None
    silent = dataclasses.replace(run, progress=Silent())
    folds = folds_by_group(images.groups, how.folds, run.seed)
    # A fold that takes hours shows its own epochs; where it takes moments, one bar for all folds is enough.
    shown = folds if learner.is_trained else run.progress.track(folds, "cross-fitting")
    for number, fold in enumerate(shown, start=1):
        part = (run if learner.is_trained else silent).scoped(f"fold {number} of {len(folds)}")
        method = learner.learn(sorted(set(everything) - set(fold)), part)
        with run.timer.stage("calibration"):
            found, highest = inspector(method, calibration=uncalibrated()).scores(images.normal.subset(fold), silent)
        scores[fold] = found
        if highest is not None:
            max_map_values = np.empty(len(everything)) if max_map_values is None else max_map_values
            max_map_values[fold] = highest
    return calibrate(
        "crossfit",
        scores,
        images.groups,
        max_map_values=max_map_values,
        false_reject=settings.false_reject,
        trusted=_looked_at(images, everything),
    )


def _looked_at(images: PreparedSet, indices: Sequence[int]) -> bool:
    return all(images.normal.samples[i].label == "normal" for i in indices)


def _introduce(training: TrainingSet, name: str, cls: type[Method], run: Run) -> None:
    """Say what was found before work starts; refuse a method that cannot find the images it needs."""
    run.progress.note(f"{training.name}: {training.summary()}")
    for note in (*training.notes, *survey(training.samples)):
        run.progress.note(f"note: {note}")
    if training.root is not None:
        for ours, theirs in shared_files(training, training.root):
            run.progress.note(f"warning: {ours.name} in train is byte for byte {theirs.name} in test")
    home = method_entry(name).regime
    run.progress.note(f"method: {name}; the set is {training.regime}")
    if home != "clean":
        if training.regime not in cls.regimes:
            raise RegimeError(
                f"{name} learns from {home} sets, and this one is {training.regime}: "
                f"use -m {DEFAULT_METHOD[training.regime]}"
            )
    elif training.regime == "contaminated":
        other = f"-m {DEFAULT_METHOD['contaminated']} expects bad ones"
        run.progress.note(f"warning: {name} takes every unlabelled image as good; {other}")
    elif training.regime == "weak":
        run.progress.note(f"note: {name} learns from the good images alone; the known-bad ones are only scored")


def _show_known_bad(inspector: Inspector, images: PreparedSet, run: Run) -> None:
    if images.anomalous is None or inspector.calibration.kind == "none":
        return
    scores, _ = inspector.scores(images.anomalous, run, "scoring known-bad images")
    rejected = sum(inspector.calibration.decide(float(score)) == "reject" for score in scores)
    found = f"of {len(scores)} known-bad images this model rejects {rejected}"
    method = inspector.method
    if method.learns_from_anomalous(method.config):
        found += ", but it has learned from them"
        if method.without_anomalous(method.config) is not None and "known_bad_changed" not in inspector.provenance:
            found += "; --compare says what they changed, learning four times more from half of the images each"
    run.progress.note(found)


def _changed(settings: FitSettings, changes: Mapping[str, Any]) -> FitSettings:
    known = [entry.name for entry in dataclasses.fields(FitSettings)]
    for change in changes:
        if change not in known:
            raise ConfigError(f"fit has no setting {change!r}: {nearest_name(change, known)}")
    return dataclasses.replace(settings, **changes)
