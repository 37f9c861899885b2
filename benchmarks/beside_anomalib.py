"""PatchCore beside anomalib's, on the same images, with the same backbone, weights, stages and fraction, in one run.

    python benchmarks/beside_anomalib.py LAYOUT_FOLDER --rival-python ENVIRONMENT/bin/python [--images 48 60]

Fits a memory of 10 % on the first images of ``train/good`` (PNG, which is all that its reader takes) with both, then
times the way from an image file to a verdict at batch 1: ours split by stage, with the default memory too, and its
torch and OpenVINO inferencers. Prints one JSON object. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import blemish
from blemish.backbones.weights import find_weights
from blemish.data.images import read_image
from blemish.inspection.regions import find_regions

# Runs in the rival's environment, where Blemish is not installed; its last line is one JSON object.
RIVAL = """
import dataclasses, glob, json, sys, time, warnings, logging, os
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING); os.environ["TRUST_REMOTE_CODE"] = "1"
import torch; torch.set_num_threads(int(sys.argv[5]))
from timm.models import _registry as registry
for name, cfg in list(registry._model_pretrained_cfgs.items()):
    if name.startswith("tf_efficientnet_lite0"):
        registry._model_pretrained_cfgs[name] = dataclasses.replace(cfg, file=sys.argv[1], url="", hf_hub_id=None)
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize
root, category, out = sys.argv[2:5]
seed_everything(0, verbose=False)
found = {}
steps = Compose([Resize((256, 256), antialias=True), Normalize([127 / 255] * 3, [128 / 255] * 3)])
model = Patchcore(backbone="tf_efficientnet_lite0", pre_trained=True, layers=["blocks.2", "blocks.4"],
                  coreset_sampling_ratio=0.1, num_neighbors=9, pre_processor=PreProcessor(transform=steps),
                  evaluator=False, visualizer=False)
coreset = model.model.subsample_embedding
def timed(*args, **kwargs):
    began = time.perf_counter(); result = coreset(*args, **kwargs)
    found["coreset_seconds"] = time.perf_counter() - began
    return result
model.model.subsample_embedding = timed
data = MVTecAD(root=root, category=category, train_batch_size=16, eval_batch_size=16, num_workers=0)
engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=out, enable_progress_bar=False)
began = time.perf_counter()
engine.fit(model=model, datamodule=data)
found["fit_seconds"] = time.perf_counter() - began
found["memory"] = list(model.model.memory_bank.shape)
model.model.subsample_embedding = coreset
images = sorted(glob.glob(root + "/" + category + "/test/*/*.png"))
def latency(infer):
    for path in images[:3]: infer(path)
    seconds = []
    for path in images * 3:
        began = time.perf_counter(); infer(path); seconds.append(time.perf_counter() - began)
    seconds.sort()
    return {"p50_ms": 1e3 * seconds[len(seconds) // 2], "p95_ms": 1e3 * seconds[int(len(seconds) * 0.95)]}
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
if sys.argv[6] == "latency":
    for kind, inferencer, options in (("torch", TorchInferencer, {}),
            ("openvino", OpenVINOInferencer, {"input_size": (256, 256), "onnx_kwargs": {"dynamic_axes": {}}})):
        try:
            path = engine.export(model=model, export_type=kind, export_root=out + "/" + kind, **options)
            found[kind] = latency(inferencer(path, device="cpu" if kind == "torch" else "CPU").predict)
        except BaseException as error:
            found[kind] = f"{type(error).__name__}: {str(error)[:300]}"
print(json.dumps(found))
"""


def subset(source: Path, images: int, target: Path) -> Path:
    """The first ``images`` of ``train/good`` and every tenth test image, with masks, as a layout folder."""
    chosen = sorted((source / "train/good").glob("*.png"))[:images]
    chosen += sorted((source / "test").glob("*/*.png"))[::10]
    for path in chosen:
        mask = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        for file in (path, mask) if mask.is_file() else (path,):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return target


def ours(folder: Path, fraction: float, repeats: int) -> tuple[dict[str, Any], blemish.Inspector]:
    """Seconds of fitting without calibration, by stage: the median of several."""
    runs = []
    for _ in range(repeats):
        run = blemish.Run()
        began = time.perf_counter()
        inspector = blemish.fit(folder, run=run, calibration="none", options={"fraction": fraction})
        runs.append({"fit_seconds": time.perf_counter() - began, **run.timer.seconds})
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    memory: Any = inspector.method.memory
    return {**middle, "memory": list(memory.points.shape)}, inspector


def milliseconds(work: Callable[[Any], Any], items: Sequence[Any], repeats: int = 3) -> dict[str, float]:
    for item in items[:3]:
        work(item)
    seconds = []
    for item in list(items) * repeats:
        began = time.perf_counter()
        work(item)
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    return {"p50_ms": 1e3 * seconds[len(seconds) // 2], "p95_ms": 1e3 * seconds[int(len(seconds) * 0.95)]}


def stages(inspector: blemish.Inspector, paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """From file to verdict, whole and stage by stage."""
    method: Any = inspector.method
    rasters = [read_image(path) for path in paths]
    tensors = [inspector.preparation.prepare(raster)[None] for raster in rasters]
    with torch.inference_mode():
        features = [method.backbone(tensor) for tensor in tensors]
        vectors = [method.patches(levels).flatten(0, 2) for levels in features]
        maps = [inspector.predict(tensor).map for tensor in tensors]
        sized = list(zip((one[0] for one in maps if one is not None), (raster.size for raster in rasters)))
        threshold = inspector.calibration.pixel_threshold or float("inf")
        full = [inspector.preparation.to_original(heat, size) for heat, size in sized]
        found = {
            "file to verdict": milliseconds(inspector, paths),
            "decode": milliseconds(read_image, paths),
            "prepare": milliseconds(inspector.preparation.prepare, rasters),
            "backbone": milliseconds(method.backbone, tensors),
            "patches": milliseconds(method.patches, features),
            "neighbours": milliseconds(lambda v: method.memory(v, 1), vectors),
            "map to original size": milliseconds(lambda pair: inspector.preparation.to_original(*pair), sized),
            "regions": milliseconds(lambda heat: find_regions(heat, threshold), full),
        }
    began = time.perf_counter()
    list(inspector.many(list(paths) * 3))
    found["many"] = {"images_a_second": 3 * len(paths) / (time.perf_counter() - began)}
    return found


def rival(python: Path, weights: Path, folder: Path, out: Path, what: str) -> dict[str, Any]:
    command = [str(python), "-c", RIVAL, str(weights), str(folder.parent), folder.name, str(out)]
    command += [str(torch.get_num_threads()), what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, check=False)
    if done.returncode:
        return {"failed": done.stderr[-800:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("layout", type=Path)
    parser.add_argument("--rival-python", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[48, 60])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("fit", "latency"))
    arguments = parser.parse_args()
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        weights = place / "lite0.pth"
        torch.save(find_weights("efficientnet_lite0", "pretrained")[0], weights)
        for number in arguments.images:
            folder = subset(arguments.layout, number, place / f"of_{number}")
            latency = number == arguments.images[0] and arguments.only != "fit"
            entry: dict[str, Any] = {}
            entry["ours"], _ = ours(folder, 0.1, arguments.repeats)
            if latency:
                paths = sorted((folder / "test").glob("*/*.png"))
                entry["ours, 10 %"] = stages(blemish.fit(folder, options={"fraction": 0.1}), paths)
                entry["ours, default"] = stages(blemish.fit(folder), paths)
            if arguments.rival_python:
                out = place / f"rival_{number}"
                out.mkdir()
                entry["anomalib"] = rival(arguments.rival_python, weights, folder, out, "latency" if latency else "fit")
                if "fit_seconds" in entry["anomalib"]:
                    entry["ratio_fit"] = entry["anomalib"]["fit_seconds"] / entry["ours"]["fit_seconds"]
            found[f"{number} images"] = entry
            print(json.dumps({f"{number} images": entry}), file=__import__("sys").stderr)
    found["load"] = os.getloadavg()
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
