"""Where images come from besides HTTP: each source is a thread that hands them to the station until it is told to end.

A full queue delays a source, and loses nothing of it: the source waits and hands the image in again.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any, Protocol

from fastapi import HTTPException

from blemish.data.images import read_bytes
from blemish.data.readers import images_below, is_image
from blemish.errors import BlemishError, ConfigError, ImageError
from blemish.run.progress import printable
from blemish.server.judging import QueueFull
from blemish.server.settings import without_password
from blemish.server.station import Station
from blemish.server.store import spoken_time
from blemish.server.worker import Worker

EMPTY = 60.0  # seconds until an empty file will not be written any more
STILL, PATIENCE, SCAN = 0.3, 5.0, 10.0  # seconds; every SCAN all is looked at, for file systems that tell of no change
LOOK = 200  # milliseconds
STALE, AGAIN = 5, 5  # seconds without a frame, and between two attempts
log = logging.getLogger("blemish.server")

Submit = Callable[[bytes, str], dict[str, Any]]
Stamp = tuple[int, int]  # bytes of a file, and when it was changed


class Source(Protocol):
    """What brings images."""

    def run(self, submit: Submit, ended: threading.Event) -> None:
        """Hand in contents and names until ``ended``; ``submit`` returns the verdict, or raises an ImageError."""


class Feed(Worker):
    """Takes what one source brings, and begins anew where it fails; ``state`` says since when and why it does."""

    def __init__(self, station: Station, model: str, name: str, make: Callable[[], Source]) -> None:
        self._station, self._make = station, make
        self.source: Source | None = None
        self.state: dict[str, Any] = {"model": model, "source": name, "since": None, "problem": None}
        super().__init__()

    def _work(self) -> None:
        while not self._ended.is_set():
            try:
                self.source = self._make()
                if not isinstance(self.source, Camera):  # which brings something once a picture is judged
                    self._report(None)
                self.source.run(self._submit, self._ended)
            except CancelledError:
                return
            except Exception as error:
                self.source = None  # its last picture is no news
                self._report(error)
            self._ended.wait(AGAIN)

    def _report(self, error: Exception | None) -> None:
        """Keep whether the source brings images, and tell who listens where that has changed."""
        before, problem = self.state, None if error is None else str(error) or type(error).__name__
        since = None if error is None else before["since"] or spoken_time(time.time())
        self.state = before | {"since": since, "problem": problem}
        self._station.metrics.brings.labels(before["model"], before["source"]).set(error is None)
        if problem != before["problem"]:
            words = f"brings no images since {since}: {problem}" if problem else "brings images again"
            log.warning("the %s of %s %s", before["source"], before["model"], words)
            self._station.events.publish("source", self.state)

    def _submit(self, content: bytes, name: str) -> dict[str, Any]:
        while True:
            try:
                answer = self._station.submit(self.state["model"], content, name, self.state["source"])
                self._report(None)
                return answer
            except ImageError:
                raise
            except (BlemishError, HTTPException, TimeoutError) as error:  # the queue or the disk is full ...
                if not isinstance(error, QueueFull):
                    self._report(error)
                if self._ended.wait(1):
                    raise CancelledError from error


def _stamp(path: Path) -> Stamp | None:
    """Bytes and time of a file, None where it is not there: another stamp is another photograph."""
    try:
        return (status := path.stat()).st_size, status.st_mtime_ns
    except OSError:
        return None


class Folder:
    """A watched folder: each image that appears in ``folder`` itself is judged once it is complete.

    It counts as complete when its size has stood still for ``STILL`` seconds, an empty one for ``EMPTY``; one that does
    not decode then is tried again for ``PATIENCE`` seconds, for a slow writer may still be at it. With ``move``, files
    go to ``ok/``, ``review/``, ``reject/`` or ``unreadable/`` below the folder. Of a file that was there from the start
    ``judged_before`` says, by name and content, what was decided before a restart, or None.
    """

    def __init__(self, folder: Path, move: bool, judged_before: Callable[[str, bytes], str | None]) -> None:
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder} to watch: make it")
        self._folder, self._move, self._judged_before = folder, move, judged_before
        self._present: set[str] | None = None  # what was there from the start
        self._seen: dict[str, Stamp] = {}  # what was judged, by name
        self._growing: dict[str, tuple[Stamp | None, float]] = {}  # what it is, and since when

    def run(self, submit: Submit, ended: threading.Event) -> None:
        from watchfiles import watch

        scanned = -SCAN
        options: dict[str, Any] = {"watch_filter": None, "recursive": False, "yield_on_timeout": True}
        for changes in watch(self._folder, stop_event=ended, rust_timeout=LOOK, **options):
            names = {*self._growing, *(Path(path).name for _, path in changes)}
            if time.monotonic() - scanned >= SCAN:
                scanned = time.monotonic()
                listed = {path.name for path in self._folder.iterdir()}
                self._present = listed if self._present is None else self._present
                names |= listed
                self._seen = {name: stamp for name, stamp in self._seen.items() if name in listed}
            for name in sorted(names):
                path = self._folder / name
                if not ended.is_set() and (stamp := self._complete(path)) is not None:
                    self._judge(path, stamp, submit)

    def _complete(self, path: Path) -> Stamp | None:
        stamp, now = _stamp(path) if is_image(path) else None, time.monotonic()
        if stamp is None:
            self._growing.pop(path.name, None)
            return None
        if self._seen.get(path.name) == stamp:
            return None
        before, since = self._growing.get(path.name, (None, now))
        self._growing[path.name] = (stamp, since if before == stamp else now)
        wait = STILL if stamp[0] > 0 else EMPTY
        return stamp if before == stamp and now - since >= wait else None

    def _judge(self, path: Path, stamp: Stamp, submit: Submit) -> None:
        name = printable(path.name)
        try:
            content = read_bytes(path)
            earlier = self._judged_before(name, content) if path.name in (self._present or ()) else None
            decision = earlier or submit(content, name)["decision"] or "undecided"
        except (ImageError, MemoryError) as error:
            if not path.exists():
                return
            if time.monotonic() - self._growing[path.name][1] < PATIENCE:
                return
            log.warning("%s", error or f"{name} takes more memory than there is")
            decision = "unreadable"
        del self._growing[path.name]
        self._seen[path.name] = stamp  # also where it is to move: what cannot be moved is not judged again
        if self._move:
            target = self._folder / decision / path.name
            try:
                if _stamp(path) != stamp:
                    return  # another photograph of that name has come meanwhile: it is judged, too
                target.parent.mkdir(exist_ok=True)
                path.replace(target.with_stem(f"{path.stem}-{stamp[1]}") if target.exists() else target)
                del self._seen[path.name]
            except OSError as error:
                log.warning("%s was judged and stays where it is: %s", name, error)


class Camera:
    """A camera by OpenCV: its number, the address of a stream, or a recorded file.

    Frames are judged one after the other, always the latest: what comes while one is judged is passed over, except from
    a file, of which every frame is judged, once. Frames are stored as PNG, so that a replay sees the same pixels.
    ``picture`` is the last one as JPEG, for the page.
    """

    def __init__(self, place: str) -> None:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is wrong, the station says, once
        import cv2

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        self._place = without_password(place)
        self._encode, self.picture = cv2.imencode, b""
        self._latest: Any = None
        self._is_file = Path(place).is_file()
        self._is_fresh = threading.Event()
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, cv2.CAP_PROP_READ_TIMEOUT_MSEC)  # half a minute by themselves
        stream = (cv2.CAP_FFMPEG, [x for one in limits for x in (one, 1000 * STALE)]) if "://" in place else ()
        self._capture = cv2.VideoCapture(int(place) if place.isdecimal() else place, *stream)
        if not self._capture.isOpened():
            raise ConfigError(f"{self._place} cannot be opened: switch it on, or give another number, address or file")

    def run(self, submit: Submit, ended: threading.Event) -> None:
        number, left = 0, threading.Event()
        grabber = threading.Thread(target=self._grab, args=(left,), daemon=True)
        if not self._is_file:
            grabber.start()
        try:
            while not ended.is_set():
                if (frame := self._next()) is None:
                    if not self._is_file:
                        raise ConfigError(f"{self._place} sends no pictures any longer: look at it and at its cable")
                    ended.wait()  # all of it was judged
                    return
                number += 1
                self.picture = self._encode(".jpg", frame)[1].tobytes()
                submit(self._encode(".png", frame)[1].tobytes(), f"frame {number} of {time.strftime('%Y-%m-%d')}")
        finally:
            left.set()
            if self._is_file:
                self._capture.release()
            else:
                grabber.join(STALE)

    def _next(self) -> Any:
        if self._is_file:
            return self._capture.read()[1]  # None after the last
        is_read = self._is_fresh.wait(STALE)
        self._is_fresh.clear()
        return self._latest if is_read else None

    def _grab(self, left: threading.Event) -> None:
        """Keep reading, so that the driver's queue holds no old frames.

        Whoever reads releases: to release a capture that is being read ends the whole process.
        """
        is_read = True
        while is_read and not left.is_set():
            is_read, self._latest = self._capture.read()
            self._is_fresh.set()
        self._capture.release()


class Line:
    """A simulated line, for the demo: images below ``folder`` come round, one every ``seconds``.

    Those in folders called ``good`` come nine times in ten, in an order that looks like chance.
    """

    def __init__(self, folder: Path, seconds: float = 1.5, good: float = 0.9) -> None:
        self._images, self._seconds, self._good = images_below(folder), seconds, good
        self._order = random.Random(folder.parent.name)  # its own: several lines do not err in step

    def run(self, submit: Submit, ended: threading.Event) -> None:
        order = self._order
        good = [path for path in self._images if path.parent.name == "good"]
        bad = [path for path in self._images if path.parent.name != "good"]
        while not ended.wait(self._seconds):
            path = order.choice(good if order.random() < self._good or not bad else bad)
            try:
                submit(path.read_bytes(), f"{path.parent.name}-{path.name}")
            except ImageError:
                continue
