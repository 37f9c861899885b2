"""Checkpoints: which are refused, which are warned of, how often they are written and what becomes of them."""

import hashlib
import io
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toy_training import Length, Notes, finished, learn

from blemish.errors import ConfigError, ModelFileError
from blemish.run import Run, choose_precision, epochs
from blemish.run.checkpoint import HEADER, MAGIC, Checkpoint, CheckpointManager

CPU = torch.device("cpu")


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "foreign"])
def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path, harm: str) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    path = finished(run)
    content = bytearray(path.read_bytes())
    if harm == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        if harm == "flipped":
            weight = torch.load(io.BytesIO(content[HEADER:]))["states"]["net"]["0.weight"].numpy().tobytes()
            content[content.index(weight)] ^= 1
        path.write_bytes({"cut": content[:-9], "flipped": content, "emptied": b""}[harm])
    with pytest.raises(ModelFileError, match=r"toy\.checkpoint.*without --resume"):
        learn(run, Length(epochs=2))


def test_nothing_that_a_checkpoint_asks_for_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    run = Run(checkpoint=tmp_path / "kept", resume=True)
    path = finished(run)
    torch.save(Trap(), path)
    content = path.read_bytes()
    path.write_bytes(MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    with pytest.raises(ModelFileError, match=r"toy\.checkpoint.*without --resume"):
        learn(run, Length(epochs=2))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "length", "said"),
    [
        ({"seed": 1}, Length(), "seed was 0, now 1"),
        ({"work": {"method": "b", "images": "x"}}, Length(), "method was a, now b"),
        ({"work": {"method": "a", "images": "x", "size": "256"}}, Length(), "size was not said, now 256"),
        ({"work": {"method": "a"}}, Length(), "images was x, now not said"),
        ({"precision": choose_precision(CPU, "bf16")}, Length(), "precision was fp32, now bf16"),
        ({"device": torch.device("meta")}, Length(), "device was cpu, now meta"),
        ({}, Length(epochs=2), "length was 1 epochs, now 2 epochs"),
        ({}, Length(batch_size=3), "batch size was 2, now 3"),
    ],
)
def test_a_checkpoint_of_other_work_is_refused(tmp_path: Path, change: dict, length: Length, said: str) -> None:
    fp32 = choose_precision(CPU, "fp32")  # "auto" is bf16 on some machines
    run = Run(checkpoint=tmp_path, resume=True, work={"method": "a", "images": "x"}, precision=fp32)
    finished(run)
    with pytest.raises(ConfigError, match=said):
        learn(replace(run, **change), length)


def test_a_checkpoint_of_a_network_of_other_shapes_is_refused(tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    finished(run)
    with pytest.raises(ModelFileError, match="another version of Blemish"):
        next(epochs(run, "toy", {"net": nn.Linear(3, 1)}, Length(), 5))


def test_other_threads_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes, before = Notes(), torch.get_num_threads()
    run = Run(checkpoint=tmp_path, resume=True, progress=notes)
    finished(run)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    learn(run, Length())
    (warning,) = [said for said in notes.said if said.startswith("warning")]
    assert f"threads {before}, now 99" in warning


def test_it_begins_anew_without_resume_and_goes_on_where_nothing_can_be_kept_and_says_so(tmp_path: Path) -> None:
    notes = Notes()
    run = Run(checkpoint=tmp_path, progress=notes)
    finished(run)
    assert notes.said == []
    assert len(learn(run, Length())[1]) == 1
    assert "begins anew" in notes.said[0]
    (tmp_path / "file").write_text("in the way")
    assert len(learn(replace(run, checkpoint=tmp_path / "file"), Length(epochs=2))[1]) == 2
    assert "no checkpoint" in notes.said[-1]


def test_a_state_that_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    odd = SimpleNamespace(state_dict=lambda: {"odd": Length()})
    with pytest.raises(TypeError, match=r"not .*Length"):
        list(epochs(Run(checkpoint=tmp_path), "x", {"odd": odd}, Length(), epoch_steps=1))


def test_left_overs_of_killed_writers_are_removed(tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    (tmp_path / ".toy.checkpoint.abc.part").write_bytes(b"half")
    finished(run)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.checkpoint"]
    (tmp_path / "mine.txt").write_text("not a checkpoint")
    run.forget_checkpoints()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_checkpoints_take_a_twentieth_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [1000.0], []

    def slow(self: CheckpointManager, checkpoint: Checkpoint) -> None:
        now[0] += 1
        written.append(checkpoint.epoch)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(CheckpointManager, "_save", slow)
    run = Run(checkpoint=tmp_path)
    for _ in epochs(run, "x", {}, Length(epochs=9), epoch_steps=1):
        now[0] += 7
    assert written == [1, 4, 7, 9]  # 14 s after the first is too soon, 21 s is not; the last is always kept
