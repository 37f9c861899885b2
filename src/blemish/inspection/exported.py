"""An inspector whose scores and maps an engine computes, from one exported file, without torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blemish.data.images import DecodedImage
from blemish.errors import BlemishError, ModelFileError
from blemish.inspection.description import Exported
from blemish.inspection.engines import EngineName, Session, judged, open_session
from blemish.inspection.exported_file import read_exported
from blemish.inspection.judge import Judge, Map, described


@dataclass(frozen=True, kw_only=True, repr=False)
class ExportedInspector(Judge):
    """What an exported file holds, on an engine. Thread-safe: judging changes nothing.

    It judges as the inspector that it was exported from, and has its calibration, promise and provenance; a threshold
    is set in the file that learned, which is then exported again.
    """

    session: Session
    about: Exported  # what the file says of itself

    def recipe(self) -> dict[str, Any]:
        """Method and config, backbone and preparation, as the file has them."""
        recipe = self.about.model_dump(include={"method", "config", "backbone", "pixel"})
        return recipe | {"preparation": self.preparation.to_dict()}

    def facts(self) -> dict[str, Any]:
        """How it was exported, and what runs it."""
        return {"engine": self.session.engine, "export": self.about.export}

    def prepared(self, image: DecodedImage) -> NDArray[Any]:
        """``h w c`` at the input's size, as the method takes it but for type and order."""
        return self.preparation.pixels(image)

    def computed(self, prepared: Sequence[NDArray[Any]]) -> Iterable[tuple[float, Map | None]]:
        """Raw score and map, at the input's size, of each."""
        return zip(*judged(self.session, prepared))


def load_exported(path: Path, engine: EngineName = "auto", threads: int | None = None) -> ExportedInspector:
    """The inspector in an exported file; a ModelFileError where it is damaged, changed or not ours."""
    description = read_exported(path)
    how = (str(description.export.get(name, usual)) for name, usual in (("precision", "fp32"), ("fastest", "")))
    session = open_session(path, engine, threads, *how)
    try:
        arrays = {name: np.array(values) for name, values in description.calibration_tensors.items()}
        return ExportedInspector(session=session, about=description, **described(description, arrays))
    except ModelFileError:
        raise
    except (BlemishError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path} does not hold what this Blemish expects ({error}): export it again") from error
