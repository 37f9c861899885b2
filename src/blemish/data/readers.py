"""From folders, patterns and manifests to a training set. Nothing here opens a test image or a mask as such."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.data.images import read_header
from blemish.data.manifest import read_lines, read_manifest
from blemish.data.samples import LABEL_WORDS, Sample, TrainingSet
from blemish.errors import DataError, ImageError

if TYPE_CHECKING:
    from blemish.contract import Label

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".ppm", ".pgm", ".pbm"}
    | {".pnm", ".gif", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".dcm"}
)
"""File names that count as images when a folder is read; the content decides when one is opened."""

TRUTH = frozenset(("ground_truth", "ground-truth", "groundtruth", "gt", "masks", "mask"))
"""Folders of masks, which are no images to learn from or to judge."""

MADE_BY = "Made by blemish inspect"
"""In overlays and maps, so that none is judged the next day."""

_IMAGE_LIKE = re.compile(r"\.(psd|exr|hdr|jxl|svg|raw|dng|cr[23]|nef|arw|tga|ico|nii|npy|fits|pdf)$", re.IGNORECASE)
_SYSTEM = frozenset(("@eadir", "__macosx", "$recycle.bin", "system volume information"))  # of thumbnails and the like
_LABELS: tuple[Label, ...] = ("normal", "unlabelled", "anomalous")
_EXPECTED = (
    "a folder with train/good, train/unlabelled or train/anomalous (or these directly), a folder of images, or a CSV "
    "manifest with path,label is needed; for other folder names use patterns (--good 'OK/*.png')"
)


def read_training(data: str | Path | Iterable[str | Path], unlabelled: bool = False) -> TrainingSet:
    """The training images of a layout folder, a plain folder or a CSV manifest, or those named.

    Args:
        data: a folder with ``good``, ``unlabelled`` and ``anomalous`` (or ``anomalous/<kind>``, or what else
            ``LABEL_WORDS`` has, such as ``OK`` and ``NG``) under ``train`` or directly; a folder of images, which count
            as normal; a manifest, of which the ``train`` rows are read; or a pattern such as ``OK/*.png``, or several
            of them, paths or folders, whose images count as normal.
        unlabelled: nobody has looked at the images: those that would count as normal count as unlabelled.

    Raises:
        DataError: there is no such place, or no image that may be taken as normal.
        ManifestError: the manifest names what it may not, or lacks a column.
    """
    named = [data] if isinstance(data, str | Path) else list(data)
    data = Path(named[0]) if len(named) == 1 else Path()
    if len(named) != 1 or (not data.exists() and is_pattern(str(data))):
        training = read_globs([str(name) for name in named])
    elif data.is_dir():
        training = _read_folder(data, "unlabelled" if unlabelled else "good")
    elif data.is_file() and data.suffix.casefold() == ".csv":
        listed = read_manifest(data)
        rows = [sample for sample in listed if sample.split == "train"]
        shared = {sample.group for sample in rows} & {sample.group for sample in listed if sample.split == "test"}
        rows.sort(key=lambda sample: (_LABELS.index(sample.label), natural_key(sample.path)))
        if all(sample.anomalous for sample in rows):
            raise DataError(
                f"{data} lists {len(rows)} training images and none that may be taken as normal: "
                "rows with label normal or unlabelled, and split train or none, are needed."
            )
        names = sorted({sample.category for sample in rows if sample.category})
        notes = [f"{len(names)} categories ({', '.join(names[:5])}) are learnt as one"] * (len(names) > 1)
        notes += [f"{len(shared)} groups are in train and in test, such as {min(shared, default='')}"] * bool(shared)
        training = TrainingSet(data.stem, data, tuple(rows), tuple(notes))
    else:
        problem = "is a file, but not a .csv manifest" if data.exists() else "does not exist"
        raise DataError(f"{data} {problem}: {_EXPECTED}.")
    if not unlabelled:
        return training
    samples = (
        replace(s, label="unlabelled", kind="unlabelled") if s.label == "normal" else s for s in training.samples
    )
    return replace(training, samples=tuple(samples))


def read_globs(
    good: str | Sequence[str], anomalous: str | Sequence[str] = (), unlabelled: str | Sequence[str] = ()
) -> TrainingSet:
    """The training images that patterns such as ``OK/**/*.png`` match; a folder stands for the images in it.

    ``good`` images are known to be normal, ``anomalous`` ones to show a defect, ``unlabelled`` ones may be either.

    Raises:
        DataError: a pattern matches no image, an image has two labels, or none may be taken as normal.
    """
    label_of: dict[Path, Label] = {}
    patterns: dict[Label, str | Sequence[str]] = {"normal": good, "unlabelled": unlabelled, "anomalous": anomalous}
    for label, of_label in patterns.items():
        matched: set[Path] = set()
        for pattern in [of_label] if isinstance(of_label, str) else of_label:
            named = Path(pattern)
            # What exists is taken by its name, so that brackets in a folder's name are no pattern.
            if named.is_dir():
                images = images_in(named)
            else:
                # Path.glob takes no absolute pattern.
                paths = [named] if named.is_file() else map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
                images = [path for path in paths if is_image(path)]
            if not images:
                raise DataError(f"the pattern {pattern!r} matches no image: quote it, and check it with ls.")
            matched.update(images)
        for path in sorted(matched, key=natural_key):
            if label_of.setdefault(path, label) != label:
                raise DataError(f"{path} is matched as {label_of[path]} and as {label}: narrow the patterns.")
    samples = tuple(Sample(path, label) for path, label in label_of.items())
    if all(sample.anomalous for sample in samples):
        raise DataError("no pattern for images to learn what is normal from: give --good or --unlabelled.")
    common = os.path.commonpath([path.resolve().parent for path in label_of])
    return TrainingSet(Path(common).name or "images", None, samples)


def shared_files(training: TrainingSet, data: Path) -> list[tuple[Path, Path]]:
    """Pairs (training file, test file) of identical content, for a warning; no test image is decoded.

    ``data`` is the folder or manifest whose test images are compared; one without a test split shares nothing.
    """
    data, tested = Path(data), list[Path]()
    if (data / "test").is_dir():
        tested = images_below(data / "test")
    elif data.is_file() and data.suffix.casefold() == ".csv":
        tested = [sample.path for sample in read_manifest(data) if sample.split == "test"]
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in filter(Path.exists, tested):  # what is gone since is told of where it is read
        by_size[path.stat().st_size].append(path)
    digest = functools.cache(lambda path: hashlib.sha256(path.read_bytes()).digest())
    pairs = []
    for own in (sample.path for sample in training.samples if sample.path.exists()):
        pairs += [(own, path) for path in by_size.get(own.stat().st_size, []) if digest(path) == digest(own)]
    return pairs


def files_of(training: TrainingSet) -> dict[str, list[Path]]:
    """The manifest that a set was read by or that names its groups, and its images: by what they are, in words."""
    root = training.root
    source = root / "manifest.csv" if root is not None and root.is_dir() else root
    manifests = [] if source is None or not source.is_file() else [source]
    return {"what this set is read by": manifests, "an image of this set": [s.path for s in training.samples]}


def survey(samples: Sequence[Sample]) -> list[str]:
    """Warnings, one line each, for images whose size, aspect or bit depth differ from the rest.

    Only headers are read; a file whose header cannot be read is left to whoever decodes it. Different sizes of one
    aspect are told apart from different aspects, which stretching distorts.
    """
    said: dict[str, dict[Path, str]] = {"bit depths": {}, "aspects": {}, "sizes": {}}
    for path in (sample.path for sample in samples):
        with contextlib.suppress(ImageError):
            (height, width), bits = read_header(path)
            said["bit depths"][path] = f"{bits}-bit"
            ratio = f"{max(width / height, height / width):.1f}"
            way = "wide as high" if width >= height or ratio == "1.0" else "high as wide"
            said["aspects"][path] = f"{ratio} times as {way}"
            said["sizes"][path] = f"{width} x {height} pixels"
    warnings: dict[str, str] = {}
    for what, words in said.items():
        numbers = Counter(words.values())
        if len(numbers) < 2 or (what == "sizes" and "aspects" in warnings):
            continue
        usual, times = numbers.most_common(1)[0]
        odd = [path for path, word in words.items() if word != usual]
        if 2 * times <= len(words):
            shown = ", ".join(word for word, _ in numbers.most_common(3))
            warnings[what] = f"the {len(words)} images have {len(numbers)} different {what}, such as {shown}"
        else:
            named = ", ".join(path.name for path in odd[:3]) + " ..." * (len(odd) > 3)
            other = f"{words[odd[0]]}, the rest {usual}" if len(numbers) == 2 else f"not {usual} as the rest"
            warnings[what] = f"{len(odd)} of {len(words)} images {'is' if len(odd) == 1 else 'are'} {other}: {named}"
    return list(warnings.values())


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts as people count: ``2.png`` before ``10.png``. Ties are broken by the name itself."""
    name = path.as_posix()
    # Splitting at digits alternates text and number, so that equal positions always compare alike.
    pieces = enumerate(re.split(r"(\d+)", name))
    return [int(piece) if position % 2 else piece.casefold() for position, piece in pieces], name


def is_image(path: Path) -> bool:
    """A file, not hidden, with an image's extension; or a link to nothing, which is to be told of as unreadable."""
    is_file = path.is_file() or (path.is_symlink() and not path.exists())
    return not path.name.startswith(".") and path.suffix.casefold() in EXTENSIONS and is_file


def images_in(folder: Path) -> list[Path]:
    """The images directly in ``folder``, in natural order."""
    return sorted((path for path in _entries(folder) if is_image(path)), key=natural_key)


def images_below(folder: Path) -> list[Path]:
    """The images in ``folder`` and in the folders below it, but for hidden ones and links to folders."""
    inner = (path for path in folders_in(folder) if not path.is_symlink())
    return images_in(folder) + [path for below in inner for path in images_below(below)]


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in ``folder``, in natural order, without hidden ones and those of systems (``@eaDir``)."""
    folders = (path for path in _entries(folder) if path.is_dir() and not path.name.startswith("."))
    return sorted((path for path in folders if path.name.casefold() not in _SYSTEM), key=natural_key)


def is_pattern(name: str) -> bool:
    """Whether a name has the signs of a glob pattern."""
    return any(sign in name for sign in "*?[")


def is_ours(file: Path) -> bool:
    """Whether ``blemish inspect`` drew a picture, which bears a mark then; of one that cannot be read nobody knows."""
    try:
        with file.open("rb") as opened:
            return MADE_BY.encode() in opened.read(1024)
    except OSError:
        return False


def find_images(given: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files named, what patterns match, and every image below the folders named, but for those of masks.

    In order; a DataError where there is none. Overlays and maps that ``blemish inspect`` has written are left out.
    """
    images: list[Path] = []
    named = [given] if isinstance(given, str | Path) else list(given)
    for path in map(Path, named):
        if path.is_dir():
            below = (file for file in sorted(images_below(path)) if not is_ours(file))
            images += [file for file in below if TRUTH.isdisjoint(map(str.casefold, file.relative_to(path).parts))]
        elif not path.exists() and is_pattern(str(path)):
            images += sorted(filter(is_image, map(Path, glob.glob(str(path), recursive=True))))  # noqa: PTH207
        else:
            images.append(path)
    if not images:
        raise DataError(f"no image in {', '.join(map(str, named))}: name image files, or folders of them")
    return images


def read_good(given: str | Path | Iterable[str | Path]) -> tuple[list[Sample], list[str]]:
    """Good images, as ``find_images`` finds them, in the groups that manifests name; and notes.

    A manifest is a CSV file in place of images, or a ``manifest.csv`` in a folder of them.
    """
    named = [given] if isinstance(given, str | Path) else list(given)
    tables = [path for path in map(Path, named) if path.suffix.casefold() == ".csv"]
    others = [path for path in map(Path, named) if path not in tables]
    samples = {sample.path: sample for table in tables for sample in read_training(table).normal}
    if others or not tables:
        samples |= {path: Sample(path, "normal") for path in find_images(others)}
    notes: list[str] = []
    for folder in (path for path in others if (path / "manifest.csv").is_file()):
        inside, said = grouped(folder, [sample for path, sample in samples.items() if path.is_relative_to(folder)])
        notes += said
        for sample in inside:  # one without a group of its own stays by itself, whatever lies in other folders
            if sample.group != sample.path.relative_to(folder).as_posix():
                samples[sample.path] = sample
    return list(samples.values()), notes


def contents(folder: Path) -> str:
    """What a folder holds, in words for an error."""
    names = [path.name for path in folders_in(folder)]
    folders = f"{len(names)} folders ({', '.join(names[:5])}{' ...' * (len(names) > 5)})" if names else "no folder"
    files = sum(path.is_file() for path in _entries(folder))
    return f"{folders}, {len(images_in(folder))} images and {files} files in all"


def grouped(root: Path, samples: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples of a layout folder in the groups that its ``manifest.csv`` names, else each by itself; and notes.

    Such a manifest is read for nothing else, so its other columns are free; files are named under ``path`` or ``file``.
    """
    named: dict[str, str] = {}
    for _, values in read_lines(root / "manifest.csv") if (root / "manifest.csv").is_file() else ():
        file, group = (values.get("path") or values.get("file", "")).strip(), values.get("group")
        if file and group:
            named[Path(file.replace("\\", "/")).as_posix()] = group
    written = [sample.path.relative_to(root).as_posix() for sample in samples]
    in_groups = [replace(sample, group=named.get(file, file)) for sample, file in zip(samples, written)]
    missing = [Path(file).name for file in written if named and file not in named]
    if not missing:
        return in_groups, []
    return in_groups, [
        f"manifest.csv names no group for {len(missing)} images, such as {missing[0]}: each counts alone"
    ]


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be opened: {error.strerror or error}.") from error


def _read_folder(data: Path, counts_as: str) -> TrainingSet:
    root = data / "train" if (data / "train").is_dir() else data
    folders = [folder for folder in folders_in(root) if folder.name.casefold() not in TRUTH | {"test"}]
    labelled = [folder for folder in folders if folder.name.casefold() in LABEL_WORDS]
    labelled.sort(key=lambda folder: _LABELS.index(LABEL_WORDS[folder.name.casefold()]))
    listed: list[Sample] = []
    notes: list[str] = []
    ignored = [folder.name for folder in folders if folder not in labelled]
    for folder in labelled:
        label, inner, direct = LABEL_WORDS[folder.name.casefold()], folders_in(folder), images_in(folder)
        masks = [below for below in inner if below.name.casefold() in TRUTH]
        ignored += [f"{folder.name}/{below.name}" for below in masks]
        inner = [below for below in inner if below not in masks]
        if label != "anomalous" and direct:
            ignored += [f"{folder.name}/{unknown.name}" for unknown in inner]
            inner = []
        listed += [Sample(path, label) for path in direct]
        for below in inner:  # kinds of defects; or days, where good images lie in nothing else
            kind = below.name if label == "anomalous" else ""
            listed += [Sample(path, label, kind=kind) for path in images_below(below)]
    loose = images_in(root)
    if not labelled:
        listed = [Sample(path, "normal") for path in loose]
        unnamed = f"{root.resolve().name} has no folder good, unlabelled or anomalous"
        notes.append(f"{unnamed}: its {len(listed)} images count as {counts_as}")
    for folder in labelled or [root]:
        others = [path for path in _entries(folder) if path.is_file() and not is_image(path)]
        others = [path for path in others if not path.name.startswith(".") and path.name != "Thumbs.db"]
        if len(others) >= 10 or any(_IMAGE_LIKE.search(path.name) for path in others):  # fewer others may be meant
            kinds = Counter(path.suffix.casefold() or "no extension" for path in others)
            named = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common(3))
            notes.append(f"{len(others)} files in {folder.resolve().name} are not images and were ignored ({named})")
    if ignored:
        notes.append(f"folders ignored in {root.resolve().name}: {', '.join(ignored[:5])}{' ...' * (len(ignored) > 5)}")
    if labelled and loose:
        notes.append(f"{len(loose)} images directly in {root.resolve().name} were ignored: they have no label")
    sets = [folder.name for folder in folders_in(root) if (folder / "train").is_dir()]
    if not listed and sets:
        raise DataError(f"{root} holds several sets ({', '.join(sets[:5])}): give one, such as {root / sets[0]}.")
    if not listed and not labelled and any(map(images_below, folders)):
        inside = [f"{folder.name} {number}" for folder in folders if (number := len(images_below(folder)))]
        raise DataError(
            f"{root} holds no image itself, but folders of them ({', '.join(inside[:5])}): if all are of good parts, "
            f"--good '{root}/**/*'; else move them into {root / 'good'}, {root / 'anomalous'} or {root / 'unlabelled'}."
        )
    if not listed:
        raise DataError(f"{root} holds no image to learn from ({contents(root)}): {_EXPECTED}.")
    if all(sample.anomalous for sample in listed):
        raise DataError(
            f"{root} holds {len(listed)} known-bad images and none that may be taken as normal: "
            "put good images into good/, or a pile nobody has looked at into unlabelled/."
        )
    samples, missing_groups = grouped(data, listed)
    return TrainingSet(data.resolve().name, data, tuple(samples), (*notes, *missing_groups))
