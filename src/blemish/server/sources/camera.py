"""A camera by OpenCV: its number, the address of a stream, or a recorded file.

Frames are judged one after the other, always the latest: what comes while one is judged is passed over, except from a
file, of which every frame is judged, once. Frames are stored as PNG, so that a replay sees the same pixels.
"""

import threading
import time
from typing import Any

from blemish.errors import ConfigError
from blemish.server.sources import Submit

STALE = 5.0  # seconds without a frame


class Camera:
    """``place`` as OpenCV takes it; ``picture`` is the last frame as JPEG, for the page."""

    def __init__(self, place: str) -> None:
        import cv2

        self._place, self._encode, self.picture = place, cv2.imencode, b""
        self._is_file = "://" not in place and not place.isdecimal()
        self._capture = cv2.VideoCapture(int(place) if place.isdecimal() else place)
        self._latest: Any = None
        self._is_fresh = threading.Event()
        if not self._capture.isOpened():
            raise ConfigError(f"the camera {place} cannot be opened: give its number, an address or a file")

    def run(self, submit: Submit, ended: threading.Event) -> None:
        number, left = 0, threading.Event()
        grabber = threading.Thread(target=self._grab, args=(left,), daemon=True)
        if not self._is_file:
            grabber.start()
        try:
            while not ended.is_set():
                if (frame := self._next()) is None:
                    if not self._is_file:
                        raise ConfigError(f"the camera {self._place} sends no pictures")
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
            is_read, frame = self._capture.read()
            return frame if is_read else None
        is_read = self._is_fresh.wait(STALE)
        self._is_fresh.clear()
        return self._latest if is_read else None

    def _grab(self, left: threading.Event) -> None:
        """Keep reading, so that the driver's queue holds no old frames.

        Whoever reads releases: to release a capture that is being read ends the whole process.
        """
        is_read = True
        while is_read and not left.is_set():
            is_read, frame = self._capture.read()
            self._latest = frame if is_read else None
            self._is_fresh.set()
        self._capture.release()
