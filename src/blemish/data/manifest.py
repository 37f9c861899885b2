"""The CSV manifest: ``path,label,split,mask,category,kind,group``, one image a line.

``path`` and ``label`` are needed, the rest may be missing or empty. Paths are relative to the manifest, and none may
leave its folder, not even through a link: a manifest from a stranger must not make Blemish read other files.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.data.samples import Sample, Split
from blemish.errors import ManifestError

if TYPE_CHECKING:
    from blemish.contract import Label

COLUMNS = ("path", "label", "split", "mask", "category", "kind", "group")
_LABELS: dict[str, Label] = {"good": "normal", "normal": "normal", "unlabelled": "unlabelled", "anomalous": "anomalous"}
_SPLITS: dict[str, Split] = {"": "train", "train": "train", "test": "test"}


def read_manifest(manifest: Path, ground_truth: bool = False) -> tuple[Sample, ...]:
    """All images, in the order of the file. Without a split an image is for training, without a group it is its own.

    With ``ground_truth``, the masks of anomalous test images are read as well, and every test image needs a label.
    Masks of other images are never read.

    Raises:
        ManifestError: a column is missing, a label or split is unknown, a file is missing or outside the manifest's
            folder, or an image is listed twice.
    """
    samples: list[Sample] = []
    first_line: dict[Path, int] = {}
    for line, values in read_lines(manifest):
        where = f"{manifest}, line {line}"
        missing = [column for column in ("path", "label") if column not in values]
        if missing:
            raise ManifestError(
                f"{manifest} has the columns {', '.join(values) or 'none'}, but no {' and no '.join(missing)}: "
                f"{','.join(COLUMNS)} are known. For a folder in a known layout, give the folder."
            )
        label = _LABELS.get(values["label"].casefold())
        if label is None:
            problem = f"label {values['label']!r} is unknown"
            raise ManifestError(f"{where}: {problem}: normal, unlabelled or anomalous is needed.")
        split = _SPLITS.get(values.get("split", "").casefold())
        if split is None:
            raise ManifestError(f"{where}: split {values['split']!r} is unknown: train or test is needed.")
        path, mask = _inside(manifest, values["path"], where), None
        if path in first_line:
            raise ManifestError(f"{where}: {values['path']} is listed already in line {first_line[path]}: keep one.")
        first_line[path] = line
        if ground_truth and split == "test":
            if label == "unlabelled":
                raise ManifestError(f"{where}: a test image must be normal or anomalous, not unlabelled.")
            if label == "anomalous" and values.get("mask"):
                mask = _inside(manifest, values["mask"], where)
        group = values.get("group") or path.relative_to(manifest.parent.resolve()).as_posix()
        samples.append(Sample(path, label, split, values.get("kind", ""), group, mask, values.get("category", "")))
    if not samples:
        raise ManifestError(f"{manifest} lists no image: one line an image is needed below the header.")
    return tuple(samples)


def write_manifest(manifest: Path, samples: Iterable[Sample]) -> Path:
    """Write a manifest that ``read_manifest`` takes, whole or not at all; its path.

    Raises what ``check_within`` does, and an OutputError where the file cannot be written.
    """
    # Imports torch, which reading a manifest does not need.
    from blemish.run import written_atomically

    samples = list(samples)
    check_within(manifest, [file for sample in samples for file in (sample.path, sample.mask) if file is not None])
    folder = manifest.parent.resolve()
    rows: list[tuple[str, ...]] = [COLUMNS]
    for sample in samples:
        path = sample.path.resolve().relative_to(folder).as_posix()
        mask = sample.mask.resolve().relative_to(folder).as_posix() if sample.mask else ""
        # An image that is its own group needs none in the file.
        group = "" if sample.group == sample.path.as_posix() else sample.group
        rows.append((path, sample.label, sample.split, mask, sample.category, sample.kind, group))
    with written_atomically(manifest) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return manifest


def check_within(manifest: Path, images: Iterable[Path]) -> None:
    """A ManifestError where a manifest could not name ``images``, before the work whose result it is to hold."""
    folder, files = manifest.parent.resolve(), [image.resolve() for image in images]
    outside = next((file for file in files if not file.is_relative_to(folder)), None)
    if outside is not None:
        holds_all = Path(os.path.commonpath([file.parent for file in files]))
        problem = f"a manifest names files inside its own folder, and {outside} is not in {folder}"
        remedy = f"write it to a folder that holds the images, such as {holds_all / manifest.name}"
        raise ManifestError(f"{problem}: {remedy}.")


def read_lines(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and stripped values by column of each line of a CSV file; a ManifestError where it is none in UTF-8."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            for values in reader:
                yield reader.line_num, {key.strip(): (value or "").strip() for key, value in values.items() if key}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{file} cannot be read as CSV in UTF-8: {error}.") from error


def _inside(manifest: Path, written: str, where: str) -> Path:
    """The file that a manifest names, with links followed."""
    folder = manifest.parent.resolve()
    try:
        path = (folder / written).resolve()
        is_file = path.is_file()
    except (ValueError, OSError, RuntimeError) as error:
        raise ManifestError(f"{where}: {written!r} is not a path: {error}.") from error
    if not path.is_relative_to(folder):
        raise ManifestError(f"{where}: {written!r} leaves the manifest's folder. Only files inside it may be named.")
    if not is_file:
        raise ManifestError(f"{where}: there is no file {written!r} beside the manifest.")
    return path
