"""Which way of learning from a pile finds most: SoftPatch's weights, random banks, or PatchCore, cleaned or not.

    python benchmarks/piles.py DATA [--draws 0] [--ratios 0.02 0.05 0.1 0.2] [--sets magnetic_tile ...]

A pile of 60 images of each set holds bad ones at the given share, none of which is a test image; everything else as in
``benchmarks/defaults.py``. Methods keep 10,000 patches at 256 pixels on EfficientNet-Lite0, so that only the way of
keeping defects out differs. Rows go to ``results/piles.jsonl``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import defaults
from defaults import draw

import blemish
from blemish.data.samples import TrainingSet
from blemish.run import set_threads
from blemish.training.audit import audit
from blemish.training.evaluate import evaluate
from blemish.training.setup import FitSettings

ROWS = Path(__file__).resolve().parent.parent / "results" / "piles.jsonl"
COUNT = 60
MEMORY: dict[str, Any] = {"fraction": None, "memory": 10_000}
WAYS: dict[str, dict[str, Any]] = {
    "softpatch, lof": {"method": "softpatch", "options": MEMORY},
    "softpatch, lof, hard": {"method": "softpatch", "options": MEMORY | {"soft": False}},
    "softpatch, banks": {"method": "softpatch", "options": MEMORY | {"weighting": "banks"}},
    "softpatch, banks, hard": {"method": "softpatch", "options": MEMORY | {"weighting": "banks", "soft": False}},
    "patchcore": {"method": "patchcore", "options": MEMORY},
    "patchcore, cleaned": {"method": "patchcore", "options": MEMORY},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What is learned from piles, by the share of bad images in them.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.2])
    parser.add_argument("--sets", nargs="+", default=["magnetic_tile", "crackforest_patches", "elpv_mono"])
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    set_threads(given.threads)
    defaults.BAD = 10**6
    for name in given.sets:
        for number in given.draws:
            good, test = draw(given.data / name, number, COUNT)
            bad = [sample for sample in test.samples if sample.anomalous]
            spare, tested = bad[: round(max(given.ratios) * COUNT)], bad[round(max(given.ratios) * COUNT) :][:70]
            images = tuple(sample for sample in test.samples if not sample.anomalous) + tuple(tested)
            test = dataclasses.replace(test, samples=images)
            for ratio in given.ratios:
                count = round(ratio * COUNT)
                mixed = good.samples[: COUNT - count] + tuple(spare[:count])
                pile = [dataclasses.replace(s, label="unlabelled", split="train", mask=None) for s in mixed]
                for way, settings in WAYS.items():
                    training = TrainingSet(name, None, tuple(pile))
                    if way == "patchcore, cleaned":
                        suspects = {judged.sample.path for judged in audit(training, FitSettings()).suspects}
                        kept = tuple(s for s in training.samples if s.path not in suspects)
                        training = dataclasses.replace(training, samples=kept)
                    inspector = blemish.fit(training, **settings, calibration="none")
                    found = evaluate(inspector, test, kinds=False).as_dict()
                    row = {"set": name, "draw": number, "ratio": ratio, "way": way, "pile": len(training.samples)}
                    row |= {key: found.get(key) for key in ("caught_at_5", "image_auroc", "aupro")}
                    print(json.dumps(row), flush=True)
                    with ROWS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
