"""Test sets and their masks. Only evaluation and the bench may import this module: a fit cannot peek."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from blemish.data.decoders import UPRIGHT
from blemish.data.images import drawn, orientation, read_bytes
from blemish.data.manifest import read_manifest
from blemish.data.readers import TRUTH, contents, folders_in, grouped, images_below, images_in, natural_key
from blemish.data.samples import LABEL_WORDS, Sample
from blemish.errors import DataError

"""Names of folders of masks, in any letter case, beside ``test``, in it, or in the folder of a kind."""


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

    Images may lie deeper, ``good`` be called ``OK``. A mask bears its image's name, perhaps with ``_mask`` or ``_gt``,
    or is a folder of that name, whose files outline one defect each. What is left out is said in the notes.

    Raises:
        DataError: there is no test image, or ``data`` is neither.
        ManifestError: the manifest names what it may not, or lacks a column.
    """
    data, missing_groups, left_out = Path(data), list[str](), list[str]()
    name, root, samples = data.stem, data.parent, list[Sample]()
    if data.is_dir():
        name, root, test = data.resolve().name, data, data / "test"
        if not test.is_dir():
            raise DataError(f"{data} has no folder test ({contents(data)}): test/good and test/<kind> are needed.")
        samples, left_out = _labelled(data, test)
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
    return TestSet(name, root, tuple(samples), (*notes, *left_out, *missing_groups))


def mask_files(sample: Sample) -> list[Path]:
    """The files that outline an image's defects: none, one, or one each."""
    if sample.mask is None:
        return []
    return images_in(sample.mask) if sample.mask.is_dir() else [sample.mask]


def load_mask(sample: Sample, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Where the image is defective: bool ``h w`` at the image's own ``size``; a normal image has an empty mask.

    Every value above 0 counts, of a JPEG every value above half of the largest (it blurs edges), of a mask painted in
    black on nothing what is opaque. Several files outline one defect each.

    Raises:
        DataError: an anomalous image without a mask, or its mask is empty, of another size than its image, or turned
            by EXIF otherwise than its image so that two readings fit.
    """
    mask = np.zeros(size, dtype=np.bool_)
    if not sample.anomalous:
        return mask
    if sample.mask is None:
        raise DataError(f"{sample.path} is anomalous and has no mask: pixel metrics need one for every such image.")
    for path in mask_files(sample):
        content = read_bytes(path)
        painted = drawn(content, str(path))  # before any resizing, which would thin out or lose small defects
        if not painted.any():
            with contextlib.suppress(Exception), Image.open(path) as picture:
                alpha = np.asarray(picture.convert("RGBA"))[..., 3]
                painted = alpha > 0 if alpha.min() == 0 and alpha.shape == painted.shape else painted
        readings = [painted]
        turned, own = (_orientation(file) for file in (sample.path, path))
        if turned != own:  # a mask that was drawn on the image as stored, or bears a mark that the image lacks
            stored = UPRIGHT.get({6: 8, 8: 6}.get(own, own), np.asarray)(painted)
            readings.append(UPRIGHT.get(turned, np.asarray)(stored))
        fitting = [reading for reading in readings if reading.shape == tuple(size)]
        if not fitting:
            problem = f"the mask {path} has {painted.shape[1]} x {painted.shape[0]} pixels"
            raise DataError(f"{problem}, its image {sample.path} {size[1]} x {size[0]}: they must be equal.")
        if not (fitting[0] == fitting[-1]).all():
            raise DataError(f"the mask {path} is turned by EXIF otherwise than its image: save both upright.")
        mask |= fitting[0]
    if not mask.any():
        raise DataError(f"the mask {sample.mask} is empty, and its image is anomalous: draw it, or remove the file.")
    return mask


def _orientation(path: Path) -> int:
    with contextlib.suppress(Exception), Image.open(path) as image:
        return orientation(image)
    return 1


def _labelled(data: Path, test: Path) -> tuple[list[Sample], list[str]]:
    """The images of a folder ``test``, good ones first, each with its mask; and what was left out."""
    samples, notes, used = list[Sample](), list[str](), set[Path]()
    truths = [folder for folder in (*folders_in(data), *folders_in(test)) if folder.name.casefold() in TRUTH]
    folders = [folder for folder in folders_in(test) if folder not in truths]
    for folder in (folder for folder in folders if LABEL_WORDS.get(folder.name.casefold()) == "unlabelled"):
        folders.remove(folder)
        notes.append(f"the images in {test.name}/{folder.name} were left out: nobody knows what they show")
    good = [folder for folder in folders if LABEL_WORDS.get(folder.name.casefold()) == "normal"]
    for folder in (*good, *(folder for folder in folders if folder not in good)):
        inside = [inner for inner in folders_in(folder) if inner.name.casefold() in TRUTH]
        images = [path for path in images_below(folder) if not any(path.is_relative_to(inner) for inner in inside)]
        names = {path: _name(path, folder) for path in images}
        known = set(names.values())
        beside = {path for path, name in names.items() if _plain(name) != name and _plain(name) in known}
        if beside and folder in good:
            example = min(beside).relative_to(data)
            notes.append(f"{len(beside)} images were taken for masks of those beside them, such as {example}")
        inside += [f for truth in truths for f in folders_in(truth) if f.name.casefold() == folder.name.casefold()]
        masks = {names[path]: path for path in images if path in beside}
        for place in inside or truths:
            masks |= {_name(path, place): path for path in images_below(place)}
        # A name as it is goes before one without its ending, and a file before the folder of several masks.
        found = {name.rpartition("/")[0]: path.parent for name, path in masks.items() if "/" in name}
        found |= {_plain(name): path for name, path in masks.items()} | masks
        found |= {_plain(name): path for name, path in masks.items() if name.endswith("_mask")}
        for path in (path for path in images if path not in beside):
            if folder in good:
                samples.append(Sample(path, "normal", "test"))
                continue
            mask = found.get(names[path], found.get(path.stem.casefold()))
            samples.append(Sample(path, "anomalous", "test", folder.name, mask=mask))
            used |= {mask} if mask else set()
    if loose := images_in(test):
        notes.append(f"{len(loose)} images directly in {test.name} were left out: no folder says what they show")
    spare = [path for truth in truths for path in images_below(truth) if not {path, path.parent} & used]
    if spare:
        count = f"{len(spare)} masks fit" if len(spare) > 1 else "1 mask fits"
        notes.append(f"{count} no bad test image: {spare[0].relative_to(data)} ...")
    return samples, notes


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix().casefold()


def _plain(name: str) -> str:
    """A mask's name without what tells it from its image's."""
    return re.sub(r"[-_ .](mask|gt|ground_?truth|label|seg)$", "", name)
