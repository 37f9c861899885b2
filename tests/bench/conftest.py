"""A set of woven cloth in MVTec-AD layout, with blots as defects."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE, BLOT = 64, (slice(20, 34), slice(24, 40))


@pytest.fixture(scope="module")
def write_weave(tmp_path_factory):
    """A function of the images in each folder, such as ``{"train/good": 8}``, that writes them; a data folder."""

    def write(images: dict[str, int], masks: bool = False) -> Path:
        root = tmp_path_factory.mktemp("data")
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        for place, number in images.items():
            for i in range(number):
                pixels = 120 + 40 * np.sin(rows * 0.4) * np.cos(columns * 0.3) + rng.normal(0, 6, (SIDE, SIDE))
                is_bad = not place.endswith("good")
                if is_bad:
                    pixels[BLOT] = 0
                save(pixels.clip(0, 255), root / "weave" / place / f"{i}.png")
                if masks and is_bad:
                    mask = np.zeros((SIDE, SIDE))
                    mask[BLOT] = 255
                    save(mask, root / "weave" / "ground_truth" / Path(place).name / f"{i}_mask.png")
        return root

    return write


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
