"""What people teach a station: thresholds, and models learned again. Nothing is learned or changed unasked."""

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from sqlalchemy import select

from blemish.errors import CalibrationError, ConfigError, OutputError
from blemish.inspection.calibration import Calibration, choose_rate, choose_review
from blemish.run import file_digest
from blemish.server.relearn import JOB, MODEL, RESULT
from blemish.server.station import Station
from blemish.server.store import spoken_time
from blemish.server.tables import inspections

PAST = 5000  # verdicts that another threshold is tried on
COMPARED = 2000  # and that a new model judges again
SHOWN_LINES = 40


def recalibrated(station: Station, name: str, rate: float | None, review: float | None) -> Calibration:
    """A model's calibration at another rate; what is not given stays, a default review share twice the rate.

    Raises:
        ConfigError: a share is not between 0 and 1.
        CalibrationError: the model has no calibration, or too few parts for the rate.
    """
    now: Calibration = station.judge(name).model.inspector.calibration
    if now.rate is None:
        raise CalibrationError(now.sentence())
    if rate is None and review is None:
        return now
    if review is None and now.review != choose_review(None, now.rate):
        review = now.review  # somebody chose it: no part of the default rule
    return at_rate(now, now.rate if rate is None else rate, review)


def at_rate(calibration: Calibration, rate: float | None, review: float | None) -> Calibration:
    """From the same parts, at another rate; raises as ``recalibrated``."""
    rate = choose_rate(rate, calibration.n, calibration.kind)
    return dataclasses.replace(calibration, rate=rate, review=choose_review(review, rate))


def past_verdicts(station: Station, name: str, calibration: Calibration) -> list[dict[str, Any]]:
    """The last verdicts whose scores are those of today's model, each ``old``, and ``new`` as of ``calibration``."""
    own = inspections.c
    query = select(own.id, own.score, own.decision.label("old"), own.said).where(own.model == name)
    rows = station.store.rows(
        query.where(own.digest.in_(station.same_scores(name))).order_by(own.id.desc()).limit(PAST)
    )
    decide = calibration.decide
    return [{**row._asdict(), "new": decide(float("nan") if row.score is None else row.score)} for row in rows]


def preview(station: Station, name: str, rate: float | None, review: float | None, bins: int = 40) -> dict[str, Any]:
    """What another rate would do: threshold, promise, and past parts rejected; raises as ``recalibrated``."""
    inspector, changed = station.judge(name).model.inspector, recalibrated(station, name, rate, review)
    other, now = dataclasses.replace(inspector, calibration=changed), inspector.calibration
    past = past_verdicts(station, name, changed)
    scores = np.array([one["score"] for one in past if one["score"] is not None])
    limit = max(changed.threshold or 0, now.threshold or 0)
    everything = np.concatenate([now.scores, scores])
    # A few wild scores must not press all others into one bar: they are counted in the last.
    top = max(1.3 * limit, float(np.quantile(everything, 0.98)))
    edges = np.linspace(min(float(everything.min()), limit), top, bins + 1)
    both = {"calibration": now.scores, "judged": scores}
    counts = {key: np.histogram(np.minimum(values, top), edges)[0].tolist() for key, values in both.items()}
    return {
        "model": name,
        **_limits(other),
        "now": _limits(inspector),
        "histogram": {"edges": edges.tolist(), **counts},
        "past": {
            "parts": len(past),
            **{f"{word}ed": sum(one["new"] == word for one in past) for word in ("reject", "review")},
            **{f"{word}ed_now": sum(one["old"] == word for one in past) for word in ("reject", "review")},
        },
    }


def set_threshold(station: Station, name: str, rate: float | None, review: float | None, actor: str) -> dict[str, Any]:
    """Set another rate: a new calibration in a new model file, swapped in and logged; as ``preview``."""
    if fixed := why_fixed(station, name):
        raise ConfigError(fixed)
    inspector: Any = (model := station.judge(name).model).inspector
    changed = dataclasses.replace(inspector, calibration=recalibrated(station, name, rate, review))
    with tempfile.TemporaryDirectory(dir=station.pictures.models) as folder:
        file = changed.save(Path(folder) / "new.blemish")
        why = f"threshold: rate {changed.calibration.rate:g}, review {changed.calibration.review or 0:g}"
        station.put_model(name, file, why, actor, same_scores_as=model.digest)
    return preview(station, name, None, None)


def why_fixed(station: Station, name: str) -> str:
    """Why no other threshold can be set, in words; empty where one can."""
    from blemish.inspection.inspector import Inspector

    if isinstance(station.judge(name).model.inspector, Inspector):
        return ""
    return f"{name} was exported, and its threshold with it: set it in the file that learned, and export that again"


def _limits(inspector: Any) -> dict[str, Any]:
    calibration = inspector.calibration
    named = ("rate", "review", "threshold", "review_threshold")
    return {**{name: getattr(calibration, name) for name in named}, "promise": inspector.promise}


class Relearner:
    """Learning again: for each model one process at a time, in a folder that outlives a restart."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._in_folder = threading.RLock()  # whoever reads a model's folder finds it whole

    def _folder(self, name: str) -> Path:
        self._station.judge(name)  # a name that is known, and so no path
        return self._station.settings.images / "relearn" / name

    def start(self, name: str, actor: str) -> dict[str, Any]:
        """Begin; an HTTPException 409 while it runs, a ConfigError where nobody said what the model learned from."""
        station, columns, folder = self._station, inspections.c, self._folder(name)
        if name not in station.settings.training:
            advice = f"serve it with --training {name}=FOLDER"
            raise ConfigError(f"the station does not know the images that {name} learned from: {advice}")
        model = station.judge(name).model
        with self._in_folder:
            if self._is_running(name):
                raise HTTPException(409, f"{name} is being learned again already: wait, or stop it")
            query = select(inspections).where(columns.model == name, columns.image_kept).order_by(columns.id.desc())
            said = station.store.rows(query.where(columns.said.is_not(None)))
            judged = station.store.rows(query.limit(COMPARED))
            job = {
                "digest": model.digest,
                "model": str(station.pictures.models / f"{model.digest}{model.suffix}"),
                "training": str(station.settings.training[name]),
                "threads": station.settings.threads,
                "said": [self._told(row, "said", "kind") | {"part": row.part or row.image} for row in said],
                "judged": [self._told(row, "id", "decision", "score", "said") for row in judged],
            }
            shutil.rmtree(folder, ignore_errors=True)
            try:
                folder.mkdir(parents=True)
                (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
                with (folder / "log.txt").open("wb") as log:
                    command = [sys.executable, "-m", "blemish.server.relearn", str(folder / JOB)]
                    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.PIPE)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                raise OutputError(f"learning did not begin ({error.strerror}): free or mend the disk") from error
            self._processes[name] = process
        with station.store.write() as connection:
            station.store.note(connection, "learn again", actor, {"model": name, "said": len(said)})
        threading.Thread(target=self._follow, args=(name, process), daemon=True).start()
        return self.state(name)

    def _told(self, row: Any, *names: str) -> dict[str, Any]:
        path = str(self._station.pictures.path(row.image).absolute())
        return {"path": path, **{name: getattr(row, name) for name in names}}

    def _is_running(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def _follow(self, name: str, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if process.stdin is not None:
            process.stdin.close()
        if name in self._station.judges:
            self._station.events.publish("relearn", self.state(name))

    def state(self, name: str) -> dict[str, Any]:
        """How far it is, with the end of its log; and the comparison once it is ready."""
        with self._in_folder:
            return self._state(name, self._folder(name))

    def _state(self, name: str, folder: Path) -> dict[str, Any]:
        absent = dict.fromkeys(("since", "learned_from", "error", "promise", "comparison", "digest"))
        state: dict[str, Any] = {"model": name, "state": "none", "log": [], **absent}
        if not (folder / JOB).exists():
            return state
        state["since"] = spoken_time((folder / JOB).stat().st_mtime)
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
            state["log"] = lines[-SHOWN_LINES:]
        if self._is_running(name):
            return state | {"state": "running"}
        if not (folder / RESULT).exists():
            return state | {"state": "stopped"}
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        ready = "error" not in result
        digest = file_digest(folder / MODEL) if ready else None
        return state | result | {"state": "ready" if ready else "failed", "digest": digest}

    def stop(self, name: str, actor: str) -> None:
        """Stop it where it runs, and forget what it made."""
        with self._in_folder:
            self._end(name)
            shutil.rmtree(self._folder(name), ignore_errors=True)
        with self._station.store.write() as connection:
            self._station.store.note(connection, "learned model discarded", actor, {"model": name})

    def _end(self, name: str) -> None:
        if self._is_running(name):
            self._processes[name].terminate()
            self._processes[name].wait()

    def accept(self, name: str, actor: str) -> dict[str, Any]:
        """Swap the new model in; an HTTPException 409 where none is ready, or it was compared with another model.

        A threshold that was set meanwhile holds for the new model, too, where it has the parts for it.
        """
        station, folder = self._station, self._folder(name)
        with self._in_folder:
            state = self.state(name)
            if state["state"] != "ready":
                raise HTTPException(409, f"no new model of {name} is ready: its state is {state['state']}")
            compared_with = json.loads((folder / JOB).read_text(encoding="utf-8")).get("digest")
            if compared_with not in station.same_scores(name):
                why = f"another model of {name} is at work than this one was compared with: learn again"
                raise HTTPException(409, why)
            counts, today = state["comparison"]["judged"], station.judge(name).model
            why = f"learned again: {counts['changed']} of {counts['compared']} verdicts change"
            file = folder / MODEL
            if compared_with != today.digest:
                new: Any = station.load(file)
                now = today.inspector.calibration
                try:
                    changed = dataclasses.replace(new, calibration=at_rate(new.calibration, now.rate, now.review))
                    file = changed.save(folder / "set.blemish")
                    why += f"; rate {now.rate:g} as set meanwhile"
                except CalibrationError:
                    why += "; at its own rate, as it has too few parts for the one set meanwhile"
            station.put_model(name, file, why, actor)
            shutil.rmtree(folder, ignore_errors=True)
        return station.describe(name)

    def close(self) -> None:
        """Stop what runs: it can be begun again."""
        for name in self._processes:
            self._end(name)
