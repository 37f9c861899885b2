"""What int8 and bf16 cost and gain in an exported file: python benchmarks/precision_export.py SET ... --profile fast.

SET is a folder in MVTec AD's layout. For each, 30 training images are learned, a third of the other good training
images calibrates the activations, and 60 test images (half of them good) are judged by the file in each precision, on
the processor alone, one image at a time, files taking turns. Printed, one JSON line each: milliseconds of an image
(median, p95), size, image AUROC, AU-PRO, decisions that differ from float32's, and correlation of the scores with its.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from blemish.data.images import read_image
from blemish.data.testset import load_mask, open_test_set
from blemish.deploy.export import export
from blemish.deploy.pictures import pictures
from blemish.deploy.precision import convert
from blemish.errors import BlemishError
from blemish.inspection.load import load
from blemish.metrics.aupro import aupro
from blemish.metrics.ranking import auroc
from blemish.training.fit import fit

TRAINING, TESTED = 30, 60


def subset(source: Path, folder: Path) -> tuple[Path, list[Path]]:
    """A copy with so many images of each kind, evenly chosen, and good images that are left over."""
    good = sorted((source / "train/good").iterdir())
    chosen = good[:: max(1, len(good) // TRAINING)][:TRAINING]
    kinds = sorted(path.name for path in (source / "test").iterdir() if path.name != "good")
    wanted = {"train/good": chosen, "test/good": sorted((source / "test/good").iterdir())}
    each = TESTED // 2
    wanted["test/good"] = wanted["test/good"][:: max(1, len(wanted["test/good"]) // each)][:each]
    for kind in kinds:
        bad = sorted((source / "test" / kind).iterdir())
        wanted[f"test/{kind}"] = bad[:: max(1, len(bad) * len(kinds) // each)][: each // len(kinds)]
    for place, paths in wanted.items():
        (folder / place).mkdir(parents=True)
        for path in paths:
            shutil.copy(path, folder / place / path.name)
            mask = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            if place.startswith("test/") and mask.is_file():
                (folder / "ground_truth" / path.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(mask, folder / "ground_truth" / path.parent.name / mask.name)
    return folder, [path for path in good if path not in chosen][::3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="options", action="append", default=[], help="the method's, such as memory=2000")
    given = parser.parse_args()
    options = {key: int(value) for key, value in (option.split("=") for option in given.options)}
    for source in given.sets:
        with tempfile.TemporaryDirectory() as temporary:
            folder, left_over = subset(source, Path(temporary) / source.name)
            inspector = fit(folder, profile=given.profile, poses="none", options=options)
            files = {("onnxruntime", "fp32"): folder / "fp32.onnx"}
            shown = folder / "shown"
            shown.mkdir()
            for path in left_over[:20]:
                shutil.copy(path, shown / path.name)
            images = pictures(shown, inspector.preparation.white_level)
            export(inspector, files["onnxruntime", "fp32"], images)
            files["openvino", "fp32"] = files["onnxruntime", "fp32"]
            for engine, precision in (("onnxruntime", "int8"), ("openvino", "int8"), ("openvino", "bf16")):
                path = folder / f"{precision}.onnx"
                try:
                    if not path.exists():
                        print(convert(files["onnxruntime", "fp32"], path, precision, images, is_forced=True))
                    files[engine, precision] = path
                except BlemishError as error:
                    print(json.dumps({"set": source.name, "precision": precision, "refused": str(error)}))
            measure(source.name, given.profile, files, folder, given.threads)


def measure(name: str, profile: str, files: dict[tuple[str, str], Path], folder: Path, threads: int) -> None:
    samples = [*open_test_set(folder).samples]
    judges = {key: load(path, engine=key[0], threads=threads) for key, path in files.items()}
    verdicts, times = {key: [] for key in files}, {key: [] for key in files}
    for sample in samples:
        image = read_image(sample.path)
        for key, judge in judges.items():
            pixels = judge.prepared(image)
            start = time.perf_counter()
            ((score, map_),) = judge.computed([pixels])
            times[key].append(1000 * (time.perf_counter() - start))
            map_ = judge.preparation.to_original(map_, image.size)
            verdicts[key].append((score, map_, judge.calibration.decide(score)))
    labels = np.array([sample.anomalous for sample in samples])
    truths = [
        load_mask(sample, map_.shape) if sample.mask else np.zeros(map_.shape, bool)
        for sample, (_, map_, _) in zip(samples, verdicts["onnxruntime", "fp32"])
    ]
    exact = np.array([score for score, *_ in verdicts["onnxruntime", "fp32"]])
    for (engine, precision), found in verdicts.items():
        scores = np.array([score for score, *_ in found])
        changed = sum(one[2] != other[2] for one, other in zip(found, verdicts["onnxruntime", "fp32"]))
        figures = {
            "ms": round(float(np.median(times[engine, precision][3:])), 1),
            "ms_p95": round(float(np.quantile(times[engine, precision][3:], 0.95)), 1),
            "mb": round(files[engine, precision].stat().st_size / 1e6, 1),
            "image_auroc": round(float(auroc(scores, labels)), 4),
            "aupro": round(float(aupro([map_ for _, map_, _ in found], truths)), 4),
            "decisions_changed": f"{changed} of {len(found)}",
            "correlation": round(float(np.corrcoef(scores, exact)[0, 1]), 5),
        }
        print(json.dumps({"set": name, "profile": profile, "engine": engine, "precision": precision, **figures}))


if __name__ == "__main__":
    main()
