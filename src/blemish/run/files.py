"""Files that are whole or absent: a reader never sees half of one, whatever happens to the writer."""

import contextlib
import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blemish.errors import ConfigError, OutputError

STALE = 3600  # seconds, after which nobody is still writing a temporary file
LONGEST = 200  # bytes of a name that its temporary one keeps: file systems take 255


@contextlib.contextmanager
def written_atomically(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place if the block ends well, else vanishes (OutputError).

    A file that is there keeps its permissions, and a link stays one.
    """
    temporary = _temporary(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.umask(umask := os.umask(0))  # it can only be read by setting it
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask)
        temporary.replace(os.path.realpath(path))
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def usable_cores() -> int:
    """Processors that this process may use: in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> None:
    """A ConfigError below 1 and above 64, or four a core where that is more: a machine has no more to give."""
    most = max(64, 4 * usable_cores())
    if threads is not None and not 1 <= threads <= most:
        raise ConfigError(f"--threads {threads}: this machine has {usable_cores()} cores; give 1 to {most}")


def versions(*packages: str) -> dict[str, str]:
    """Of installed packages; ``unknown`` for what is not installed as one."""
    found = dict.fromkeys(packages, "unknown")
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_writable(path: Path) -> None:
    """Raise ``OutputError`` before long work, and not after it, where its result cannot be written."""
    _temporary(path).unlink()


def refuse_to_replace(path: Path, spared: Mapping[str, Iterable[Path]]) -> None:
    """Raise ``OutputError`` where ``path`` is one of the ``spared`` files, by what they are, such as ``the model``."""
    for what, files in spared.items():
        if path.resolve() in {file.resolve() for file in files}:
            raise OutputError(f"{path} is {what} and would be replaced: choose another name")


def _temporary(path: Path) -> Path:
    try:
        if path.is_dir():
            raise OutputError(f"{path} is a folder: give the name of a file, such as {path / 'NAME'}.")
        if path.exists() and not path.is_file():  # the superuser would replace it
            raise OutputError(f"{path} is a device or a pipe: give the name of a file.")
        path = Path(os.path.realpath(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        start = f".{os.fsdecode(os.fsencode(path.name)[:LONGEST])}."
        for left in _left_behind(path.parent):
            if left.name.startswith(start):
                left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=".part")
        os.close(handle)
    except OSError as error:
        raise OutputError(_cannot_write(path, error)) from error
    return Path(name)


@cache
def _left_behind(folder: Path) -> tuple[Path, ...]:
    """What killed processes had begun to write: looked for once a folder, as some get thousands of files."""
    found = []
    for path in folder.glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):  # another process has just given it its name
            found += [path] if time.time() - path.lstat().st_mtime > STALE else []
    return tuple(found)


def _cannot_write(path: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path} was not written: the disk is full. Free some space, or write elsewhere with -o."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{path} was not written: {path.parent} is not writable. Write elsewhere with -o."
    if file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        return f"{path} was not written: {file} is a file, not a folder. Name another folder."
    return f"{path} was not written: {error.strerror or error}."
