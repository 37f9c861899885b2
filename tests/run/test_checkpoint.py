"""Checkpoints: which are refused, which are warned of, how often they are written and what becomes of them."""

from __future__ import annotations

import hashlib
import io
import os
import time
from dataclasses import replace
from pathlib import Path

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
            weight = torch.load(io.BytesIO(content[HEADER:]))["states"]["net"]["weight"].numpy().tobytes()
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
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"work": {"method": "b", "images": "x"}}, "method was a, now b"),
        ({"work": {"method": "a", "images": "y"}}, "images was x, now y"),
        ({"work": {"method": "a", "images": "x", "size": "256"}}, "size was not said, now 256"),
        ({"work": {"method": "a"}}, "images was x, now not said"),
        ({"precision": choose_precision(CPU, "bf16")}, "precision was fp32, now bf16"),
        ({"device": torch.device("meta")}, "device was cpu, now meta"),
    ],
)
def test_a_checkpoint_of_other_work_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    fp32 = choose_precision(CPU, "fp32")  # "auto" is bf16 on some machines
    run = Run(checkpoint=tmp_path, resume=True, work={"method": "a", "images": "x"}, precision=fp32)
    finished(run)
    with pytest.raises(ConfigError, match=said):
        learn(replace(run, **change), Length(epochs=1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="length was 1 epochs, now 2 epochs"):
        learn(run, Length(epochs=2))
    with pytest.raises(ConfigError, match="batch size was 2, now 3"):
        learn(run, Length(epochs=1, batch_size=3))


def test_a_checkpoint_of_a_network_of_other_shapes_is_refused(tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    finished(run)
    net = nn.Linear(3, 1)
    keep = {"net": net, "optimiser": torch.optim.Adam(net.parameters(), lr=0.1)}
    with pytest.raises(ModelFileError, match="another version of Blemish"):
        next(epochs(run, "toy", keep, Length(), 5))


def test_other_threads_are_warned_of(tmp_path: Path) -> None:
    notes, before = Notes(), torch.get_num_threads()
    run = Run(checkpoint=tmp_path, resume=True, progress=notes)
    finished(run)
    torch.set_num_threads(before + 1)
    try:
        learn(run, Length(epochs=1))
    finally:
        torch.set_num_threads(before)
    (warning,) = [said for said in notes.said if said.startswith("warning")]
    assert f"threads {before}, now {before + 1}" in warning


def test_without_resume_it_begins_anew_and_says_so(tmp_path: Path) -> None:
    notes = Notes()
    run = Run(checkpoint=tmp_path, progress=notes)
    finished(run)
    assert notes.said == []
    assert len(learn(run, Length(epochs=1))[1]) == 1
    assert "begins anew" in notes.said[0]


def test_what_cannot_be_kept_does_not_stop_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = Notes()
    run = Run(checkpoint=tmp_path / "file", progress=notes)
    _, seen = learn(run, Length(epochs=2))
    assert len(seen) == 2
    assert any("no checkpoint" in said for said in notes.said)


class Unplain:
    """Nothing that weights_only would load."""


def test_a_state_that_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, object]:
            return {"odd": Unplain()}

        def load_state_dict(self, state: object) -> None:
            """Nothing."""

    run = Run(checkpoint=tmp_path)
    with pytest.raises(TypeError, match=r"not .*Unplain"):
        list(epochs(run, "x", {"odd": Odd()}, Length(), epoch_steps=1))


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
