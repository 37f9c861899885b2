"""From a folder to an inspector: regime from the labels, method from the regime, threshold from parts held out.

No test image is opened here, and none could be: import-linter forbids this module the test sets.
"""

import dataclasses
import datetime
import hashlib
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from blemish.data.readers import read_training, shared_files
from blemish.data.samples import TrainingSet
from blemish.data.splits import folds_by_group, split_by_group
from blemish.errors import ConfigError, RegimeError
from blemish.inspection.calibration import FOLDS, Calibration, Kind, Plan, calibrate, plan
from blemish.inspection.detection import (
    FEW,
    KNOWN_BAD,
    PAINTED,
    SEEN,
    UNPAINTED,
    Painted,
    count_known_bad,
    estimate_detection,
    painted_from,
)
from blemish.inspection.inspector import KEY_LETTERS, Inspector
from blemish.inspection.judge import LEARNED_KEYS
from blemish.inspection.thresholds import suspects
from blemish.registry import DEFAULT_METHOD, method_class, method_entry, nearest_name
from blemish.run import Run, Silent
from blemish.run.files import versions
from blemish.training.ablation import change_in_words, check_comparable, compare
from blemish.training.budget import within_budget
from blemish.training.epoch_selection import AUTO, choose_length
from blemish.training.forecast import announce
from blemish.training.learner import Learner, OnEpoch
from blemish.training.painted import score_painted
from blemish.training.profiles import resolve
from blemish.training.setup import (
    Changes,
    FitSettings,
    build_learner,
    check_region,
    introduce,
    load_images,
    method_config,
)

MANY = 10**9  # good parts: enough for any rate that can be asked for
PAINTED_DEFECTS, MOST_PAINTED = 120, 4  # in all and on each image, to say what a model would find
SMALLEST_PAINTED = 96  # pixels of an image's shorter side: on less, nothing looks like a defect


def fit(
    data: str | Path | Iterable[str | Path] | TrainingSet,
    settings: FitSettings | None = None,
    run: Run | None = None,
    on_epoch: OnEpoch | None = None,
    **changes: Unpack[Changes],
) -> Inspector:
    """Learn what is normal from a folder, a manifest, images named one by one or by a pattern, or a ``TrainingSet``.

    Args:
        data: an MVTec-AD-layout folder, a plain folder of images, a CSV manifest, a pattern such as ``OK/*.png`` or a
            list of paths, whose images count as good, or a set read before.
        settings: how; the defaults are meant to be right.
        run: seed, device, progress, checkpoints. By default on the CPU, silent but for ``BlemishWarning``.
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
    settings, began = dataclasses.replace(settings, **changes), time.time()
    with run.interruptible():
        training = data if isinstance(data, TrainingSet) else read_training(data)
        learner, planned, settings, run, budget = _prepared(training, settings, run)
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
        has_steps = getattr(learner.config, "steps", None) is not None  # else fewer images mean fewer steps
        times = 1 + (FOLDS - 1 + has_steps) * is_crossfit + (2 + 2 * has_steps) * settings.compare
        announce(learner, kept, times, run)
        if not run.resume:  # else one that goes on with this would meet them
            run.forget_checkpoints(before=began)
        calibration = Calibration()
        if is_crossfit:
            folds = folds_by_group(learner.groups, FOLDS, run.seed)
            models = learner.crossfit(folds, run, "cross-fitting")
            calibration, facts = _calibrate("crossfit", models, learner, settings, run, facts)
        inspector = learner.learn(kept, run, on_epoch)
        if held:
            calibration, facts = _calibrate("holdout", [(held, inspector)], learner, settings, run, facts)
        facts = _provenance(training, learner, kept, settings, run) | budget | facts
        if settings.compare:
            facts["known_bad_changed"] = compare(learner, kept, run)
            run.progress.note(change_in_words(facts["known_bad_changed"]))
        if learner.anomalous is not None and calibration.kind != "none":
            facts[KNOWN_BAD] = inspector.scores(learner.anomalous, run, "scoring known-bad images")[0].tolist()
            facts[SEEN] = learner.cls.learns_from_anomalous(learner.config)
        inspector = dataclasses.replace(inspector, calibration=calibration, provenance=facts, pixel=settings.pixel)
        if told := count_known_bad(facts, calibration):
            may_compare = facts[SEEN] and learner.cls.without_anomalous(learner.config) and not settings.compare
            how = "; --compare says what they changed, learning four times more from half of the images each"
            run.progress.note(told["sentence"] + how * bool(may_compare))
        expected = estimate_detection(painted_from(facts), calibration)
        found = told and not facts[SEEN] and (told["rejected"] + told["reviewed"]) / len(facts[KNOWN_BAD]) >= FEW
        if expected and expected["rejected"] + expected["reviewed"] < FEW and not found:
            what_helps = "Learn from more images, or try a larger --size or another --profile"
            run.progress.note(f"warning: this model finds next to nothing. {expected['sentence']} {what_helps}")
        return inspector


_own, _single = [*signature(fit).parameters.values()][:-1], signature(FitSettings).parameters.values()
# What ``help`` and notebooks show: every setting by its name.
fit.__signature__ = signature(fit).replace(  # type: ignore[attr-defined]
    parameters=[*_own, *(setting.replace(kind=Parameter.KEYWORD_ONLY) for setting in _single)]
)


def _prepared(
    training: TrainingSet, settings: FitSettings, run: Run
) -> tuple[Learner, Plan, FitSettings, Run, dict[str, Any]]:
    """What learns, how it will be calibrated, all settings, the run in the precision chosen, and how a budget is kept.

    Whatever can be refused is, here.
    """
    name = settings.method or DEFAULT_METHOD[training.regime]
    method_config(name, settings)  # what was asked for wrongly is said before anything else
    plan(MANY, settings.calibration, settings.false_reject, settings.review)
    introduce(training, run)
    for ours, theirs in () if training.root is None else shared_files(training, training.root):
        run.progress.note(f"warning: {ours.name} in train is byte for byte {theirs.name} in test")
    run.progress.note(f"method: {name}; the set is {training.regime}")
    home, usual = method_entry(name).regime, f"use -m {DEFAULT_METHOD[training.regime]}"
    if home != "clean" and training.regime not in method_class(name).regimes:
        bad = "give known-bad images as well (--anomalous 'bad/*.png'), or " * (home == "weak")
        raise RegimeError(f"{name} learns from {home} sets, and this one is {training.regime}: {bad}{usual}")
    if home == "clean" and training.regime == "contaminated":
        other = f"-m {DEFAULT_METHOD['contaminated']} expects bad ones"
        run.progress.note(f"warning: {name} takes every unlabelled image as good; {other}")
    elif home == "clean" and training.regime == "weak":
        run.progress.note(f"note: {name} learns from the good images alone; the known-bad ones are scored")
    if run.resume and run.checkpoint is not None and not run.checkpoint.is_dir():
        run.progress.note(f"note: there is no checkpoint in {run.checkpoint}: learning begins anew")
    asked, settings = settings, resolve(training, settings, run)
    budget: dict[str, Any] = {}
    if asked.budget is not None:
        settings, budget = within_budget(training, settings, asked, name, run)
    config = method_config(name, settings)
    if run.time_limit is not None and not hasattr(config, "epochs"):
        run.progress.note(f"note: {name} trains nothing, so a time limit stops nothing")
    images = load_images(training, settings, run)
    check_region(images[0].preparation)
    parts = len(set(images[0].groups))
    planned = plan(parts, settings.calibration, settings.false_reject, settings.review)
    run.progress.note(f"calibration: {planned.reason}")
    learner, run = build_learner(name, config, images, training.regime, settings, run)
    if settings.compare:
        check_comparable(learner, run.seed)
    return learner, planned, settings, run, budget


def _calibrate(
    kind: Kind,
    models: Iterable[tuple[Sequence[int], Inspector]],
    learner: Learner,
    settings: FitSettings,
    run: Run,
    facts: dict[str, Any],
) -> tuple[Calibration, dict[str, Any]]:
    """From normal images, each scored by a model that never saw its group.

    The facts grow by the names of those that stand out, and by what such images score with painted defects.
    """
    quiet = run if kind == "holdout" else dataclasses.replace(run, progress=Silent())
    unique = set({key: index for index, key in enumerate(learner.normal.keys)}.values())  # one of copies
    samples, groups, chosen = learner.normal.samples, learner.groups, list[int]()
    scores, max_map_values, painted = [], [], list[Painted]()
    each = min(MOST_PAINTED, max(1, PAINTED_DEFECTS // len(samples)))
    for fold, inspector in models:
        indices = [index for index in fold if index in unique]
        images = learner.normal.subset(indices)
        with run.timer.stage("calibration"):
            scored, highest = inspector.scores(images, quiet, "scoring held-out images")
            if len(painted) < PAINTED_DEFECTS and min(images.preparation.input_size) >= SMALLEST_PAINTED:
                some = images.subset(range(min(len(images), PAINTED_DEFECTS // each)))
                painted += score_painted(inspector, some, each, run.seed, len(painted), scored.tolist())
        scores.append(scored)
        max_map_values += [] if highest is None else [highest]
        chosen += indices
    by_image, trusted = np.concatenate(scores), all(sample.label == "normal" for sample in samples)
    parts, rate, review = [groups[index] for index in chosen], settings.false_reject, settings.review
    maxima = np.concatenate(max_map_values) if max_map_values else None
    calibration = calibrate(
        kind, by_image, parts, max_map_values=maxima, false_reject=rate, review=review, trusted=trusted
    )
    names: dict[str, str] = {}  # of each group's strangest image, the strangest group first
    for index in np.array(chosen)[np.argsort(-by_image, kind="stable")].tolist():
        names.setdefault(groups[index], samples[index].path.name)
    if apart := [*names.values()][: suspects(calibration.scores)]:
        without = dataclasses.replace(calibration, scores=calibration.scores[: -len(apart)]).threshold
        verb, it = ("stands", "it") if len(apart) == 1 else ("stand", "them")
        effect = f"the threshold hardly depends on {it}"
        if without is not None and calibration.threshold is not None and without < 0.99 * calibration.threshold:
            effect = f"without {it} the threshold would be {without:,.6g} instead of {calibration.threshold:,.6g}"
        run.progress.note(f"note: {', '.join(apart)} {verb} out: look at {it}; {effect}")
    facts = {**facts, PAINTED: [list(astuple(defect))[:-1] for defect in painted]}
    return calibration, {**facts, UNPAINTED: [defect.unpainted for defect in painted], "stand_out": apart}


def _provenance(
    training: TrainingSet, learner: Learner, learned: Sequence[int], settings: FitSettings, run: Run
) -> dict[str, Any]:
    """What a model was made from and by: no paths, no clock times finer than a day."""
    normal, backbone = learner.normal, learner.teacher.backbone
    bad = () if learner.anomalous is None else learner.anomalous.keys
    keys = [*sorted(normal.keys), *(["known-bad", *sorted(bad)] if bad else [])]
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
        "profile": settings.profile,
        "poses": learner.poses,
        "calibration_wanted": settings.calibration,
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.timer.seconds.items()},
        "versions": versions("blemish", "torch", "timm"),
        "python": platform.python_version(),
        "made": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
