"""How quickly, and how exactly, a test set's pixels are measured: AU-PRO and pixel AUROC.

    python benchmarks/metrics.py [--images 200 --size 256 --repeats 7]
    python benchmarks/metrics.py --rival-python ENVIRONMENT/bin/python

Maps and defect regions are made up. The reference is one full float64 argsort, written here in the plainest way. With
`--rival-python`, that interpreter (an environment with adeval and anomalib, or either) measures the same saved arrays
in a process of its own, one after the other. Prints one JSON object: median seconds, values and differences. Run it
with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

from blemish.metrics import aupro, aupro_per_image, pixel_metrics, rank

# Runs in the rival's environment, where Blemish is not installed; it prints one JSON object as its last line.
RIVAL = """
import json, statistics, sys, time, warnings
import numpy as np
warnings.filterwarnings("ignore")
if not hasattr(np, "trapz"):
    np.trapz = np.trapezoid  # adeval calls a name that NumPy 2.4 no longer has
maps, masks = np.load(sys.argv[1]), np.load(sys.argv[2]).astype(np.uint8)
repeats, threads = int(sys.argv[3]), int(sys.argv[4])
results = {}

def measure(name, function):
    try:
        function()  # once without the clock, as ours
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            value = function()
            seconds.append(time.perf_counter() - start)
        results[name] = {"seconds": statistics.median(seconds), "value": float(value)}
    except Exception as error:
        results[name] = {"error": f"{type(error).__name__}: {error}"[:300]}

try:
    import adeval
except ImportError as error:
    results["adeval"] = {"error": str(error)}
else:
    def accumulate():
        low, high = maps.min(), maps.max()
        accumulator = adeval.EvalAccumulator(low, high, low, high, skip_pixel_aupro=False, nstrips=200)
        for one_map, mask in zip(maps, masks):
            accumulator.add_anomap(one_map, mask)
            accumulator.add_image(float(one_map.max()), int(mask.any()))
        return accumulator.summary()

    measure("adeval all metrics, 200 bins: AU-PRO", lambda: accumulate()["p_aupro"])
    measure("adeval all metrics, 200 bins: pixel AUROC", lambda: accumulate()["p_auroc"])
    measure("adeval auroc_aupr_aupro: AU-PRO", lambda: adeval.auroc_aupr_aupro(list(maps), list(masks))[-1])

try:
    import torch
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC
except ImportError as error:
    results["anomalib"] = {"error": str(error)}
else:
    torch.set_num_threads(threads)
    given, truth = torch.from_numpy(maps), torch.from_numpy(masks).long()

    def update(metric, shape):
        for first in range(0, len(given), 16):
            metric.update(given[first:first + 16].reshape(shape), truth[first:first + 16].reshape(shape))
        return metric.compute()

    measure("anomalib AU-PRO", lambda: update(_AUPRO(), (-1, *given.shape[1:])))
    measure("anomalib pixel AUROC", lambda: update(_AUROC(), -1))
print(json.dumps(results))
"""


def made_up_test_set(images: int, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Smooth maps; every second image has three to seven round defects, partly seen by the map."""
    rng = np.random.default_rng(seed)
    maps, masks = np.zeros((images, size, size), np.float32), np.zeros((images, size, size), bool)
    rows, columns = np.mgrid[:size, :size]
    for i in range(images):
        noise = ndimage.gaussian_filter(rng.standard_normal((size, size)), 8)
        maps[i] = 0.5 * noise / noise.std()
        for _ in range(rng.integers(3, 8) if i % 2 else 0):
            y, x = rng.integers(size // 12, size - size // 12, 2)
            masks[i] |= np.hypot(rows - y, columns - x) < rng.integers(4, 18)
        maps[i] += 1.6 * ndimage.gaussian_filter(masks[i].astype(np.float32), 5)
    return (maps - maps.min()) / (maps.max() - maps.min()), masks


def reference(maps: np.ndarray, masks: np.ndarray, limits: tuple[float, ...]) -> dict[str, float]:
    """All figures from one stable float64 argsort of every pixel, with cumulative sums and trapezoids."""
    labels, regions = np.zeros(masks.shape, np.int64), 0
    for i, mask in enumerate(masks):
        found, count = ndimage.label(mask, np.ones((3, 3)))
        labels[i] = np.where(found > 0, found + regions, 0)
        regions += count
    areas = np.bincount(labels.ravel())
    scores = maps.ravel().astype(np.float64)
    order = np.argsort(-scores, kind="stable")
    scores, labels = scores[order], labels.ravel()[order]
    last = np.append(scores[1:] != scores[:-1], True)
    is_defect = labels > 0
    fpr = np.append(0, (np.cumsum(~is_defect) / areas[0])[last])
    tpr = np.append(0, (np.cumsum(is_defect) / is_defect.sum())[last])
    pro = np.append(0, np.cumsum(np.where(is_defect, 1 / (areas[labels] * regions), 0))[last])
    figures = {"regions": regions, "pixel_auroc": float(np.trapezoid(tpr, fpr))}
    for limit in limits:
        inside = fpr < limit
        curve = np.append(pro[inside], np.interp(limit, fpr, pro))
        figures[f"aupro {limit}"] = float(np.trapezoid(curve, np.append(fpr[inside], limit)) / limit)
    return figures


def median_seconds(function: Callable[[], object], repeats: int) -> tuple[float, object]:
    seconds, value = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        value = function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), value


def measure_ours(maps: np.ndarray, masks: np.ndarray, repeats: int) -> dict[str, object]:
    flat, truth = maps.reshape(-1), masks.reshape(-1)
    tasks: dict[str, Callable[[], object]] = {
        "AU-PRO 0.3": lambda: aupro(maps, masks, 0.3),
        "AU-PRO 0.3 and 0.05": lambda: aupro(maps, masks, (0.3, 0.05)),
        "pixel AUROC": lambda: rank(flat, truth).auroc(),
        "all five pixel metrics": lambda: pixel_metrics(maps, masks),
        "AU-PRO per image (RD family)": lambda: aupro_per_image(maps, masks),
    }
    results: dict[str, object] = {}
    for name, task in tasks.items():
        task()
        seconds, value = median_seconds(task, repeats)
        results[name] = {"seconds": seconds, "value": value}
    return results


def measure_rivals(python: str, maps: np.ndarray, masks: np.ndarray, repeats: int, threads: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / "maps.npy"), str(Path(folder) / "masks.npy")]
        np.save(files[0], maps)
        np.save(files[1], masks)
        command = [python, "-c", RIVAL, *files, str(repeats), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip()[-500:]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rival-python", help="interpreter of an environment with adeval, anomalib or both")
    parser.add_argument("--rival-threads", type=int, default=1, help="torch threads for anomalib; ours uses one")
    options = parser.parse_args()

    maps, masks = made_up_test_set(options.images, options.size)
    ours = measure_ours(maps, masks, options.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, expected = median_seconds(lambda: reference(maps, masks, (0.3, 0.05)), 1)
    both, auroc = ours["AU-PRO 0.3 and 0.05"]["value"], ours["pixel AUROC"]["value"]
    differences = (both[0] - expected["aupro 0.3"], both[1] - expected["aupro 0.05"], auroc - expected["pixel_auroc"])
    report = {
        "images": options.images,
        "size": options.size,
        "regions": expected["regions"],
        "defect_share": float(masks.mean()),
        "repeats": options.repeats,
        "ours": ours,
        "peak_mb_of_ours": round(peak),
        "reference": {"seconds": seconds, **expected},
        "largest_difference_from_reference": max(map(abs, differences)),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "processor": platform.processor() or platform.machine(),
    }
    if options.rival_python:
        report["rivals"] = measure_rivals(options.rival_python, maps, masks, options.repeats, options.rival_threads)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
