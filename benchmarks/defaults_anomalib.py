"""Rows of ``benchmarks/defaults.py`` for anomalib's PatchCore at its defaults, with our metrics, on the same draws.

    PYTHONPATH=src ENVIRONMENT/bin/python benchmarks/defaults_anomalib.py DATA [--draws 0 1 2] [--sets ...] [--untimed]

ENVIRONMENT has anomalib and what Blemish needs. Its PatchCore keeps 10 % at 256 pixels; backbone, weights and layers
are those of our ``paper`` rows. Its own torch module learns and judges: what Lightning would call, without its loops.
With one thread its coreset may take all memory, 31 MB a pick: MALLOC_MMAP_THRESHOLD_=1000000 makes glibc give it back.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from defaults import ROWS, SETS, draw
from PIL import Image
from timm.models import _registry as registry
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.transforms.v2.functional import pil_to_tensor

from blemish.backbones.weights import find_weights
from blemish.data.images import read_image
from blemish.data.preprocessing import Preprocessing
from blemish.data.testset import load_mask
from blemish.metrics import aupro, auroc, caught_at

PREPARE = Compose([Resize((256, 256), antialias=True), Normalize([127 / 255] * 3, [128 / 255] * 3)])


def read(path: Path) -> torch.Tensor:
    return PREPARE(pil_to_tensor(Image.open(path).convert("RGB")).float() / 255)


@torch.no_grad()
def measure(folder: Path, number: int, count: int, timed: bool) -> dict[str, Any]:
    training, test = draw(folder, number, count)
    torch.manual_seed(0)
    began = time.perf_counter()
    model = PatchcoreModel(layers=["blocks.2", "blocks.4"], backbone="tf_efficientnet_lite0")
    model.train()
    model.feature_extractor.eval()
    for start in range(0, len(training.samples), 32):
        model(torch.stack([read(sample.path) for sample in training.samples[start : start + 32]]))
    model.subsample_embedding(0.1)
    model.eval()
    fitted = time.perf_counter() - began
    scores, maps, masks, latencies, at_input = [], [], [], [], Preprocessing("stretch", 256)
    for sample in test.samples:
        began = time.perf_counter()
        said = model(read(sample.path)[None])
        latencies.append(1000 * (time.perf_counter() - began))
        scores.append(float(said.pred_score))
        if sample.mask is not None or not sample.anomalous:
            maps.append(said.anomaly_map.numpy().reshape(256, 256))
            masks.append(at_input.prepare_mask(load_mask(sample, read_image(sample.path).size)))
    labels = np.array([sample.anomalous for sample in test.samples])
    outlined = any(mask.any() for mask in masks)
    return {
        "profile": "anomalib",
        "set": folder.name,
        "draw": number,
        "images": len(training.samples),
        "caught_at_5": caught_at(scores, labels, 0.05)[0],
        "caught_at_1": caught_at(scores, labels, 0.01)[0],
        "image_auroc": auroc(scores, labels),
        "aupro": aupro(np.stack(maps), np.stack(masks)) if outlined else None,
        "size": [256, 256],
        "backbone": "efficientnet_lite0",
        "seconds": round(fitted, 1) if timed else None,
        "ms": round(float(np.median(latencies)), 1) if timed else None,
        "megabytes": round(sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6, 1),
        "precision": "fp32",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="anomalib's PatchCore on the draws of defaults.py.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--untimed", action="store_true")
    given = parser.parse_args()
    weights = str(Path(tempfile.mkdtemp()) / "lite0.pth")
    torch.save(find_weights("efficientnet_lite0")[0], weights)
    for name, cfg in list(registry._model_pretrained_cfgs.items()):
        if name.startswith("tf_efficientnet_lite0"):
            registry._model_pretrained_cfgs[name] = dataclasses.replace(cfg, file=weights, url="", hf_hub_id=None)
    for number in given.draws:
        for name in given.sets:
            row = measure(given.data / name, number, given.images, not given.untimed)
            print(json.dumps(row), flush=True)
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
