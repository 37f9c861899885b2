"""Protocols: a training and a test set dealt out anew, to show what a method makes of other knowledge.

* ``contaminate``: some anomalous test images join the training images, and all labels are forgotten.
* ``label_anomalies``: some anomalous images of few kinds become labelled training images, as in the paper on CKAAD.
* ``alternative_split``: some training images become the normal test images, in place of the set's own.

The unit is the group. Which groups are drawn depends on the seed and their names alone, not on the order of the files.
This opens test sets: only the bench and the command line may import it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data.manifest import read_lines, write_manifest
from blemish.data.readers import refuse_to_replace
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import shuffled_names
from blemish.data.testset import TestSet
from blemish.errors import ConfigError, DataError, ManifestError

DRAWS = 5
"""Draws to average over where several kinds are labelled; a single kind is every kind in turn."""

FEWEST_TO_VALIDATE = 20
"""Labels from which on a part of them is held out: 5 % of fewer is less than one image."""

ALTERNATIVE_COLUMNS = ("file", "alt_split")


@dataclass(frozen=True)
class Contaminated:
    """An unlabelled pile with anomalous images in it, and the two test sets that one model of it is judged on.

    Attributes:
        training: all images unlabelled: those that were normal, then the drawn ones.
        no_overlap: the test set without the drawn groups.
        overlap: the test set as it was, so that some of its anomalous images have been learned from.
        drawn: the anomalous images among the unlabelled ones. For measuring alone: no method is told.
    """

    training: TrainingSet
    no_overlap: TestSet
    overlap: TestSet
    drawn: tuple[Sample, ...]

    def test(self, overlap: bool) -> TestSet:
        """One of the two test sets."""
        return self.overlap if overlap else self.no_overlap


@dataclass(frozen=True)
class LabelledAnomalies:
    """A weak training set, and what it is judged on.

    Attributes:
        training: the normal images and the labelled anomalous ones.
        test: the test set without the groups that labels were given to.
        validation: normal and labelled images held out of the training set, or None; for methods that choose by it.
        kinds: what the labelled images show.
        labels: how many images were labelled, those held out included.
    """

    training: TrainingSet
    test: TestSet
    validation: TestSet | None
    kinds: tuple[str, ...]
    labels: int


def contaminate(training: TrainingSet, test: TestSet, ratio: float, seed: int) -> Contaminated:
    """Add ``int(ratio * N)`` anomalous test images to the ``N`` training images, and forget the labels of all.

    Groups are drawn until the number is reached. Of the last group only as many images join as are still missing, so
    that the number is always exact; without overlap the whole group leaves the test set all the same. With one seed, a
    smaller ratio draws a part of what a larger one does.

    Args:
        training: normal or unlabelled images; anomalous ones are left out.
        test: the same set's.
        ratio: drawn images for each training image, in [0, 1]; .1 makes 9.1 % of the pile bad, as in the papers.
        seed: fixes the draw.

    Raises:
        ConfigError: the ratio is outside [0, 1].
        DataError: there are not as many anomalous test images, or none would be left to test on.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio {ratio}: a share of the training images, from 0 to 1, is needed, such as 0.1")
    images = len(training.normal)
    number = int(ratio * images)
    anomalous = [sample for sample in test.samples if sample.anomalous]
    by_group = _by_group(anomalous)
    drawn: list[Sample] = []
    for group in shuffled_names(by_group, seed, "contaminate"):
        members = by_group[group]
        order = shuffled_names(map(str, range(len(members))), seed, f"contaminate {group}")
        drawn += [members[i] for i in sorted(map(int, order[: number - len(drawn)]))]
    groups = {sample.group for sample in drawn}
    left = tuple(sample for sample in test.samples if sample.group not in groups)

    asked = f"ratio {ratio} of {images} training images is {number} bad ones"
    most = f"the largest ratio that {test.name} allows is below {len(anomalous) / max(1, images):.3f}"
    if len(drawn) < number:
        raise DataError(f"{asked}, and the test set has {len(anomalous)}: {most}.")
    if ratio > 0 and number == 0:
        raise DataError(f"{asked}: give a ratio of at least {1 / max(1, images):.3f}, or 0 for none.")
    if not any(sample.anomalous for sample in left):
        raise DataError(f"{asked}, and then no bad part is left to test on: {most}.")

    pile = [replace(sample, label="unlabelled", kind="unlabelled") for sample in training.normal]
    pile += [Sample(sample.path, "unlabelled", group=sample.group) for sample in drawn]
    notes = [f"among the unlabelled: {number} bad test images of {len(groups)} groups (ratio {ratio}, seed {seed})"]
    if training.anomalous:
        dropped = len(training.anomalous)
        notes.append(f"{dropped} known-bad training images are left out: this protocol has no labels")
    gone = f"{len(test.samples) - len(left)} images of the {len(groups)} drawn groups are left out"
    return Contaminated(
        training=replace(training, samples=tuple(pile), notes=(*training.notes, *notes)),
        no_overlap=replace(test, samples=left, notes=(*test.notes, gone)),
        overlap=replace(test, notes=(*test.notes, f"{number} bad images were learned from")),
        drawn=tuple(drawn),
    )


def write_contaminated(contaminated: Contaminated, manifest: Path) -> tuple[Path, Path]:
    """Two manifests: the pile with the test set without overlap, and beside it the test set with overlap alone.

    ``manifest`` is the first one's path, in a folder that holds the images; the second's name ends in ``-overlap``.
    Raises a ManifestError where images lie outside that folder or it would replace what they were read by.
    """
    second = manifest.with_stem(manifest.stem + "-overlap")
    for path in (manifest, second):
        refuse_to_replace(path, contaminated.training)
    # The larger one first: where it fails, nothing is written.
    write_manifest(manifest, [*contaminated.training.samples, *contaminated.no_overlap.samples])
    return manifest, write_manifest(second, contaminated.overlap.samples)


def label_count(normal: int, ratio: float) -> int:
    """How many anomalous images beside ``normal`` others make up ``ratio``, in [0, 1), of the training set."""
    if not 0 <= ratio < 1:
        raise ConfigError(f"ratio {ratio}: the bad share of the training set, from 0 to below 1, is needed: try 0.05")
    return round(normal / (1 - ratio) - normal)


def kinds_to_label(training: TrainingSet, test: TestSet, count: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The kinds of each draw that a figure is averaged over: every kind in turn, or five draws of several.

    ``count`` is k, how many kinds are labelled at once; a ConfigError where there are not as many.
    """
    known = sorted({sample.kind for sample in _pool(training, test)})
    if not 1 <= count <= len(known):
        raise ConfigError(f"{count} kinds are to be revealed, and {test.name} has {len(known)}: {', '.join(known)}")
    if count == 1:
        return tuple((kind,) for kind in known)
    chosen = (shuffled_names(known, seed, f"kinds of draw {draw}")[:count] for draw in range(DRAWS))
    return tuple(tuple(sorted(kinds)) for kinds in chosen)


def label_anomalies(
    training: TrainingSet,
    test: TestSet,
    ratio: float,
    kinds: Sequence[str],
    seed: int,
    draw: int = 0,
    validate: bool = True,
) -> LabelledAnomalies:
    """Label ``label_count`` anomalous images of ``kinds``, as evenly among them as can be.

    The last group drawn gives as many images as are still missing; all of its images leave the test set all the same.
    A training set that has anomalous images of its own gives them, and the test set stays whole; otherwise the test set
    gives them. Where there are 20 labels or more, whole groups with at least ``int(5 %) + 1`` of the fewer of normal
    and labelled images, and as many of the other, are held out for validation; they count among the labels.

    Args:
        training: with normal images.
        test: of the same set.
        ratio: r_l, the labelled images' share of the training set; 0 labels none.
        kinds: those of one draw of ``kinds_to_label``.
        seed: fixes which groups are drawn.
        draw: its number, where several are averaged.
        validate: hold out a validation part.

    Raises:
        ConfigError: a kind is unknown, or the ratio is out of range.
        DataError: there are fewer labels than kinds or fewer images than labels, or none would be left to test on.
    """
    normal, pool = training.normal, _pool(training, test)
    number = label_count(len(normal), ratio)
    by_kind = {kind: [sample for sample in pool if sample.kind == kind] for kind in kinds}
    missing = ", ".join(kind for kind, samples in by_kind.items() if not samples)
    if missing or not by_kind:
        known = ", ".join(sorted({sample.kind for sample in pool})) or "none"
        raise ConfigError(f"{test.name} has no bad image of kind {missing or '(none given)'}: it has {known}")
    images, wanted = len(normal), len(by_kind)
    asked = f"ratio {ratio} beside {images} good images is {images} / (1 - {ratio}) - {images} = {number} labels"
    if ratio > 0 and number < wanted:
        least = wanted / (images + wanted)
        raise DataError(f"{asked}, fewer than the {wanted} kinds: give a ratio of {least:.4f} or fewer kinds")
    available = sum(map(len, by_kind.values()))
    if available < number:
        most = f"give a ratio of at most {available / (images + available):.4f}"
        raise DataError(f"{asked}, and {', '.join(by_kind)} have {available} images: {most}")
    labelled = _draw_labelled(by_kind, number, f"{seed}/{draw}", seed)
    groups = {sample.group for sample in labelled}
    left = tuple(sample for sample in test.samples if sample.group not in groups)
    if not any(sample.anomalous for sample in left):
        raise DataError(f"{asked}, and then no bad part is left to test on")

    held = _groups_to_hold_out(normal, labelled, seed) if validate and number >= FEWEST_TO_VALIDATE else set()
    samples = (*normal, *labelled)
    validation = [_for_testing(sample) for sample in samples if sample.group in held]
    note = f"{number} bad images of {len(groups)} groups are labelled ({', '.join(kinds)}; ratio {ratio}, seed {seed})"
    gone = f"{len(test.samples) - len(left)} images of labelled groups are left out"
    kept = tuple(sample for sample in samples if sample.group not in held)
    return LabelledAnomalies(
        training=replace(training, samples=kept, notes=(*training.notes, *[note] * bool(number))),
        test=replace(test, samples=left, notes=(*test.notes, *[gone] * (len(left) < len(test.samples)))),
        validation=TestSet(f"{test.name} (validation)", test.root, tuple(validation)) if held else None,
        kinds=tuple(kinds) if number else (),
        labels=number,
    )


def write_labelled(labelled: LabelledAnomalies, manifest: Path) -> tuple[Path, ...]:
    """The manifest of training and test set and, where there is a validation part, beside it that part's.

    ``manifest`` is the first one's path; the second's name ends in ``-validation``. Errors as ``write_contaminated``'s.
    """
    samples = {manifest: (*labelled.training.samples, *labelled.test.samples)}
    if labelled.validation is not None:
        samples[manifest.with_stem(manifest.stem + "-validation")] = labelled.validation.samples
    for path in samples:
        refuse_to_replace(path, labelled.training)
    return tuple(write_manifest(path, listed) for path, listed in samples.items())


def alternative_split(training: TrainingSet, test: TestSet, split: Path) -> tuple[TrainingSet, TestSet]:
    """Both sets after an exchange: the test set keeps its anomalous images and takes the moved ones as its normal ones.

    Where a set's normal test images differ from its anomalous ones in something that is no defect (a darker lamp), this
    shows what a method finds without it.

    Args:
        training: read from a folder.
        test: of the same folder.
        split: CSV with ``file,alt_split``, one line a training image: ``train``, or a word that begins with ``test``.

    Raises:
        ManifestError: the file is missing or lacks a column, a training image is not listed, a listed one does not
            exist, or all images end up on one side.
    """
    sides = _read_sides(split)
    root = split.parent.resolve()
    kept: list[Sample] = []
    moved: list[Sample] = []
    for sample in training.samples:
        written = sample.path.resolve().relative_to(root).as_posix()
        if written not in sides:
            raise ManifestError(f"{split} does not list the training image {written}: one line each is needed.")
        (kept if sides.pop(written) == "train" else moved).append(sample)
    if sides:
        example = next(iter(sides))
        raise ManifestError(f"{split} lists {len(sides)} files that are no training image, such as {example}.")
    if not moved or all(sample.anomalous for sample in kept):
        raise ManifestError(f"{split} leaves one side empty: some lines with train and some with test are needed.")
    if any(sample.anomalous for sample in moved):
        raise ManifestError(f"{split} moves a known-bad training image to the good test images: list it as train.")
    shared = {sample.group for sample in kept} & {sample.group for sample in moved}
    notes = [f"{split.name} puts {len(shared)} parts on both sides"] * bool(shared)
    name = f"{test.name} ({split.stem})"
    note = f"{split.name}: {len(moved)} training images are the good test images, in place of the set's own"
    tested = (*map(_for_testing, moved), *(sample for sample in test.samples if sample.anomalous))
    return (
        replace(training, name=name, samples=tuple(kept), notes=(*training.notes, *notes)),
        replace(test, name=name, samples=tested, notes=(*test.notes, note, *notes)),
    )


def _by_group(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each group, in the order of their paths."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.path.as_posix()):
        groups[sample.group].append(sample)
    return groups


def _pool(training: TrainingSet, test: TestSet) -> tuple[Sample, ...]:
    """Images that labels can be given to: the training set's own anomalous ones, or the test set's."""
    if training.anomalous:
        return training.anomalous
    return tuple(replace(sample, split="train", mask=None) for sample in test.samples if sample.anomalous)


def _for_testing(sample: Sample) -> Sample:
    """A training image as a test image: one that nobody has looked at counts as normal."""
    if sample.anomalous:
        return replace(sample, split="test")
    return Sample(sample.path, "normal", "test", group=sample.group)


def _draw_labelled(by_kind: Mapping[str, Sequence[Sample]], number: int, purpose: str, seed: int) -> tuple[Sample, ...]:
    """``number`` images, one of each kind in turn as long as there are any, the groups of a kind one after another."""
    queues = []
    for kind in sorted(by_kind):
        groups = _by_group(by_kind[kind])
        order = shuffled_names(groups, seed, f"reveal {purpose} {kind}")
        queues.append([sample for group in order for sample in groups[group]])
    turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
    drawn = itertools.islice((sample for sample in turns if sample is not None), number)
    return tuple(sorted(drawn, key=lambda sample: sample.path.as_posix()))


def _groups_to_hold_out(normal: Sequence[Sample], labelled: Sequence[Sample], seed: int) -> set[str]:
    """Groups of both sides for validation; empty where a side has one group only."""
    number = int(0.05 * min(len(normal), len(labelled))) + 1
    held: set[str] = set()
    for side, samples in (("good", normal), ("bad", labelled)):
        order = shuffled_names([sample.group for sample in samples], seed, f"validation {side}")
        # One group of each side stays for learning, whatever is missing.
        for group in order[:-1]:
            if sum(sample.group in held for sample in samples) >= number:
                break
            held.add(group)
        if not held & set(order):
            return set()
    return held


def _read_sides(split: Path) -> dict[str, str]:
    """From file to ``train`` or ``test...``."""
    sides: dict[str, str] = {}
    for line, values in read_lines(split):
        if not set(ALTERNATIVE_COLUMNS) <= set(values):
            break
        file, side = (values[column] for column in ALTERNATIVE_COLUMNS)
        if side != "train" and not side.startswith("test"):
            raise ManifestError(f"{split}, line {line}: {side!r} is neither train nor test....")
        if file in sides:
            raise ManifestError(f"{split} lists {file} twice: keep one line.")
        sides[file] = side
    if not sides:
        raise ManifestError(f"{split} lacks a column: {', '.join(ALTERNATIVE_COLUMNS)} are needed.")
    return sides
