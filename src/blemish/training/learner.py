"""One set of images, one backbone, one method: learned from all of the images or from parts of them.

What cross-fitting's models share is built once: decoded images, backbone, and the features that its teacher keeps.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Images, Method, Regime, TrainingImages
from blemish.data.loading import PreparedImages
from blemish.data.poses import PosedImages, Poses
from blemish.errors import ConfigError
from blemish.inspection.inspector import Inspector
from blemish.registry import method_entry
from blemish.run import Run, Silent, derive_seed, torch_seeded

NO_CACHE, IN_MEMORY = "off", "memory"
Folds = Sequence[Sequence[int]]
OnEpoch = Callable[[int, dict[str, float], Inspector], None]
"""Told at the end of each epoch of its number (from 1), its mean logged values, and the model that still learns."""


@dataclass(frozen=True)
class Learner:
    """Learns a method, ``name`` in the registry, from some of a set's images."""

    name: str
    cls: type[Method]
    config: Any
    normal: PreparedImages
    anomalous: PreparedImages | None
    regime: Regime
    teacher: FrozenTeacher
    poses: Poses = "none"

    @property
    def groups(self) -> list[str]:
        return self.normal.groups

    @property
    def is_trained(self) -> bool:
        """Whether it goes through its images again and again, rather than once."""
        return any(option.name in ("epochs", "steps") for option in dataclasses.fields(self.config))

    def keep_features(self, indices: Sequence[int], is_crossfit: bool, where: str, run: Run) -> None:
        """Let the teacher keep the features of what is learned from, in memory or a folder, if asked for again."""
        if where == NO_CACHE or not (self.is_trained or is_crossfit or self.cls.looks_again(self.config)):
            return
        sets: list[Images] = [PosedImages(self.normal.subset(indices).windows, self.poses)]
        if self.anomalous is not None and self.cls.learns_from_anomalous(self.config):
            sets.append(self.anomalous)
        with run.timer.stage("features"):
            self.teacher.keep_features(sets, run, None if where == IN_MEMORY else Path(where))

    def learn(self, indices: Sequence[int], run: Run, on_epoch: OnEpoch | None = None) -> Inspector:
        """An uncalibrated inspector that learned from the normal images at ``indices`` and the known-bad ones."""
        backbone, preparation = self.teacher.backbone, self.normal.preparation
        run = dataclasses.replace(run, work=self.work(indices))
        normal = self.normal.subset(indices)
        posed = PosedImages(normal.windows, self.poses)
        bad = self.anomalous or normal.subset(())
        held = {sample.group for sample in self.normal.samples} - {sample.group for sample in normal.samples}
        if held:  # nor is a held-out part learned from its bad photographs
            apart = [index for index, sample in enumerate(bad.samples) if sample.group not in held]
            bad = bad.subset(apart) if apart else bad  # a method of known-bad images needs some
        # No method sees a path, which may name what nobody is to know of a pile: these show images and keys alone.
        training = TrainingImages(posed, PosedImages(bad), self.regime)
        # What a method draws without a generator of its own, such as first weights, depends on the seed too.
        with torch_seeded(derive_seed(run.seed, "first weights")), run.timer.stage("fit"):
            method = self.cls(backbone, preparation.input_size, self.config).to(run.device)
            inspector = Inspector(method=method, name=self.name, preparation=preparation)
            if on_epoch is not None:
                run = dataclasses.replace(run, on_epoch=lambda epoch, means: on_epoch(epoch, means, inspector))
            try:
                method.fit(training, self.teacher, run)
            except torch.OutOfMemoryError as error:
                batch = getattr(self.config, "batch_size", 1)
                smaller = (
                    f"--set batch_size={batch // 2} in place of {batch}, or a smaller" if batch > 1 else "a smaller"
                )
                raise MemoryError(f"the graphics card's memory is full; try {smaller} --size") from error
        for tensor in method.state_dict().values():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                way_out = "Lower the learning rate, such as --set learning_rate=0.001"
                raise ConfigError(f"what {self.name} learned is not finite: its training ran away. {way_out}")
        return inspector

    def crossfit(
        self, folds: Folds, run: Run, title: str, anomalous_folds: Folds | None = None, scope: str = "fold"
    ) -> Iterator[tuple[Sequence[int], Inspector]]:
        """Each fold, and an uncalibrated inspector that learned from the images of all other folds.

        ``folds`` and ``anomalous_folds`` are indices of normal and known-bad images; without the latter every fold
        learns from all known-bad ones. ``title`` is of the one bar for all folds; a method that is trained shows each
        fold's epochs instead. Checkpoints are kept by ``scope``.
        """
        numbers: Iterable[int] = range(len(folds))
        if not self.is_trained:
            numbers, run = run.progress.track(numbers, title), dataclasses.replace(run, progress=Silent())

        def others(folds: Folds, number: int) -> list[int]:
            return sorted(index for other, fold in enumerate(folds) if other != number for index in fold)

        for number in numbers:
            part = self
            if anomalous_folds is not None and self.anomalous is not None:
                part = dataclasses.replace(self, anomalous=self.anomalous.subset(others(anomalous_folds, number)))
            yield folds[number], part.learn(others(folds, number), run.scoped(f"{scope} {number + 1} of {len(folds)}"))

    def work(self, indices: Sequence[int]) -> dict[str, str]:
        """What is learned from what: a checkpoint serves nothing else."""
        backbone, bad = self.teacher.backbone, () if self.anomalous is None else self.anomalous.keys
        keys = [*(self.normal.keys[i] for i in indices), "known-bad", *bad]
        return {
            "method": f"{self.name} {method_entry(self.name).version}",
            "options": json.dumps(dataclasses.asdict(self.config), sort_keys=True, default=str),
            "backbone": f"{backbone.name} {backbone.digest[:16]}",
            "backbone's precision": backbone.precision.name,
            "preparation": self.normal.preparation.digest,
            "regime": self.regime,
            "poses": self.poses,
            "images": hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16],
        }
