"""One record of an image, and the set of them that a model may learn from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from blemish.contract import Label, Regime

Split = Literal["train", "test"]

LABEL_WORDS: dict[str, Label] = {
    **dict.fromkeys(("good", "ok", "normal"), "normal"),
    **dict.fromkeys(("unlabelled", "unlabeled"), "unlabelled"),
    **dict.fromkeys(("anomalous", "anomaly", "abnormal", "bad", "ng", "nok", "defect", "defective"), "anomalous"),
}
"""What people call folders of images, and write as labels into tables, in any letter case."""


@dataclass(frozen=True)
class Sample:
    """What is known of one image."""

    path: Path
    label: Label  # by its folder or manifest, never by its mask
    split: Split = "train"
    kind: str = ""  # the defect's name for an anomalous image; unless given, good, unlabelled or anomalous
    group: str = ""  # the part, patient or scene it shows, shared by all its photographs; unless given, the path
    mask: Path | None = None  # of an anomalous test image whose outline is known; never set in a training set
    category: str = ""  # what is shown, in a manifest of several categories

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", "good" if self.label == "normal" else self.label)
        if not self.group:
            object.__setattr__(self, "group", self.path.as_posix())

    @property
    def anomalous(self) -> bool:
        """The image is known to show a defect."""
        return self.label == "anomalous"


@dataclass(frozen=True)
class TrainingSet:
    """The images that a model may learn from."""

    name: str  # for people: the folder's or the manifest's
    root: Path | None  # the folder or the manifest it was read from; None where it was given as patterns
    samples: tuple[Sample, ...]  # in natural order within each label
    notes: tuple[str, ...] = ()  # what a person should be told before work starts, one line each

    @property
    def regime(self) -> Regime:
        """Weak with any anomalous image, else contaminated with any unlabelled one, else clean."""
        labels = {sample.label for sample in self.samples}
        if "anomalous" in labels:
            return "weak"
        return "contaminated" if "unlabelled" in labels else "clean"

    @property
    def normal(self) -> tuple[Sample, ...]:
        """What may be taken as normal: the normal images and those nobody has looked at."""
        return tuple(sample for sample in self.samples if not sample.anomalous)

    @property
    def anomalous(self) -> tuple[Sample, ...]:
        """The images known to show a defect."""
        return tuple(sample for sample in self.samples if sample.anomalous)

    @property
    def groups(self) -> tuple[str, ...]:
        """Each group once, in order of first appearance."""
        return tuple(dict.fromkeys(sample.group for sample in self.samples))

    def summary(self) -> str:
        """One line: how many images of each label, in how many groups, of which kinds."""
        count = Counter(sample.label for sample in self.samples)
        labels = f"{count['normal']} good, {count['unlabelled']} unlabelled, {count['anomalous']} known-bad images"
        kinds = Counter(sample.kind for sample in self.anomalous)
        named = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
        return f"{labels} in {len(self.groups)} groups{f' ({named})' if named else ''}"
