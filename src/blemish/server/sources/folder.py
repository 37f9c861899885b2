"""A watched folder: each image that appears in it is judged once it is complete.

A file counts as complete when its size has stood still for ``STILL`` seconds; one that does not decode then is tried
again for ``PATIENCE`` seconds, for a slow writer may still be at it. With ``move``, files go to ``ok/``, ``review/``,
``reject/`` or ``unreadable/`` below the folder. Without, the store says which files were judged before a restart.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path

from blemish.data.readers import is_image
from blemish.errors import ConfigError, ImageError
from blemish.server.sources import Submit, log

STILL, PATIENCE, SCAN = 0.3, 5.0, 10.0  # seconds; every SCAN all is looked at, for file systems that tell of no change
LOOK = 200  # milliseconds
Stamp = tuple[int, int]


class Folder:
    """Images lie in ``folder`` itself; ``is_known`` says of a name and a content whether they were judged before."""

    def __init__(self, folder: Path, move: bool, is_known: Callable[[str, bytes], bool]) -> None:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder} to watch: make it")
        self._folder, self._move, self._is_known = folder, move, is_known
        self._seen: dict[str, Stamp] = {}  # what was judged, by name
        self._growing: dict[str, tuple[Stamp | None, float, float]] = {}  # size and time, since when, first seen

    def run(self, submit: Submit, ended: threading.Event) -> None:
        from watchfiles import watch

        scanned, began = -SCAN, time.time_ns()
        own = watch(
            self._folder, watch_filter=None, stop_event=ended, recursive=False, rust_timeout=LOOK, yield_on_timeout=True
        )
        for changes in own:
            names = {*self._growing, *(Path(path).name for _, path in changes)}
            if time.monotonic() - scanned >= SCAN:
                scanned = time.monotonic()
                names |= {path.name for path in self._folder.iterdir()}
            for name in sorted(names):
                path = self._folder / name
                if not ended.is_set() and (stamp := self._complete(path)) is not None:
                    self._judge(path, stamp, submit, began)

    def _complete(self, path: Path) -> Stamp | None:
        try:
            status = path.stat() if is_image(path) else None
        except OSError:
            status = None
        if status is None:
            self._growing.pop(path.name, None)
            return None
        stamp, now = (status.st_size, status.st_mtime_ns), time.monotonic()
        if self._seen.get(path.name) == stamp:
            return None
        before, since, first = self._growing.get(path.name, (None, now, now))
        self._growing[path.name] = (stamp, since if before == stamp else now, first)
        return stamp if before == stamp and now - since >= STILL and status.st_size > 0 else None

    def _judge(self, path: Path, stamp: Stamp, submit: Submit, began: int) -> None:
        try:
            content = path.read_bytes()
            is_old = stamp[1] < began and not self._move and self._is_known(path.name, content)
            decision = "known" if is_old else submit(content, path.name)["decision"] or "undecided"
        except ImageError as error:
            if time.monotonic() - self._growing[path.name][2] < PATIENCE:
                return
            log.warning("%s", error)
            decision = "unreadable"
        except FileNotFoundError:
            return
        del self._growing[path.name]
        if self._move:
            target = self._folder / decision / path.name
            target.parent.mkdir(exist_ok=True)
            path.replace(target.with_stem(f"{path.stem}-{stamp[1]}") if target.exists() else target)
        else:
            self._seen[path.name] = stamp
