"""Good images with painted defects of several kinds and sizes, and what a model scores them."""

import numpy as np
import torch
from torch import Tensor

from blemish.data.images import read_header
from blemish.data.loading import PreparedImages
from blemish.data.synthetic import paint
from blemish.inspection.inspector import Inspector
from blemish.inspection.outlook import KINDS, Painted
from blemish.run import derive_seed

SHARES = (1 / 16, 1 / 8, 1 / 4)  # of the picture's shorter side: the square that a defect is painted into
SMALLEST = 12  # pixels a side of that square


def score_painted(inspector: Inspector, images: PreparedImages, each: int, seed: int, first: int = 0) -> list[Painted]:
    """``each`` defects on every image, one at a time; kinds and sizes take turns, beginning at ``first``."""
    masks: dict[int, float] = {}

    def chosen(number: int) -> tuple[str, float]:
        turn = first + number
        return list(KINDS)[turn % len(KINDS)], SHARES[turn // len(KINDS) % len(SHARES)]

    def painted(number: int) -> Tensor:
        kind, share = chosen(number)
        picture = images.batch([number // each]).images[0].permute(1, 2, 0).numpy().astype(np.float64)
        rng = np.random.default_rng(derive_seed(seed, f"painted {first + number}"))
        side = max(SMALLEST, round(share * min(picture.shape[:2])))
        whole, mask = paint(picture, kind, rng, side)
        masks[number] = float(mask.sum())
        return torch.from_numpy(whole).permute(2, 0, 1).float()

    scored = list(inspector.stream(range(each * len(images)), painted))
    height, width = images.preparation.input_size
    defects = []
    for number, score in ((image.item, image.score) for image in scored):
        size, _ = read_header(images.samples[number // each].path)
        area = masks[number] * size[0] * size[1] / (height * width)
        defects.append(Painted(*chosen(number), round(area**0.5, 1), score))
    return defects
