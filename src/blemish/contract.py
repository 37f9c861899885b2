"""What a method is given and what it gives back: the one page every method is written against.

Tensor legend, used everywhere: ``b`` images, ``c`` channels, ``h w`` input pixels, ``y x`` feature cells,
``n`` patches, ``k`` neighbours, ``d`` feature size. Images are RGB, float32, in [0, 1]. A higher score is always more
anomalous.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor, nn

from blemish.errors import ConfigError, RegimeError
from blemish.run.device import Precision, choose_precision
from blemish.run.run import Run

Label = Literal["normal", "unlabelled", "anomalous"]  # what is known of a training image
Regime = Literal["clean", "contaminated", "weak"]
"""What is known of a training set: good images only; a pile nobody has looked at; good and known-bad ones."""


@dataclass(frozen=True)
class Batch:
    """Prepared images and one key each under which a teacher may have kept their features."""

    given: Tensor | Callable[[], Tensor]  # the images, or what gives them: where features are kept nobody may ask
    keys: tuple[str, ...]

    @cached_property
    def images(self) -> Tensor:
        """``b 3 h w``."""
        return self.given if isinstance(self.given, Tensor) else self.given()


@dataclass(frozen=True)
class Prediction:
    """What a method says of a batch, without any threshold: ``score`` ``b``, by its own rule, and ``map`` ``b h w``.

    The map has the size of the input and is smoothed as the method defines; None for a method without maps.
    """

    map: Tensor | None
    score: Tensor


class Images(Protocol):
    """A fixed sequence of prepared training images, decoded on demand and in parallel."""

    def __len__(self) -> int:
        """The number of images."""

    @property
    def parts(self) -> Sequence[int]:
        """The number of the part that each image shows: what is held out, is held out by parts."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``, in that order."""


def in_batches(images: Images, size: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """All ``images``, or those at ``order`` in that order, ``size`` at a time; the last batch may be smaller."""
    order = range(len(images)) if order is None else order
    for start in range(0, len(order), size):
        yield images.batch(order[start : start + size])


@dataclass(frozen=True)
class TrainingImages:
    """All that a method may see of a training set: no ground truth, no test image.

    ``normal`` are the good images, or in the contaminated regime the whole pile; ``anomalous`` those known to be bad,
    without outlines: none outside the weak regime.
    """

    normal: Images
    anomalous: Images
    regime: Regime


@dataclass(frozen=True)
class Level:
    """One feature map of a backbone."""

    stage: int  # 1 for stride 4, 2 for stride 8 and so on, in the papers' counting; of one stride: the n-th block
    channels: int
    stride: int  # input pixels a cell, along each axis
    signed: bool  # False where the level ends in a ReLU; a student's last activation follows it


class ResidualStages(NamedTuple):
    """What a ResNet is made of: blocks of its four stages, convolutions of a block, width inside the first blocks."""

    blocks: tuple[int, ...]
    convolutions: int
    width: int


class Backbone(nn.Module, ABC):
    """A frozen feature extractor. Implemented by ``blemish.backbones``; everything else is written against this.

    Attributes:
        levels: what ``forward`` returns, shallowest first.
        dense: False for depthwise convolutions, which gain little from bf16.
        precision: how it computes; to be set again after moving to another device.
        digest: SHA-256 over its trained tensors.
        residual: what a ResNet is made of, for students that mirror it; None for other architectures.
        tokens: True for transformers, which see whole cells and give maps of one stride.
    """

    name: str
    tokens: bool = False
    levels: tuple[Level, ...]
    dense: bool
    precision: Precision
    digest: str
    residual: ResidualStages | None = None

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps ``b c y x``, one a level, of ``b 3 h w`` images in [0, 1], which it normalises itself.

        They are float32, rounded to bf16, so that features read from a cache equal features computed.
        """

    @torch.no_grad()
    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Rows and columns of each level for images of ``size``, which networks round up or down as they please."""
        image = torch.zeros(1, 3, *size, device=next(self.parameters()).device)
        return [(map_.shape[-2], map_.shape[-1]) for map_ in self(image)]

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """All that is needed beside the tensors to build it again: JSON-able, without paths."""


class Teacher(Protocol):
    """The backbone as a method sees it while learning: ``Batch`` may come from a cache, a bare tensor never does."""

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        """Feature maps ``b c y x``, shallowest level first, without gradient."""


class Method(nn.Module, ABC):
    """A way of learning what is normal: one final subclass for each paper writes ``train_on`` and ``predict``.

    Attributes:
        Config: a frozen dataclass whose defaults are the paper's; its fields carry their descriptions.
        regimes: in which it finds the images it needs; ``clean`` serves the others by the normal images alone.
        bf16: whether what it trains gains from it: ``always``, where the backbone is ``dense``, or ``never``.
        on_pixels: True for methods that see the images alone: they get a backbone without levels, and no ``layers``.
        costs_more_later: True where later steps take longer than the first, by which a training's time is told.
        has_schedule: True where the first epochs of a long training are not a short one: then its length cannot be
            chosen by looking at it on the way.
        needs_gradient: True where a verdict takes a gradient, which no exported file computes.
        precision: how the networks that were trained compute; None for the processor's choice.
        is_fitted: whether it has learned, or is learning: then it can judge.
        learning: what it learns from at the moment, and the run; None before and after ``fit``.
    """

    Config: ClassVar[type[Any]]
    regimes: ClassVar[frozenset[Regime]] = frozenset({"clean"})
    bf16: ClassVar[Literal["always", "dense", "never"]] = "always"
    on_pixels: ClassVar[bool] = False
    has_schedule: ClassVar[bool] = False
    costs_more_later: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: Any) -> None:
        """Keep backbone, ``(height, width)`` of the images and config; subclasses build their networks, untrained."""
        super().__init__()
        self.backbone, self.size, self.config = backbone, size, config
        self.precision: Precision | None = None
        self.needs_gradient = False
        self.is_fitted = False
        self.learning: tuple[TrainingImages, Run] | None = None

    @classmethod
    def gains_from_bf16(cls, backbone: Backbone, config: Any) -> bool:
        """As ``bf16`` says, unless an option decides."""
        return cls.bf16 == "always" or (cls.bf16 == "dense" and backbone.dense)

    @final
    @classmethod
    def learns_from_anomalous(cls, config: Any) -> bool:
        """Whether known-bad images of a weak set take part: where a method serves those alone, or could do without."""
        return cls.regimes == {"weak"} or cls.without_anomalous(config) is not None

    @classmethod
    def looks_again(cls, config: Any) -> bool:
        """Whether it asks for the features of an image more than once, though it is not trained."""
        return False

    @classmethod
    def without_anomalous(cls, config: Any) -> Any:
        """The config of the same method learning from normal images alone; None where it cannot, or already does."""
        return None

    @final
    def fit(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Learn from ``training``; ``RegimeError`` where the images that it learns from are not there."""
        name, normal, anomalous = type(self).__name__.lower(), len(training.normal), len(training.anomalous)
        if not normal:
            raise RegimeError(f"{name} learns from normal images and was given none: add some to the training set")
        is_served = training.regime in self.regimes and (training.regime != "weak" or anomalous)
        if "clean" not in self.regimes and not is_served:
            raise RegimeError(
                f"{name} learns from {' or '.join(sorted(self.regimes))} sets, and this one is {training.regime} with "
                f"{normal} images taken as normal and {anomalous} known to be bad: use a method for such sets "
                "(blemish methods lists them)"
            )
        self.is_fitted, self.precision, self.learning = True, run.precision, (training, run)
        self.train_on(training, teacher, run)
        self.finalize()
        self.learning = None

    @abstractmethod
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        """Learn from at least one normal image."""

    @final
    def finalize(self) -> None:
        """Switch to eval mode and fit the statistics. ``fit`` ends with it; whoever judges before calls it."""
        self.eval()
        if self.learning is not None:
            self.fit_statistics(*self.learning)
            self.eval()

    def fit_statistics(self, training: TrainingImages, run: Run) -> None:
        """From the training images what depends on the final weights: BatchNorm's, scales of scores. In eval mode."""

    def see_test(self, images: Images) -> None:
        """Compute a scale of scores from the test images, as some papers do, where ``normalise`` is ``test``.

        The bench alone calls it, and its tables mark such figures.
        """

    @final  # type: ignore[misc]  # torch declares an attribute
    def forward(self, images: Tensor) -> Prediction:
        """Judge ``b 3 h w`` images in [0, 1]: deterministic; ``ConfigError`` where it has learned nothing yet."""
        if not self.is_fitted:
            raise ConfigError(f"this {type(self).__name__} has learned nothing yet: call fit or load_fitted first")
        return self.predict(images)

    @abstractmethod
    def predict(self, images: Tensor) -> Prediction:
        """Map and score of ``b 3 h w`` images in [0, 1]."""

    @final
    def load_fitted(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` gave; buffers that are empty until it has learned take the size found there."""
        for name, buffer in list(self.named_buffers()):
            if name in state and buffer.ndim > 0 == len(buffer) and state[name].shape[1:] == buffer.shape[1:]:
                owner, _, leaf = name.rpartition(".")
                setattr(self.get_submodule(owner), leaf, buffer.new_empty(state[name].shape))
        self.load_state_dict(dict(state), strict=True)
        self.is_fitted = True

    def autocast(self, images: Tensor) -> torch.autocast:
        """The context in which the networks that were trained judge ``images``."""
        return (self.precision or choose_precision(images.device)).autocast(images.device)


def check_cells(size: tuple[int, int], stride: int, what: str, rounds_up: bool = True) -> None:
    """A ConfigError for images (height, width) of one cell of ``stride`` pixels: over one, a norm leaves nothing.

    Poolings, unlike convolutions, do not round up: what is over they leave out.
    """
    if max(size) <= stride if rounds_up else max(size) < 2 * stride or min(size) < stride:
        needed = f"more than {stride} pixels" if rounds_up else f"{2 * stride} pixels by {stride} or more"
        raise ConfigError(
            f"images of {size[0]} x {size[1]} leave {what} a single cell, and a norm needs more: "
            f"use images of {needed} or shallower layers"
        )
