"""What a method is given and what it gives back: the one page every method is written against.

Tensor legend, used everywhere: ``b`` images, ``c`` channels, ``h w`` input pixels, ``y x`` feature cells,
``n`` patches, ``k`` neighbours, ``d`` feature size. Images are RGB, float32, in [0, 1]; the backbone normalises.
A higher score is always more anomalous.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from blemish.errors import ConfigError

if TYPE_CHECKING:
    from blemish.run import Run

Label = Literal["normal", "unlabelled", "anomalous"]
"""What is known of a training image."""

Regime = Literal["clean", "contaminated", "weak"]
"""What is known of a training set: good images only; a pile nobody has looked at; good and known-bad ones."""


@dataclass(frozen=True)
class Batch:
    """Prepared training images and the keys under which a teacher may have kept their features.

    Attributes:
        images: ``b 3 h w``, RGB in [0, 1].
        keys: one for each image: a digest of its content and preparation.
    """

    images: Tensor
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
    """What a method says of a batch: raw, without any threshold, higher is more anomalous.

    Attributes:
        map: ``b h w`` at the size of the input, smoothed as the method defines, or None for a method without maps.
        score: ``b``, by the method's own rule (not always the map's maximum).
    """

    map: Tensor | None
    score: Tensor


class Images(Protocol):
    """A fixed sequence of prepared training images, decoded on demand and in parallel."""

    def __len__(self) -> int:
        """How many images there are."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, in that order."""


@dataclass(frozen=True)
class TrainingImages:
    """All that a method may see of a training set: no ground truth, no test image.

    Attributes:
        normal: what may be taken as normal: the good images, or in the contaminated regime the whole pile.
        anomalous: images known to be bad, without outlines; empty outside the weak regime.
        regime: what is known of the set.
    """

    normal: Images
    anomalous: Images
    regime: Regime


@dataclass(frozen=True)
class Level:
    """One feature map of a backbone.

    Attributes:
        stage: 1 for stride 4, 2 for stride 8 and so on, in the papers' counting.
        channels: its width.
        stride: input pixels a cell, along each axis.
        signed: False where the level ends in a ReLU; a student's last activation follows it.
    """

    stage: int
    channels: int
    stride: int
    signed: bool


class Backbone(nn.Module, ABC):
    """A frozen feature extractor: ``images -> list of feature maps``, one for each of ``levels``.

    Implemented by ``blemish.backbones``; declared here because methods are written against it. ``forward`` takes
    ``b 3 h w`` images in [0, 1], normalises them itself, and returns float32 maps ``b c y x`` whose values are
    rounded to bf16, so that features read from a cache equal features computed.
    """

    levels: tuple[Level, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """The feature maps of ``images``, shallowest level first."""


class Teacher(Protocol):
    """The backbone as a method sees it while learning: ``Batch`` may come from a cache, a bare tensor never does."""

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        """Feature maps ``b c y x``, shallowest level first, without gradient."""


class Method(nn.Module, ABC):
    """A way of learning what is normal. Abstract: one final subclass for each paper, in a file of its own.

    Class attributes:
        Config: a frozen dataclass whose defaults are the paper's.
        regimes: the regimes in which the method finds the images it needs.
        uses_feature_cache: False where ``fit`` has no use for a teacher's kept features: it never asks for those of a
            ``Batch``, and keeping them would be work for nothing.
        has_schedule: True where what happens in an epoch depends on how many there will be: then the first epochs of a
            long training are not a short one, and its length cannot be chosen by looking at it on the way.
    """

    Config: ClassVar[type[Any]]
    regimes: ClassVar[frozenset[Regime]]
    uses_feature_cache: ClassVar[bool] = True
    has_schedule: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: Any) -> None:
        """Keep what is given; build the networks, untrained.

        Args:
            backbone: extracts the levels named by the config's ``layers``.
            size: height and width of the prepared images.
            config: an instance of ``Config``.
        """
        super().__init__()
        self.backbone = backbone
        self.size = size
        self.config = config

    @classmethod
    def gains_from_bf16(cls, backbone: Backbone, config: Any) -> bool:
        """Whether what it trains is made of dense convolutions, as most students are, whatever their teacher's are.

        Depthwise ones gain little from bf16 and are trained without.

        Args:
            backbone: the teacher.
            config: an instance of ``Config``.
        """
        return True

    @abstractmethod
    def fit(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Learn from ``training``. ``run`` owns seed, device, precision, progress and cancellation."""

    def finalize(self) -> None:
        """Get ready to judge. ``fit`` ends with it; whoever judges with a method that still learns calls it first."""
        self.eval()

    @abstractmethod
    def forward(self, images: Tensor) -> Prediction:
        """Judge ``b 3 h w`` images in [0, 1]: deterministic, without gradient tricks, exportable."""

    def load_fitted(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave. Overridden where the size of a buffer is learned."""
        self.load_state_dict(dict(state), strict=True)


def rounded(features: Tensor) -> Tensor:
    """``features`` as float32 numbers that bf16 can hold: the same whether cached or computed."""
    return features.to(torch.bfloat16).to(torch.float32)


def check_cells(size: tuple[int, int], stride: int, what: str) -> None:
    """Refuse images so small that a grid has a single cell: of that, over one image, a norm leaves nothing.

    Args:
        size: height and width of the images.
        stride: input pixels a cell.
        what: has the grid, for people.

    Raises:
        ConfigError: both sides are at most one cell.
    """
    if max(size) <= stride:
        raise ConfigError(
            f"images of {size[0]} x {size[1]} leave {what} a single cell, and a norm needs more: use images of more "
            f"than {stride} pixels or shallower layers"
        )
