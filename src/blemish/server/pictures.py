"""Photographs and models on disk, each below the SHA-256 of its content: no name from outside becomes a path.

A photograph is written to ``incoming/`` before its row is committed, and moved to its place after that. A station that
was killed in between finds it there at its next start, and keeps it if the row stands. When it reaches the disk is left
to the operating system, half a minute later as a rule: each would cost its sender two waits for the disk. What a power
cut left of one is known by its digest, and is never taken for the photograph.
"""

import contextlib
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from blemish.errors import OutputError
from blemish.inspection.exported_file import is_exported
from blemish.run import written_atomically


class Pictures:
    """The folder ``root``: ``incoming/``, ``models/``, and a folder for each first two letters of a digest.

    Raises:
        OutputError: it cannot be written, or another station works in it.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.incoming, self.models, self.written = root, root / "incoming", root / "models", 0
        self.lock = threading.RLock()  # held from writing a photograph to committing its row, and while deleting
        self._held = FileLock(root / ".lock", timeout=0, thread_local=False)
        try:
            for folder in (root, self.incoming, self.models):
                folder.mkdir(parents=True, exist_ok=True)
            self._held.acquire()
        except Timeout:
            raise OutputError(f"another station works in {root}: stop it, or give this one its own --images") from None
        except OSError as error:
            raise OutputError(f"{root} cannot hold photographs ({error.strerror}): give another --images") from error

    def close(self) -> None:
        """Others may work in the folder now."""
        self._held.release()

    def path(self, digest: str) -> Path:
        return self.root / digest[:2] / digest

    @contextlib.contextmanager
    def written_or_not(self, photographs: Mapping[str, bytes]) -> Iterator[None]:
        """They lie in ``incoming/``, by digest, or in their place; where something fails then, none that is new stays.

        Raises:
            OutputError: the disk is full.
        """
        new = [name for name in photographs if self.read(name) is None]  # what a power cut spoiled is written again
        try:
            for name in new:
                try:
                    (self.incoming / name).write_bytes(photographs[name])
                    self.written += len(photographs[name])  # bytes since retention looked at the disk
                except OSError as error:
                    reason = error.strerror or error
                    raise OutputError(f"the photograph was not written ({reason}): free or mend the disk") from error
            yield
        except BaseException:
            for name in new:
                with contextlib.suppress(OSError):
                    (self.incoming / name).unlink(missing_ok=True)
            raise

    def commit(self, digest: str) -> None:
        """Move a photograph whose row is committed to its place."""
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # another photograph with the same content was quicker
            (self.incoming / digest).replace(target)

    def sweep(self, is_known: Callable[[str], object]) -> tuple[int, int]:
        """After a hard end: how many photographs went to their place, and how many that no row knows went away."""
        moved = removed = 0
        for path in self.incoming.iterdir():
            if is_known(path.name):
                self.commit(path.name)
                moved += 1
            else:
                path.unlink(missing_ok=True)
                removed += 1
        return moved, removed

    def read(self, digest: str) -> bytes | None:
        """A photograph's content, None where it is not there or not whole."""
        for path in (self.path(digest), self.incoming / digest, self.path(digest)):  # it may move in between
            with contextlib.suppress(OSError):
                if hashlib.sha256(content := path.read_bytes()).hexdigest() == digest:
                    return content
        return None

    def remove(self, digest: str) -> None:
        for path in (self.path(digest), self.incoming / digest):
            path.unlink(missing_ok=True)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Digest and bytes of every photograph in its place."""
        for folder in self.root.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(folder):
                with contextlib.suppress(OSError):
                    yield entry.name, entry.stat().st_size

    def keep_model(self, source: Path, digest: str) -> Path:
        """A copy of a model's file below its digest, so that its verdicts can be replayed for as long as they stand."""
        target = self.models / f"{digest}{'.onnx' if is_exported(source) else '.blemish'}"
        if not target.exists():
            with written_atomically(target) as temporary:
                shutil.copyfile(source, temporary)
        return target
