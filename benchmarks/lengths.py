"""Do defects painted on held-out good images tell when a training should end? Their curve beside the test set's.

    python benchmarks/lengths.py LAYOUT_FOLDER [--method rd] [--epochs N] [--every N] [--size PIXELS] [--seed N]

A fifth of the good parts is held out and painted (``fmam_readings.py``); the method learns from the others and is
judged every few epochs, on the painted images and on the folder's test images. The test images choose nothing: they
show whether the painted ones would have chosen well. One JSON object a look on standard output.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from fmam_readings import write_set

import blemish
from blemish.data.testset import open_test_set
from blemish.run import set_threads
from blemish.training.evaluate import evaluate

FIGURES = ("image_auroc", "pixel_auroc", "aupro")


def main() -> None:
    parser = argparse.ArgumentParser(description="Painted defects beside the test set, over epochs.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", default="rd")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    set_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        write_set(given.folder, Path(scratch) / "painted", given.size)
        sets = {"painted": open_test_set(Path(scratch) / "painted"), "test": open_test_set(given.folder)}

        def look(epoch: int, means: dict[str, float], inspector: blemish.Inspector) -> None:
            if epoch % given.every:
                return
            inspector.method.finalize()
            found: dict[str, object] = {"epoch": epoch, "loss": round(means["loss"], 4)}
            for name, one in sets.items():
                metrics = evaluate(inspector, one, blemish.Run(seed=given.seed), kinds=False).metrics
                found[name] = {figure: round(metrics[figure], 4) for figure in FIGURES}
            print(json.dumps(found), flush=True)

        run = blemish.Run(seed=given.seed)
        settings = {"method": given.method, "size": given.size, "calibration": "none", "epochs": given.epochs}
        blemish.fit(Path(scratch) / "painted", run=run, on_epoch=look, **settings)


if __name__ == "__main__":
    main()
