"""What a report shows of one job: every score, and the pictures it got most wrong with map and truth.

Kept in one small file beside the ledger, in a folder that git ignores: pictures of other people's sets stay here.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blemish.data.images import read_image
from blemish.data.preprocessing import Preprocessing
from blemish.errors import DataError
from blemish.run import written_atomically
from blemish.training.evaluate import Evaluation, Judged

SHOWN = 6
"""Misses, false alarms and examples kept of each job."""
SIDE = 224
"""Pixels of the longer side that pictures are kept at."""


@dataclass(frozen=True)
class Picture:
    """One test image as the report shows it.

    Attributes:
        name: the file's, with its folder.
        kind: the defect's name, or ``good``.
        score: raw.
        pixels: ``h w 3`` uint8.
        heat: ``h w`` at the same size; None for a method without maps.
        truth: ``h w`` bool; None where no outline is known.
    """

    name: str
    kind: str
    score: float
    pixels: NDArray[np.uint8]
    heat: NDArray[np.float32] | None
    truth: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Evidence:
    """All scores of a job, and some pictures.

    Attributes:
        scores: of every test image.
        labels: True for an anomalous one.
        good_peaks: the highest map value of each good image; empty for a method without maps.
        misses: anomalous images, lowest score first.
        alarms: good images, highest score first.
        examples: bad images at even steps through the set, whatever their score: the same ones for every method.
    """

    scores: NDArray[np.float64]
    labels: NDArray[np.bool_]
    good_peaks: NDArray[np.float64]
    misses: tuple[Picture, ...]
    alarms: tuple[Picture, ...]
    examples: tuple[Picture, ...] = ()


def gather(found: Evaluation, preparation: Preprocessing) -> Evidence:
    """The evidence in an evaluation."""
    bad = sorted((one for one in found.judged if one.sample.anomalous), key=lambda one: one.score)
    good = sorted((one for one in found.judged if not one.sample.anomalous), key=lambda one: -one.score)
    named = sorted(bad, key=lambda one: one.sample.path.as_posix())
    steps = range(len(named) // (2 * SHOWN), len(named), max(1, len(named) // SHOWN))
    return Evidence(
        scores=np.array([one.score for one in found.judged], dtype=np.float64),
        labels=np.array([one.sample.anomalous for one in found.judged]),
        good_peaks=np.array([one.map.max() for one in good if one.map is not None], dtype=np.float64),
        misses=tuple(_picture(one, preparation) for one in bad[:SHOWN]),
        alarms=tuple(_picture(one, preparation) for one in good[:SHOWN]),
        examples=tuple(_picture(named[step], preparation) for step in steps[:SHOWN]),
    )


def _picture(one: Judged, preparation: Preprocessing) -> Picture:
    raster = read_image(one.sample.path)
    prepared = (preparation.prepare(raster).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    image = Image.fromarray(prepared)
    if one.map is not None and one.map.shape != prepared.shape[:2]:  # measured at the image's own size
        image = image.resize(one.map.shape[::-1], Image.Resampling.BILINEAR)
    factor = min(1.0, SIDE / max(image.size))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    heat = truth = None
    if one.map is not None:
        heat = np.asarray(Image.fromarray(one.map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    if one.mask is not None and one.sample.anomalous:
        truth = np.asarray(Image.fromarray(one.mask).resize(size, Image.Resampling.NEAREST))
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    name = f"{one.sample.path.parent.name}/{one.sample.path.name}"
    return Picture(name, one.sample.kind, one.score, pixels, heat, truth)


def save_evidence(path: Path, evidence: Evidence) -> None:
    """Write it, whole or not at all.

    Raises:
        OutputError: the folder is read-only or the disk is full.
    """
    arrays: dict[str, NDArray[Any]] = {
        "scores": evidence.scores, "labels": evidence.labels, "good_peaks": evidence.good_peaks
    }
    for role, some in (("miss", evidence.misses), ("alarm", evidence.alarms), ("example", evidence.examples)):
        for i, picture in enumerate(some):
            arrays[f"{role}{i}.words"] = np.array([picture.name, picture.kind])
            arrays[f"{role}{i}.score"] = np.array(picture.score)
            arrays[f"{role}{i}.pixels"] = picture.pixels
            if picture.heat is not None:
                arrays[f"{role}{i}.heat"] = picture.heat.astype(np.float32)
            if picture.truth is not None:
                arrays[f"{role}{i}.truth"] = picture.truth
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    with written_atomically(path) as temporary:
        temporary.write_bytes(content.getvalue())


def load_evidence(path: Path) -> Evidence:
    """What ``save_evidence`` wrote.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        return Evidence(
            arrays["scores"],
            arrays["labels"],
            arrays["good_peaks"],
            *(_some(arrays, role) for role in ("miss", "alarm", "example")),
        )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"no pictures in {path.name} ({error}): run the recipe again with --afresh for them") from error


def _some(arrays: dict[str, NDArray[Any]], role: str) -> tuple[Picture, ...]:
    found: Sequence[str] = [f"{role}{i}" for i in range(SHOWN) if f"{role}{i}.score" in arrays]
    return tuple(
        Picture(
            name=str(arrays[f"{one}.words"][0]),
            kind=str(arrays[f"{one}.words"][1]),
            score=float(arrays[f"{one}.score"]),
            pixels=arrays[f"{one}.pixels"],
            heat=arrays.get(f"{one}.heat"),
            truth=arrays.get(f"{one}.truth"),
        )
        for one in found
    )
