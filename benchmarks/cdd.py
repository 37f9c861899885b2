"""How many times longer CDD learns than RD: the same images, features cached for both, over the whole schedule.

    python benchmarks/cdd.py LAYOUT_FOLDER [--backbone NAME] [--size PIXELS] [--epochs N] [--rounds N]

RD and CDD with two domains take turns; only learning is timed, not decoding or filling the cache. One JSON object on
standard output. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import blemish
from blemish.data.readers import read_training
from blemish.run import choose_device, set_threads


def seconds(given: argparse.Namespace, method: str, **options: Any) -> float:
    """Of learning alone."""
    run = blemish.Run(device=choose_device(given.device))
    known = read_training(given.folder)
    pile = tuple(dataclasses.replace(sample, label="unlabelled") for sample in known.normal)
    blemish.fit(
        dataclasses.replace(known, samples=pile), run=run, method=method, options={"epochs": given.epochs, **options},
        backbone=given.backbone, weights=given.weights, size=given.size, calibration="none",
    )  # fmt: skip
    return run.timer.seconds["fit"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time CDD beside RD.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    threads = set_threads(given.threads)
    rd, cdd = [], []
    for _ in range(given.rounds):
        rd.append(seconds(given, "rd"))
        cdd.append(seconds(given, "cdd", domains=[2]))
    found = {
        "backbone": given.backbone, "size": given.size, "epochs": given.epochs, "threads": threads,
        "device": given.device, "torch": torch.__version__, "rd_s": round(statistics.median(rd), 2),
        "cdd_s": round(statistics.median(cdd), 2),
        "ratio": round(statistics.median(c / r for c, r in zip(cdd, rd)), 2),
    }  # fmt: skip
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
