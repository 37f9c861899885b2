import pytest

from blemish.bench.eta import dry_run, estimate, spoken, time_left
from blemish.bench.jobs import Experiment, Job


def row_of(seconds, fit=0.0, method="patchcore", options=None, **changes):
    row = {"key": "k", "status": "done", "seconds": {"fit": fit, "total": seconds}}
    return {**row, "configuration": {"method": method, "options": options or {}, "size": 256, **changes}}


def test_estimates_come_from_the_most_similar_rows():
    rows = [row_of(s, options={"fraction": 0.01}, set="a") for s in (10, 20, 90)]
    rows += [row_of(s, options={"fraction": 0.1}, set=name) for s, name in ((100, "a"), (300, "b"))]
    rows += [{**row_of(1, set="a"), "resumed": True}, {"key": "k", "status": "failed"}]
    rows += [{"key": "k", "status": "done", "seconds": {"total": 1}}]  # of nothing
    asked = rows[0]["configuration"]
    assert estimate(rows, asked) == (20, 3)
    assert estimate(rows, {**asked, "options": {"fraction": 0.5}, "set": "b"}) == (300, 1), "the same set"
    assert estimate(rows, {**asked, "options": {"fraction": 0.5}, "set": "c"}) == (90, 5), "the method alone"
    assert estimate(rows, {"method": "rd"}) is None


def test_trainings_are_scaled_to_the_length_asked_for():
    rows = [row_of(130.0, fit=100.0, method="rd", options={"epochs": 20, "steps": None})]
    longer = {"method": "rd", "options": {"epochs": 60, "steps": None}}
    assert estimate(rows, longer) == (330, 1), "three times as long to learn, as long to read and judge"
    assert estimate(rows, {**longer, "options": {"epochs": 60, "steps": 9}}) == (130, 1), "steps do not compare"


def test_time_left_of_many_jobs():
    guesses = [10.0, 20.0, None, 30.0]
    assert time_left(guesses, 2) == pytest.approx((10 + 20 + 20 + 30) / 2), "unknown ones count as the mean of others"
    assert time_left(guesses, 4) == 30.0, "the longest job cannot be split"
    assert time_left([None, None], 1) is None
    assert time_left([], 2) == 0.0
    assert [spoken(s) for s in (None, 42.4, 600, 9000)] == ["unknown", "42 s", "10 min", "2.5 h"]


def test_a_dry_run_counts_one_training_for_all_its_test_sets():
    cells = [
        Experiment("RD", f"set{i}", row_of(0, method="rd", overlap=i)["configuration"] | {"seed": 0}) for i in (0, 1)
    ]
    lone = Experiment("PatchCore", "set0", row_of(0)["configuration"] | {"seed": 0})
    jobs = [Job("r", None, "random", tuple(group)) for group in (cells, [lone])]
    stands = {**row_of(5), "key": lone.key}
    values, text = dry_run(jobs, {}, [row_of(60, method="rd"), stands], workers=1)
    assert values["seconds"] == 60
    assert [job["stands"] for job in values["jobs"]] == [False, False, True]
    assert text.splitlines() == [
        "RD on set0, seed 0: about 60 s (one row)",
        "RD on set1, seed 0: about 60 s (one row)",
        "PatchCore on set0, seed 0: stands in the ledger",
        "2 jobs to run, 1 at a time: 60 s",
    ]
    assert dry_run(jobs, {}, [stands], workers=1, afresh=True)[0]["to_run"] == 3
