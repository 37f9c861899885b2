"""An inspector whose scores and maps an engine computes, from one exported file, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.data.images import DecodedImage
from blemish.data.preprocessing import Preprocessing
from blemish.errors import BlemishError, ModelFileError
from blemish.inspection.calibration import Calibration
from blemish.inspection.description import Exported
from blemish.inspection.engines import EngineName, Session, judged, open_session
from blemish.inspection.exported_file import read_exported
from blemish.inspection.judge import Judge, Map

TOGETHER = 8 * 1024**2  # pixels that are judged at once, where several images of one size follow each other


@dataclass(frozen=True, repr=False)
class ExportedInspector(Judge):
    """What an exported file holds, on an engine. Thread-safe: judging changes nothing.

    It judges as the inspector that it was exported from, and has its calibration, promise and provenance; a threshold
    is set in the file that learned, which is then exported again. Float images are rounded to the depth it takes.
    """

    session: Session
    about: Exported  # what the file says of itself
    name: str
    preparation: Preprocessing
    calibration: Calibration
    provenance: Mapping[str, Any]
    smallest_area: float = 1
    pixel: float | None = None

    def recipe(self) -> dict[str, Any]:
        """Method and config, backbone and preparation, as the file has them."""
        recipe = self.about.model_dump(include={"method", "config", "backbone", "pixel"})
        return recipe | {"preparation": self.preparation.to_dict()}

    def facts(self) -> dict[str, Any]:
        """How it was exported, and what runs it."""
        return {"engine": self.session.engine, "export": self.about.export}

    def prepared(self, image: DecodedImage) -> NDArray[Any]:
        """``h w 3`` pixels of the type and scale that the graph takes."""
        self.preparation.check(image)
        if (roi := self.preparation.roi) is not None and self.preparation.tiling is None:
            image = roi.cover(image, self.preparation.white_level)
        white = self.preparation.white_level
        its_white = {8: 255, 16: white, 32: 1}[image.bits]
        scaled = image.pixels if its_white == white else np.rint(image.pixels * (white / its_white))
        return np.ascontiguousarray(np.minimum(scaled, white), dtype=self.session.dtype)

    def computed(self, prepared: Sequence[NDArray[Any]]) -> Iterator[tuple[float, Map | None]]:
        """Raw score and map, at the image's own size, of each."""
        for _, group in groupby(prepared, key=lambda pixels: pixels.shape):
            same = list(group)
            each = max(1, TOGETHER * 3 // same[0].size)
            for start in range(0, len(same), each):
                yield from zip(*judged(self.session, np.stack(same[start : start + each])))

    def at_original(self, map_: Map, size: tuple[int, int]) -> Map:
        """The map itself, as the graph gives it at the image's own size, with the region of interest respected."""
        roi = self.preparation.roi
        return map_ if roi is None or self.preparation.tiling is not None else roi.clear(map_)


def load_exported(path: Path, engine: EngineName = "auto", threads: int | None = None) -> ExportedInspector:
    """The inspector in an exported file; a ModelFileError where it is damaged, changed or not ours."""
    description = read_exported(path)
    session = open_session(path, engine, threads, str(description.export.get("precision", "fp32")))
    try:
        preparation = Preprocessing.from_dict(description.preparation.model_dump())
        arrays = {name: np.array(values) for name, values in description.calibration_tensors.items()}
        calibration = Calibration.from_tensors(arrays, description.calibration)
    except ModelFileError:
        raise
    except (BlemishError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} does not hold what this Blemish expects ({error}): export it again") from error
    made, smallest = description.provenance.model_dump(exclude_unset=True), description.smallest_area
    rest = (preparation, calibration, made, smallest, description.pixel)
    return ExportedInspector(session, description, description.method, *rest)
