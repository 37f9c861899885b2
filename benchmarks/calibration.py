"""What a threshold costs: seconds of ``fit`` with cross-fitting and with a hold-out, against none.

    python benchmarks/calibration.py LAYOUT_FOLDER [--repeats 3]

The default method and memory. Cross-fitting learns five times more, but the backbone sees each image once. Prints one
JSON object of medians; run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import blemish


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("layout", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    blemish.fit(arguments.layout, calibration="none")  # imports and file cache
    found: dict[str, float] = {}
    for calibration in ("none", "holdout", "crossfit"):
        seconds = []
        for _ in range(arguments.repeats):
            began = time.perf_counter()
            blemish.fit(arguments.layout, calibration=calibration)
            seconds.append(time.perf_counter() - began)
        found[calibration] = statistics.median(seconds)
    ratios = {f"{name} / none": found[name] / found["none"] for name in ("holdout", "crossfit")}
    print(json.dumps({"seconds": found, **ratios}, indent=1))


if __name__ == "__main__":
    main()
