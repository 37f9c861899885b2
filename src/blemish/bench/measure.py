"""What one job computes, and with what: a model is learned, and judged on each of the job's test sets."""

import dataclasses
import hashlib
import importlib.util
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from blemish.bench.artifacts import gather, save_artifacts
from blemish.bench.curves import Evaluations
from blemish.bench.jobs import CHECKPOINTS, CURVES, EVIDENCE, Experiment, Job, job_folder, open_sets, row_of
from blemish.bench.ledger import Row
from blemish.data.loading import PreparedImages
from blemish.errors import ConfigError, ModelFileError
from blemish.inspection.inspector import Inspector
from blemish.registry import method_entry
from blemish.run import Lines, Run, Timer, choose_device, device_name, set_threads
from blemish.run.files import versions
from blemish.training.evaluate import Evaluation, evaluate
from blemish.training.fit import fit
from blemish.training.setup import FitSettings

HOME = Path(__file__).resolve().parent.parent


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

    def learned() -> tuple[Inspector, Evaluations | None]:
        evaluations = None
        if chooses or "follow" in configuration:
            evaluations = Evaluations(configuration, tests, training, planted, run, folder / CURVES)
        return fit(training, FitSettings(**settings), run, evaluations.on_epoch if evaluations else None), evaluations

    try:
        inspector, evaluations = learned()
    except (ModelFileError, ConfigError) as error:  # a checkpoint that is damaged, or of another device
        if not run.resume:
            raise
        run.progress.note(f"note: the job begins anew, as it cannot go on from its checkpoint ({error})")
        shutil.rmtree(checkpoints)
        run = dataclasses.replace(run, resume=False)
        inspector, evaluations = learned()
    for experiment in experiments:
        if sees_test := configuration["options"].get("normalise") == "test":
            inspector.method.see_test(PreparedImages(tests[experiment.key].samples, inspector.preparation).windows)
        own = dataclasses.replace(run, timer=Timer())
        how = configuration["at"], configuration["per_image_pro"]
        evaluation = evaluate(inspector, tests[experiment.key], own, *how)
        row = row_of(job, experiment, "done") | _measured(experiment, inspector, evaluation, evaluations, run, results)
        seconds = run.timer.seconds | own.timer.seconds
        row |= {"seconds": {stage: round(spent, 3) for stage, spent in seconds.items()}, "threads": threads}
        row |= {"commit": at_commit, "dirty": dirty, "test_openings": row["test_openings"] + sees_test}
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
        "machine": machine() | ({"card": device_name(run.device)} if on_gpu else {}),
        "device": str(run.device),
        "precision": provenance.get("precision"),
        "precision_trained": provenance.get("precision_trained"),
        "resumed": run.resume,  # its seconds are then those of the last process alone
        "model_mib": round(sum(t.nbytes for t in inspector.method.state_dict().values()) / 1024**2, 2),
        "peak_memory_mib": peak_memory_mib(),
        "peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated() / 1024**2, 1) if on_gpu else None,
        "test_openings": 1 + (len(evaluations.points[key]) if evaluations else 0),
        "selected_epoch": epoch,
        "metrics_of_last_epoch": None if epoch is None else last.as_dict(),
        "metrics": {name: figures.pop(name) for name in final.metrics},
        "kinds": figures.pop("kinds"),
        "test": figures,
        "versions": versions("blemish", "torch", "timm", "numpy", "pillow"),
    }
    for training, curve in run.curves.items():
        names = dict.fromkeys(name for means in curve for name in means)
        columns = {name: [means.get(name, math.nan) for means in curve] for name in names}
        brief = {key: [float(f"{v:.5g}") if math.isfinite(v) else None for v in line] for key, line in columns.items()}
        row.setdefault("curves", {})[training] = brief
    if evaluations is not None and "follow" in configuration and run.curves:
        epochs = len([*run.curves.values()][-1])  # folds learn before the model does
        row["followed"] = [*evaluations.points[key], evaluations.point(epochs, final)]
        row["trusted"] = evaluations.trusted_columns(provenance.get("images_learned"))
    return row


def commit() -> tuple[str | None, bool | None]:
    """The commit of the source in use and whether files differ from it; (None, None) for an installed package."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(HOME), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ":/src", ":/recipes", ":/pyproject.toml")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None, None


def machine() -> dict[str, Any]:
    memory, info = None, Path("/proc/cpuinfo")
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1)
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return {
        "processor": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def peak_memory_mib() -> float | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


def source_digest(module: str) -> str:
    """16 hexadecimal digits of the code that a method's figures come from: its file and all that it stands on."""
    spec = importlib.util.find_spec(module)
    files = [Path(spec.origin)] if spec is not None and spec.origin else []
    files += [path for name in ("ops", "backbones", "metrics") for path in sorted((HOME / name).glob("*.py"))]
    digest = hashlib.sha256()
    for path in [*files, HOME / "data" / "preprocessing.py", HOME / "training" / "fit.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
