"""InReaCh: only what recurs from image to image is remembered, so a pile needs nobody to look at it.

Idea: patches of a few seed images are compared with those of every other image. Two patches that are each other's
nearest belong together, and all that belong to one patch of a seed are a channel: a piece of the part, seen in many
images. Defects recur nowhere. Channels of few patches are dropped, and of the others the patches far from the mean.
What is left is the memory; nothing is trained.
Score: a patch's is its squared distance to the nearest remembered vector; the map is these, enlarged without
interpolation and smoothed widely, and an image's score is the map's highest value.
As released: ten seeds (the first images there, drawn by the seed here), at least four patches a channel, none farther
than five deviations. Where the mean image is unlike its transpose, parts lie alike: then row and column, from 0 to 5,
join each vector. Its thirteen blocks of a WideResNet50 are the stages' last ones here. More: docs/methods/inreach.md.

McIntosh, Albu: Inter-Realization Channels: Unsupervised Anomaly Detection Beyond One-Class Classification, ICCV 2023.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from blemish.backbones.teacher import available_memory
from blemish.contract import Backbone, Images, Method, Prediction, Teacher, TrainingImages
from blemish.errors import DataError
from blemish.ops.config import Count, PatchLayers, Rate, Several, Sigma, Weight
from blemish.ops.coreset import farthest_first, first_distances
from blemish.ops.neighbours import Neighbours
from blemish.ops.passes import batches, check_memory, check_number
from blemish.ops.patches import PatchVectors, describe_patches
from blemish.ops.smoothing import upscale
from blemish.run import Run

WIDTH = 1024  # numbers of a patch vector at most, without its place
UNLIKE = 1000 / 255**2  # mean squared difference between mean image and transpose from which on parts lie alike
WAY_OUT = "give fewer images, deeper --set layers or a smaller --size"

Watch = Callable[[range], Iterable[int]]


@dataclass(frozen=True)
class InReaChConfig:
    """The released defaults, for whatever backbone."""

    layers: PatchLayers = (1, 2, 3)
    seeds: Annotated[Count, Field(description="images whose patches begin a channel each")] = 10
    members: Annotated[Several, Field(description="parts whose patches a channel needs at least")] = 4
    spread: Annotated[Rate, Field(description="deviations from its channel's mean beyond which a patch is dropped")] = 5
    place: Annotated[
        Weight, Field(description="to which row and column go that join each vector where parts lie alike; 0: never")
    ] = 5.0
    memory: Annotated[
        Count | None, Field(description="patches that are kept, spread out as by PatchCore; null: all that recur")
    ] = None
    sigma: Sigma = 13.0


class InReaCh(Method):
    """``memory``: patches that recur; ``reach``: to which row and column go, 0 where parts lie at any angle."""

    Config = InReaChConfig
    regimes = frozenset({"contaminated"})
    config: InReaChConfig
    reach: Tensor

    def __init__(self, backbone: Backbone, size: tuple[int, int], config: InReaChConfig) -> None:
        super().__init__(backbone, size, config)
        self.patches = PatchVectors([level.channels for level in backbone.levels], 3, WIDTH, WIDTH, inflate=False)
        self.memory = Neighbours(torch.empty(0, self.patches.width + 2))
        self.register_buffer("reach", torch.zeros(()))

    @torch.no_grad()
    def train_on(self, training: TrainingImages, teacher: Teacher, run: Run) -> None:
        config, images = self.config, training.normal
        check_number("inreach", images, config.members, "which patches recur from image to image")
        y, x = teacher(images.batch([0]))[0].shape[-2:]
        needed = 24 * len(images) * y * x * (self.patches.width + 2)  # numbers of four bytes, six times over
        check_memory("inreach", f"compares every patch of {len(images)} images", needed, available_memory(), WAY_OUT)
        self.reach.fill_(config.place if config.place and lies_alike(images, run) else 0)
        vectors, *_ = describe_patches(images, teacher, self.patches, None, run)
        points = self._placed(vectors.view(len(images), y, x, -1).to(run.device)).flatten(1, 2)
        order = run.permutation(len(images), "seeds")

        watch = partial(run.progress.track, title="looking for patches that recur")
        patches, channels = mutual_neighbours(points, order, config.seeds, watch)
        points = points.flatten(0, 1)
        parts = torch.tensor(images.parts, device=points.device).repeat_interleave(y * x)
        kept = recurring(points, patches, channels, parts, config.members, config.spread)
        if not len(kept):
            raise DataError(
                f"inreach remembers patches that recur in {config.members} images or more and are less than "
                f"{config.spread:g} deviations from others, and in the {len(images)} given none does: give more images "
                f"of one kind of part, no copies, set a larger spread ({20 * config.spread:g}), or use softpatch"
            )
        if config.memory is not None:
            first = first_distances(points[kept], "approximate", 10, run.generator("starting points"))
            kept = kept[list(farthest_first(points[kept], config.memory, first))]
        self.memory = Neighbours(points[kept])

    def predict(self, images: Tensor) -> Prediction:
        vectors = self._placed(self.patches(self.backbone(images)))
        scores = self.memory(vectors.flatten(0, 2))[0].view(vectors.shape[:3])
        size = (images.shape[-2], images.shape[-1])
        enlarged = F.interpolate(scores[:, None], size=size, mode="nearest").squeeze(1)
        map_ = upscale(enlarged, size, self.config.sigma)
        return Prediction(map_, map_.amax(dim=(1, 2)))

    def _placed(self, vectors: Tensor) -> Tensor:
        """``b y x d+2`` of ``b y x d``: with row and column, both from 0 to ``reach``."""
        b, y, x, _ = vectors.shape
        rows, columns = (torch.arange(n, device=vectors.device) / max(n - 1, 1) for n in (y, x))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2) * self.reach
        return torch.cat([vectors, places.expand(b, y, x, 2)], dim=3)


def lies_alike(images: Images, run: Run) -> bool:
    """Whether the mean of all images, brought to a square, is unlike its transpose."""
    sums = torch.stack([batch.images.double().sum(dim=0) for batch in batches(images, run, "averaging images")])
    mean = sums.sum(dim=0, keepdim=True) / len(images)
    square = F.interpolate(mean, size=(min(mean.shape[2:]),) * 2, mode="area")
    return bool((square - square.mT).square().mean() >= UNLIKE)


def mutual_neighbours(points: Tensor, order: Sequence[int], seeds: int, watch: Watch = iter) -> tuple[Tensor, Tensor]:
    """Patches among ``n p d``, counted image by image, and for each the channel: the patch of a seed it belongs to.

    The first ``seeds`` images in ``order`` are compared with every later one. A patch belongs to the closest of all
    their patches, where it is the closest of its image to that, too; each patch of a seed is in its own channel.
    """
    p = points.shape[1]
    centred = points - points.mean(dim=(0, 1))
    norms, own = centred.square().sum(dim=2), torch.arange(p, device=points.device)
    between = points.new_empty(p, p)
    patches = [p * image + own for image in order[:seeds]]
    channels = [p * number + own for number in range(len(patches))]
    for later in watch(range(1, len(order))):
        image, closest = order[later], torch.full_like(norms[0], torch.inf)
        channel = torch.full_like(own, -1)
        for number, seed in enumerate(order[: min(seeds, later)]):
            torch.addmm(norms[image], centred[seed], centred[image].T, alpha=-2, out=between).add_(norms[seed][:, None])
            distances, (nearest, partners) = between.amin(dim=0), between.min(dim=1)  # an argmin by columns is slow
            mutual = nearest == distances[partners]
            heads = torch.full_like(own, p).scatter_reduce(0, partners[mutual], own[mutual], "amin")  # p: nobody
            closer = distances < closest
            closest = torch.where(closer, distances, closest)
            channel = torch.where(closer, torch.where(heads < p, p * number + heads, -1), channel)
        patches.append(p * image + own[channel >= 0])
        channels.append(channel[channel >= 0])
    return torch.cat(patches), torch.cat(channels)


def recurring(points: Tensor, patches: Tensor, channels: Tensor, parts: Tensor, members: int, spread: float) -> Tensor:
    """Those of ``patches``, as indices of points ``n d``, ascending, that recur, from the channel of each.

    Its channel has patches of at least ``members`` of the ``parts`` (of each point; turned copies of one image are of
    one part), and has so many still without those that are as far from its mean as ``spread`` times the standard
    deviation of its patches' distances from it: as released, so alike distances are all too far.
    """

    def large() -> Tensor:
        of_parts = torch.unique(torch.stack([channels, parts[patches]]), dim=1)[0]
        members_of: Tensor = of_parts.bincount()[channels]
        return members_of >= members

    patches, channels = patches[many := large()], channels[many]
    if len(patches):
        counts = channels.bincount()[:, None].clamp_min(1)

        def mean(values: Tensor) -> Tensor:
            """Of each patch's channel."""
            sums = values.new_zeros(len(counts), values.shape[1]).index_add_(0, channels, values)
            return (sums / counts)[channels]

        distances = (points[patches] - mean(points[patches])).norm(dim=1, keepdim=True)
        deviations = mean((distances - mean(distances)).square()).sqrt()
        near = (distances < spread * deviations).squeeze(1)
        patches, channels = patches[near], channels[near]
    kept: Tensor = torch.unique(patches[large()])
    return kept
