"""Test sets and their masks. Only evaluation and the bench may import this module: a fit cannot peek."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from blemish.data.images import read_image
from blemish.data.manifest import read_manifest
from blemish.data.readers import contents, folders_in, grouped, images_in, natural_key
from blemish.data.samples import Sample
from blemish.errors import DataError

if TYPE_CHECKING:
    from blemish.contract import Label


@dataclass(frozen=True)
class TestSet:
    """The images a model is judged on."""

    __test__: ClassVar[bool] = False

    name: str  # for people
    root: Path  # the folder it was read from
    samples: tuple[Sample, ...]  # good images first, then kind by kind, in natural order
    notes: tuple[str, ...] = ()  # what a person should be told, one line each


def open_test_set(data: Path) -> TestSet:
    """The test images of a layout folder (``test/good``, ``test/<kind>``, ``ground_truth/<kind>``) or of a manifest.

    Raises:
        DataError: there is no test image, or ``data`` is neither.
        ManifestError: the manifest names what it may not, or lacks a column.
    """
    data, missing_groups = Path(data), list[str]()
    name, root, samples = data.stem, data.parent, list[Sample]()
    if data.is_dir():
        name, root, test = data.resolve().name, data, data / "test"
        if not test.is_dir():
            raise DataError(f"{data} has no folder test ({contents(data)}): test/good and test/<kind> are needed.")
        for folder in sorted(folders_in(test), key=lambda folder: (folder.name != "good", natural_key(folder))):
            label: Label = "normal" if folder.name == "good" else "anomalous"
            truth = data / "ground_truth" / folder.name
            masks = {path.stem: path for path in images_in(truth)} if label == "anomalous" and truth.is_dir() else {}
            for path in images_in(folder):
                mask = masks.get(f"{path.stem}_mask", masks.get(path.stem))
                samples.append(Sample(path, label, "test", folder.name, mask=mask))
        if not samples:
            raise DataError(f"{test} holds no test image ({contents(test)}): test/good and test/<kind> are needed.")
        samples, missing_groups = grouped(data, samples)
    elif data.is_file() and data.suffix.casefold() == ".csv":
        samples = [sample for sample in read_manifest(data, ground_truth=True) if sample.split == "test"]
        if not samples:
            raise DataError(f"{data} lists no test image: rows with split test are needed.")
        samples.sort(key=lambda sample: (sample.anomalous, sample.kind, natural_key(sample.path)))
    else:
        problem = "is a file, but not a .csv manifest" if data.exists() else "does not exist"
        raise DataError(f"{data} {problem}: a folder with test/good and test/<kind>, or a manifest, is needed.")
    anomalous = [sample for sample in samples if sample.anomalous]
    unmasked = sum(sample.mask is None for sample in anomalous)
    notes = [f"{unmasked} of {len(anomalous)} bad test images have no mask"] * (0 < unmasked < len(anomalous))
    if len(anomalous) in (0, len(samples)):
        notes.append(f"there is no {'good' if anomalous else 'bad'} test image: ranking metrics need both")
    return TestSet(name, root, tuple(samples), (*notes, *missing_groups))


def load_mask(sample: Sample, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the image is defective: bool ``h w`` at the image's own ``size``. Every value above 0 counts.

    A normal image has an empty mask.

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
        problem = f"the mask {sample.mask} has {image.size[1]} x {image.size[0]} pixels"
        raise DataError(f"{problem}, its image {sample.path} {size[1]} x {size[0]}: they must be equal.")
    planes = image.pixels[..., :1] if image.grey else image.pixels
    return np.asarray((planes > 0).any(axis=2))
