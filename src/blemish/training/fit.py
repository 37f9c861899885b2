"""From a folder to an inspector: regime from the labels, method from the regime, threshold from parts held out.

No test image is opened here, and none could be: import-linter forbids this module the test sets.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blemish.backbones.backbone import build_backbone
from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Regime
from blemish.data.loading import PreparedImages, fitted_white_level
from blemish.data.preprocessing import Preprocessing, ResizeMode
from blemish.data.readers import read_training, shared_files, survey
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import folds_by_group, split_by_group
from blemish.errors import ConfigError, RegimeError
from blemish.inspection.calibration import FOLDS, Calibration, Kind, Plan, Wanted, calibrate, plan
from blemish.inspection.inspector import KEY_LETTERS, LEARNED_KEYS, Inspector
from blemish.registry import DEFAULT_METHOD, make_config, method_class, method_entry, nearest_name
from blemish.run import PrecisionName, Run, Silent, choose_precision
from blemish.training.ablation import change_in_words, check_comparable, compare
from blemish.training.epoch_selection import AUTO, choose_length
from blemish.training.learner import IN_MEMORY, Learner, OnEpoch

Images = tuple[PreparedImages, PreparedImages | None]  # normal and known-bad


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
        epochs: passes over the images, of methods that are trained; ``auto`` chooses by defects painted on good images.
        steps: the same in updates of the weights; one of both at most.
        cache: where features of training images are kept while learning: ``memory``, ``off``, or a folder for later.
        compare: say what the known-bad images changed, by learning four times more from halves.
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
    on_epoch: OnEpoch | None = None,
    **changes: Any,
) -> Inspector:
    """Learn what is normal from a folder, a manifest or a ``TrainingSet``.

    Args:
        data: an MVTec-AD-layout folder, a plain folder of images, a CSV manifest, or a set read before.
        settings: how; the defaults are meant to be right.
        run: seed, device, progress, checkpoints. Silent on the CPU by default.
        on_epoch: called as ``on_epoch(epoch, means, inspector)`` at the end of each epoch of the model that is kept; to
            judge with the uncalibrated inspector, call ``inspector.method.finalize()`` before.
        changes: single settings by name, for short calls: ``fit("parts/", method="patchcore", size=320)``.

    Raises:
        DataError: there are no images to learn from.
        ConfigError: an unknown method, backbone, option or value.
        CalibrationError: the good parts cannot support the false-reject rate asked for.
        WeightsError: the backbone's weights are not on this machine.
        Cancelled: Ctrl-C, or the run's time limit; the message says how to go on.
    """
    settings, run = settings or FitSettings(), run or Run()
    known = [setting.name for setting in dataclasses.fields(settings)]
    if unknown := [name for name in changes if name not in known]:
        raise ConfigError(f"fit has no setting {unknown[0]!r}: {nearest_name(unknown[0], known)}")
    settings = dataclasses.replace(settings, **changes)
    with run.interruptible():
        training = data if isinstance(data, TrainingSet) else read_training(Path(data))
        learner, planned, run = _prepared(training, settings, run)
        kept, held, is_crossfit = list(range(len(learner.normal))), list[int](), planned.kind == "crossfit"
        if planned.kind == "holdout":
            kept, held = split_by_group(learner.groups, planned.held_out, run.seed)
        learner.keep_features(kept, is_crossfit, settings.cache, run)
        facts: dict[str, Any] = {}
        if settings.epochs == AUTO:
            facts["length_chosen"], sentence = choose_length(learner, kept, run)
            run.progress.note(sentence)
            config = dataclasses.replace(learner.config, epochs=facts["length_chosen"]["epochs"])
            learner = dataclasses.replace(learner, config=config)
        calibration = Calibration()
        if is_crossfit:
            folds = folds_by_group(learner.groups, FOLDS, run.seed)
            calibration = _calibrate("crossfit", learner.crossfit(folds, run, "cross-fitting"), learner, settings, run)
        inspector = learner.learn(kept, run, on_epoch)
        if held:
            calibration = _calibrate("holdout", [(held, inspector)], learner, settings, run)
        facts = _provenance(training, learner, kept, settings, run) | facts
        if settings.compare:
            facts["known_bad_changed"] = compare(learner, kept, run)
            run.progress.note(change_in_words(facts["known_bad_changed"]))
        inspector = dataclasses.replace(inspector, calibration=calibration, provenance=facts)
        _show_known_bad(inspector, learner, run)
        return inspector


def _prepared(training: TrainingSet, settings: FitSettings, run: Run) -> tuple[Learner, Plan, Run]:
    """What learns, how it will be calibrated, and the run in the precision chosen: whatever can be refused is, here."""
    name = settings.method or DEFAULT_METHOD[training.regime]
    config = method_config(name, settings)
    introduce(training, run)
    for ours, theirs in () if training.root is None else shared_files(training, training.root):
        run.progress.note(f"warning: {ours.name} in train is byte for byte {theirs.name} in test")
    run.progress.note(f"method: {name}; the set is {training.regime}")
    home, usual = method_entry(name).regime, f"use -m {DEFAULT_METHOD[training.regime]}"
    if home != "clean" and training.regime not in method_class(name).regimes:
        raise RegimeError(f"{name} learns from {home} sets, and this one is {training.regime}: {usual}")
    if home == "clean" and training.regime == "contaminated":
        other = f"-m {DEFAULT_METHOD['contaminated']} expects bad ones"
        run.progress.note(f"warning: {name} takes every unlabelled image as good; {other}")
    elif home == "clean" and training.regime == "weak":
        run.progress.note(f"note: {name} learns from the good images alone; the known-bad ones are only scored")
    if run.resume and run.checkpoint is not None and not run.checkpoint.is_dir():
        run.progress.note(f"note: there is no checkpoint in {run.checkpoint}: learning begins anew")
    images = load_images(training, settings, run)
    planned = plan(len({sample.group for sample in images[0].samples}), settings.calibration, settings.false_reject)
    run.progress.note(f"calibration: {planned.reason}")
    learner, run = build_learner(name, config, images, training.regime, settings, run)
    if settings.compare:
        check_comparable(learner)
    return learner, planned, run


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
        preparation = Preprocessing(settings.resize, settings.size, settings.crop, fitted_white_level(training.samples))
        load = partial(PreparedImages, preparation=preparation, strict=settings.strict, progress=run.progress)
        normal = load(training.normal)
        if copies := len(normal) - len(set(normal.keys)):
            run.progress.note(f"warning: {copies} training images are copies of others, which lowers the threshold")
        return normal, load(training.anomalous) if training.anomalous else None


def build_learner(
    name: str, config: Any, images: Images, regime: Regime, settings: FitSettings, run: Run
) -> tuple[Learner, Run]:
    """What learns, and the run with the precision of what is trained; both precisions are said with their reasons."""
    cls = method_class(name)
    backbone = build_backbone(settings.backbone, tuple(config.layers), settings.weights, run.seed)
    backbone.precision = choose_precision(run.device, settings.precision, backbone.dense)
    run.progress.note(f"precision: {backbone.precision.name} ({backbone.precision.reason})")
    trained = choose_precision(run.device, settings.precision, cls.gains_from_bf16(backbone, config))
    if trained.name != backbone.precision.name:
        run.progress.note(f"precision of what is trained: {trained.name} ({trained.reason})")
    teacher = FrozenTeacher(backbone.to(run.device))
    return Learner(name, cls, config, *images, regime, teacher), dataclasses.replace(run, precision=trained)


def _calibrate(
    kind: Kind, models: Iterable[tuple[Sequence[int], Inspector]], learner: Learner, settings: FitSettings, run: Run
) -> Calibration:
    """From normal images, each scored by a model that never saw its group."""
    samples: list[Sample] = []
    scores, max_map_values = [], []
    quiet = run if kind == "holdout" else dataclasses.replace(run, progress=Silent())
    for indices, inspector in models:
        images = learner.normal.subset(indices)
        with run.timer.stage("calibration"):
            scored, highest = inspector.scores(images, quiet, "scoring held-out images")
        scores.append(scored)
        max_map_values += [] if highest is None else [highest]
        samples += images.samples
    maxima = np.concatenate(max_map_values) if max_map_values else None
    groups, trusted = [sample.group for sample in samples], all(sample.label == "normal" for sample in samples)
    rate = settings.false_reject
    return calibrate(kind, np.concatenate(scores), groups, max_map_values=maxima, false_reject=rate, trusted=trusted)


def _show_known_bad(inspector: Inspector, learner: Learner, run: Run) -> None:
    if learner.anomalous is None or inspector.calibration.kind == "none":
        return
    scores, _ = inspector.scores(learner.anomalous, run, "scoring known-bad images")
    rejected = sum(inspector.calibration.decide(score) == "reject" for score in scores.tolist())
    text = f"of {len(scores)} known-bad images this model rejects {rejected}"
    if learner.cls.learns_from_anomalous(learner.config):
        text += ", but it has learned from them"
        if learner.cls.without_anomalous(learner.config) and "known_bad_changed" not in inspector.provenance:
            text += "; --compare says what they changed, learning four times more from half of the images each"
    run.progress.note(text)


def _provenance(
    training: TrainingSet, learner: Learner, learned: Sequence[int], settings: FitSettings, run: Run
) -> dict[str, Any]:
    """What a model was made from and by: no paths, no clock times finer than a day."""
    normal, backbone = learner.normal, learner.teacher.backbone
    bad = () if learner.anomalous is None else learner.anomalous.keys
    keys = [*sorted(normal.keys), *(["known-bad", *sorted(bad)] if bad else [])]
    versions = dict.fromkeys(("blemish", "torch", "timm"), "unknown")
    for package in versions:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "data": training.name,
        "regime": training.regime,
        "images": len(normal),
        "images_learned": len(learned),
        "known_bad": len(bad),
        LEARNED_KEYS: sorted(normal.keys[i][:KEY_LETTERS] for i in learned),
        "groups": len(set(learner.groups)),
        "data_digest": hashlib.sha256("".join(keys).encode()).hexdigest(),
        "weights_digest": backbone.digest,
        "seed": run.seed,
        "precision": backbone.precision.name,
        "precision_trained": run.precision.name,
        "calibration_wanted": settings.calibration,
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.timer.seconds.items()},
        "versions": versions,
        "python": platform.python_version(),
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
