"""The CSV manifest: ``path,label,split,mask,category,kind,group``, one image a line.

``path`` and ``label`` are needed, the rest may be missing or empty. Paths are relative to the manifest, and none may
leave its folder, not even through a link: a manifest from a stranger must not make Blemish read other files.

Tables as spreadsheets save them are read as well: semicolons or tabs, UTF-16 or Windows' cp1252, backslashes in paths,
column names and labels in any letter case, ``OK`` and ``NG``, empty rows.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from blemish.data.samples import LABEL_WORDS, Sample, Split
from blemish.errors import ManifestError

COLUMNS = ("path", "label", "split", "mask", "category", "kind", "group")
_FORMULA = re.compile(r"^(?:[=@]|[+-](?![\d.]+$))")  # what a spreadsheet would compute
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
        label = LABEL_WORDS.get(values["label"].casefold())
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
            if label == "anomalous" and values.get("mask", "").strip():
                mask = _inside(manifest, values["mask"], where, may_be_folder=True)
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
        files = (file.resolve().relative_to(folder).as_posix() if file else "" for file in (sample.path, sample.mask))
        path, mask = map(beside, files)
        # An image that is its own group needs none in the file.
        group = "" if sample.group == sample.path.as_posix() else sample.group
        words = (_FORMULA.sub(r"'\g<0>", word) for word in (sample.category, sample.kind, group))
        rows.append((path, sample.label, sample.split, mask, *words))
    quoted = any("\r" in word for row in rows for word in row)  # what is read back from quotes alone
    with contextlib.ExitStack() as opened:
        temporary = opened.enter_context(written_atomically(manifest))
        # Names that are not UTF-8 are written as they are.
        file = opened.enter_context(temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape"))
        csv.writer(file, lineterminator="\n", quoting=1 if quoted else 0).writerows(rows)
    return manifest


def beside(name: str) -> str:
    """A relative path as a table may hold it: not as a formula, and not with a space in front, which would be lost."""
    return f"./{name}" if re.match(r"[=+\-@\s]", name) else name


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
    """Number and values by column (lower case) of each line that is not empty; a ManifestError where it is no CSV file.

    Values are stripped, but for ``path`` and ``mask``: names may begin with a space, and be no UTF-8.
    """
    try:
        content = file.read_bytes()
        wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
        text = content.decode("utf-16") if wide else content.decode("utf-8-sig", "surrogateescape")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        for read in reader:
            values = {key.strip().casefold(): value or "" for key, value in read.items() if key}
            for key, value in values.items():
                if key not in ("path", "mask"):
                    values[key] = re.sub(rf"^'(?={_FORMULA.pattern[1:]})", "", _windows(value).strip())
            if any(value.strip() for value in values.values()):
                yield reader.line_num, values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{file} cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from error


def _windows(value: str) -> str:
    """Text that is not UTF-8, as Windows means it."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogateescape").decode("cp1252", "replace")
    return value


def _inside(manifest: Path, written: str, where: str, may_be_folder: bool = False) -> Path:
    """The file that a manifest names, with links followed."""
    folder, stripped = manifest.parent.resolve(), written.strip()
    try:
        for name in (written, stripped, _windows(stripped), _windows(stripped).replace("\\", "/")):
            path = (folder / name).resolve()
            if is_there := path.is_file() or (may_be_folder and path.is_dir()):
                break
        else:
            path = (folder / stripped).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        raise ManifestError(f"{where}: {written!r} is not a path: {error}.") from error
    within = [path, *(file.resolve() for file in path.iterdir())] if is_there and path.is_dir() else [path]
    if not all(file.is_relative_to(folder) for file in within):
        by_link = os.path.normpath(folder / stripped).startswith(str(folder))
        how = " by a link: copy the file to where the link is" if by_link else ". Only files inside it may be named"
        raise ManifestError(f"{where}: {stripped!r} leaves the manifest's folder{how}.")
    if not is_there:
        raise ManifestError(f"{where}: there is no file {stripped!r} beside the manifest.")
    return path
