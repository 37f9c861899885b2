"""Runs with real processes that are killed hard; what they compute is nothing, how they write it is the real thing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from blemish.bench.job import without_paths
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.orders import Order
from blemish.bench.runner import LocalLauncher, run_orders
from blemish.run import Silent

WORKER = """
import os, sys, time
from blemish.bench import job

def perform(order):
    with (order.results / "started.txt").open("a") as file:
        file.write(f"{order.key} {os.getpid()}\\n")
    time.sleep(order.job.get("sleep", 0))
    if order.job.get("fails"):
        raise MemoryError("no room left")
    if order.job.get("exits"):
        os._exit(5)
    return {"key": order.key, "status": "done", "configuration": {"method": "fake"}, "metrics": {}}

job._perform = perform
sys.exit(job.main(sys.argv[1:]))
"""
BENCH = """
import json, os, sys
from pathlib import Path
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.orders import Order
from blemish.bench.runner import LocalLauncher, run_orders

class Quiet:
    def track(self, items, title, total=None):
        yield from items
    def note(self, text):
        pass

results = Path(sys.argv[2])
done = Ledger(results / FILE).done()
jobs = json.loads(sys.argv[3])
orders = [Order(key, key, job, results, 1, "cpu", os.getpid()) for key, job in jobs.items() if key not in done]
run_orders(orders, results, 2, Quiet(), LocalLauncher((sys.executable, sys.argv[1])))
assert "torch" not in sys.modules
"""


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    return path


def start_bench(worker, results, jobs):
    return subprocess.Popen([sys.executable, "-c", BENCH, str(worker), str(results), json.dumps(jobs)])


def orders_of(jobs, results):
    return [Order(key, key, job, results, 1, "cpu", os.getpid()) for key, job in jobs.items()]


def started(results):
    path = results / "started.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def until(true, seconds=15.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def is_running(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def test_a_bench_killed_twice_loses_and_repeats_nothing(worker, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    ledger = Ledger(results / FILE)
    jobs = {f"job{i}": {"sleep": 0.4} for i in range(7)}
    finished_before = {}
    for wanted in (2, 4):
        bench = start_bench(worker, results, jobs)
        until(lambda wanted=wanted: len(ledger.done()) >= wanted)
        bench.send_signal(signal.SIGKILL)
        bench.wait(10)
        until(lambda: not any(is_running(pid) for _, pid in started(results)))
        finished_before = ledger.done()
        starts_before = Counter(key for key, _ in started(results))
    assert start_bench(worker, results, jobs).wait(30) == 0
    assert Counter(row["key"] for row in ledger.rows() if row["status"] == "done") == dict.fromkeys(jobs, 1)
    starts = Counter(key for key, _ in started(results))
    assert all(starts[key] == starts_before[key] for key in finished_before), "a finished job was started again"


def test_a_killed_job_is_a_row_and_the_rest_go_on(worker, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    jobs = {"victim": {"sleep": 60}, "other": {}, "third": {}}
    bench = start_bench(worker, results, jobs)
    until(lambda: any(key == "victim" for key, _ in started(results)))
    os.kill(int(dict(started(results))["victim"]), signal.SIGKILL)
    assert bench.wait(30) == 0
    rows = {row["key"]: row for row in Ledger(results / FILE).rows()}
    assert [rows[key]["status"] for key in jobs] == ["failed", "done", "done"]
    assert "signal 9" in rows["victim"]["reason"]
    assert "memory" in rows["victim"]["reason"]
    assert start_bench(worker, results, {**jobs, "victim": {}}).wait(30) == 0
    assert set(Ledger(results / FILE).done()) == set(jobs), "a failed job is tried again"


def test_failures_keep_their_reasons(worker, tmp_path):
    results = tmp_path / "results"
    jobs = {"fails": {"fails": True}, "exits": {"exits": True}, "works": {}}
    tally = run_orders(orders_of(jobs, results), results, 1, Silent(), LocalLauncher((sys.executable, str(worker))))
    rows = {row["key"]: row for row in Ledger(results / FILE).rows()}
    assert tally.done == 1
    assert len(tally.failed) == 2
    assert rows["fails"]["reason"].startswith("out of memory (MemoryError: no room left)")
    assert "code 5" in rows["exits"]["reason"]
    assert rows["works"]["status"] == "done"


def test_two_benches_at_once_do_each_job_once(worker, tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    jobs = {f"job{i}": {"sleep": 0.2} for i in range(4)}
    benches = [start_bench(worker, results, jobs) for _ in range(2)]
    assert [bench.wait(40) for bench in benches] == [0, 0]
    assert Counter(row["key"] for row in Ledger(results / FILE).rows()) == dict.fromkeys(jobs, 1)
    assert Counter(key for key, _ in started(results)) == dict.fromkeys(jobs, 1)


def test_reasons_name_no_place_of_the_machine():
    said = without_paths("cannot read '/home/me/sets/a.png' (C:\\data\\b.png), see https://x.org/y, 1/2")
    assert said == "cannot read 'a.png' (b.png), see https://x.org/y, 1/2"
