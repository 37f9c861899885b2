"""From photographs that wait to verdicts that are kept: one line of threads for each model.

Decoders take what waits, a judge takes up to ``batch`` of what is decoded, and a writer keeps them in one transaction
while the next ones are judged. Only then does a sender hear of its verdict. What waits is bounded: more is refused at
once. What nobody waits for any longer is dropped before it is judged.
"""

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.data.images import decode as decode_file
from blemish.errors import BlemishError, ImageError
from blemish.inspection.judge import Judge
from blemish.inspection.verdict import Verdict

DECODERS = 2
log = logging.getLogger("blemish.server")


class Full(BlemishError):
    """As many photographs wait as may."""


class Closed(BlemishError):
    """The model is being unloaded."""


@dataclass(frozen=True)
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
    digest: str = ""
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[dict[str, Any]] = field(default_factory=Future)
    pixels: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    light: tuple[float, float] = (0.0, 0.0)
    verdict: Verdict | None = None
    row: dict[str, Any] = field(default_factory=dict)


def light_of(pixels: NDArray[Any]) -> tuple[float, float]:
    """Brightness, a share of white, and sharpness: the mean step between neighbours, as a share of brightness."""
    white = {"uint8": 255, "uint16": 65535}.get(pixels.dtype.name, 1)
    rows = pixels[:: max(1, len(pixels) // 256)]
    grey = rows[..., 1].astype(np.float32) if rows.ndim == 3 else rows.astype(np.float32)
    brightness = float(grey.mean())
    steps = float(np.abs(np.diff(grey, axis=1)).mean())
    return brightness / white, steps / max(brightness, 1e-6 * white)


def decode(content: bytes, max_pixels: int, name: str = "") -> NDArray[Any]:
    """An array that an inspector takes as it would take the file; an ImageError where there is no image."""
    image = decode_file(content, name or "the image")
    if image.size[0] * image.size[1] > max_pixels:
        size = f"{image.size[1]} x {image.size[0]} pixels"
        raise ImageError(f"the image has {size}, more than the {max_pixels:,} that this station takes: shrink it")
    return image.pixels[..., 0] if image.grey else image.pixels


Keep = Callable[[Sequence[Photograph]], list[dict[str, Any]]]


class JudgeQueue:
    """The threads of one model, which may be swapped while they work.

    ``keep`` writes judged photographs and returns their answers.
    """

    def __init__(self, model: Model, keep: Keep, batch: int, limit: int, max_pixels: int) -> None:
        self.model, self._keep, self._batch, self._limit, self._max_pixels = model, keep, batch, limit, max_pixels
        self._counting = threading.Lock()
        self.depth = 0  # photographs that were taken and not yet answered
        self.pace = 0.1  # seconds a photograph, lately
        self._is_closed = False
        self._waiting: queue.SimpleQueue[Photograph | None] = queue.SimpleQueue()
        self._decoded: queue.Queue[Photograph | None] = queue.Queue(batch)  # bounded: pixels are large
        self._judged: queue.Queue[list[Photograph] | None] = queue.Queue(2)
        work = [self._decode] * DECODERS + [self._judge, self._write]
        self._threads = [threading.Thread(target=target, daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def submit(self, photographs: Sequence[Photograph]) -> None:
        """All of them, or none: Full where not all may wait, Closed where the model is being unloaded."""
        with self._counting:
            if self._is_closed:
                raise Closed("the model is being unloaded")
            if self.depth + len(photographs) > self._limit:
                raise Full(f"{self.depth} photographs wait already, and {self._limit} may: send it again later")
            self.depth += len(photographs)
            for photograph in photographs:
                self._waiting.put(photograph)

    def close(self) -> None:
        """Answer what was taken, take no more, and end the threads."""
        with self._counting:
            self._is_closed = True
        for _ in range(DECODERS):
            self._waiting.put(None)
        for thread in self._threads[:DECODERS]:
            thread.join()
        self._decoded.put(None)
        self._threads[DECODERS].join()
        self._judged.put(None)
        self._threads[-1].join()

    def _finish(self, photograph: Photograph, result: dict[str, Any] | Exception | None) -> None:
        with self._counting:
            self.depth -= 1
        if isinstance(result, Exception):
            photograph.answer.set_exception(result)
        elif result is not None:
            photograph.answer.set_result(result)

    def _decode(self) -> None:
        while (photograph := self._waiting.get()) is not None:
            if photograph.answer.cancelled():
                self._finish(photograph, None)
                continue
            try:
                photograph.pixels = decode(photograph.content, self._max_pixels, photograph.name)
                photograph.light = light_of(photograph.pixels)
                photograph.digest = hashlib.sha256(photograph.content).hexdigest()
            except Exception as error:
                refused = photograph.answer.set_running_or_notify_cancel()
                self._finish(photograph, error if refused else None)
                continue
            self._decoded.put(photograph)

    def _judge(self) -> None:
        is_open = True
        while is_open:
            taken = [self._decoded.get()]
            while len(taken) < self._batch and taken[-1] is not None and not self._decoded.empty():
                taken.append(self._decoded.get())
            is_open = taken[-1] is not None
            batch = []
            for photograph in taken:
                if photograph is not None and photograph.answer.set_running_or_notify_cancel():
                    batch.append(photograph)
                elif photograph is not None:
                    self._finish(photograph, None)
            if batch:
                self._judge_batch(batch)

    def _judge_batch(self, batch: list[Photograph]) -> None:
        model, began = self.model, time.monotonic()
        refused: dict[int, ImageError] = {}
        pixels = [photograph.pixels for photograph in batch]
        try:
            verdicts = list(
                model.inspector.many(
                    pixels, self._batch, on_error=lambda item, error: refused.update({id(item): error})
                )
            )
        except Exception as error:
            if not isinstance(error, BlemishError | MemoryError):
                log.exception("a model failed")
            for photograph in batch:
                self._finish(photograph, error)
            return
        for photograph in batch:
            if (problem := refused.get(id(photograph.pixels))) is not None:
                self._finish(photograph, problem)
        batch = [photograph for photograph in batch if id(photograph.pixels) not in refused]
        now = time.monotonic()
        self.pace += 0.1 * ((now - began) / len(pixels) - self.pace)
        for position, (photograph, verdict) in enumerate(zip(batch, verdicts)):
            said = verdict.as_dict()
            del said["path"]
            photograph.verdict = verdict
            photograph.row = {
                **said,
                "at": time.time(),
                "digest": model.digest,
                "image": photograph.digest,
                "image_kept": True,
                "source": photograph.source,
                "name": photograph.name,
                "part": photograph.part,
                "brightness": photograph.light[0],
                "sharpness": photograph.light[1],
                "milliseconds": 1000 * (now - photograph.arrived),
                "batch": len(batch),
                "position": position,
            }
        if batch:
            self._judged.put(batch)

    def _write(self) -> None:
        while (batch := self._judged.get()) is not None:
            results: Sequence[dict[str, Any] | Exception]
            try:
                results = self._keep(batch)
            except Exception as error:
                if not isinstance(error, BlemishError):
                    log.exception("verdicts were not kept")
                results = [error] * len(batch)
            for photograph, result in zip(batch, results):
                self._finish(photograph, result)
