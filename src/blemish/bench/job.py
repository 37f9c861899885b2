"""``python -m blemish.bench.job ORDER``: one job in a process of its own, ending in one row of the ledger.

A job holds a lock while it runs, so that two benches at once, or one resumed too early, never do it twice. Whatever
goes wrong is a row as well; a process that is killed leaves none, and whoever started it writes that down.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blemish.bench.ledger import FILE, Ledger, Row, held
from blemish.bench.orders import CHECKPOINTS, CURVES, EVIDENCE, LOCK, Order, job_folder

if TYPE_CHECKING:
    from blemish.bench.curves import Follower
    from blemish.bench.jobs import Job
    from blemish.bench.selection import Outcome
    from blemish.data.samples import TrainingSet
    from blemish.data.testset import TestSet
    from blemish.run import Run

Commit = tuple[str | None, bool | None]
"""Of the source in use, and whether files differ from it."""

FAILED = 3
"""Not 1: that is what Python itself ends with when it cannot even start the job, and no row is written."""
REASON = 500
"""Letters of a failure's reason that a row keeps."""


def main(argv: list[str]) -> int:
    """Do the job in the order file; 0 when its row stands, 3 when it failed for the reason in its row."""
    order = Order.read(Path(argv[0]))
    if order.parent:
        _end_with(order.parent)
    ledger = Ledger(order.results / FILE)
    # Jobs that share a model share a lock: the second finds its row written by the first.
    family = job_folder(order.results, order.job.get("family", order.key))
    family.mkdir(parents=True, exist_ok=True)
    with held(family / LOCK):
        if not order.afresh and order.key in ledger.done():
            return 0
        row = attempt(order)
        ledger.append(row)
        if row["status"] == "done":
            shutil.rmtree(order.folder / CHECKPOINTS, ignore_errors=True)
    return 0 if row["status"] == "done" else FAILED


def attempt(order: Order) -> Row:
    """The row of a job: done, or failed with the reason."""
    began = time.perf_counter()
    try:
        row = _perform(order)
    except Exception as error:  # one job's failure, of whatever kind, must not end the others
        import traceback

        traceback.print_exc()
        row = failed_row(order, _reason(error))
    seconds = {**row.get("seconds", {}), "total": round(time.perf_counter() - began, 3)}
    return {**row, "seconds": seconds}


def failed_row(order: Order, reason: str) -> Row:
    """What the ledger says of a job that did not end well; the next run tries it again."""
    job = order.job
    return {
        "key": order.key,
        "status": "failed",
        "reason": without_paths(reason)[:REASON],
        **{name: job[name] for name in ("recipe", "label", "set", "configuration", "data_digest") if name in job},
        "finished": now(),
    }


def without_paths(text: str) -> str:
    """``text`` with every absolute path cut down to its last name: the ledger names no place of a machine."""
    return re.sub(r"(?<![\w.:/])(?:/|[A-Za-z]:\\)[^\s'\"():;,]*[/\\]([^\s'\"():;,/\\]+)", r"\1", text)


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _reason(error: Exception) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, MemoryError) or "out of memory" in text.lower() or "can't allocate memory" in text.lower():
        return f"out of memory ({text}): give it fewer images, a smaller size, or run with fewer --jobs"
    return text


def _perform(order: Order) -> Row:
    """The row of the order's job; those of jobs that are judged by the same model go into the ledger at once."""
    import dataclasses

    from blemish.bench.environment import commit
    from blemish.bench.jobs import Job, place_of
    from blemish.bench.selection import judge_again, learn_and_judge
    from blemish.bench.sets import open_sets
    from blemish.run import Lines, Run, choose_device, set_threads
    from blemish.training.fit import FitSettings

    made_at = commit()
    began = time.perf_counter()
    job = Job.from_dict(order.job)
    configuration = job.wish.configuration
    threads = set_threads(order.threads)
    kept = order.folder / CHECKPOINTS
    if order.afresh:
        shutil.rmtree(kept, ignore_errors=True)
    # Whoever chooses an epoch by the test set has to see all of them, so such a job begins anew.
    keeps = configuration["selection"] == "last"
    run = Run(
        seed=configuration["seed"],
        device=choose_device(order.device),
        progress=Lines(),
        checkpoint=kept if keeps else None,
        resume=keeps and kept.is_dir(),
    )
    names = {field.name for field in dataclasses.fields(FitSettings)}
    settings = {name: value for name, value in configuration.items() if name in names}
    settings |= {"weights": job.weights, "size": _pair(configuration["size"])}
    if "cache" in names:  # features of one set, computed by the first job that needs them
        settings["cache"] = str(order.results / "runs" / "features")
    training, test = open_sets(place_of(job))
    others = {other.key: open_sets(place_of(other))[1] for other in job.siblings}
    follower = _follower(order, job, training, {order.key: test, **others}, run)
    outcome = learn_and_judge(training, test, FitSettings(**settings), configuration, run, follower)
    ledger = Ledger(order.results / FILE)
    for other in job.siblings:
        again = judge_again(outcome, others[other.key], other.wish.configuration, run)
        row = _row(other, again, run, threads, made_at, order.results, follower)
        seconds = {**row["seconds"], "total": round(time.perf_counter() - began, 3)}
        ledger.append({**row, "seconds": seconds, "learned_by": order.key})
    return _row(job, outcome, run, threads, made_at, order.results, follower)


def _follower(
    order: Order, job: Job, training: TrainingSet, tests: Mapping[str, TestSet], run: Run
) -> Follower | None:
    """Who draws curves over epochs, where the recipe asks for them."""
    from blemish.bench.curves import Follower
    from blemish.bench.jobs import place_of
    from blemish.bench.sets import planted

    configuration = job.wish.configuration
    if "follow" not in configuration:
        return None
    length = configuration["options"]
    follower = Follower(
        tests=tests,
        every=configuration["follow"],
        last=length["epochs"] if length["steps"] is None else None,
        training=training,
        planted=planted(place_of(job)),
        run=run,
        path=order.folder / CURVES,
        at=configuration["at"],
        per_image=configuration["per_image_pro"],
    )
    follower.begin(goes_on=run.resume)
    return follower


def _row(
    job: Job,
    outcome: Outcome,
    run: Run,
    threads: int,
    made_at: Commit,
    results: Path,
    follower: Follower | None = None,
) -> Row:
    """What the ledger says of a job that is done; its evidence goes into the job's folder."""
    from blemish.bench.artifacts import gather, save_evidence
    from blemish.bench.environment import machine, peak_memory_mib, source_digest, versions
    from blemish.registry import method_entry

    at_commit, dirty = made_at
    configuration = job.wish.configuration
    figures = outcome.found.as_dict()
    provenance = outcome.inspector.provenance
    folder = job_folder(results, job.key)
    folder.mkdir(parents=True, exist_ok=True)
    save_evidence(folder / EVIDENCE, gather(outcome.found, outcome.inspector.preparation))
    return {
        "key": job.key,
        "status": "done",
        "recipe": job.recipe,
        "label": job.wish.label,
        "set": job.wish.set_name,
        "configuration": configuration,
        "seed": configuration["seed"],
        "commit": at_commit,
        "dirty": dirty,
        "source_digest": source_digest(method_entry(configuration["method"]).target.partition(":")[0]),
        "data_digest": job.data_digest,
        "weights_digest": provenance.get("weights_digest"),
        "learned_from": {name: provenance.get(name) for name in ("images", "groups")},
        "machine": machine(),
        "device": str(run.device),
        "threads": threads,
        "precision": provenance.get("precision"),
        "precision_trained": provenance.get("precision_trained"),
        "seconds": {stage: round(seconds, 3) for stage, seconds in run.timer.seconds.items()},
        "resumed": run.resume,  # its seconds are then those of the last process alone
        "peak_memory_mib": peak_memory_mib(),
        "peak_gpu_memory_mib": _gpu_peak(run.device.type),
        "test_openings": outcome.test_openings + (follower.looks(job.key) if follower else 0),
        "selected_epoch": outcome.epoch,
        "metrics_of_last_epoch": outcome.last,
        "metrics": {name: figures.pop(name) for name in outcome.found.metrics},
        "kinds": figures.pop("kinds"),
        "test": figures,
        **_curves(job, outcome, run, follower),
        "versions": versions(),
        "finished": now(),
    }


def _curves(job: Job, outcome: Outcome, run: Run, follower: Follower | None) -> Row:
    """What training told epoch by epoch, and how the figures came about; nothing for methods without epochs."""
    from blemish.bench.curves import columns

    if not run.curves:
        return {}
    found: Row = {"curves": {name: columns(curve) for name, curve in run.curves.items()}}
    if follower is not None:
        epochs = len([*run.curves.values()][-1])  # folds learn before the model does
        found["followed"] = follower.points(job.key, epochs, outcome.found)
        found["trusted"] = follower.trusted(outcome.inspector.provenance.get("images_learned"))
    return found


def _pair(size: Any) -> Any:
    return tuple(size) if isinstance(size, list) else size


def _gpu_peak(device: str) -> float | None:
    import torch

    return round(torch.cuda.max_memory_allocated() / 1024**2, 1) if device == "cuda" else None


def _end_with(parent: int) -> None:
    """End this process soon after ``parent`` is gone: a bench that was killed leaves nothing running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
