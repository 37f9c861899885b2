"""What training keeps on disk at the end of an epoch, so that it can be killed at any moment and lose little.

A checkpoint is one file, written whole or not at all and verified to the last bit when read. It holds tensors, numbers
and strings alone and is loaded with ``weights_only=True``, so that a foreign file can do no harm.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from blemish.errors import ConfigError, ModelFileError, OutputError
from blemish.run.files import written_atomically

FORMAT = "blemish checkpoint 1"
SHARE = 0.05
"""Of the time spent on training, at most about this much goes into writing checkpoints."""

_BEGIN_ANEW = "Fit without --resume (in Python: without resume=True) to begin anew."


class Stateful(Protocol):
    """A network, an optimiser, a schedule: whatever a training must not lose."""

    def state_dict(self) -> Mapping[str, Any]:
        """All of the state, as tensors, numbers and strings."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take the state back."""


@dataclass(frozen=True)
class Checkpoint:
    """A training at the end of an epoch.

    Attributes:
        work: what is learned, from what and how; a checkpoint serves no other work.
        machine: what changes the last bits of results, but not what is learned: threads, torch's version.
        epoch: how many epochs are done.
        states: of everything that the method keeps, by name.
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


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in the place of the one before, whole or not at all.

    Raises:
        OutputError: the folder is read-only or the disk is full.
        TypeError: a state holds something other than tensors, numbers and strings.
    """
    # A shallow look at the fields: ``asdict`` would copy every tensor.
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    with written_atomically(path) as temporary:
        try:
            torch.save({"format": FORMAT, "digest": _digest(content), **content}, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OutputError(f"{path} was not written: {str(error).splitlines()[0]}") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in a file, verified to the last bit, with its tensors on the CPU.

    Raises:
        ModelFileError: the file is damaged, is no checkpoint, or is another version's.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a damaged or foreign file fails in a dozen ways
        raise ModelFileError(f"{path} is damaged or is no checkpoint of Blemish. {_BEGIN_ANEW}") from error
    if not isinstance(content, dict) or not str(content.get("format")).startswith("blemish checkpoint"):
        raise ModelFileError(f"{path} is no checkpoint of Blemish. {_BEGIN_ANEW}")
    if content.pop("format") != FORMAT:
        raise ModelFileError(f"{path} was written by another version of Blemish. {_BEGIN_ANEW}")
    if content.pop("digest", None) != _digest(content):
        raise ModelFileError(f"{path} is damaged: its content does not match its digest. {_BEGIN_ANEW}")
    return Checkpoint(**content)


def check_same_work(path: Path, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse a checkpoint of other work.

    Raises:
        ConfigError: something differs; the message says what, then and now.
    """
    names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
    if names:
        said = "; ".join(f"{name} was {_brief(found.get(name))}, now {_brief(wanted.get(name))}" for name in names)
        raise ConfigError(f"{path} belongs to other work ({said}). Ask for the same, or: {_BEGIN_ANEW}")


class CheckpointManager:
    """Keeps one training's checkpoint up to date, and restores from it."""

    def __init__(self, path: Path, keep: Mapping[str, Stateful], work: Mapping[str, str]) -> None:
        self.path = path
        self.keep = keep
        self.work = dict(work)
        self._written = time.monotonic()
        self._seconds = 0.0  # that the last writing took

    def restore(self) -> Checkpoint | None:
        """Put the last checkpoint's states back into what is kept; None where there is no checkpoint yet.

        Raises:
            ModelFileError: the file is damaged or foreign.
            ConfigError: it belongs to other work.
        """
        for left_over in self.path.parent.glob(f".{self.path.name}.*.part"):  # of a process killed while writing
            left_over.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        found = read_checkpoint(self.path)
        check_same_work(self.path, found.work, self.work)
        if found.states.keys() != self.keep.keys():
            raise ModelFileError(f"{self.path} was written by another version of Blemish. {_BEGIN_ANEW}")
        try:
            for name, holder in self.keep.items():
                holder.load_state_dict(found.states[name])
        except (KeyError, ValueError, RuntimeError) as error:  # networks of other shapes
            raise ModelFileError(f"{self.path} was written by another version of Blemish. {_BEGIN_ANEW}") from error
        torch.set_rng_state(found.random)
        return found

    def is_due(self) -> bool:
        """Whether training has gone on for long enough to be worth the time that writing takes."""
        return time.monotonic() - self._written >= self._seconds / SHARE

    def write(self, epoch: int, curve: list[dict[str, float]], facts: Mapping[str, str]) -> None:
        """Write the states as they are now.

        Raises:
            OutputError: the folder is read-only or the disk is full; the checkpoint before is still there.
        """
        began = time.monotonic()
        states = {name: holder.state_dict() for name, holder in self.keep.items()}
        random = torch.get_rng_state()
        write_checkpoint(
            self.path, Checkpoint(self.work, this_machine(), epoch, states, random, list(curve), dict(facts))
        )
        self._written = time.monotonic()
        self._seconds = self._written - began


def _digest(content: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Add a nest of mappings, sequences, tensors, numbers and strings to a digest."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"tensor {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        digest.update(f"mapping {len(value)};".encode())
        for key, part in value.items():
            _feed(digest, key)
            _feed(digest, part)
    elif isinstance(value, (list, tuple)):
        digest.update(f"sequence {len(value)};".encode())
        for part in value:
            _feed(digest, part)
    elif value is None or isinstance(value, (bool, int, float, str)):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"a checkpoint holds tensors, numbers and strings, not {type(value).__name__}: {value!r}")


def _brief(value: str | None) -> str:
    text = "not said" if value is None else value
    return text if len(text) <= 60 else text[:57] + "..."
