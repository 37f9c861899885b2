"""What one job computes: a model is learned, and judged on each of the job's test sets."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from blemish.bench.artifacts import gather, save_artifacts
from blemish.bench.curves import Evaluations, columns, judge
from blemish.bench.environment import commit, machine, peak_memory_mib, source_digest, versions
from blemish.bench.job import CHECKPOINTS, CURVES, EVIDENCE, now
from blemish.bench.jobs import Experiment, Job, job_folder
from blemish.bench.ledger import Row
from blemish.bench.sets import open_sets, planted
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
    names = {field.name for field in dataclasses.fields(FitSettings)}
    size = configuration["size"]
    settings = {name: value for name, value in configuration.items() if name in names}
    settings |= {"weights": job.weights, "size": tuple(size) if isinstance(size, list) else size}
    # Features of training images, computed by the first job that needs them.
    settings["cache"] = str(results / "runs" / "features")
    opened = {experiment.key: open_sets(job.images, experiment.configuration) for experiment in experiments}
    training, tests = opened[experiments[0].key][0], {key: test for key, (_, test) in opened.items()}
    evaluations = None
    if chooses or "follow" in configuration:
        bad = planted(job.images, configuration)
        evaluations = Evaluations(configuration, tests, training, bad, run, folder / CURVES)
    inspector = fit(training, FitSettings(**settings), run, evaluations.on_epoch if evaluations else None)
    for experiment in experiments:
        own = dataclasses.replace(run, timer=Timer())
        evaluation = judge(inspector, tests[experiment.key], configuration, own)
        row = _row(job, experiment, inspector, evaluation, evaluations, run, results)
        seconds = run.timer.seconds | own.timer.seconds
        row |= {"seconds": {stage: round(spent, 3) for stage, spent in seconds.items()}, "threads": threads}
        row |= {"commit": at_commit, "dirty": dirty, "finished": now()}
        if experiment is not experiments[0]:
            row["learned_by"] = experiments[0].key
        yield row


def _row(
    job: Job,
    experiment: Experiment,
    inspector: Inspector,
    last: Evaluation,
    evaluations: Evaluations | None,
    run: Run,
    results: Path,
) -> Row:
    """What the ledger says of an experiment that is done; its pictures go into a folder of their own."""
    configuration, key = experiment.configuration, experiment.key
    found, chosen = last, dict[str, Any]({"selected_epoch": None, "metrics_of_last_epoch": None})
    if configuration["selection"] == "best_on_test":
        if evaluations is None or evaluations.best is None:
            method = configuration["method"]
            raise ConfigError(
                f"{method} ended without an epoch: best_on_test cannot choose one, use selection = 'last'"
            )
        chosen["selected_epoch"], found = evaluations.best
        chosen["metrics_of_last_epoch"] = last.as_dict()
    save_artifacts(job_folder(results, key) / EVIDENCE, gather(found, inspector.preparation))
    figures, provenance = found.as_dict(), inspector.provenance
    row = {
        "key": key,
        "status": "done",
        "recipe": job.recipe,
        "label": experiment.label,
        "set": experiment.set_name,
        "configuration": configuration,
        "seed": configuration["seed"],
        "source_digest": source_digest(method_entry(configuration["method"]).target.partition(":")[0]),
        "data_digest": experiment.data_digest,
        "weights_digest": provenance.get("weights_digest"),
        "learned_from": {name: provenance.get(name) for name in ("images", "groups")},
        "machine": machine(),
        "device": str(run.device),
        "precision": provenance.get("precision"),
        "precision_trained": provenance.get("precision_trained"),
        "resumed": run.resume,  # its seconds are then those of the last process alone
        "peak_memory_mib": peak_memory_mib(),
        "peak_gpu_memory_mib": _peak_gpu_memory_mib(run.device),
        "test_openings": 1 + (evaluations.count(key) if evaluations else 0),
        **chosen,
        "metrics": {name: figures.pop(name) for name in found.metrics},
        "kinds": figures.pop("kinds"),
        "test": figures,
        "versions": versions(),
    }
    if run.curves:
        row["curves"] = {name: columns(curve) for name, curve in run.curves.items()}
        if evaluations is not None and "follow" in configuration:
            epochs = len([*run.curves.values()][-1])  # folds learn before the model does
            row["followed"] = evaluations.points(key, epochs, found)
            row["trusted"] = evaluations.trusted(provenance.get("images_learned"))
    return row


def _peak_gpu_memory_mib(device: torch.device) -> float | None:
    return round(torch.cuda.max_memory_allocated() / 1024**2, 1) if device.type == "cuda" else None
