"""Protocols: a training and a test set dealt out anew, to show what a method makes of other knowledge.

The unit is the group. Which groups are drawn depends on the seed and their names alone, not on the order of the files.
This opens test sets: only the bench and the command line may import it.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blemish.data.manifest import read_lines, write_manifest
from blemish.data.readers import files_of
from blemish.data.samples import Sample, TrainingSet
from blemish.data.splits import shuffled_names
from blemish.data.testset import TestSet
from blemish.errors import ConfigError, DataError, ManifestError
from blemish.run import refuse_to_replace

DRAWS = 5  # to average over where several kinds are labelled; a single kind is every kind in turn
FEWEST_TO_VALIDATE = 20  # labels, or more, of which a part is held out: 5 % of fewer is less than one image


@dataclass(frozen=True)
class ProtocolSplit:
    """A training and a test set as a protocol deals them."""

    training: TrainingSet
    test: TestSet  # without the groups that were drawn from it
    drawn: tuple[Sample, ...]  # anomalous images that joined the training set; in contaminate, no method is told
    overlap: TestSet | None = None  # of contaminate: the test set as it was, some of whose images are learned from
    validation: TestSet | None = None  # of label_anomalies: held out of the training set, for methods that choose by it


def contaminate(training: TrainingSet, test: TestSet, ratio: float, seed: int) -> ProtocolSplit:
    """Add ``int(ratio * N)`` anomalous test images to the ``N`` training images, and forget the labels of all.

    Groups are drawn until the number is reached. Of the last one only as many images join as are still missing, but all
    leave the test set. With one seed, a smaller ratio draws a part of what a larger one does.
    """
    if not 0 <= ratio <= 1:
        raise ConfigError(f"ratio {ratio}: a share of the training images, from 0 to 1, is needed, such as 0.1")
    images = len(training.normal)
    number = int(ratio * images * (1 + 1e-9))  # .29 of 100 are 29, whatever binary fractions say
    anomalous = [sample for sample in test.samples if sample.anomalous]
    by_group = _by_group(anomalous)
    drawn: list[Sample] = []
    for group in shuffled_names(by_group, seed, "contaminate"):
        members = by_group[group]
        order = shuffled_names(map(str, range(len(members))), seed, f"contaminate {group}")
        drawn += [members[i] for i in sorted(map(int, order[: number - len(drawn)]))]
    left, gone = _without_groups_of(drawn, test)

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
    groups = len({sample.group for sample in drawn})
    notes = [f"among the unlabelled: {number} bad test images of {groups} groups (ratio {ratio}, seed {seed})"]
    if training.anomalous:
        notes.append(f"{len(training.anomalous)} known-bad training images are left out: this protocol has no labels")
    return ProtocolSplit(
        replace(training, samples=tuple(pile), notes=(*training.notes, *notes)),
        replace(test, samples=left, notes=(*test.notes, f"{gone} images of the {groups} drawn groups are left out")),
        tuple(drawn),
        overlap=replace(test, notes=(*test.notes, f"{number} bad images were learned from")),
    )


def kinds_to_label(training: TrainingSet, test: TestSet, count: int, seed: int) -> tuple[tuple[str, ...], ...]:
    """The kinds of each draw that a figure is averaged over: every kind in turn, or five draws of ``count`` kinds."""
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
) -> ProtocolSplit:
    """Label anomalous images of ``kinds``, as evenly as can be, until they are ``ratio`` of the training set.

    The training set's own anomalous images are labelled where it has some, else the test set's, and all images of their
    groups leave it. Where there are 20 labels or more, whole groups with at least ``int(5 %) + 1`` of the fewer of
    normal and labelled images, and as many of the other, are held out to ``validate``; they count among the labels.
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"ratio {ratio}: the bad share of the training set, from 0 to below 1, is needed: try 0.05")
    normal, pool = training.normal, _pool(training, test)
    by_kind = {kind: [sample for sample in pool if sample.kind == kind] for kind in sorted(kinds)}
    unknown = ", ".join(kind for kind, samples in by_kind.items() if not samples)
    if unknown or not by_kind:
        known = ", ".join(sorted({sample.kind for sample in pool})) or "none"
        raise ConfigError(f"{test.name} has no bad image of kind {unknown or '(none given)'}: it has {known}")
    images, wanted = len(normal), len(by_kind)
    number = round(images / (1 - ratio) - images)
    asked = f"ratio {ratio} beside {images} good images is {images} / (1 - {ratio}) - {images} = {number} labels"
    if ratio > 0 and number < wanted:
        least = wanted / (images + wanted)
        raise DataError(f"{asked}, fewer than the {wanted} kinds: give a ratio of {least:.4f} or fewer kinds")
    available = sum(map(len, by_kind.values()))
    if available < number:
        most = f"give a ratio of at most {available / (images + available):.4f}"
        raise DataError(f"{asked}, and {', '.join(by_kind)} have {available} images: {most}")
    # One image of each kind in turn as long as there are any, the groups of a kind one after another.
    queues = []
    for kind, by_group in ((kind, _by_group(samples)) for kind, samples in by_kind.items()):
        order = shuffled_names(by_group, seed, f"reveal {seed}/{draw} {kind}")
        queues.append([sample for group in order for sample in by_group[group]])
    turns = filter(None, itertools.chain.from_iterable(itertools.zip_longest(*queues)))
    labelled = sorted(itertools.islice(turns, number), key=lambda sample: sample.path.as_posix())
    left, gone = _without_groups_of(labelled, test)
    if not any(sample.anomalous for sample in left):
        raise DataError(f"{asked}, and then no bad part is left to test on")

    held = _groups_to_hold_out(normal, labelled, seed) if validate and number >= FEWEST_TO_VALIDATE else set()
    learned = tuple(sample for sample in (*normal, *labelled) if sample.group not in held)
    held_out = tuple(_for_testing(sample) for sample in (*normal, *labelled) if sample.group in held)
    groups = len({sample.group for sample in labelled})
    note = f"{number} bad images of {groups} groups are labelled ({', '.join(kinds)}; ratio {ratio}, seed {seed})"
    left_out = f"{gone} images of labelled groups are left out"
    return ProtocolSplit(
        replace(training, samples=learned, notes=(*training.notes, *[note] * bool(number))),
        replace(test, samples=left, notes=(*test.notes, *[left_out] * bool(gone))),
        tuple(labelled),
        validation=TestSet(f"{test.name} (validation)", test.root, held_out) if held else None,
    )


def write_manifests(dealt: ProtocolSplit, manifest: Path) -> list[Path]:
    """The manifest of training and test set, and beside it those of the set with overlap or of the validation part.

    Their names end in ``-overlap`` and ``-validation``. None may replace what the set was read by.
    """
    tables: dict[Path, Sequence[Sample]] = {manifest: (*dealt.training.samples, *dealt.test.samples)}
    for ending, beside in (("overlap", dealt.overlap), ("validation", dealt.validation)):
        if beside is not None:
            tables[manifest.with_stem(f"{manifest.stem}-{ending}")] = beside.samples
    for path in tables:
        refuse_to_replace(path, files_of(dealt.training))
    return [write_manifest(path, samples) for path, samples in tables.items()]


def alternative_split(training: TrainingSet, test: TestSet, split: Path) -> tuple[TrainingSet, TestSet]:
    """Both sets after an exchange: the test set keeps its anomalous images and takes the moved ones as its normal ones.

    Where a set's normal test images differ from its anomalous ones in something that is no defect (a darker lamp), this
    shows what a method finds without it. ``split`` is a CSV file in the set's folder, with ``file,alt_split``, one line
    a training image: ``train``, or a word that begins with ``test``.
    """
    sides: dict[str, str] = {}
    for line, values in read_lines(split):
        if "file" not in values or "alt_split" not in values:
            break
        file, side = values["file"], values["alt_split"]
        if side != "train" and not side.startswith("test"):
            raise ManifestError(f"{split}, line {line}: {side!r} is neither train nor test....")
        if file in sides:
            raise ManifestError(f"{split} lists {file} twice: keep one line.")
        sides[file] = side
    if not sides:
        raise ManifestError(f"{split} lacks a column: file, alt_split are needed.")
    kept: list[Sample] = []
    moved: list[Sample] = []
    for sample in training.samples:
        place, home = sample.path.absolute(), split.parent.absolute()  # a link by its own name
        written = place.relative_to(home).as_posix() if place.is_relative_to(home) else str(place)
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


def _without_groups_of(drawn: Iterable[Sample], test: TestSet) -> tuple[tuple[Sample, ...], int]:
    """What of a test set is left without the groups of the drawn images, and how many images leave."""
    groups = {sample.group for sample in drawn}
    left = tuple(sample for sample in test.samples if sample.group not in groups)
    return left, len(test.samples) - len(left)


def _pool(training: TrainingSet, test: TestSet) -> tuple[Sample, ...]:
    """Images that labels can be given to: the training set's own anomalous ones, or the test set's."""
    tested = (replace(sample, split="train", mask=None) for sample in test.samples if sample.anomalous)
    return training.anomalous or tuple(tested)


def _for_testing(sample: Sample) -> Sample:
    """A training image as a test image: one that nobody has looked at counts as normal."""
    kept = replace(sample, split="test")
    return kept if sample.anomalous else replace(kept, label="normal", kind="good")


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
