"""Settings that methods share, each described once.

Every option of every method carries its description, from which ``blemish methods NAME``, error messages and the
documentation's tables are made, and its bounds.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from blemish.ops.cosine import Loss, MapScore

Layers = Annotated[tuple[Annotated[int, Field(ge=1, le=48)], ...], Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=2048)]  # what networks are built by: a model file of a few bytes may name any
Several = Annotated[int, Field(ge=2)]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]

LATER = "an option that came after the ledger's first rows: its default stands for what they were measured with"

DistillationLoss = Annotated[
    Loss, Field(description="1 - cosine of one vector a whole map (layer) or a location (vector), summed over levels")
]
EncoderNorm = Annotated[
    Literal["train", "frozen"],
    Field(description="the trained encoder's BatchNorm goes by each batch while it learns, or stays as it was"),
]
Steps = Annotated[Count | None, Field(description="updates of the weights, in place of epochs")]
PatchLayers = Annotated[Layers, Field(description="stages that describe a patch; the first one's grid is the patches'")]
Strangest = Annotated[Share, Field(description="share of an image's patches, the strangest, whose mean is its score")]
Sigma = Annotated[float, Field(ge=0, le=100, description="of the Gaussian that smooths the map, in input pixels")]
Standardise = Annotated[bool, Field(description="each channel by mean and deviation on good images; else as it is")]


@dataclass(frozen=True)
class StudentConfig:
    """Reverse distillation's released training, which the students of other methods share."""

    layers: Annotated[Layers, Field(description="stages whose features the student gives back")] = (1, 2, 3)
    epochs: Annotated[Count, Field(description="passes over the images")] = 200
    steps: Steps = None
    batch_size: Annotated[Count, Field(description="images a step")] = 16
    learning_rate: Annotated[Rate, Field(description="Adam's, of the student")] = 0.005
    betas: Annotated[tuple[float, float], Field(description="Adam's")] = (0.5, 0.999)
    sigma: Sigma = 4.0
    score: Annotated[
        MapScore,
        Field(description="an image's: its map's highest value, or sum or mean, for whole strange images"),
        LATER,
    ] = "max"


@dataclass(frozen=True)
class MemoryConfig:
    """The released PatchCore's patch vectors and coreset, which SoftPatch shares."""

    layers: PatchLayers = (2, 3)
    memory: Annotated[Count, Field(description="patch vectors that are kept, where fraction does not say")] = 10_000
    fraction: Annotated[
        float | None, Field(gt=0, le=1, description="of all patch vectors, how much is kept, in place of memory")
    ] = None
    patch_size: Annotated[Literal[1, 3, 5], Field(description="cells a side of a patch's neighbourhood")] = 3
    dims: Annotated[
        Literal["auto", "paper"],
        Field(description="paper: vectors are always pooled to target_dim; auto: only from more channels than that"),
    ] = "auto"
    pretrain_dim: Annotated[Width, Field(description="numbers that each stage is pooled to")] = 1024
    target_dim: Annotated[Width, Field(description="numbers in a patch vector")] = 1024
    starting_points: Annotated[Count, Field(description="random vectors that the choice begins from")] = 10
    projection_dim: Annotated[
        Count, Field(description="numbers that vectors of more than twice as many are projected to for the choice")
    ] = 128
    top: Strangest = 0.0
    sigma: Sigma = 4.0
