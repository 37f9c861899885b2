"""What export costs and gives: every method on real sets, its file beside the model on all test images.

    python benchmarks/deploy.py DATA [--sets mvtec_screw] [--methods rd] [--python RUNTIME/bin/python] [--untimed]
    python benchmarks/deploy.py DATA --untimed --keep FOLDER, and later, with nothing else running, --time FOLDER
    python benchmarks/deploy.py --table          writes the table of docs/guides/deploy.md from the rows

Learns from 30 good images as ``benchmarks/defaults.py`` draws them (methods at 256 px, what is trained for 20 steps:
enough to compare, not to judge by; some are narrower; profiles as they come), exports, and judges the set's test images
by torch, by ONNX Runtime and by OpenVINO: decisions that differ, the largest difference of scores as a share of the
calibration scores' deviation, milliseconds from file to verdict. With ``--python`` the files are judged once more by
the command line of an environment without torch (``benchmarks/runtime.py --into``). Rows go to
``results/deploy.jsonl``. Times mean something only with nothing else running: ``--keep`` keeps models and files,
``--time`` adds the times of their first 24 images to their rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from defaults import draw

import blemish
from blemish.data.images import read_image
from blemish.data.samples import Sample
from blemish.deploy.export import export
from blemish.inspection.inspector import Inspector
from blemish.registry import METHODS, method_class, method_entry
from blemish.run import set_threads

ROOT = Path(__file__).resolve().parent.parent
ROWS, PAGE = ROOT / "results" / "deploy.jsonl", ROOT / "docs" / "guides" / "deploy.md"
# As narrow as in recipes/claims, where the papers' width or number of looks takes minutes an image or a step.
NARROW: dict[str, dict[str, Any]] = {
    "spade": {"neighbours": 5},
    "draem": {"network_width": 8},
    "csflow": {"hidden": 128, "batch_size": 8},
    "differnet": {"hidden": 512, "test_turns": 8, "batch_size": 12},
    "itae": {"first_width": 16, "batch_size": 8},
    "patchsvdd": {"first_width": 16},
    "destseg": {"batch_size": 4},
    "students": {"spacing": 4, "filters": 32},
}
LONGER = {"draem": 150, "destseg": 120}  # after 20 DRAEM's scores differ so little that rounding is a fiftieth of that
OTHERS = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def learn(name: str, training: Any, bad: list[Sample]) -> Inspector:
    """``balanced`` and ``fast`` are profiles of the default method, others methods with their papers' settings."""
    if name not in METHODS:
        return blemish.fit(training, profile=name, precision="fp32")  # type: ignore[arg-type]
    samples = training.samples
    if "weak" in method_class(name).regimes:
        samples += tuple(Sample(sample.path, "anomalous", kind=sample.kind) for sample in bad)
    elif "contaminated" in method_class(name).regimes:
        samples = tuple(Sample(sample.path, "unlabelled") for sample in samples)
    known = type(training)(training.name, None, samples)
    short: dict[str, Any] = {"steps": LONGER.get(name, 20)} if "steps" in vars(method_class(name).Config()) else {}
    if short and "contaminated" not in method_class(name).regimes:
        short["calibration"] = "holdout"  # trains once
    return blemish.fit(known, method=name, options=NARROW.get(name, {}), precision="fp32", size=256, **short)


def judged(inspector: Any, paths: list[Path], timed: bool) -> tuple[list[Any], dict[str, float]]:
    verdicts, milliseconds = [], []
    inspector(paths[0])
    for path in paths:
        began = time.perf_counter()
        verdicts.append(inspector(path))
        milliseconds.append(1000 * (time.perf_counter() - began))
    p50, p95 = np.percentile(milliseconds, [50, 95]).round(1).tolist()
    return verdicts, {"p50": p50, "p95": p95} if timed else {}


def measure(folder: Path, name: str, given: argparse.Namespace) -> dict[str, Any]:
    training, test = draw(folder, 0, 30)
    bad = [sample for sample in test.samples if sample.anomalous]
    inspector = learn(name, training, bad[:5])
    judging = [sample.path for sample in test.samples if sample not in bad[:5]]
    paths = judging[:: -(-len(judging) // given.images)]
    spread = float(np.std(inspector.calibration.scores)) or 1.0
    row: dict[str, Any] = {"set": folder.name, "method": name, "images": len(paths)}
    with tempfile.TemporaryDirectory() as temporary:
        file = (given.keep or Path(temporary)) / f"{folder.name}-{name}.onnx"
        if given.keep:
            inspector.save(file.with_suffix(".blemish"))
        began = time.perf_counter()
        parity = export(inspector, file, {path.name: read_image(path) for path in judging[::6]})
        row |= {"export_s": round(time.perf_counter() - began, 1), "mb": round(file.stat().st_size / 1e6, 1)}
        row |= {"mean_score": parity.mean_score, "largest_score": parity.score}
        ours, row["torch"] = judged(inspector, paths, not given.untimed)
        for engine in OTHERS:
            theirs, times = judged(blemish.load(file, engine=engine), paths, not given.untimed)  # type: ignore[arg-type]
            differing = sum(a.decision != b.decision for a, b in zip(ours, theirs))
            apart = max(abs(a.score - b.score) / spread for a, b in zip(ours, theirs))
            row[engine] = {"differing": differing, "apart": round(apart, 5), **times}
        if given.python:
            command = [given.python, "-m", "blemish", "inspect", file, *paths, "-q"]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
            decided = [json.loads(line)["decision"] for line in lines]
            row["without_torch_differing"] = sum(a.decision != b for a, b in zip(ours, decided, strict=True))
    return row


def timed(row: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """The row with the times of a kept model and its file."""
    file = given.time / f"{row['set']}-{row['method']}.onnx"
    paths = [sample.path for sample in draw(given.data / row["set"], 0, 30)[1].samples[:24]]
    row["torch"] = judged(blemish.load(file.with_suffix(".blemish")), paths, True)[1]
    for engine in OTHERS:
        row[engine] |= judged(blemish.load(file, engine=engine), paths, True)[1]  # type: ignore[arg-type]
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| method, set | decisions that differ | scores apart, of their deviation | file, MB | torch, ms p50 / p95 "
        "| ONNX Runtime | OpenVINO |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        engines = [row[engine] for engine in OTHERS]
        differing = sum(one["differing"] for one in engines) + row.get("without_torch_differing", 0)
        times = [f"{one['p50']:.0f} / {one['p95']:.0f}" if "p50" in one else "–" for one in (row["torch"], *engines)]
        apart = max(one["apart"] for one in engines)
        judgements = row["images"] * (2 + ("without_torch_differing" in row))
        lines.append(
            f"| {row['method']}, {row['set']} | {differing} of {judgements} | {apart:.4f} | {row['mb']:.0f} | "
            + " | ".join(times) + " |"
        )  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method's exported file beside its model.")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--sets", nargs="+", default=["mvtec_screw", "magnetic_tile"])
    parser.add_argument("--methods", nargs="+", default=["balanced", "fast", *METHODS])
    parser.add_argument("--images", type=int, default=1000, help="judge at most so many, where it is slow")
    parser.add_argument("--python", type=Path)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--untimed", action="store_true")
    parser.add_argument("--keep", type=Path, help="a folder for models and exported files")
    parser.add_argument("--time", type=Path, help="such a folder: add times to the rows of what is in it")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    set_threads(given.threads)
    read = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    rows = {(row["set"], row["method"]): row for row in read if "kind" not in row}  # others are of deploy_latency.py
    exported = [name for name in given.methods if name not in METHODS or method_entry(name).exports]
    for name, method in product(given.sets, exported) if given.data else ():
        if given.time and not ((name, method) in rows and (given.time / f"{name}-{method}.onnx").exists()):
            continue
        try:
            row = timed(rows[name, method], given) if given.time else measure(given.data / name, method, given)
        except blemish.BlemishError as error:
            print(f"{method}, {name}: {error}", flush=True)
            continue
        rows[name, method] = row
        print(json.dumps(row), flush=True)
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    if given.table:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- deploy:begin -->")
        after = rest.partition("<!-- deploy:end -->")[2]
        listed = table([rows[key] for key in sorted(rows)])
        parts = [before + "<!-- deploy:begin -->", "", *listed, "", "<!-- deploy:end -->" + after]
        PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
