"""What a training set is: images, what is known of each, and which part each of them shows.

Nothing here holds ground truth: no mask, no test image. Those live in ``testset``, which fitting cannot import.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from blemish.contract import Label, Regime


@dataclass(frozen=True)
class Sample:
    """One training image.

    Attributes:
        path: the file.
        label: what is known of it.
        group: the part, patient or scene it shows; several photographs of one part share it.
        kind: the defect's name for a known-bad image, else ``good`` or ``unlabelled``.
    """

    path: Path
    label: Label
    group: str
    kind: str


@dataclass(frozen=True)
class TrainingSet:
    """The images that a model may learn from.

    Attributes:
        name: for people: the folder's or the manifest's name.
        root: the folder or the manifest the set was read from; None where it was given as patterns.
        samples: the images, in natural order within each label.
        notes: what a person should be told before work starts, one line each.
    """

    name: str
    root: Path | None
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()

    @property
    def regime(self) -> Regime:
        """Weak with any known-bad image, else contaminated with any unlabelled one, else clean."""
        labels = {sample.label for sample in self.samples}
        if "anomalous" in labels:
            return "weak"
        return "contaminated" if "unlabelled" in labels else "clean"

    @property
    def normal(self) -> tuple[Sample, ...]:
        """What may be taken as normal: the good images and those nobody has looked at."""
        return tuple(sample for sample in self.samples if sample.label != "anomalous")

    @property
    def anomalous(self) -> tuple[Sample, ...]:
        """The images known to be bad."""
        return tuple(sample for sample in self.samples if sample.label == "anomalous")

    @property
    def groups(self) -> tuple[str, ...]:
        """Each group once, in order of first appearance."""
        return tuple(dict.fromkeys(sample.group for sample in self.samples))

    def summary(self) -> str:
        """One line: how many images of each label, in how many groups, of which kinds."""
        count = Counter(sample.label for sample in self.samples)
        kinds = Counter(sample.kind for sample in self.anomalous)
        named = ", ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
        line = (
            f"{count['normal']} good, {count['unlabelled']} unlabelled, {count['anomalous']} known-bad images"
            f" in {len(self.groups)} groups"
        )
        return f"{line} ({named})" if named else line
