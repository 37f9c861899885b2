"""The CSV manifest: ``path,label,split,mask,category,kind,group``, one image a line.

``path`` and ``label`` are needed, the rest may be missing or empty. Paths are relative to the manifest, and none may
leave its folder, not even through a link: a manifest from a stranger must not make Blemish read other files.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.errors import ManifestError

if TYPE_CHECKING:
    from blemish.contract import Label

_LABELS: dict[str, Label] = {
    "normal": "normal",
    "good": "normal",
    "unlabelled": "unlabelled",
    "anomalous": "anomalous",
}
_SPLITS = ("train", "test")
COLUMNS = ("path", "label", "split", "mask", "category", "kind", "group")


@dataclass(frozen=True)
class Row:
    """One line of a manifest.

    Attributes:
        path: the image, inside the manifest's folder.
        label: what is known of it.
        split: ``train`` where the manifest says nothing.
        mask: the mask's path as written, or empty; resolved by ``inside`` where ground truth may be read.
        category: what is shown (several categories in one manifest are noted), or empty.
        kind: the defect's name; the label's where the manifest says nothing.
        group: the part it shows; the path where the manifest says nothing.
        line: its number in the file, for messages.
    """

    path: Path
    label: Label
    split: str
    mask: str
    category: str
    kind: str
    group: str
    line: int


def read_manifest(manifest: Path) -> tuple[Row, ...]:
    """All rows, in the order of the file.

    Raises:
        ManifestError: a column is missing, a label or split is unknown, a file is missing or outside the manifest's
            folder, or an image is listed twice.
    """
    rows: list[Row] = []
    first_line: dict[Path, int] = {}
    for line, values in _lines(manifest):
        row = _row(manifest, line, values)
        if row.path in first_line:
            raise ManifestError(
                f"{manifest}, line {line}: {values['path']} is listed already in line {first_line[row.path]}: keep one."
            )
        first_line[row.path] = line
        rows.append(row)
    if not rows:
        raise ManifestError(f"{manifest} lists no image: one line an image is needed below the header.")
    return tuple(rows)


@dataclass(frozen=True)
class Entry:
    """What ``write_manifest`` says of one image.

    Attributes:
        path: the image.
        label: what is known of it.
        split: ``train`` or ``test``.
        kind: the defect's name; for others the label's.
        group: the part it shows.
        mask: where the defect is, of a test image.
    """

    path: Path
    label: Label
    split: str
    kind: str
    group: str
    mask: Path | None = None


def write_manifest(manifest: Path, entries: Iterable[Entry]) -> Path:
    """Write a manifest that ``read_manifest`` takes, whole or not at all; its path.

    Raises:
        ManifestError: an image lies outside the manifest's folder, where no manifest may point.
        OutputError: the file cannot be written.
    """
    # Imports torch, which reading a manifest does not need.
    from blemish.run import written_atomically

    entries = list(entries)
    check_within(manifest, [file for entry in entries for file in (entry.path, entry.mask) if file is not None])
    rows = [
        (
            _relative(manifest, entry.path),
            entry.label,
            entry.split,
            _relative(manifest, entry.mask) if entry.mask else "",
            "",
            entry.kind,
            entry.group,
        )
        for entry in entries
    ]
    with written_atomically(manifest) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return manifest


def check_within(manifest: Path, images: Iterable[Path]) -> None:
    """Refuse a manifest that could not name ``images``, before the work whose result it is to hold.

    Raises:
        ManifestError: an image lies outside the manifest's folder.
    """
    folder, files = manifest.parent.resolve(), [image.resolve() for image in images]
    outside = next((file for file in files if not file.is_relative_to(folder)), None)
    if outside is not None:
        holds_all = Path(os.path.commonpath([file.parent for file in files]))
        raise ManifestError(
            f"a manifest names files inside its own folder, and {outside} is not in {folder}: write it to a folder "
            f"that holds the images, such as {holds_all / manifest.name}."
        )


def _relative(manifest: Path, path: Path) -> str:
    return path.resolve().relative_to(manifest.parent.resolve()).as_posix()


def inside(manifest: Path, written: str, line: int) -> Path:
    """The file that a manifest names, with links followed.

    Raises:
        ManifestError: it is missing, or outside the manifest's folder.
    """
    folder = manifest.parent.resolve()
    try:
        path = (folder / written).resolve()
        is_file = path.is_file()
    except (ValueError, OSError, RuntimeError) as error:
        raise ManifestError(f"{manifest}, line {line}: {written!r} is not a path: {error}.") from error
    if not path.is_relative_to(folder):
        raise ManifestError(
            f"{manifest}, line {line}: {written!r} leaves the manifest's folder. Only files inside it may be named."
        )
    if not is_file:
        raise ManifestError(f"{manifest}, line {line}: there is no file {written!r} beside the manifest.")
    return path


def read_groups(manifest: Path) -> dict[str, str]:
    """From a file's path as written to its group, out of a manifest that lies in a layout folder.

    Such a manifest is read for nothing else, so its other columns are free; files are named under ``path`` or ``file``.
    Empty where it has no such columns.

    Raises:
        ManifestError: it is not a CSV file.
    """
    groups = {}
    for _, values in _lines(manifest):
        file, group = values.get("path") or values.get("file"), values.get("group")
        if file and group:
            groups[Path(file).as_posix()] = group
    return groups


def _lines(manifest: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Number and stripped values of each line, by column."""
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for values in reader:
                yield reader.line_num, {key.strip(): (value or "").strip() for key, value in values.items() if key}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{manifest} cannot be read as CSV in UTF-8: {error}.") from error


def _row(manifest: Path, line: int, values: dict[str, str]) -> Row:
    missing = [column for column in ("path", "label") if column not in values]
    if missing:
        raise ManifestError(
            f"{manifest} has the columns {', '.join(values) or 'none'}, but no {' and no '.join(missing)}: "
            "path,label,split,mask,category,kind,group are known. For a folder in a known layout, give the folder."
        )
    label = _LABELS.get(values["label"].casefold())
    if label is None:
        raise ManifestError(
            f"{manifest}, line {line}: label {values['label']!r} is unknown: normal, unlabelled or anomalous is needed."
        )
    split = values.get("split", "").casefold() or "train"
    if split not in _SPLITS:
        raise ManifestError(f"{manifest}, line {line}: split {values['split']!r} is unknown: train or test is needed.")
    path = inside(manifest, values["path"], line)
    return Row(
        path=path,
        label=label,
        split=split,
        mask=values.get("mask", ""),
        category=values.get("category", ""),
        kind=values.get("kind") or ("good" if label == "normal" else label),
        group=values.get("group") or path.relative_to(manifest.parent.resolve()).as_posix(),
        line=line,
    )
