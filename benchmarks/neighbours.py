"""How long exact nearest neighbours take beside the bare matrix product, and beside ``torch.cdist`` and a minimum.

    python benchmarks/neighbours.py [--rounds N] [--threads N]

Sizes are those of patch vectors (152 numbers: EfficientNet-Lite0; 768: WideResNet50 pooled) and of memories of 1 and
10 %. All take turns; milliseconds are the best of all rounds. Prints one JSON object; vectors are made up.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
from coreset import made_up_vectors

from blemish.ops.neighbours import Neighbours
from blemish.run import set_threads

SIZES = [(1024, n, d) for d in (152, 768) for n in (500, 1000, 5000)] + [(4096, 10_000, 152), (4096, 10_000, 768)]


def milliseconds(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(rounds + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            best[name] = min(best[name], 1000 * (time.perf_counter() - began))
    return {name: round(value, 2) for name, value in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time nearest neighbours beside a bare product.")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    figures: dict[str, object] = {"torch": torch.__version__, "threads": set_threads(options.threads)}
    for q, n, d in SIZES:
        points, queries = made_up_vectors(q + n, d).split((n, q))
        memory = Neighbours(points)
        tasks = {
            "ours": lambda: memory(queries),  # noqa: B023
            "product": lambda: queries @ points.T,  # noqa: B023
            "cdist": lambda: torch.cdist(queries, points).min(dim=1),  # noqa: B023
        }
        with torch.inference_mode():
            figures[f"{q} x {n} x {d}"] = milliseconds(tasks, options.rounds)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
