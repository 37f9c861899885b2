"""From folders, patterns and manifests to a training set. Nothing here opens a test image or a mask as such."""

from __future__ import annotations

import glob
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from blemish.data.images import Header, read_header
from blemish.data.manifest import read_lines, read_manifest
from blemish.data.samples import Sample, TrainingSet
from blemish.errors import DataError, ImageError, ManifestError

if TYPE_CHECKING:
    from blemish.contract import Label

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".ppm", ".pgm", ".pbm"}
    | {".pnm", ".gif"}
)
"""File names that count as images when a folder is read; the content decides when one is opened."""

LAYOUT: dict[str, Label] = {"good": "normal", "unlabelled": "unlabelled", "anomalous": "anomalous"}
"""The folders of a layout and what they say of their images."""

_MANY = 10
_EXPECTED = (
    "a folder with train/good, train/unlabelled or train/anomalous (or these directly), a folder of images, or a CSV "
    "manifest with path,label is needed; for other folder names use patterns (--good 'OK/*.png')"
)
_Value = TypeVar("_Value", bound=Hashable)


def read_training(data: Path, unlabelled: bool = False) -> TrainingSet:
    """The training images of a layout folder, a plain folder or a CSV manifest.

    Args:
        data: a folder with ``good``, ``unlabelled`` and ``anomalous`` (or ``anomalous/<kind>``) under ``train`` or
            directly; a folder of images, which count as normal; or a manifest, of which the ``train`` rows are read.
        unlabelled: nobody has looked at the images: those that would count as normal count as unlabelled.

    Raises:
        DataError: there is no such place, or no image that may be taken as normal.
        ManifestError: the manifest names what it may not, or lacks a column.
    """
    data = Path(data)
    if data.is_dir():
        training = _read_folder(data, "unlabelled" if unlabelled else "good")
    elif data.is_file() and data.suffix.casefold() == ".csv":
        training = _read_rows(data)
    else:
        problem = "is a file, but not a .csv manifest" if data.exists() else "does not exist"
        raise DataError(f"{data} {problem}: {_EXPECTED}.")
    if not unlabelled:
        return training
    samples = (
        replace(s, label="unlabelled", kind="unlabelled") if s.label == "normal" else s for s in training.samples
    )
    return replace(training, samples=tuple(samples))


def read_globs(good: Sequence[str], anomalous: Sequence[str] = (), unlabelled: Sequence[str] = ()) -> TrainingSet:
    """The training images that patterns such as ``OK/**/*.png`` match; a folder stands for the images in it.

    Args:
        good: patterns of images that are known to be normal.
        anomalous: patterns of images that are known to show a defect.
        unlabelled: patterns of images that nobody has looked at.

    Raises:
        DataError: a pattern matches no image, an image has two labels, or none may be taken as normal.
    """
    label_of: dict[Path, Label] = {}
    patterns: dict[Label, Sequence[str]] = {"normal": good, "unlabelled": unlabelled, "anomalous": anomalous}
    for label, of_label in patterns.items():
        matched = {path for pattern in of_label for path in _matched(pattern)}
        for path in sorted(matched, key=natural_key):
            if label_of.setdefault(path, label) != label:
                raise DataError(f"{path} is matched as {label_of[path]} and as {label}: narrow the patterns.")
    samples = tuple(Sample(path, label) for path, label in label_of.items())
    if all(sample.anomalous for sample in samples):
        raise DataError("no pattern for images to learn what is normal from: give --good or --unlabelled.")
    # The name of the deepest folder that holds all images.
    parents = [path.resolve().parent for path in label_of]
    above = (parents[0], *parents[0].parents)
    common = next(folder for folder in above if all(parent.is_relative_to(folder) for parent in parents))
    return TrainingSet(common.name or "images", None, samples)


def shared_files(training: TrainingSet, data: Path) -> list[tuple[Path, Path]]:
    """Pairs (training file, test file) of identical content, for a warning; no test image is decoded.

    Args:
        training: what is learnt from.
        data: the folder or manifest whose test images are compared; one without a test split shares nothing.
    """
    data, tested = Path(data), list[Path]()
    if (data / "test").is_dir():
        tested = [path for folder in (data / "test", *folders_in(data / "test")) for path in images_in(folder)]
    elif data.is_file() and data.suffix.casefold() == ".csv":
        tested = [sample.path for sample in read_manifest(data) if sample.split == "test"]
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in tested:
        by_size[path.stat().st_size].append(path)
    digests: dict[Path, str] = {}

    def digest(path: Path) -> str:
        if path not in digests:
            digests[path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return digests[path]

    pairs = []
    for sample in training.samples:
        same_size = by_size.get(sample.path.stat().st_size, [])
        pairs += [(sample.path, path) for path in same_size if digest(path) == digest(sample.path)]
    return pairs


def refuse_to_replace(path: Path, training: TrainingSet) -> None:
    """Never write over the manifest that a set was read by, or that names its groups, or over one of its images.

    Raises:
        ManifestError: this would.
    """
    root, written = training.root, path.resolve()
    source = root / "manifest.csv" if root is not None and root.is_dir() else root
    if source is not None and source.is_file() and written == source.resolve():
        raise ManifestError(f"{path} is what this set is read by and would be replaced: choose another name.")
    if written in {sample.path.resolve() for sample in training.samples}:
        raise ManifestError(f"{path} is an image of this set and would be replaced: choose another name.")


def survey(samples: Sequence[Sample]) -> list[str]:
    """Warnings, one line each, for images whose size, aspect or bit depth differ from the rest.

    Only headers are read. A file whose header cannot be read is left to whoever decodes it. Different sizes of one
    aspect are told apart from different aspects, which stretching distorts.
    """
    headers: dict[Path, Header] = {}
    for sample in samples:
        try:
            headers[sample.path] = read_header(sample.path)
        except ImageError:
            continue
    bits = {path: header.bits for path, header in headers.items()}
    sizes = {path: header.size for path, header in headers.items()}
    aspects = {path: round(width / height, 1) for path, (height, width) in sizes.items()}
    return _differing(bits, "bit depths", lambda depth: f"{depth}-bit") + (
        _differing(aspects, "aspects", lambda aspect: f"{aspect:.1f} times as wide as high")
        or _differing(sizes, "sizes", lambda size: f"{size[1]} x {size[0]} pixels")
    )


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts as people count: ``2.png`` before ``10.png``. Ties are broken by the name itself."""
    name = path.as_posix()
    # Splitting at digits alternates text and number, so that equal positions always compare alike.
    pieces = enumerate(re.split(r"(\d+)", name))
    return [int(piece) if position % 2 else piece.casefold() for position, piece in pieces], name


def is_image(path: Path) -> bool:
    """A file, not hidden, with an image's extension."""
    return not path.name.startswith(".") and path.suffix.casefold() in EXTENSIONS and path.is_file()


def images_in(folder: Path) -> list[Path]:
    """The images directly in ``folder``, in natural order."""
    return sorted((path for path in _entries(folder) if is_image(path)), key=natural_key)


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in ``folder``, in natural order, without hidden ones."""
    folders = (path for path in _entries(folder) if path.is_dir() and not path.name.startswith("."))
    return sorted(folders, key=natural_key)


def contents(folder: Path) -> str:
    """What a folder holds, in words for an error."""
    names = [path.name for path in folders_in(folder)]
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    folders = f"{len(names)} folders ({shown})" if names else "no folder"
    files = sum(path.is_file() for path in _entries(folder))
    return f"{folders}, {len(images_in(folder))} images and {files} files in all"


class Groups:
    """The group of each file of a layout folder: from its ``manifest.csv`` where that says, else the file alone.

    Such a manifest is read for nothing else, so its other columns are free; files are named under ``path`` or ``file``.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._named: dict[str, str] = {}
        for _, values in read_lines(root / "manifest.csv") if (root / "manifest.csv").is_file() else ():
            file, group = values.get("path") or values.get("file"), values.get("group")
            if file and group:
                self._named[Path(file).as_posix()] = group

    def of(self, path: Path) -> str:
        """The group of ``path``, a file below the root."""
        written = path.relative_to(self._root).as_posix()
        return self._named.get(written, written)

    def notes(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """One line where a manifest names the groups of some of ``paths`` only."""
        missing = [path for path in paths if path.relative_to(self._root).as_posix() not in self._named]
        if not self._named or not missing:
            return ()
        return (f"manifest.csv names no group for {len(missing)} images, such as {missing[0].name}: each counts alone",)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be opened: {error.strerror or error}.") from error


def _read_folder(data: Path, counts_as: str) -> TrainingSet:
    root = data / "train" if (data / "train").is_dir() else data
    labelled = [root / name for name in LAYOUT if (root / name).is_dir()]
    groups = Groups(data)
    samples: list[Sample] = []
    notes: list[str] = []
    for folder in labelled:
        label = LAYOUT[folder.name]
        kinds = folders_in(folder) if label == "anomalous" else []
        for place in (folder, *kinds):
            samples += [Sample(path, label, "train", place.name, groups.of(path)) for path in images_in(place)]
        notes += _ignored_files(folder)
    if not labelled:
        samples = [Sample(path, "normal", group=groups.of(path)) for path in images_in(root)]
        unnamed = f"{root.name} has no folder good, unlabelled or anomalous"
        notes += [f"{unnamed}: its {len(samples)} images count as {counts_as}", *_ignored_files(root)]
    notes += _ignored_folders(root, labelled)
    if all(sample.anomalous for sample in samples):
        raise DataError(_nothing_normal(root, samples))
    notes += groups.notes(sample.path for sample in samples)
    return TrainingSet(data.resolve().name, data, tuple(samples), tuple(notes))


def _ignored_files(folder: Path) -> list[str]:
    """One line where many files of ``folder`` are not images, which is rarely meant."""
    others = [path for path in _entries(folder) if path.is_file() and not is_image(path)]
    others = [path for path in others if not path.name.startswith(".") and path.name != "Thumbs.db"]
    if len(others) < _MANY:
        return []
    kinds = Counter(path.suffix.casefold() or "no extension" for path in others)
    named = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common(3))
    return [f"{len(others)} files in {folder.name} are not images and were ignored ({named})"]


def _ignored_folders(root: Path, labelled: list[Path]) -> list[str]:
    """A note on what lies beside or inside the folders that are read, and is not."""
    ignored = [folder.name for folder in folders_in(root) if folder.name not in (*LAYOUT, "test", "ground_truth")]
    without_kinds = [folder for folder in labelled if LAYOUT[folder.name] != "anomalous"]
    ignored += [f"{folder.name}/{inner.name}" for folder in without_kinds for inner in folders_in(folder)]
    loose = len(images_in(root)) if labelled else 0
    notes = [f"folders ignored in {root.name}: {', '.join(ignored[:5])}{' ...' * (len(ignored) > 5)}"] * bool(ignored)
    return notes + [f"{loose} images directly in {root.name} were ignored: they have no label"] * bool(loose)


def _nothing_normal(root: Path, samples: list[Sample]) -> str:
    if samples:
        return (
            f"{root} holds {len(samples)} known-bad images and none that may be taken as normal: "
            "put good images into good/, or a pile nobody has looked at into unlabelled/."
        )
    sets = [folder.name for folder in folders_in(root) if (folder / "train").is_dir()]
    if sets:
        return f"{root} holds several sets ({', '.join(sets[:5])}): give one of them, such as {root / sets[0]}."
    return f"{root} holds no image to learn from ({contents(root)}): {_EXPECTED}."


def _read_rows(manifest: Path) -> TrainingSet:
    samples = [sample for sample in read_manifest(manifest) if sample.split == "train"]
    samples.sort(key=lambda sample: (list(LAYOUT.values()).index(sample.label), natural_key(sample.path)))
    if all(sample.anomalous for sample in samples):
        raise DataError(
            f"{manifest} lists {len(samples)} training images and none that may be taken as normal: "
            "rows with label normal or unlabelled, and split train or none, are needed."
        )
    categories = sorted({sample.category for sample in samples if sample.category})
    notes = [f"{len(categories)} categories ({', '.join(categories[:5])}) are learnt as one"] * (len(categories) > 1)
    return TrainingSet(manifest.stem, manifest, tuple(samples), tuple(notes))


def _matched(pattern: str) -> list[Path]:
    place = Path(pattern)
    # An existing place is taken by its name, so that brackets in a folder's name are no pattern.
    if place.is_dir():
        images = images_in(place)
    else:
        # Path.glob takes no absolute pattern.
        names = [pattern] if place.is_file() else glob.glob(pattern, recursive=True)  # noqa: PTH207
        images = [Path(name) for name in names if is_image(Path(name))]
    if not images:
        raise DataError(f"the pattern {pattern!r} matches no image: quote it, and check it with ls.")
    return images


def _differing(values: Mapping[Path, _Value], what: str, say: Callable[[_Value], str]) -> list[str]:
    """One line on the images whose value is not the usual one; none where all are alike."""
    numbers = Counter(values.values())
    if len(numbers) < 2:
        return []
    usual, times = numbers.most_common(1)[0]
    if 2 * times <= len(values):
        shown = ", ".join(say(value) for value, _ in numbers.most_common(3))
        return [f"the {len(values)} images have {len(numbers)} different {what}, such as {shown}"]
    odd = [path for path, value in values.items() if value != usual]
    named = ", ".join(path.name for path in odd[:3]) + " ..." * (len(odd) > 3)
    verb = "is" if len(odd) == 1 else "are"
    others = {values[path] for path in odd}
    if len(others) == 1:
        return [f"{len(odd)} of {len(values)} images {verb} {say(others.pop())}, the rest {say(usual)}: {named}"]
    return [f"{len(odd)} of {len(values)} images {verb} not {say(usual)} as the rest: {named}"]
