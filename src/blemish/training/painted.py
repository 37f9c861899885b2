"""Good images with painted defects of several kinds and sizes, and what a model scores them."""

from collections.abc import Sequence
from functools import lru_cache
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from blemish.data.images import read_header
from blemish.data.loading import PreparedImages
from blemish.data.synthetic import Surface, paint
from blemish.inspection.detection import KINDS, Painted
from blemish.inspection.inspector import Inspector
from blemish.run import derive_seed

SHARES = (1 / 16, 1 / 8, 1 / 4)  # of the picture's shorter side: the square that a defect is painted into
SMALLEST = 12  # pixels a side of that square


def score_painted(
    inspector: Inspector,
    images: PreparedImages,
    each: int,
    seed: int,
    first: int = 0,
    unpainted: Sequence[float] | None = None,
) -> list[Painted]:
    """``each`` defects on every image, one at a time; kinds and sizes take turns, beginning at ``first``.

    Of an image that is cut into tiles one is painted, and the image scores no less than it does ``unpainted``.
    """
    tiling = images.preparation.tiling
    masks: dict[int, float] = {}

    def chosen(number: int) -> tuple[str, float]:
        turn = first + number
        return list(KINDS)[turn % len(KINDS)], SHARES[turn // len(KINDS) % len(SHARES)]

    @lru_cache(maxsize=2)
    def surface(place: tuple[int, int]) -> Surface:
        return Surface(images.at([place]).images[0].permute(1, 2, 0).numpy().astype(np.float64))

    one_at_a_time = Lock()  # the next defect on an image waits for what the first one finds out of it

    def painted(number: int) -> Tensor:
        kind, share = chosen(number)
        rng = np.random.default_rng(derive_seed(seed, f"painted {first + number}"))
        windows = [place for place in images.windows.places if place[0] == number // each]
        place = windows[0] if len(windows) == 1 else windows[rng.integers(len(windows))]
        with one_at_a_time:
            ground = surface(place)
        side = max(SMALLEST, round(share * min(ground.picture.shape[:2])))
        whole, mask = paint(ground, kind, rng, side, images.preparation.inside(place[1]))
        masks[number] = float(mask.sum())
        return torch.from_numpy(whole).permute(2, 0, 1).float()

    scored = list(inspector.stream(range(each * len(images)), painted))
    defects = []
    for image in scored:
        number, score = image.item, image.score
        before = None if unpainted is None else unpainted[number // each]
        if not masks[number]:  # it left no trace: too faint at this size, or outside the region of interest
            continue
        size, _ = read_header(images.samples[number // each].path)
        if tiling is not None:
            size = min(size[0], tiling.side), min(size[1], tiling.side)
            score = score if before is None else max(score, before)
        area = masks[number] * size[0] * size[1] / images.preparation.covered(size)
        defects.append(Painted(*chosen(number), round(area**0.5, 1), score, before))
    return defects
