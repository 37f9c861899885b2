"""From an image file to a verdict, one image at a time: students beside PatchCore, on one backbone, in one run.

    python benchmarks/latency.py LAYOUT_FOLDER [--backbone NAME] [--weights random] [--images N] [--rounds N]

Every method learns from the folder; students for a single step, because what they have learned does not change how
long they take, PatchCore in full, because the size of its memory does. The methods take turns, several rounds of all
images each, so that what else the machine does falls on all of them alike. One JSON object on standard output; times
are milliseconds. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import blemish
from blemish.run import choose_device, set_threads

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "PatchCore 10 %": ("patchcore", {"fraction": 0.1}),
    "PatchCore 1 %": ("patchcore", {"fraction": 0.01}),
    "NKD": ("nkd", {"steps": 1, "batch_size": 4}),
    "RD": ("rd", {"steps": 1, "batch_size": 4}),
    "FMAM on RD": ("fmam", {"steps": 1, "batch_size": 4}),
    "RD++": ("rdpp", {"steps": 1, "batch_size": 4}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time single verdicts of several methods.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="pretrained")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    threads = set_threads(given.threads)
    inspectors = {}
    for label, (method, options) in METHODS.items():
        inspectors[label] = blemish.fit(
            given.folder, method=method, options=options, backbone=given.backbone, weights=given.weights,
            calibration="none", cache="off", run=blemish.Run(device=choose_device(given.device)),
        )  # fmt: skip
    paths = sorted(path for path in given.folder.glob("test/*/*") if path.suffix in (".png", ".jpg"))
    paths = paths[:: max(1, len(paths) // given.images)]
    seconds: dict[str, list[float]] = {label: [] for label in inspectors}
    for turn in range(given.rounds + 1):
        for label, inspector in inspectors.items():
            for path in paths[: given.images]:
                began = time.perf_counter()
                inspector(path)
                if turn:
                    seconds[label].append(1000 * (time.perf_counter() - began))
    found = {}
    for label, values in seconds.items():
        memory: Any = getattr(inspectors[label].method, "memory", None)
        found[label] = {
            "p50_ms": round(statistics.median(values), 1),
            "p95_ms": round(statistics.quantiles(values, n=20)[18], 1),
            **({} if memory is None else {"memory": list(memory.points.shape)}),
        }
    asked = {
        "backbone": given.backbone,
        "images": given.images,
        "threads": threads,
        "device": given.device,
        "torch": torch.__version__,
    }
    print(json.dumps({**asked, "methods": found}, indent=2))


if __name__ == "__main__":
    main()
