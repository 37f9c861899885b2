"""Test sets and their masks. Only evaluation and the bench may import this module: a fit cannot peek."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from blemish.data.images import read_image
from blemish.data.manifest import read_manifest
from blemish.data.readers import Groups, contents, folders_in, images_in, natural_key
from blemish.data.samples import Sample
from blemish.errors import DataError

if TYPE_CHECKING:
    from blemish.contract import Label


@dataclass(frozen=True)
class TestSet:
    """The images a model is judged on.

    Attributes:
        name: for people.
        root: the folder it was read from.
        samples: good images first, then kind by kind, in natural order.
        notes: what a person should be told, one line each.
    """

    __test__: ClassVar[bool] = False

    name: str
    root: Path
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()


def open_test_set(data: Path) -> TestSet:
    """The test images of a layout folder (``test/good``, ``test/<kind>``, ``ground_truth/<kind>``) or of a manifest.

    Raises:
        DataError: there is no test image, or ``data`` is neither.
        ManifestError: the manifest names what it may not, or lacks a column.
    """
    data = Path(data)
    if data.is_dir():
        return _open_folder(data)
    if data.is_file() and data.suffix.casefold() == ".csv":
        return _open_rows(data)
    problem = "is a file, but not a .csv manifest" if data.exists() else "does not exist"
    raise DataError(f"{data} {problem}: a folder with test/good and test/<kind>, or a manifest, is needed.")


def load_mask(sample: Sample, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the image is defective: bool ``h w`` at the image's own size. Every value above 0 counts.

    Args:
        sample: a good image has an empty mask.
        size: height and width of the image.

    Raises:
        DataError: an anomalous image without a mask, or a mask of another size than its image.
    """
    if not sample.anomalous:
        return np.zeros(size, dtype=np.bool_)
    if sample.mask is None:
        raise DataError(f"{sample.path} is anomalous and has no mask: pixel metrics need one for every such image.")
    # Before any resizing: resizing first would thin out or lose small defects.
    image = read_image(sample.mask)
    if image.size != tuple(size):
        raise DataError(
            f"the mask {sample.mask} has {image.size[1]} x {image.size[0]} pixels, its image {sample.path} "
            f"{size[1]} x {size[0]}: they must be equal."
        )
    planes = image.pixels[..., :1] if image.grey else image.pixels
    return np.asarray((planes > 0).any(axis=2))


def _open_folder(data: Path) -> TestSet:
    test = data / "test"
    if not test.is_dir():
        raise DataError(f"{data} has no folder test ({contents(data)}): test/good and test/<kind> are needed.")
    groups = Groups(data)
    samples: list[Sample] = []
    for folder in sorted(folders_in(test), key=lambda folder: (folder.name != "good", natural_key(folder))):
        label: Label = "normal" if folder.name == "good" else "anomalous"
        masks = _masks_of(data / "ground_truth" / folder.name) if label == "anomalous" else {}
        samples += [
            Sample(path, label, "test", folder.name, groups.of(path), masks.get(path.stem))
            for path in images_in(folder)
        ]
    if not samples:
        raise DataError(f"{test} holds no test image ({contents(test)}): test/good and test/<kind> are needed.")
    notes = (*_notes(samples), *groups.notes(sample.path for sample in samples))
    return TestSet(data.resolve().name, data, tuple(samples), notes)


def _masks_of(folder: Path) -> dict[str, Path]:
    """From an image's stem to its mask, ``<stem>_mask`` or ``<stem>``."""
    if not folder.is_dir():
        return {}
    masks = {path.stem: path for path in images_in(folder)}
    return masks | {stem.removesuffix("_mask"): path for stem, path in masks.items() if stem.endswith("_mask")}


def _open_rows(manifest: Path) -> TestSet:
    samples = [sample for sample in read_manifest(manifest, ground_truth=True) if sample.split == "test"]
    if not samples:
        raise DataError(f"{manifest} lists no test image: rows with split test are needed.")
    samples.sort(key=lambda sample: (sample.anomalous, sample.kind, natural_key(sample.path)))
    return TestSet(manifest.stem, manifest.parent, tuple(samples), tuple(_notes(samples)))


def _notes(samples: list[Sample]) -> list[str]:
    anomalous = [sample for sample in samples if sample.anomalous]
    unmasked = sum(sample.mask is None for sample in anomalous)
    notes = [f"{unmasked} of {len(anomalous)} bad test images have no mask"] * (0 < unmasked < len(anomalous))
    for missing, number in (("good", len(samples) - len(anomalous)), ("bad", len(anomalous))):
        if not number:
            notes.append(f"there is no {missing} test image: ranking metrics need both")
    return notes
