"""From photographs that wait to verdicts that are kept: one line of threads for each model.

Decoders take what waits and prepare it, a judge takes up to ``batch`` of what is prepared, and a writer keeps what is
judged, all that there is in one transaction, while the next ones are judged. Only then does a sender hear of its
verdict. What waits is bounded, more is refused at once, and what nobody waits for any longer is dropped.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from blemish.data.images import DecodedImage, decode
from blemish.errors import BlemishError, ImageError
from blemish.inspection.judge import WORKERS, Judge
from blemish.inspection.verdict import Verdict

GATHER = 0.005  # seconds that a batch waits for photographs that are being decoded
LONGEST = 30_000  # pixels of a side: outlines on a strip of millions would take minutes and gigabytes
log = logging.getLogger("blemish.server")


class QueueFull(BlemishError):
    """As many photographs wait as may."""


class QueueClosed(BlemishError):
    """The model is being unloaded."""


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded model file; ``digest`` is that of the file."""

    inspector: Judge
    digest: str
    suffix: str


@dataclass(eq=False)
class Photograph:
    """One image on its way, and what has become of it so far."""

    content: bytes
    name: str
    source: str
    part: str | None = None
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[dict[str, Any]] = field(default_factory=Future)
    model: Model = field(init=False)  # for which it was prepared
    loaded: tuple[DecodedImage, Any] | None = None
    verdict: Verdict = field(init=False)
    row: dict[str, Any] = field(default_factory=dict)


def brightness_and_sharpness(pixels: NDArray[Any]) -> tuple[float, float]:
    """Brightness, a share of white, and sharpness: the mean step between neighbours, as a share of brightness."""
    white = {"uint8": 255, "uint16": 65535}.get(pixels.dtype.name, 1)
    grey = pixels[:: max(1, len(pixels) // 256), :, 1].astype(np.float32)
    brightness = float(grey.mean())
    steps = float(np.abs(np.diff(grey, axis=1)).mean())
    return brightness / white, steps / max(brightness, 1e-6 * white)


Keep = Callable[[Sequence[Photograph]], list[dict[str, Any]]]
T = TypeVar("T")


def _take(
    line: queue.Queue[T | None], most: int, is_more_coming: Callable[[], bool] = lambda: False
) -> tuple[list[T], bool]:
    """What there is in a line, once there is one, and what comes soon; and False where None, its end, was among it."""
    taken, latest = [line.get()], time.monotonic() + GATHER
    with suppress(queue.Empty):
        while taken[-1] is not None and len(taken) < most:
            taken.append(line.get(timeout=max(0.0, latest - time.monotonic()) if is_more_coming() else 0.0))
    return [one for one in taken if one is not None], taken[-1] is not None


class JudgeQueue:
    """The threads of one model, which may be swapped while they work.

    ``keep`` writes judged photographs and returns their answers.
    """

    def __init__(self, model: Model, keep: Keep, batch: int, limit: int, max_pixels: int) -> None:
        self.model, self._keep, self._batch, self._limit, self._max_pixels = model, keep, batch, limit, max_pixels
        self._counting = threading.Lock()
        self.depth = 0  # photographs that were taken and not yet answered
        self._undecoded = 0  # those of them that the judge has not seen yet
        self.pace = 0.1  # seconds a photograph, lately
        self._is_closed = False
        self._decoders = ThreadPoolExecutor(WORKERS)
        self._decoded: queue.Queue[Photograph | None] = queue.Queue(batch)  # bounded: pixels are large
        self._judged: queue.Queue[list[Photograph] | None] = queue.Queue(2)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._judge, self._write)]
        for thread in self._threads:
            thread.start()

    def check_room(self, count: int) -> None:
        """QueueFull where not so many more may wait, QueueClosed where the model is being unloaded."""
        if self._is_closed:
            raise QueueClosed("the model is being unloaded")
        if self.depth + count > self._limit:
            raise QueueFull(f"{self.depth} photographs wait already, and {self._limit} may: send it again later")

    def submit(self, photographs: Sequence[Photograph]) -> None:
        """All of them, or none: raises as ``check_room``."""
        with self._counting:
            self.check_room(len(photographs))
            self.depth += len(photographs)
            self._undecoded += len(photographs)
            for photograph in photographs:
                self._decoders.submit(self._decode, photograph)

    def close(self) -> None:
        """Answer what was taken, take no more, and end the threads."""
        with self._counting:
            self._is_closed = True
        self._decoders.shutdown()
        lines: Any = self._decoded, self._judged
        for line, thread in zip(lines, self._threads):
            line.put(None)
            thread.join()

    def _finish(self, photograph: Photograph, result: dict[str, Any] | Exception | None) -> None:
        with self._counting:
            self.depth -= 1
        if isinstance(result, Exception):
            photograph.answer.set_exception(result)
        elif result is not None:
            photograph.answer.set_result(result)

    def _decode(self, photograph: Photograph) -> None:
        problem = None
        try:
            if is_wanted := not photograph.answer.cancelled():
                self._prepare(photograph)
        except Exception as error:
            is_wanted, problem = False, error if photograph.answer.set_running_or_notify_cancel() else None
        with self._counting:  # before it is handed on: the judge, who has it then, waits for no other
            self._undecoded -= 1
        if is_wanted:
            self._decoded.put(photograph)
        else:
            self._finish(photograph, problem)

    def _prepare(self, photograph: Photograph) -> None:
        image = decode(photograph.content, photograph.name or "the upload", self._max_pixels)
        if max(image.pixels.shape[:2]) > LONGEST:
            height, width = image.pixels.shape[:2]
            raise ImageError(f"an image of {width} x {height} pixels is too long: at most {LONGEST:,} a side; cut it")
        photograph.model = self.model
        photograph.loaded = image, photograph.model.inspector.loaded(image)
        brightness, sharpness = brightness_and_sharpness(image.pixels)
        photograph.row = {
            "digest": photograph.model.digest,
            "image": hashlib.sha256(photograph.content).hexdigest(),
            "image_kept": True,
            "brightness": brightness,
            "sharpness": sharpness,
            **{name: getattr(photograph, name) for name in ("source", "name", "part")},
        }

    def _judge(self) -> None:
        is_open, inspector = True, self.model.inspector
        with suppress(Exception):  # the first verdict of a process takes long; what is wrong with it, a sender hears
            inspector(np.zeros((*inspector.preparation.input_size, 3), np.uint8))
        while is_open:
            taken, is_open = _take(self._decoded, self._batch, lambda: self._undecoded > 0)
            wanted = []
            for photograph in taken:
                if photograph.answer.set_running_or_notify_cancel():
                    wanted.append(photograph)
                else:
                    self._finish(photograph, None)
            for model, batch in groupby(wanted, key=lambda photograph: photograph.model):
                self._judge_batch(model, [*batch])

    def _judge_batch(self, model: Model, batch: list[Photograph]) -> None:
        began = time.monotonic()
        try:
            verdicts = model.inspector.judged([photograph.loaded for photograph in batch if photograph.loaded])
        except Exception as error:
            if not isinstance(error, BlemishError | MemoryError):
                log.exception("a model failed")
            for photograph in batch:
                self._finish(photograph, error)
            return
        now = time.monotonic()
        self.pace += 0.1 * ((now - began) / len(batch) - self.pace)
        for position, (photograph, verdict) in enumerate(zip(batch, verdicts)):
            said = verdict.as_dict()
            del said["path"]
            photograph.verdict, photograph.loaded = verdict, None
            waited = {"at": time.time(), "milliseconds": 1000 * (now - photograph.arrived)}
            photograph.row |= {**said, **waited, "batch": len(batch), "position": position}
        self._judged.put(batch)

    def _write(self) -> None:
        is_open = True
        while is_open:
            batches, is_open = _take(self._judged, 4)
            photographs = [photograph for batch in batches for photograph in batch]
            results: Sequence[dict[str, Any] | Exception] = []
            try:
                results = self._keep(photographs) if photographs else []
            except Exception as error:
                if not isinstance(error, BlemishError):
                    log.exception("verdicts were not kept")
                results = [error] * len(photographs)
            for photograph, result in zip(photographs, results):
                self._finish(photograph, result)
