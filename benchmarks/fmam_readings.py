"""The readings of FMAM's inner part beside RD without it, on defects painted on good images that none has learned from.

    python benchmarks/fmam_readings.py LAYOUT_FOLDER [--epochs N] [--size PIXELS] [--seeds 0 1] [--layers 2 3]

A fifth of the parts in ``train/good`` is held out and judged twice: as it is, and with one painted defect (scratch,
stain, hole or missing piece) at a place with some structure. The folder's test images are not opened, so that what is
chosen here owes nothing to them. One JSON object on standard output: mean and single values over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blemish
from blemish.data.readers import read_training
from blemish.data.splits import split_by_group
from blemish.data.synthetic import paint
from blemish.data.testset import open_test_set
from blemish.run import set_threads
from blemish.training.evaluate import evaluate

KINDS = ("scratch", "stain", "hole", "missing")
READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "RD, the same loss": ("rd", {"loss": "vector"}),
    "conv": ("fmam", {"internal": "conv"}),
    "attention": ("fmam", {"internal": "attention"}),
    "memory": ("fmam", {"internal": "memory"}),
    "bottleneck": ("fmam", {"internal": "bottleneck"}),
}


def write_set(source: Path, target: Path, size: int) -> None:
    """Good images in two parts, and the painted twins of the second."""
    samples = read_training(source).normal
    kept, held = split_by_group([sample.group for sample in samples], max(2, len({s.group for s in samples}) // 5), 0)
    rng = np.random.default_rng(0)
    for folder in ("train/good", "test/good", *(f"{top}/{kind}" for kind in KINDS for top in ("test", "ground_truth"))):
        (target / folder).mkdir(parents=True)
    for number, place in enumerate(kept):
        Image.open(samples[place].path).convert("RGB").resize((size, size)).save(
            target / f"train/good/{number:03d}.png"
        )
    for number, place in enumerate(held):
        picture = Image.open(samples[place].path).convert("RGB").resize((size, size))
        picture.save(target / f"test/good/{number:03d}.png")
        kind = KINDS[number % len(KINDS)]
        whole, mask = paint(np.asarray(picture, float) / 255, kind, rng)
        Image.fromarray((255 * whole).round().astype(np.uint8)).save(target / f"test/{kind}/{number:03d}.png")
        Image.fromarray(mask).convert("L").save(target / f"ground_truth/{kind}/{number:03d}_mask.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare FMAM's readings on painted defects.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=list(READINGS))
    parser.add_argument("--keep", type=Path, help="write the painted set here and leave it there")
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    set_threads(given.threads)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        target = given.keep or Path(scratch) / "painted"
        write_set(given.folder, target, given.size)
        for seed in given.seeds:
            for label in given.only:
                method, options = READINGS[label]
                run = blemish.Run(seed=seed)
                inspector = blemish.fit(
                    target, run=run, method=method, size=given.size, calibration="none",
                    options={"epochs": given.epochs, "layers": given.layers, **options},
                )  # fmt: skip
                metrics = evaluate(inspector, open_test_set(target), run).metrics
                for name in ("image_auroc", "pixel_auroc", "aupro"):
                    found.setdefault(label, {}).setdefault(name, []).append(round(metrics[name], 4))
    means = {label: {name: round(statistics.mean(v), 4) for name, v in one.items()} for label, one in found.items()}
    asked = {name: getattr(given, name) for name in ("epochs", "size", "seeds", "layers")}
    print(json.dumps({"set": given.folder.name, **asked, "means": means, "values": found}, indent=2))


if __name__ == "__main__":
    main()
