"""What is written takes the place of files alone."""

import os
import stat
from pathlib import Path

import pytest

from blemish.errors import OutputError
from blemish.run import check_writable, written_atomically


def test_a_link_stays_a_link_and_a_file_keeps_who_may_read_it(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old")
    real.chmod(0o600)
    link.symlink_to("real")
    with written_atomically(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
    assert stat.S_IMODE(real.stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    """Nobody stops the superuser, whom containers usually run as."""
    pipe, link = tmp_path / "pipe", tmp_path / "null"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)
    for path in (pipe, link):
        with pytest.raises(OutputError, match="is a device or a pipe"):
            check_writable(path)
        with pytest.raises(OutputError, match="is a device or a pipe"), written_atomically(path):
            pass
    assert stat.S_ISFIFO(pipe.stat().st_mode) and not Path(os.devnull).is_file()


def test_the_longest_name_that_a_folder_takes_is_written_and_a_longer_one_refused(tmp_path: Path) -> None:
    with written_atomically(tmp_path / ("ä" * 127)) as temporary:
        temporary.write_text("whole")
    assert [len(os.fsencode(path.name)) for path in tmp_path.iterdir()] == [254]
    with pytest.raises(OutputError, match="was not written: File name too long"):
        check_writable(tmp_path / ("x" * 300))


def test_another_process_may_end_its_file_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: iter([tmp_path / ".a.csv.abcdefgh.part"]))  # which is gone already
    with written_atomically(tmp_path / "a.csv") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "a.csv").read_text() == "whole"


def test_what_a_killed_process_left_is_swept_away_with_the_next_file_of_that_name(tmp_path: Path) -> None:
    old, young, other = (tmp_path / f".{name}.part" for name in ("a.csv.abcdefgh", "a.csv.12345678", "b.csv.abcdefgh"))
    for path in (old, young, other):
        path.write_text("half")
    for path in (old, other):
        os.utime(path, (1e9, 1e9))
    with written_atomically(tmp_path / "a.csv") as temporary:
        temporary.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", young.name, other.name}
