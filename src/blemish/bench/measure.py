"""What one job computes: a model is learned, and judged on each of the job's test sets."""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from blemish.bench.artifacts import gather, save_artifacts
from blemish.bench.curves import Evaluations, judge
from blemish.bench.environment import commit, machine, peak_memory_mib, source_digest, versions
from blemish.bench.jobs import CHECKPOINTS, CURVES, EVIDENCE, Experiment, Job, job_folder, open_sets, row_of
from blemish.bench.ledger import Row
from blemish.errors import ConfigError
from blemish.inspection.inspector import Inspector
from blemish.registry import method_entry
from blemish.run import Lines, Run, Timer, choose_device, set_threads
from blemish.training.evaluate import Evaluation
from blemish.training.fit import FitSettings, fit


def perform(job: Job, experiments: Sequence[Experiment], folder: Path) -> Iterator[Row]:
    """Learn the job's model and judge a test set for each of ``experiments``; their rows, one by one."""
    at_commit, dirty = commit()
    configuration, results = experiments[0].configuration, folder.parents[1]
    checkpoints, chooses = folder / CHECKPOINTS, configuration["selection"] == "best_on_test"
    threads = set_threads(job.threads)
    if job.afresh:
        shutil.rmtree(checkpoints, ignore_errors=True)
    run = Run(
        seed=configuration["seed"],
        device=choose_device(job.device),
        progress=Lines(),
        # Whoever chooses an epoch by the test set has to see all of them, so such a job begins anew.
        checkpoint=None if chooses else checkpoints,
        resume=not chooses and checkpoints.is_dir(),
    )
    size = configuration["size"]
    settings = {f.name: configuration[f.name] for f in dataclasses.fields(FitSettings) if f.name in configuration}
    settings |= {"weights": job.weights, "size": tuple(size) if isinstance(size, list) else size}
    # Features of training images, computed by the first job that needs them.
    settings["cache"] = str(results / "runs" / "features")
    opened = {experiment.key: open_sets(job.images, experiment.configuration) for experiment in experiments}
    training, _, planted = opened[experiments[0].key]
    tests = {key: test for key, (_, test, _) in opened.items()}
    evaluations = None
    if chooses or "follow" in configuration:
        evaluations = Evaluations(configuration, tests, training, planted, run, folder / CURVES)
    inspector = fit(training, FitSettings(**settings), run, evaluations.on_epoch if evaluations else None)
    for experiment in experiments:
        own = dataclasses.replace(run, timer=Timer())
        evaluation = judge(inspector, tests[experiment.key], configuration, own)
        row = row_of(job, experiment, "done") | _measured(experiment, inspector, evaluation, evaluations, run, results)
        seconds = run.timer.seconds | own.timer.seconds
        row |= {"seconds": {stage: round(spent, 3) for stage, spent in seconds.items()}, "threads": threads}
        row |= {"commit": at_commit, "dirty": dirty}
        if experiment is not experiments[0]:
            row["learned_by"] = experiments[0].key
        yield row


def _measured(
    experiment: Experiment,
    inspector: Inspector,
    last: Evaluation,
    evaluations: Evaluations | None,
    run: Run,
    results: Path,
) -> Row:
    """What was found in an experiment, and with what; its pictures go into a folder of their own."""
    configuration, key = experiment.configuration, experiment.key
    final, epoch = last, None
    if configuration["selection"] == "best_on_test":
        if evaluations is None or evaluations.best is None:
            what = f"{configuration['method']} ended without an epoch"
            raise ConfigError(f"{what}: best_on_test cannot choose one, use selection = 'last'")
        epoch, final = evaluations.best
    save_artifacts(job_folder(results, key) / EVIDENCE, gather(final, inspector.preparation))
    figures, provenance = final.as_dict(), inspector.provenance
    on_gpu = run.device.type == "cuda"
    row: dict[str, Any] = {
        "seed": configuration["seed"],
        "source_digest": source_digest(method_entry(configuration["method"]).target.partition(":")[0]),
        "weights_digest": provenance.get("weights_digest"),
        "learned_from": {name: provenance.get(name) for name in ("images", "groups")},
        "machine": machine(),
        "device": str(run.device),
        "precision": provenance.get("precision"),
        "precision_trained": provenance.get("precision_trained"),
        "resumed": run.resume,  # its seconds are then those of the last process alone
        "peak_memory_mib": peak_memory_mib(),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 1024**2, 1) if on_gpu else None,
        "test_openings": 1 + (len(evaluations.points[key]) if evaluations else 0),
        "selected_epoch": epoch,
        "metrics_of_last_epoch": None if epoch is None else last.as_dict(),
        "metrics": {name: figures.pop(name) for name in final.metrics},
        "kinds": figures.pop("kinds"),
        "test": figures,
        "versions": versions(),
    }
    for training, curve in run.curves.items():
        names = dict.fromkeys(name for means in curve for name in means)
        columns = {name: [_brief(means.get(name, math.nan)) for means in curve] for name in names}
        row.setdefault("curves", {})[training] = columns
    if evaluations is not None and "follow" in configuration and run.curves:
        epochs = len([*run.curves.values()][-1])  # folds learn before the model does
        row["followed"] = [*evaluations.points[key], evaluations.point(epochs, final)]
        row["trusted"] = evaluations.trusted_columns(provenance.get("images_learned"))
    return row


def _brief(value: float) -> float | None:
    """Short enough for a row; None for what an epoch does not have."""
    return None if math.isnan(value) else float(f"{value:.5g}")
