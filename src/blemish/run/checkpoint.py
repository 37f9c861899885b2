"""What training keeps on disk at the end of an epoch, so that it can be killed at any moment and lose little.

A checkpoint is one file, written whole or not at all: a line with a SHA-256, then what ``torch.save`` writes. It holds
tensors, numbers and strings alone and is loaded with ``weights_only=True``, so that a foreign file can do no harm.
"""

import hashlib
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ConfigDict, TypeAdapter
from torch import Tensor

from blemish.errors import ConfigError, ModelFileError
from blemish.run.files import written_atomically

MAGIC = b"blemish checkpoint 2 "
HEADER = len(MAGIC) + 64 + 1  # bytes: with the digest in hexadecimal and the end of the line
SHARE = 0.05  # of the time spent on training, at most about this much goes into writing checkpoints
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)
_BEGIN_ANEW = "Fit without --resume (in Python: without resume=True) to begin anew."


class Checkpoint(NamedTuple):
    """A training at the end of an epoch."""

    work: dict[str, str]  # what is learned, from what and how; a checkpoint serves no other work
    machine: dict[str, str]  # what changes the last bits of results, but not what is learned
    epoch: int
    states: dict[str, Any]
    random: Tensor  # torch's random state on the CPU
    curve: list[dict[str, float]]
    facts: dict[str, str]


def this_machine() -> dict[str, str]:
    return {
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


class CheckpointManager:
    """One training's checkpoint; ``state`` holds what has ``state_dict`` and ``load_state_dict``."""

    def __init__(self, path: Path, state: Mapping[str, Any], work: Mapping[str, str]) -> None:
        self.path, self.state, self.work = path, state, dict(work)
        self._written = time.monotonic()
        self._seconds = 0.0  # that the last writing took

    def restore(self) -> Checkpoint | None:
        """Put the states of the last checkpoint back; None where there is none yet."""
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
            torch.set_rng_state(checkpoint.random)
        except Exception as error:  # networks of other names or shapes, or nothing of the kind
            raise ModelFileError(f"{self.path} was written by another version of Blemish. {_BEGIN_ANEW}") from error
        return checkpoint

    def is_due(self) -> bool:
        """Whether training has gone on for long enough to be worth the time that writing takes."""
        return time.monotonic() - self._written >= self._seconds / SHARE

    def write(self, epoch: int, curve: list[dict[str, float]], facts: Mapping[str, str]) -> None:
        began = time.monotonic()
        states = {name: holder.state_dict() for name, holder in self.state.items()}
        self._save(Checkpoint(self.work, this_machine(), epoch, states, torch.get_rng_state(), curve, dict(facts)))
        self._written = time.monotonic()
        self._seconds = self._written - began

    def _save(self, checkpoint: Checkpoint) -> None:
        with written_atomically(self.path) as temporary, temporary.open("w+b") as file:
            file.write(bytes(HEADER))
            torch.save(checkpoint._asdict(), file)
            file.seek(HEADER)
            if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(file):
                raise TypeError(f"a checkpoint holds tensors, numbers and strings, not {', '.join(foreign)}")
            file.seek(HEADER)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            file.write(MAGIC + digest.encode() + b"\n")

    def _read(self) -> Checkpoint:
        header, content = (data := self.path.read_bytes())[:HEADER], memoryview(data)[HEADER:]
        if not header.startswith(MAGIC):
            raise ModelFileError(f"{self.path} is no checkpoint of this version of Blemish. {_BEGIN_ANEW}")
        if header[len(MAGIC) : -1].decode(errors="replace") != hashlib.sha256(content).hexdigest():
            raise ModelFileError(f"{self.path} is damaged: its content does not match its digest. {_BEGIN_ANEW}")
        try:
            stored = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            return TypeAdapter(Checkpoint, config=_STRICT).validate_python(stored)
        except Exception as error:  # torch raises nearly anything
            raise ModelFileError(f"{self.path} is no checkpoint of this version of Blemish. {_BEGIN_ANEW}") from error


def _brief(value: str | None) -> str:
    text = "not said" if value is None else value
    return text if len(text) <= 60 else text[:57] + "..."
