"""From folders, patterns and manifests to a training set. Nothing here opens a test image or a mask as such."""

from __future__ import annotations

import glob
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from blemish.data.folders import Groups, folders_in, found_in, ignored_note, images_in, is_image, natural_key
from blemish.data.manifest import read_manifest
from blemish.data.samples import Sample, TrainingSet
from blemish.errors import DataError, ManifestError

if TYPE_CHECKING:
    from blemish.contract import Label

_LAYOUT = ("good", "unlabelled", "anomalous")
_EXPECTED = (
    "a folder with train/good, train/unlabelled or train/anomalous (or these directly), a folder of images, or a CSV "
    "manifest with path,label is needed; for other folder names use patterns (--good 'OK/*.png')"
)


def read_training(data: Path, unlabelled: bool = False) -> TrainingSet:
    """The training images of a layout folder, a plain folder or a CSV manifest.

    Args:
        data: a folder with ``good``, ``unlabelled`` and ``anomalous`` (or ``anomalous/<kind>``) under ``train`` or
            directly; a folder of images, which count as good; or a manifest, of which the ``train`` rows are read.
        unlabelled: nobody has looked at the images: those that would count as good count as unlabelled.

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
        given = "is a file, but not a .csv manifest" if data.exists() else "does not exist"
        raise DataError(f"{data} {given}: {_EXPECTED}.")
    if unlabelled:
        training = replace(training, samples=tuple(_unlooked(sample) for sample in training.samples))
    return training


def read_globs(good: Sequence[str], anomalous: Sequence[str] = (), unlabelled: Sequence[str] = ()) -> TrainingSet:
    """The training images that patterns such as ``OK/**/*.png`` match; a folder stands for the images in it.

    Args:
        good: patterns of images that are known to be good.
        anomalous: patterns of images that are known to be bad.
        unlabelled: patterns of images that nobody has looked at.

    Raises:
        DataError: a pattern matches no image, an image has two labels, or none may be taken as normal.
    """
    label_of: dict[Path, Label] = {}
    patterns: tuple[tuple[Label, Sequence[str]], ...]
    patterns = (("normal", good), ("unlabelled", unlabelled), ("anomalous", anomalous))
    samples = []
    for label, given in patterns:
        for path in _matched(given):
            if label_of.setdefault(path, label) != label:
                raise DataError(f"{path} is matched as {label_of[path]} and as {label}: narrow the patterns.")
            samples.append(Sample(path, label))
    if not any(sample.label != "anomalous" for sample in samples):
        raise DataError("no pattern for images to learn what is normal from: give --good or --unlabelled.")
    return TrainingSet(_common_name([sample.path for sample in samples]), None, tuple(samples))


def shared_files(training: TrainingSet, data: Path) -> list[tuple[Path, Path]]:
    """Pairs (training file, test file) of identical content, for a warning; no test image is decoded.

    Args:
        training: what is learnt from.
        data: the folder or manifest whose test images are compared; one without a test split shares nothing.
    """
    tested = _test_files(Path(data))
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


def _read_folder(data: Path, counts_as: str) -> TrainingSet:
    root = data / "train" if (data / "train").is_dir() else data
    labelled = [root / name for name in _LAYOUT if (root / name).is_dir()]
    groups = Groups(data)
    samples: list[Sample] = []
    notes: list[str] = []
    if labelled:
        for folder in labelled:
            samples += _read_label(folder, groups)
            notes += ignored_note(folder)
        notes += _strangers(root, labelled)
    else:
        samples = [Sample(path, "normal", group=groups.of(path)) for path in images_in(root)]
        unnamed = f"{root.name} has no folder good, unlabelled or anomalous"
        notes += [f"{unnamed}: its {len(samples)} images count as {counts_as}"]
        notes += [*ignored_note(root), *_strangers(root, [])]
    if not any(sample.label != "anomalous" for sample in samples):
        raise DataError(_nothing_normal(root, samples))
    notes += groups.notes(sample.path for sample in samples)
    return TrainingSet(data.resolve().name, data, tuple(samples), tuple(notes))


def _read_label(folder: Path, groups: Groups) -> list[Sample]:
    """The images of ``good``, ``unlabelled`` or ``anomalous``, the last also from its folders, one a kind."""
    name = folder.name
    label: Label = "normal" if name == "good" else "unlabelled" if name == "unlabelled" else "anomalous"
    samples = [Sample(path, label, group=groups.of(path)) for path in images_in(folder)]
    if label == "anomalous":
        for kind in folders_in(folder):
            samples += [Sample(path, label, "train", kind.name, groups.of(path)) for path in images_in(kind)]
    return samples


def _strangers(root: Path, known: list[Path]) -> list[str]:
    """A note on what lies beside or inside the folders that are read, and is not."""
    beside = [folder.name for folder in folders_in(root) if folder.name not in (*_LAYOUT, "test", "ground_truth")]
    deeper = [f"{folder.name}/{inner.name}" for folder in known[:2] for inner in folders_in(folder)]
    ignored = beside + [name for name in deeper if not name.startswith("anomalous/")]
    loose = len(images_in(root)) if known else 0
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
    return f"{root} holds no image to learn from ({found_in(root)}): {_EXPECTED}."


def _read_rows(manifest: Path) -> TrainingSet:
    samples = [sample for sample in read_manifest(manifest) if sample.split == "train"]
    samples.sort(key=_label_then_name)
    if not any(sample.label != "anomalous" for sample in samples):
        raise DataError(
            f"{manifest} lists {len(samples)} training images and none that may be taken as normal: "
            "rows with label normal or unlabelled, and split train or none, are needed."
        )
    categories = sorted({sample.category for sample in samples if sample.category})
    notes = [f"{len(categories)} categories ({', '.join(categories[:5])}) are learnt as one"] * (len(categories) > 1)
    return TrainingSet(manifest.stem, manifest, tuple(samples), tuple(notes))


def _label_then_name(sample: Sample) -> tuple[int, tuple[list[str | int], str]]:
    return ("normal", "unlabelled", "anomalous").index(sample.label), natural_key(sample.path)


def _unlooked(sample: Sample) -> Sample:
    return replace(sample, label="unlabelled", kind="unlabelled") if sample.label == "normal" else sample


def _matched(patterns: Sequence[str]) -> list[Path]:
    found: set[Path] = set()
    for pattern in patterns:
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
        found.update(images)
    return sorted(found, key=natural_key)


def _common_name(paths: list[Path]) -> str:
    """The name of the deepest folder that holds all ``paths``."""
    parents = [path.resolve().parent for path in paths]
    above = (parents[0], *parents[0].parents)
    common = next(folder for folder in above if all(parent.is_relative_to(folder) for parent in parents))
    return common.name or "images"


def _test_files(data: Path) -> list[Path]:
    if data.is_dir():
        test = data / "test"
        folders = [test, *folders_in(test)] if test.is_dir() else []
        return [path for folder in folders for path in images_in(folder)]
    if data.is_file() and data.suffix.casefold() == ".csv":
        return [sample.path for sample in read_manifest(data) if sample.split == "test"]
    return []
