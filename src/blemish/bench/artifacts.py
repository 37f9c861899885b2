"""What a report shows of one row: every score, and the pictures it got most wrong with map and truth.

Kept in one small file beside the ledger, in a folder that git ignores: pictures of other people's sets stay here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blemish.data.images import read_image
from blemish.data.preprocessing import Preprocessing
from blemish.errors import DataError
from blemish.run import written_atomically
from blemish.training.evaluate import Evaluation, ScoredSample

SHOWN, SIDE = 6, 224
"""Pictures kept of each role in a row, and the pixels of their longer side."""
Role = Literal["miss", "alarm", "example"]
"""Anomalous images, lowest score first; normal ones, highest first; the same anomalous ones for every method."""


@dataclass(frozen=True)
class Picture:
    name: str  # the file's, with its folder
    kind: str  # the defect's name, or ``good``
    score: float
    pixels: NDArray[np.uint8]  # h w 3
    heat: NDArray[np.float32] | None  # h w; None for a method without maps
    truth: NDArray[np.bool_] | None  # h w; None where no outline is known


@dataclass(frozen=True)
class Artifacts:
    scores: NDArray[np.float64]
    labels: NDArray[np.bool_]  # True for an anomalous image
    good_peaks: NDArray[np.float64]  # the highest map value of each normal image; empty for a method without maps
    pictures: Mapping[Role, Sequence[Picture]]


def gather(found: Evaluation, preparation: Preprocessing) -> Artifacts:
    ranked = sorted(found.judged, key=lambda judged: judged.score)
    anomalous = [judged for judged in ranked if judged.sample.anomalous]
    normal = [judged for judged in reversed(ranked) if not judged.sample.anomalous]
    named = sorted(anomalous, key=lambda judged: judged.sample.path.as_posix())
    steps = range(len(named) // (2 * SHOWN), len(named), max(1, len(named) // SHOWN))
    chosen: dict[Role, list[ScoredSample]] = {
        "miss": anomalous,
        "alarm": normal,
        "example": [named[step] for step in steps],
    }
    return Artifacts(
        scores=np.array([judged.score for judged in found.judged], dtype=np.float64),
        labels=np.array([judged.sample.anomalous for judged in found.judged]),
        good_peaks=np.array([judged.map.max() for judged in normal if judged.map is not None], dtype=np.float64),
        pictures={role: [_picture(image, preparation) for image in images[:SHOWN]] for role, images in chosen.items()},
    )


def _picture(judged: ScoredSample, preparation: Preprocessing) -> Picture:
    sample, heat, truth = judged.sample, judged.map, None
    prepared = preparation.prepare(read_image(sample.path)).permute(1, 2, 0).numpy()
    image = Image.fromarray((prepared * 255).round().astype(np.uint8))
    if heat is not None and heat.shape != prepared.shape[:2]:  # measured at the image's own size
        image = image.resize(heat.shape[::-1], Image.Resampling.BILINEAR)
    factor = min(1.0, SIDE / max(image.size))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    if heat is not None:
        heat = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    if judged.mask is not None and sample.anomalous:
        truth = np.asarray(Image.fromarray(judged.mask).resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    return Picture(f"{sample.path.parent.name}/{sample.path.name}", sample.kind, judged.score, pixels, heat, truth)


def save_artifacts(path: Path, artifacts: Artifacts) -> None:
    arrays: dict[str, Any] = {name: getattr(artifacts, name) for name in ("scores", "labels", "good_peaks")}
    for role, pictures in artifacts.pictures.items():
        for i, picture in enumerate(pictures):
            arrays[f"{role}{i}.words"] = [picture.name, picture.kind]
            for name in ("score", "pixels", "heat", "truth"):
                if getattr(picture, name) is not None:
                    arrays[f"{role}{i}.{name}"] = getattr(picture, name)
    with written_atomically(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_artifacts(path: Path) -> Artifacts:
    """What ``save_artifacts`` wrote; a ``DataError`` where nothing whole is there."""
    pictures: dict[Role, list[Picture]] = {"miss": [], "alarm": [], "example": []}
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        for role, shown in pictures.items():
            for name in (f"{role}{i}" for i in range(SHOWN) if f"{role}{i}.score" in arrays):
                (file_name, kind), score = arrays[f"{name}.words"].tolist(), float(arrays[f"{name}.score"])
                heat, truth = arrays.get(f"{name}.heat"), arrays.get(f"{name}.truth")
                shown.append(Picture(file_name, kind, score, arrays[f"{name}.pixels"], heat, truth))
        return Artifacts(arrays["scores"], arrays["labels"], arrays["good_peaks"], pictures)
    except Exception as error:  # NumPy, zipfile and zlib raise nearly anything where a file is damaged
        raise DataError(f"no pictures in {path.name} ({error}): --afresh makes them once more") from error
