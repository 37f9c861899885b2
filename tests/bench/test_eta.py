from __future__ import annotations

import numpy as np
import pytest

from blemish.bench.eta import DryRun, Estimates, spoken, time_left
from blemish.bench.jobs import Experiment, Job, Plan


def row_of(seconds, fit=0.0, method="patchcore", options=None, **changes):
    row = {"key": "k", "status": "done", "seconds": {"fit": fit, "total": seconds}}
    return {**row, "configuration": {"method": method, "options": options or {}, "size": 256, **changes}}


def test_estimates_come_from_the_most_similar_rows():
    rows = [row_of(s, options={"fraction": 0.01}, set="a") for s in (10, 20, 90)]
    rows += [row_of(s, options={"fraction": 0.1}, set=name) for s, name in ((100, "a"), (300, "b"))]
    known = Estimates([*rows, {**row_of(1, set="a"), "resumed": True}, {"key": "k", "status": "failed"}])
    assert known.of(rows[0]["configuration"]).seconds == 20
    elsewhere = {**rows[0]["configuration"], "set": "elsewhere"}
    assert known.of(elsewhere).seconds == np.median([10, 20, 90, 100, 300])
    assert known.of(elsewhere).rows == 5
    assert known.of({"method": "rd"}) is None


def test_trainings_are_scaled_to_the_length_asked_for():
    known = Estimates([row_of(130.0, fit=100.0, method="rd", options={"epochs": 20, "steps": None})])
    longer = {"method": "rd", "options": {"epochs": 60, "steps": None}}
    assert known.of(longer).seconds == 330, "three times as long to learn, as long to read and judge"
    assert known.of({**longer, "options": {"epochs": 60, "steps": 9}}).seconds == 130, "steps do not compare"


def test_time_left_of_many_jobs():
    guesses = [10.0, 20.0, None, 30.0]
    assert time_left(guesses, 2) == pytest.approx((10 + 20 + 20 + 30) / 2), "unknown ones count as the mean of others"
    assert time_left(guesses, 2, typical=60.0) == pytest.approx((10 + 20 + 60 + 30) / 2), "or as what jobs took"
    assert time_left(guesses, 4) == 30.0, "the longest job cannot be split"
    assert time_left([None, None], 1) is None
    assert time_left([None], 1, typical=7.0) == 7.0
    assert time_left([], 2) == 0.0
    assert [spoken(s) for s in (None, 42.4, 600, 9000)] == ["unknown", "42 s", "10 min", "2.5 h"]


def test_a_dry_run_counts_one_training_for_all_its_test_sets():
    cells = [
        Experiment("RD", f"set{i}", row_of(0, method="rd", overlap=i)["configuration"] | {"seed": 0}) for i in (0, 1)
    ]
    lone = Experiment("PatchCore", "set0", row_of(0)["configuration"] | {"seed": 0})
    jobs = tuple(Job("r", None, "random", tuple(group)) for group in (cells, [lone]))
    stands = {**row_of(5), "key": lone.key}
    found = DryRun.of(Plan(jobs, ()), [row_of(60, method="rd"), stands], workers=1)
    assert found.seconds == 60
    assert [job["stands"] for job in found.as_dict()["jobs"]] == [False, False, True]
    assert found.as_text().splitlines() == [
        "RD on set0, seed 0: about 60 s (one row)",
        "RD on set1, seed 0: about 60 s (one row)",
        "PatchCore on set0, seed 0: stands in the ledger",
        "2 jobs to run, 1 at a time: 60 s",
    ]
    assert DryRun.of(Plan(jobs, ()), [stands], workers=1, afresh=True).as_dict()["to_run"] == 3
