"""What training keeps on disk at the end of an epoch, so that it can be killed at any moment and lose little.

A checkpoint is one file, written whole or not at all and verified to the last bit when read: a line with a SHA-256,
then what ``torch.save`` writes. It holds tensors, numbers and strings alone and is loaded with ``weights_only=True``,
so that a foreign file can do no harm.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from blemish.errors import ConfigError, ModelFileError
from blemish.run.files import written_atomically

MAGIC = b"blemish checkpoint 2 "
HEADER = len(MAGIC) + 64 + 1
"""Bytes before the content: the magic, a SHA-256 in hexadecimal and a line's end."""

SHARE = 0.05
"""Of the time spent on training, at most about this much goes into writing checkpoints."""

_BEGIN_ANEW = "Fit without --resume (in Python: without resume=True) to begin anew."


class Stateful(Protocol):
    """A network, an optimiser, a schedule: whatever has a state of tensors, numbers and strings."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: Any, /) -> Any: ...


@dataclass(frozen=True)
class Checkpoint:
    """A training at the end of an epoch.

    Attributes:
        work: what is learned, from what and how; a checkpoint serves no other work.
        machine: what changes the last bits of results, but not what is learned.
        epoch: how many epochs are done.
        states: of everything that the training must not lose, by name.
        random: torch's random state on the CPU.
        curve: mean values of each epoch done.
        facts: decisions taken on the way, for people.
    """

    work: dict[str, str]
    machine: dict[str, str]
    epoch: int
    states: dict[str, Any]
    random: Tensor
    curve: list[dict[str, float]]
    facts: dict[str, str]


def this_machine() -> dict[str, str]:
    """What may change the last bits of a result."""
    return {
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


class CheckpointManager:
    """Keeps one training's checkpoint up to date, and restores from it."""

    def __init__(self, path: Path, state: Mapping[str, Stateful], work: Mapping[str, str]) -> None:
        self.path, self.state, self.work = path, state, dict(work)
        self._written = time.monotonic()
        self._seconds = 0.0  # that the last writing took

    def restore(self) -> Checkpoint | None:
        """Put the states of the last checkpoint back; None where there is none yet.

        Raises:
            ModelFileError: the file is damaged or foreign.
            ConfigError: it belongs to other work; the message says what differs, then and now.
        """
        for left_over in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a process killed while writing
            left_over.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        checkpoint = self._read()
        before, now = checkpoint.work, self.work
        if names := [name for name in {**before, **now} if before.get(name) != now.get(name)]:
            changes = "; ".join(f"{n} was {_brief(before.get(n))}, now {_brief(now.get(n))}" for n in names)
            raise ConfigError(f"{self.path} belongs to other work ({changes}). Ask for the same, or: {_BEGIN_ANEW}")
        try:
            for name, holder in self.state.items():
                holder.load_state_dict(checkpoint.states[name])
        except (KeyError, ValueError, RuntimeError) as error:  # networks of other names or shapes
            raise ModelFileError(f"{self.path} was written by another version of Blemish. {_BEGIN_ANEW}") from error
        torch.set_rng_state(checkpoint.random)
        return checkpoint

    def is_due(self) -> bool:
        """Whether training has gone on for long enough to be worth the time that writing takes."""
        return time.monotonic() - self._written >= self._seconds / SHARE

    def write(self, epoch: int, curve: list[dict[str, float]], facts: Mapping[str, str]) -> None:
        """Write the states as they are now, whole or not at all.

        Raises:
            OutputError: the folder is read-only or the disk is full; the checkpoint before is still there.
            TypeError: a state holds something other than tensors, numbers and strings.
        """
        began = time.monotonic()
        states = {name: holder.state_dict() for name, holder in self.state.items()}
        random, facts = torch.get_rng_state(), dict(facts)
        self._save(Checkpoint(self.work, this_machine(), epoch, states, random, curve, facts))
        self._written = time.monotonic()
        self._seconds = self._written - began

    def _save(self, checkpoint: Checkpoint) -> None:
        # A shallow look at the fields: ``asdict`` would copy every tensor.
        content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
        with written_atomically(self.path) as temporary, temporary.open("w+b") as file:
            file.write(bytes(HEADER))
            torch.save(content, file)
            file.seek(HEADER)
            if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(file):
                raise TypeError(f"a checkpoint holds tensors, numbers and strings, not {', '.join(foreign)}")
            file.seek(HEADER)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            file.write(MAGIC + digest.encode() + b"\n")

    def _read(self) -> Checkpoint:
        """The checkpoint in the file, its tensors on the CPU."""
        header, content = (data := self.path.read_bytes())[:HEADER], memoryview(data)[HEADER:]
        if not header.startswith(MAGIC):
            raise ModelFileError(f"{self.path} is no checkpoint of this version of Blemish. {_BEGIN_ANEW}")
        if header[len(MAGIC) : -1].decode(errors="replace") != hashlib.sha256(content).hexdigest():
            raise ModelFileError(f"{self.path} is damaged: its content does not match its digest. {_BEGIN_ANEW}")
        try:
            return Checkpoint(**torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, TypeError) as error:
            raise ModelFileError(f"{self.path} is no checkpoint of this version of Blemish. {_BEGIN_ANEW}") from error


def _brief(value: str | None) -> str:
    text = "not said" if value is None else value
    return text if len(text) <= 60 else text[:57] + "..."
