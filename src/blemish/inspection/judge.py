"""What turns images into verdicts, whatever computes the scores: torch, or an engine that runs an exported file.

Nothing here imports torch: this is what a station has installed.
"""

import html
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from blemish.data.images import DecodedImage, read_image
from blemish.data.preprocessing import Preprocessing
from blemish.data.readers import find_images
from blemish.data.tiles import Tiling, Window
from blemish.errors import ConfigError, ImageError
from blemish.inspection.calibration import Calibration
from blemish.inspection.description import Description
from blemish.inspection.detection import (
    KNOWN_BAD,
    PAINTED,
    UNPAINTED,
    count_known_bad,
    estimate_detection,
    painted_from,
)
from blemish.inspection.overlay import Scale, fixed_scale
from blemish.inspection.regions import Region, find_regions
from blemish.inspection.verdict import Verdict, on_screen

Source = str | Path | bytes | Image | NDArray[Any]
LEARNED_KEYS = "learned_keys"  # in the provenance: those of images that it must not be calibrated on
MANY = (LEARNED_KEYS, PAINTED, UNPAINTED, KNOWN_BAD)  # with a value an image, which ``info`` sums up
BATCH, WORKERS = 8, 4

T = TypeVar("T")
Map = NDArray[np.float32]
OnError = Callable[[Any, ImageError], None] | None


@dataclass(frozen=True)
class Scored(Generic[T]):
    """One item of a stream: its image, None where one came prepared; as prepared; raw score and map."""

    item: T
    image: DecodedImage | None
    prepared: Any
    score: float
    map: Map | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Judge(ABC):
    """All that is needed to judge images. Thread-safe: judging changes nothing.

    Attributes:
        name: the method's name in the registry.
        preparation: how an image becomes a tensor, and a map becomes a heat map.
        calibration: what scores mean.
        provenance: what it was learned from and by, JSON-able, without paths.
        smallest_area: regions of fewer original pixels are not reported.
        pixel: millimetres of the part that a pixel is wide; None where nobody said.
    """

    name: str
    preparation: Preprocessing
    calibration: Calibration = field(default_factory=Calibration)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    smallest_area: float = 1
    pixel: float | None = None

    @abstractmethod
    def recipe(self) -> dict[str, Any]:
        """``method``, its ``config``, ``backbone`` and ``preparation``, as a model file has them."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What ``info`` tells besides: JSON-able."""

    @abstractmethod
    def prepared(self, image: DecodedImage) -> Any:
        """What ``computed`` takes; an ImageError where the image is not of the kind that was learned."""

    @abstractmethod
    def computed(self, prepared: Sequence[Any]) -> Iterable[tuple[float, Map | None]]:
        """Raw score and map, at the input's size, of each."""

    def __call__(self, image: Source) -> Verdict:
        """Judge one image: a path, encoded bytes, a PIL image, or an array (h w or h w c, RGB, uint8 or uint16)."""
        (verdict,) = self.many([image])
        return verdict

    def many(
        self, images: str | Path | Iterable[Source], batch_size: int = BATCH, on_error: OnError = None
    ) -> Iterator[Verdict]:
        """Judge many images in order, or those of a folder or pattern, ``batch_size`` together, decoding ahead.

        Scores equal those of single calls up to the rounding of batched products (about 1e-5 relative). ``on_error`` is
        called for an image that cannot be read, which is then left out; without it the ImageError is raised.
        """
        images = find_images(images) if isinstance(images, str | Path) else images
        for scored in self.stream(images, read_image, batch_size, on_error):
            yield self._verdict(scored)

    def stream(
        self, items: Iterable[T], read: Callable[[T], Any], batch_size: int = BATCH, on_error: OnError = None
    ) -> Iterator[Scored[T]]:
        """As ``many``, of any items: each with its image, raw score and map. Takes at most two batches ahead.

        ``read``, in threads, gives an item's image, to be prepared, or what is so already. Images that are cut into
        tiles are taken one by one, ``batch_size`` tiles together; their maps have their own size.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}: at least 1 is needed")

        def load(item: T) -> tuple[DecodedImage | None, Any]:
            image = read(item)
            return (image, self.loaded(image)) if isinstance(image, DecodedImage) else (None, image)

        remaining, together = iter(items), batch_size if self.preparation.tiling is None else 1
        with ThreadPoolExecutor(WORKERS) as pool:
            batches = iter(lambda: [(item, pool.submit(load, item)) for item in islice(remaining, together)], [])
            following = next(batches, [])
            while batch := following:
                following = next(batches, [])
                readable = []
                for item, future in batch:
                    try:
                        readable.append((item, *future.result()))
                    except ImageError as error:
                        if on_error is None:
                            raise
                        on_error(item, error)
                found = self._scored([(image, prepared) for _, image, prepared in readable], batch_size, pool.map)
                for (item, image, prepared), (score, map_) in zip(readable, found):
                    yield Scored(item, image, prepared, score, map_)

    def loaded(self, image: DecodedImage) -> Any:
        """What ``judged`` takes beside an image: as prepared, or its tiles; an ImageError as of ``prepared``."""
        if self.preparation.tiling is None:
            return self.prepared(image)
        self.preparation.check(image)
        return self.preparation.cut(image)

    def judged(self, images: Sequence[tuple[DecodedImage, Any]]) -> list[Verdict]:
        """Judge together images that were ``loaded`` before, each with what that gave, in this thread alone."""
        found = zip(images, self._scored(images, BATCH, map))
        return [self._verdict(Scored(image.pixels, image, prepared, *one)) for (image, prepared), one in found]

    def _scored(
        self, images: Sequence[tuple[DecodedImage | None, Any]], batch_size: int, run: Callable[..., Iterator[Any]]
    ) -> Iterable[tuple[float, Map | None]]:
        """Raw score and map of each; ``run`` maps a function over tiles."""
        tiling = self.preparation.tiling
        if tiling is None or not all(image for image, _ in images):
            return self.computed([prepared for _, prepared in images]) if images else ()
        return [self._of_tiles(tiling, image, tiles, run, batch_size) for image, tiles in images if image is not None]

    def _of_tiles(
        self, tiling: Tiling, image: DecodedImage, tiles: Sequence[DecodedImage], run: Any, batch_size: int
    ) -> tuple[float, Map | None]:
        """The largest score of an image's tiles, each by the method's own rule, and their maps blended.

        A score from the blended map would need a rule of its own, as methods score by more than their maps.
        """
        scores, windows, roi = list[float](), self.preparation.windows(image.size), self.preparation.roi

        def maps() -> Iterator[tuple[Window, Map]]:
            for start in range(0, len(tiles), batch_size):
                some = tiles[start : start + batch_size]
                found = self.computed([*run(self.prepared, some)])
                for window, tile, (score, map_) in zip(windows[start:], some, found):
                    scores.append(score)
                    if map_ is not None:
                        yield window, self.preparation.to_original(map_, tile.size)

        blended = tiling.blend(image.size, maps())
        return float(np.max(scores)), blended if blended is None or roi is None else roi.clear(blended)

    @cached_property
    def scale(self) -> Scale | None:
        """The one colour scale of every picture this model makes; None while there is no pixel threshold."""
        threshold, max_map_values = self.calibration.pixel_threshold, self.calibration.max_map_values
        return None if threshold is None or max_map_values is None else fixed_scale(threshold, max_map_values)

    def __repr__(self) -> str:
        """Three lines: what it is, what it learned from, what it promises."""
        size, made = " x ".join(map(str, self.preparation.input_size)), self.provenance
        return (
            f"{type(self).__name__}: {self.name} on {self.recipe()['backbone'].get('name')}, which sees {size} pixels\n"
            f"learned from {made.get('images_learned', 'unknown')} images of {made.get('data', 'a set')}, "
            f"rejects scores above {self.calibration.threshold}\n{self.promise}"
        )

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{html.escape(repr(self))}</pre>"

    def info(self) -> dict[str, Any]:
        """What this model is, as JSON has it: method, data, promise, sizes, digests."""
        calibration = self.calibration
        facts = {
            **self.recipe(),
            "promise": self.promise,
            "threshold": calibration.threshold,
            "review_threshold": calibration.review_threshold,
            "pixel_threshold": calibration.pixel_threshold,
            **self.facts(),
            **{name: value for name, value in self.provenance.items() if name not in MANY},
            "would_find": self.would_find,
            "known_bad_found": count_known_bad(self.provenance, calibration),
        }
        listed: dict[str, Any] = json.loads(json.dumps(facts))  # without tuples
        listed["preparation"].get("roi", {}).pop("mask", None)
        return listed

    @cached_property
    def would_find(self) -> dict[str, Any]:
        """What it decides of defects painted on good images that it did not learn from; empty where none were."""
        return estimate_detection(painted_from(self.provenance), self.calibration)

    @property
    def promise(self) -> str:
        """Both errors in plain words: the share of good parts rejected, and what it finds of painted defects."""
        words = self.calibration.sentence(self.would_find.get("of_bad", ""))
        return f"{words} {self.would_find.get('sentence', '')}".rstrip()

    def _verdict(self, scored: Scored[Source]) -> Verdict:
        image, map_, score, calibration = scored.image, scored.map, scored.score, self.calibration
        if image is None:
            raise TypeError("a verdict is of an image, not of a prepared tensor: give it as an array h w c")
        preparation, known, threshold = self.preparation, calibration.kind != "none", calibration.pixel_threshold
        if map_ is not None and not np.isfinite(map_).all():
            map_ = None  # it shows nothing; its score is no better and is rejected
        heatmap: Callable[[], Any] = cache(lambda: None if map_ is None else preparation.to_original(map_, image.size))
        regions: tuple[Region, ...] = ()
        # Resizing never exceeds the map's maximum, so a map below the threshold needs none.
        if map_ is not None and threshold is not None and float(map_.max()) > threshold:
            regions = find_regions(heatmap(), threshold, self.smallest_area)
        return Verdict(
            source=str(scored.item) if isinstance(scored.item, (str, Path)) else None,
            score=score,
            p_value=calibration.p_value(score) if known else None,
            decision=calibration.decide(score) if known else None,
            regions=regions,
            size=image.size,
            scale=self.scale,
            make_pixels=lambda: on_screen(image, preparation.white_level),
            make_heatmap=heatmap,
            pixel=self.pixel,
            inside=None if preparation.roi is None else preparation.roi.mask,
        )


def described(description: Description, calibration_tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The fields of a ``Judge``, as a file's description gives them."""
    return {
        "name": description.method,
        "preparation": Preprocessing.from_dict(description.preparation.model_dump()),
        "calibration": Calibration.from_tensors(calibration_tensors, description.calibration),
        "provenance": description.provenance.model_dump(exclude_unset=True),
        "smallest_area": description.smallest_area,
        "pixel": description.pixel,
    }
