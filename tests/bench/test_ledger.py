import json
import signal
import subprocess
import sys
import time

from blemish.bench.ledger import Ledger

WRITER = """
import sys
from pathlib import Path
from blemish.bench import ledger
ledger.LARGEST = int(sys.argv[4])
ledger = ledger.Ledger(Path(sys.argv[1]))
for i in range(int(sys.argv[3])):
    ledger.append({"key": f"{sys.argv[2]}/{i}", "status": "done", "filling": sys.argv[2] * (1 + i * 997 % 20000)})
"""


def start_writer(path, name, rows, largest=10**12):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(rows), str(largest)])


def test_two_processes_append_at_once(tmp_path):
    path = tmp_path / "ledger.jsonl"
    writers = [start_writer(path, name, 150) for name in "ab"]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"", "the file ends with a newline"
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 300
    for name in "ab":
        own = [(row["key"], row["filling"]) for row in rows if row["key"].startswith(name)]
        wanted = [(f"{name}/{i}", name * (1 + i * 997 % 20000)) for i in range(150)]
        assert own == wanted, "none lost, in order, whole"


def test_a_large_file_is_closed_as_a_part_and_no_reader_misses_or_repeats_a_row(tmp_path):
    path = tmp_path / "ledger.jsonl"
    writers, seen = [start_writer(path, name, 150, 60_000) for name in "ab"], [0]
    while any(writer.poll() is None for writer in writers):
        keys = [row["key"] for row in Ledger(path).rows()]
        assert len(keys) == len(set(keys))
        seen.append(len(keys))
    assert [writer.returncode for writer in writers] == [0, 0] and seen == sorted(seen)
    parts = [path.with_stem(f"ledger-{number}") for number in range(1, len(list(tmp_path.glob("ledger-*"))) + 1)]
    assert len(parts) > 10 and all(part.stat().st_size <= 60_000 for part in [*parts, path])
    lines = b"".join(part.read_bytes() for part in [*parts, path]).splitlines()
    rows = Ledger(path).rows()
    assert rows == [json.loads(line) for line in lines] and len(rows) == 300
    for name in "ab":
        assert [row["key"] for row in rows if row["key"][0] == name] == [f"{name}/{i}" for i in range(150)]


def test_a_killed_writer_tears_no_row(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for name in "abcd":
        writer = start_writer(path, name, 100_000)
        seen = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 30
        while (not path.exists() or path.stat().st_size == seen) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
    content = path.read_bytes()
    assert content.endswith(b"\n")
    rows = [json.loads(line) for line in content.splitlines()]
    assert {row["key"][0] for row in rows} == set("abcd")


def test_half_a_line_is_passed_over_and_closed(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"key": "first", "status": "done"})
    with ledger.path.open("ab") as file:
        file.write('{"key": "torn", "status": "done", "name": "é'.encode()[:-1])
    assert [row["key"] for row in ledger.rows()] == ["first"]
    ledger.append({"key": "second", "status": "done"})
    assert [row["key"] for row in ledger.rows()] == ["first", "second"]


def test_only_finished_rows_count_as_done_and_the_latest_wins(tmp_path):
    ledger = Ledger(tmp_path / "new" / "ledger.jsonl")
    assert ledger.rows() == []
    for number, status in enumerate(["failed", "done", "done", "failed"]):
        ledger.append({"key": "k", "status": status, "number": number})
    assert ledger.done()["k"]["number"] == 2
    assert len(ledger.rows()) == 4
