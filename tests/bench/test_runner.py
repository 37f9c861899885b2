"""Runs with real processes that are killed hard; what they compute is nothing, how they write it is the real thing."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from blemish.bench.jobs import Experiment, Job, without_paths
from blemish.bench.ledger import FILE, Ledger
from blemish.bench.runner import _how_it_died, run_jobs
from blemish.errors import ConfigError
from blemish.run import Silent

WORKER = """
import os, sys, time, types
from blemish.bench import job
from blemish.run import written_atomically

def perform(work, experiments, folder):
    for experiment in experiments:
        asked = experiment.configuration
        with (folder.parents[1] / "started.txt").open("a") as file:
            file.write(f"{experiment.label} {os.getpid()}\\n")
        with written_atomically(folder / "half-written") as temporary:
            time.sleep(asked.get("sleep", 0))
        if asked.get("fails"):
            raise MemoryError("no room left")
        if asked.get("exits"):
            os._exit(5)
        yield {"key": experiment.key, "label": experiment.label, "status": "done", "configuration": asked,
               "metrics": {}}

sys.modules["blemish.bench.measure"] = types.SimpleNamespace(perform=perform)
sys.exit(job.main(sys.argv[1:]))
"""
BENCH = """
import sys
from pathlib import Path
from test_runner import jobs_of
from blemish.bench.runner import run_jobs
from blemish.run import Silent

run_jobs(jobs_of(eval(sys.argv[3])), Path(sys.argv[2]), Silent(), 2, command=(sys.executable, sys.argv[1]))
assert "torch" not in sys.modules
"""
HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def jobs_of(work):
    """A job for each name, with a configuration for each of its test sets."""
    return [
        Job("recipe", Path("nowhere"), "random", tuple(
            Experiment(name, f"set{i}", {"method": "fake", "seed": 0, "name": name, "i": i, **asked})
            for i, asked in enumerate(tests)
        ))
        for name, tests in work.items()
    ]  # fmt: skip


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path / "worker.py"


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def start_bench(worker, results, work):
    command = [sys.executable, "-c", BENCH, str(worker), str(results), repr(work)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{HERE}"})


def started(results):
    path = results / "started.txt"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def until(true, seconds=30.0):
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


def labels(rows):
    return Counter(row["label"] for row in rows if row["status"] == "done")


@pytest.mark.slow
def test_a_bench_killed_twice_loses_and_repeats_nothing(worker, results):
    ledger = Ledger(results / FILE)
    work = {f"job{i}": [{"sleep": 0.4}] for i in range(7)}
    finished_before = {}
    for wanted in (2, 4):
        bench = start_bench(worker, results, work)
        until(lambda wanted=wanted: len(ledger.done()) >= wanted)
        bench.send_signal(signal.SIGKILL)
        bench.wait(10)
        until(lambda: not any(is_running(pid) for _, pid in started(results)))
        finished_before = labels(ledger.rows())
        starts_before = Counter(name for name, _ in started(results))
    assert start_bench(worker, results, work).wait(60) == 0
    assert labels(ledger.rows()) == dict.fromkeys(work, 1)
    starts = Counter(name for name, _ in started(results))
    assert all(starts[name] == starts_before[name] for name in finished_before), "a finished job was started again"


def test_ctrl_c_ends_the_processes_and_writes_no_rows_for_them(worker, results):
    bench = start_bench(worker, results, {"quick": [{}], "long": [{"sleep": 60}], "other": [{"sleep": 60}]})
    until(lambda: len(started(results)) == 3)
    bench.send_signal(signal.SIGINT)
    assert bench.wait(20) != 0
    assert not any(is_running(pid) for _, pid in started(results))
    assert [row["label"] for row in Ledger(results / FILE).rows()] == ["quick"]
    assert list(results.rglob(".*.part")) == []


def test_a_killed_job_is_a_row_and_the_rest_go_on(worker, results):
    work = {"victim": [{}, {"sleep": 60}], "other": [{}], "third": [{}]}
    bench = start_bench(worker, results, work)
    until(lambda: Counter(name for name, _ in started(results))["victim"] == 2)
    os.kill(int(dict(started(results))["victim"]), signal.SIGKILL)
    assert bench.wait(30) == 0
    ledger = Ledger(results / FILE)
    assert labels(ledger.rows()) == {"victim": 1, "other": 1, "third": 1}, "what was judged before stands"
    (failed,) = (row for row in ledger.rows() if row["status"] == "failed")
    assert (failed["label"], failed["set"]) == ("victim", "set1")
    assert "signal 9" in failed["reason"]
    assert "memory" in failed["reason"]


def test_failures_keep_their_reasons_and_are_tried_again(worker, results):
    jobs = jobs_of({"fails": [{"fails": True}, {}], "exits": [{"exits": True}], "works": [{}]})
    for _ in range(2):
        done, failed = run_jobs(jobs, results, Silent(), command=(sys.executable, str(worker)))
        assert done in (0, 1)
        titles = [line.partition(":")[0] for line in failed]
        assert titles == ["fails on set0, seed 0", "fails on set1, seed 0", "exits on set0, seed 0"]
    rows = Ledger(results / FILE).rows()
    reasons = {row["label"]: row["reason"] for row in rows if row["status"] == "failed"}
    assert reasons["fails"].startswith("out of memory (MemoryError: no room left)")
    assert "code 5" in reasons["exits"]
    assert labels(rows) == {"works": 1}
    assert run_jobs(jobs[2:], results, Silent(), afresh=True, command=(sys.executable, str(worker))) == (1, [])
    assert labels(Ledger(results / FILE).rows()) == {"works": 2}, "what stands runs afresh when asked"


@pytest.mark.slow
def test_two_benches_at_once_do_each_job_once(worker, results):
    work = {f"job{i}": [{"sleep": 0.2}, {}] for i in range(4)}
    benches = [start_bench(worker, results, work) for _ in range(2)]
    assert [bench.wait(60) for bench in benches] == [0, 0]
    assert labels(Ledger(results / FILE).rows()) == dict.fromkeys(work, 2)
    assert Counter(name for name, _ in started(results)) == dict.fromkeys(work, 2)


def test_a_job_s_last_words_are_its_own(tmp_path):
    (tmp_path / "log").write_bytes("of yesterday: ä\n".encode())
    before = (tmp_path / "log").stat().st_size
    assert _how_it_died(3, tmp_path / "log", before) == "ended with code 3 and no row"
    with (tmp_path / "log").open("a") as log:
        log.write("of today\n")
    assert _how_it_died(3, tmp_path / "log", before).endswith("it last said: of today")


def test_reasons_name_no_place_of_the_machine():
    said = without_paths("cannot read '/home/me/sets/a.png' (C:\\data\\b.png), see https://x.org/y, 1/2")
    assert said == "cannot read 'a.png' (b.png), see https://x.org/y, 1/2"


def test_more_threads_than_a_machine_stands_start_nothing(tmp_path):
    with pytest.raises(ConfigError, match="--threads 100000"):
        run_jobs([], tmp_path, Silent(), threads=100_000)
    assert list(tmp_path.iterdir()) == []
