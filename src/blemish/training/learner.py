"""One set of images, one backbone, one method: learned from all of the images or from parts of them.

Cross-fitting learns five times from parts of one set and once from all of it. What they share is built once: the
decoded images, the backbone, and the features that its teacher keeps.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Method, Regime, TrainingImages
from blemish.data.loading import PreparedImages, fitted_white_level
from blemish.data.preprocessing import Preprocessing, ResizeMode
from blemish.data.samples import TrainingSet
from blemish.errors import ConfigError
from blemish.registry import method_entry
from blemish.run import Run, derive_seed, torch_seeded

NO_CACHE, IN_MEMORY = "off", "memory"


@dataclass(frozen=True)
class PreparedSet:
    """A training set, decoded and prepared."""

    normal: PreparedImages
    anomalous: PreparedImages | None
    preparation: Preprocessing
    regime: Regime

    @staticmethod
    def of(
        training: TrainingSet, family: ResizeMode, size: int | tuple[int, int], crop: int | None, strict: bool, run: Run
    ) -> PreparedSet:
        """Decode the images of a training set.

        Raises:
            DataError: no image can be read.
            ImageError: ``strict``, and one cannot be read.
        """
        preparation = Preprocessing(family, size, crop, fitted_white_level(training.samples))
        load = partial(PreparedImages, preparation=preparation, strict=strict, progress=run.progress)
        normal = load(training.normal)
        copies = len(normal) - len(set(normal.keys))
        if copies:
            run.progress.note(f"warning: {copies} training images are copies of others, which lowers the threshold")
        anomalous = load(training.anomalous) if training.anomalous else None
        return PreparedSet(normal, anomalous, preparation, training.regime)

    @property
    def groups(self) -> list[str]:
        """The part that each normal image shows."""
        return [sample.group for sample in self.normal.samples]


@dataclass(frozen=True)
class Learner:
    """Learns a method from some of a set's images.

    Attributes:
        name: of the method, in the registry.
        cls: of the method.
        config: of the method.
        images: the whole set.
        teacher: keeps features for all that is learned from this set.
    """

    name: str
    cls: type[Method]
    config: Any
    images: PreparedSet
    teacher: FrozenTeacher

    @property
    def is_trained(self) -> bool:
        """Whether the method goes through its images again and again, rather than once."""
        return any(entry.name in ("epochs", "steps") for entry in dataclasses.fields(self.config))

    def keep_features(self, indices: Sequence[int], is_crossfit: bool, where: str, run: Run) -> None:
        """Let the teacher keep the features of the images at ``indices``, if they will be asked for again.

        Args:
            indices: of the normal images that anything will be learned from.
            is_crossfit: whether the method is learned several times.
            where: ``memory``, ``off``, or a folder.
            run: told of the decision.
        """
        if where == NO_CACHE or not (self.is_trained or is_crossfit) or not self.cls.uses_feature_cache:
            return
        sets = [self.images.normal.subset(indices)]
        if self.images.anomalous is not None and method_entry(self.name).regime == "weak":
            sets.append(self.images.anomalous)
        with run.timer.stage("features"):
            self.teacher.keep_features(sets, run, None if where == IN_MEMORY else Path(where))

    def learn(self, indices: Sequence[int], run: Run, watch: Callable[[Method], None] | None = None) -> Method:
        """A method learned from the normal images at ``indices`` and, in the weak regime, all of the known-bad ones.

        Args:
            indices: which of the normal images.
            run: its checkpoints will be refused to any other method, set, seed or precision.
            watch: told of the method before it learns.

        Raises:
            ConfigError: what was learned is not finite.
        """
        run = dataclasses.replace(run, work=self.work(indices))
        normal = self.images.normal.subset(indices)
        anomalous = self.images.anomalous or self.images.normal.subset(())
        # What a method draws without a generator of its own, such as first weights, depends on the seed too.
        with torch_seeded(derive_seed(run.seed, "first weights")), run.timer.stage("fit"):
            backbone = self.teacher.backbone
            method = self.cls(backbone, self.images.preparation.input_size, self.config).to(run.device)
            if watch is not None:
                watch(method)
            method.fit(TrainingImages(normal, anomalous, self.images.regime), self.teacher, run)
        _check_finite(self.name, method)
        return method.eval()

    def work(self, indices: Sequence[int]) -> dict[str, str]:
        """What is learned from what: a checkpoint serves nothing else."""
        keys = [self.images.normal.keys[i] for i in indices]
        keys += ["known-bad", *(self.images.anomalous.keys if self.images.anomalous is not None else ())]
        backbone = self.teacher.backbone
        return {
            "method": f"{self.name} {method_entry(self.name).version}",
            "options": json.dumps(dataclasses.asdict(self.config), sort_keys=True, default=str),
            "backbone": f"{backbone.name} {backbone.digest[:16]}",
            "backbone's precision": backbone.precision.name,
            "preparation": self.images.preparation.digest,
            "regime": self.images.regime,
            "images": hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16],
        }


def _check_finite(name: str, method: Method) -> None:
    for tensor in method.state_dict().values():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(
                f"what {name} learned is not finite: its training ran away. Lower the learning rate, such as "
                "--set learning_rate=0.001"
            )
