"""``blemish export --budget 30ms``: which engine judges a file fastest on this machine, and whether that is in time."""

import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from blemish.deploy.precision import note
from blemish.errors import ConfigError
from blemish.inspection.engines import EXTRAS
from blemish.inspection.exported import load_exported
from blemish.inspection.judge import Source

WARM_UP, MEASURED = 3, 20  # verdicts of each engine, which take turns


def within_budget(
    file: Path, budget: float, images: Sequence[Source], threads: int | None
) -> tuple[dict[str, Any], str]:
    """Note in an exported file the engine that is fastest from image to verdict; milliseconds of all, and one sentence.

    A ConfigError names the fastest where 19 of 20 verdicts take longer than ``budget`` milliseconds.
    """
    judges = {name: load_exported(file, name, threads) for name in EXTRAS if find_spec(name)}  # type: ignore[arg-type]
    times: dict[str, list[float]] = {name: [] for name in judges}
    for number, image in enumerate(islice(cycle(images), WARM_UP + MEASURED)):
        for name, judge in judges.items():
            start = time.perf_counter()
            judge(image)
            times[name] += [1000 * (time.perf_counter() - start)] * (number >= WARM_UP)
    found = {name: dict(zip(("p50", "p95"), np.quantile(taken, (0.5, 0.95)).tolist())) for name, taken in times.items()}
    ranked = sorted(found, key=lambda name: found[name]["p95"])
    told = ", ".join(f"{name} {found[name]['p95']:.1f} ms" for name in ranked)
    words = f"image to verdict, 19 of 20 images, now, on this machine: {told}"
    if found[ranked[0]]["p95"] > budget:
        raise ConfigError(
            f"no engine judges an image in {budget:g} ms here, so nothing was written. {words}. Try --precision bf16, "
            "int8, more --threads, or a smaller model by blemish fit --budget"
        )
    facts: dict[str, Any] = {"fastest": ranked[0], "milliseconds": found}
    note(file, file, **facts)
    return facts, f"{words}; --engine auto takes the first where it is installed"
