"""Whether a promise still holds: every ``WINDOW`` parts are tested once, and a failed test withdraws it.

Two tests, at half of ``ALPHA`` each. (1) How many of the window's parts are rejected: with ``n`` calibration parts, the
share of good parts that a threshold rejects follows a Beta law, so their number is beta-binomial. (2) Whether scores
below the threshold are distributed as those of the calibration parts below it: Mann and Whitney's rank sum. Below the
threshold, because bad parts are no drift; in both directions for a held-out calibration, and only towards higher scores
for a cross-fitted one, whose scores lie too high by themselves. If nothing has changed, one window in 1 / ``ALPHA``
fails on average over calibrations; a window of many bad parts fails the first test, and its sentence says so.

Parts that a person called bad are left out. Several photographs of one part count as one, the worst.
"""

import math
import shutil
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, insert, or_, select, update

from blemish.inspection.calibration import Calibration
from blemish.inspection.thresholds import gaps_above
from blemish.server.station import Station
from blemish.server.store import spoken_time
from blemish.server.tables import inspections, windows

WINDOW, ALPHA = 50, 1e-4
AT_ONCE = 20  # windows tested in one go: after an upgrade there may be thousands, and other care waits
BASELINE = 100  # parts found ok since a model's first verdict: what brightness and sharpness are compared with
LATEST = 5000  # verdicts on a chart
ROWS = 20_000  # photographs at most in one window: of fewer parts than WINDOW, where these are of fewer
TEST = (
    f"every {WINDOW} parts, tested once for more rejects than promised and for scores that lie elsewhere; if nothing "
    f"has changed, about 1 test in {round(1 / ALPHA):,} fails"
)


def test_window(calibration: Calibration, scores: NDArray[np.float64]) -> tuple[int, float, float]:
    """Of a window of parts' scores: how many are rejected, and the p-values of the two tests."""
    from scipy.stats import betabinom, mannwhitneyu  # takes a second, which a start does not wait for

    rate, threshold, n = calibration.rate or 0.5, calibration.threshold, calibration.n
    if threshold is None:
        return 0, 1.0, 1.0
    below = scores[scores <= threshold]
    rejected = len(scores) - len(below)
    weight = gaps_above(rate, n) if calibration.kind == "holdout" else rate * (n + 1)
    p_rejected = float(betabinom.sf(rejected - 1, len(scores), weight, n + 1 - weight))
    known = calibration.scores[calibration.scores <= threshold]
    if min(len(below), len(known)) < 5:
        return rejected, p_rejected, 1.0
    direction: Literal["two-sided", "greater"] = "two-sided" if calibration.kind == "holdout" else "greater"
    return rejected, p_rejected, float(mannwhitneyu(below, known, alternative=direction, method="asymptotic").pvalue)


def watch_promise(station: Station, name: str) -> None:
    """Test the windows that have filled since; a promise that is withdrawn is logged and told to who listens."""
    model = station.judge(name).model
    calibration: Calibration = model.inspector.calibration
    if calibration.rate is None:
        return
    own = (windows.c.model == name, windows.c.digest == model.digest)
    columns = inspections.c
    for _ in range(AT_ONCE):
        last = station.store.first(select(windows.c.last).where(*own).order_by(windows.c.id.desc()))
        new = (columns.model == name, columns.digest == model.digest, columns.id > (last.last if last else 0))
        bad = select(columns.part).where(*new, columns.said == "bad", columns.part.is_not(None))
        good = (columns.said.is_distinct_from("bad"), or_(columns.part.is_(None), columns.part.not_in(bad)))
        query = select(columns.id, columns.at, columns.part, columns.score).where(*new, *good)
        photographs: dict[Any, list[Any]] = {}  # of each part, in the order in which parts came
        rows = station.store.rows(query.order_by(columns.id).limit(ROWS))
        is_full = len(rows) == ROWS
        for row in rows:
            part = row.part or row.id
            if part not in photographs and len(photographs) == WINDOW:
                is_full = True  # the last part is complete, as another has begun
                break
            photographs.setdefault(part, []).append(row)
        if not is_full and (len(photographs) < WINDOW or rows[-1].part is not None):
            station.metrics.holds.labels(name).set(promise(station, name)["holds"])
            return
        taken = [*photographs.values()]
        worst = [max(math.inf if row.score is None else row.score for row in rows) for rows in taken]
        rejected, p_rejected, p_scores = test_window(calibration, np.array(worst))
        alarm = min(p_rejected, p_scores) < ALPHA / 2
        with station.store.write() as connection:
            found = {"last": max(rows[-1].id for rows in taken), "since": taken[0][0].at, "until": taken[-1][-1].at}
            tested = {"parts": len(taken), "rejected": rejected, "p_rejected": p_rejected, "p_scores": p_scores}
            window = {"model": name, "digest": model.digest, **found, **tested, "alarm": alarm}
            connection.execute(insert(windows), window)
            if alarm:
                station.store.note(connection, "promise withdrawn", "station", window)
        if alarm:
            station.events.publish("promise", {"model": name, **promise(station, name)})


def promise(station: Station, name: str) -> dict[str, Any]:
    """Whether the promise of a model holds; if not, since when and why, in words."""
    model = station.judge(name).model
    own = (windows.c.model == name, windows.c.digest == model.digest)
    said: dict[str, Any] = dict.fromkeys(("holds", "since", "p_value"))
    said |= {"sentence": model.inspector.promise, "test": TEST, "parts": 0}
    if model.inspector.calibration.rate is None:
        return said
    last = station.store.first(select(windows).where(*own).order_by(windows.c.id.desc()))
    parts = station.store.first(select(func.sum(windows.c.parts)).where(*own))
    said |= {"holds": True, "parts": (parts and parts[0]) or 0}
    if (first := station.store.first(select(windows).where(*own, windows.c.alarm).order_by(windows.c.id))) is None:
        return said | {"p_value": min(last.p_rejected, last.p_scores) if last else None}
    promised = (model.inspector.calibration.rate or 0) * first.parts
    why = (
        f"of {first.parts} parts {first.rejected} were rejected, and of good ones {promised:.1f} are expected: many "
        "parts are bad, or something has changed"
        if first.p_rejected < first.p_scores
        else "scores of parts that pass no longer lie where those of the calibration parts lie"
    )
    sentence = (
        f"The promise is withdrawn since {spoken_time(first.since)}: {why}. Look at parts, camera and light; then "
        "calibrate or learn again, or acknowledge it."
    )
    p_value = min(first.p_rejected, first.p_scores)
    return said | {"holds": False, "since": spoken_time(first.since), "sentence": sentence, "p_value": p_value}


def acknowledge(station: Station, name: str, actor: str) -> dict[str, Any]:
    """A person has looked, and the promise is to hold again: logged."""
    digest = station.judge(name).model.digest
    with station.store.write() as connection:
        own = (windows.c.model == name, windows.c.digest == digest, windows.c.alarm)
        ended = connection.execute(update(windows).where(*own).values(alarm=False)).rowcount
        station.store.note(connection, "promise restored", actor, {"model": name, "alarms": ended})
    station.metrics.holds.labels(name).set(1)
    return promise(station, name)


def health(station: Station, name: str, points: int = 120) -> dict[str, Any]:
    """Promise, control charts, latency, queue and disk of a model."""
    judge, columns = station.judge(name), inspections.c
    same = (columns.model == name, columns.digest.in_(station.same_scores(name)))
    wanted = (columns.id, columns.at, columns.score, columns.brightness, columns.sharpness, columns.milliseconds)
    rows = station.store.rows(select(*wanted).where(*same).order_by(columns.id.desc()).limit(LATEST))[::-1]
    first = station.store.rows(
        select(*wanted).where(*same, columns.decision == "ok").order_by(columns.id).limit(BASELINE)
    )
    calibration: Calibration = judge.model.inspector.calibration
    charts = {"score": _chart(rows, "score", calibration.scores, points, calibration.threshold)}
    for key in ("brightness", "sharpness"):
        charts[key] = _chart(rows, key, np.array([getattr(row, key) for row in first]), points)
    latency = [row.milliseconds for row in rows[-1000:]]
    quantiles = np.quantile(latency, [0.5, 0.99]).tolist() if latency else [None, None]
    return {
        "model": name,
        "promise": promise(station, name),
        "charts": charts,
        "latency": dict(zip(("p50", "p99"), quantiles)),
        "sources": [feed.state for feed in station.feeds if feed.state["model"] == name],
        "waiting": judge.depth,
        "may_wait": station.settings.queue,
        "disk": dict(zip(("total", "free"), shutil.disk_usage(station.pictures.root)[::2])),
    }


def _chart(
    rows: Iterable[Any], name: str, known: NDArray[np.float64], points: int, high: float | None = None
) -> dict[str, Any]:
    """Means of equally many verdicts a point, with three deviations of such means around the known centre.

    A limit that is given is one of single verdicts.
    """
    taken = [(row.at, getattr(row, name), row.id) for row in rows if getattr(row, name) is not None]
    each = max(1, math.ceil(len(taken) / points))
    groups = [taken[start : start + each] for start in range(0, len(taken), each)]
    centre = low = None
    if len(known) > 1:
        centre, spread = float(np.mean(known)), 3 * float(np.std(known, ddof=1)) / math.sqrt(each)
        low, high = centre - spread, centre + spread if high is None else high
    shown = [[spoken_time(group[-1][0]), float(np.mean([one[1] for one in group])), group[-1][2]] for group in groups]
    return {"centre": centre, "low": low, "high": high, "each": each, "points": shown}
