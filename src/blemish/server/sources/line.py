"""A simulated line, for the demo: good and bad parts of a folder come round, in an order that looks like chance."""

import random
import threading
from pathlib import Path

from blemish.data.readers import images_below
from blemish.errors import ImageError
from blemish.server.sources import Submit


class Line:
    """Images below ``folder``, those in folders called ``good`` nine times in ten, one every ``seconds``."""

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
