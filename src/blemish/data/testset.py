"""Test sets and their masks. Only evaluation and the bench may import this module: a fit cannot peek."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from blemish.data.folders import Groups, folders_in, found_in, images_in, natural_key
from blemish.data.images import read_image
from blemish.data.manifest import Row, inside, read_manifest
from blemish.errors import DataError, ManifestError


@dataclass(frozen=True)
class TestSample:
    """One test image with what is true of it.

    Attributes:
        path: the file.
        anomalous: whether it shows a defect: by its folder or label, never by its mask.
        kind: the defect's name, or ``good``.
        group: the part it shows.
        mask: where the defect is, for an anomalous image whose outline is known.
    """

    __test__: ClassVar[bool] = False  # else pytest takes the class for a test

    path: Path
    anomalous: bool
    kind: str
    group: str
    mask: Path | None


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
    samples: tuple[TestSample, ...]
    notes: tuple[str, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Every anomalous image has a mask, and there is one: pixel metrics can be computed."""
        masks = [sample.mask for sample in self.samples if sample.anomalous]
        return bool(masks) and None not in masks

    def summary(self) -> str:
        """One line: how many good and bad images and masks, in how many groups, of which kinds."""
        bad = [sample for sample in self.samples if sample.anomalous]
        kinds = ", ".join(f"{kind} {number}" for kind, number in sorted(Counter(s.kind for s in bad).items()))
        groups = len({sample.group for sample in self.samples})
        return (
            f"{len(self.samples) - len(bad)} good and {len(bad)} bad test images in {groups} groups, "
            f"{sum(sample.mask is not None for sample in bad)} with masks" + (f" ({kinds})" if kinds else "")
        )


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
    given = "is a file, but not a .csv manifest" if data.exists() else "does not exist"
    raise DataError(f"{data} {given}: a folder with test/good and test/<kind>, or a manifest, is needed.")


def load_mask(sample: TestSample, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
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
    raster = read_image(sample.mask)
    if raster.size != tuple(size):
        raise DataError(
            f"the mask {sample.mask} has {raster.size[1]} x {raster.size[0]} pixels, its image {sample.path} "
            f"{size[1]} x {size[0]}: they must be equal."
        )
    planes = raster.pixels[..., :1] if raster.grey else raster.pixels
    return np.asarray((planes > 0).any(axis=2))


def _open_folder(data: Path) -> TestSet:
    test = data / "test"
    if not test.is_dir():
        raise DataError(f"{data} has no folder test ({found_in(data)}): test/good and test/<kind> are needed.")
    groups = Groups(data)
    samples: list[TestSample] = []
    for folder in sorted(folders_in(test), key=lambda folder: (folder.name != "good", natural_key(folder))):
        is_bad = folder.name != "good"
        masks = _masks_of(data / "ground_truth" / folder.name) if is_bad else {}
        samples += [
            TestSample(path, is_bad, folder.name, groups.of(path), masks.get(path.stem)) for path in images_in(folder)
        ]
    if not samples:
        raise DataError(f"{test} holds no test image ({found_in(test)}): test/good and test/<kind> are needed.")
    notes = (*_notes(samples), *groups.notes(sample.path for sample in samples))
    return TestSet(data.resolve().name, data, tuple(samples), notes)


def _masks_of(folder: Path) -> dict[str, Path]:
    """From an image's stem to its mask, ``<stem>_mask`` or ``<stem>``."""
    if not folder.is_dir():
        return {}
    masks = {path.stem: path for path in images_in(folder)}
    return masks | {stem.removesuffix("_mask"): path for stem, path in masks.items() if stem.endswith("_mask")}


def _open_rows(manifest: Path) -> TestSet:
    rows = [row for row in read_manifest(manifest) if row.split == "test"]
    if not rows:
        raise DataError(f"{manifest} lists no test image: rows with split test are needed.")
    samples = [_from_row(manifest, row) for row in rows]
    samples.sort(key=lambda sample: (sample.anomalous, sample.kind, natural_key(sample.path)))
    return TestSet(manifest.stem, manifest.parent, tuple(samples), tuple(_notes(samples)))


def _from_row(manifest: Path, row: Row) -> TestSample:
    if row.label == "unlabelled":
        raise ManifestError(f"{manifest}, line {row.line}: a test image must be normal or anomalous, not unlabelled.")
    is_bad = row.label == "anomalous"
    mask = inside(manifest, row.mask, row.line) if row.mask and is_bad else None
    return TestSample(row.path, is_bad, row.kind, row.group, mask)


def _notes(samples: list[TestSample]) -> list[str]:
    bad = [sample for sample in samples if sample.anomalous]
    unmasked = sum(sample.mask is None for sample in bad)
    notes = [f"{unmasked} of {len(bad)} bad test images have no mask"] * (0 < unmasked < len(bad))
    for missing, number in (("good", len(samples) - len(bad)), ("bad", len(bad))):
        if not number:
            notes.append(f"there is no {missing} test image: ranking metrics need both")
    return notes
