"""Methods beside anomalib's: same images, backbone, weights, size and length; image AUROC and seconds.

    python benchmarks/methods_beside_anomalib.py DATA --rival-python ENVIRONMENT/bin/python [--sets ...] [--methods ...]

Each fit is a process of its own on one thread. ``--epochs`` is the length of what is trained; the last epoch stays with
both. Everything else is what each has by default, but that our STFPM takes steps as large as anomalib's, which halves
the loss, sums it over the batch, decays by .001 and enlarges each level before the product; its CFA keeps the radius at
its first value. Its CFA knows four backbones by name, none of them this one, so its own parts are put together here;
its FastFlow knows four networks, too, and is given ours in place of one of them; so is its CS-Flow, whose graph holds
the EfficientNet-B5's width and stride and is told ours. CS-Flow learns from one image a step, since theirs weighs the
log-determinant by the batch; theirs does not standardise features. GANomaly and DRAEM see 64 pixels on both sides,
DRAEM with 16 channels for 64 and scikit-image's photographs for textures. Prints one JSON object a fit.
MALLOC_MMAP_THRESHOLD_=1000000, set for the rival, makes glibc give back what one of its steps takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

import blemish
from blemish.backbones.weights import find_weights
from blemish.data.protocols import alternative_split
from blemish.data.readers import read_training
from blemish.data.testset import open_test_set
from blemish.metrics import auroc
from blemish.ops.textures import Textures
from blemish.registry import method_class

CHANGED = "resplit_alt.csv"  # where a set has it, good training images take the place of its own good test images
OPTIONS: dict[str, dict[str, Any]] = {"padim": {"channels": 100}, "cfa": {}, "fastflow": {}, "supersimplenet": {}}
OPTIONS["ganomaly"] = {"batch_size": 32}
OPTIONS["csflow"] = {"batch_size": 1, "hidden": 128, "betas": [0.5, 0.9]}
OPTIONS["draem"] = {"batch_size": 8, "network_width": 16}
# Its loss is sixteen times ours: half of the sum over a batch of 32 instead of the mean. So are its steps.
OPTIONS["stfpm"] = {"holdout": 0.0, "learning_rate": 16 * 0.4, "weight_decay": 0.001 / 16}
SIZES = {"ganomaly": 64, "draem": 64}

# Runs in the rival's environment, where Blemish is not installed; its last line is one JSON object.
RIVAL = """
import dataclasses, functools, glob, json, sys, time, warnings, logging, os
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING); os.environ["TRUST_REMOTE_CODE"] = "1"
given = json.loads(sys.argv[1])
import torch; torch.set_num_threads(1)
from PIL import Image
from timm.models import _registry as registry
for name, cfg in list(registry._model_pretrained_cfgs.items()):
    if name.startswith("tf_efficientnet_lite0"):
        registry._model_pretrained_cfgs[name] = dataclasses.replace(cfg, file=given["weights"], url="", hf_hub_id=None)
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import Cfa, Csflow, Draem, Fastflow, Ganomaly, Padim, Stfpm, Supersimplenet
from anomalib.models.components import TimmFeatureExtractor
from anomalib.models.image.cfa import torch_model as cfa
from anomalib.models.image.csflow import torch_model as csflow
from anomalib.models.image.draem import torch_model as draem
from anomalib.models.image.fastflow import torch_model as fastflow
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize
from torchvision.transforms.v2.functional import pil_to_tensor
seed_everything(given["seed"], verbose=False)
LITE, LAYERS, SIZE = "tf_efficientnet_lite0", ["blocks.1", "blocks.2", "blocks.4"], given["size"]
steps = Compose([Resize((SIZE, SIZE), antialias=True), Normalize([127 / 255] * 3, [128 / 255] * 3)])
common = {"pre_processor": PreProcessor(transform=steps), "evaluator": False, "visualizer": False}
length = {"max_epochs": given["epochs"]} if given["method"] != "padim" else {}
if given["method"] == "padim":
    model, batch = Padim(backbone=LITE, layers=LAYERS, pre_trained=True, n_features=100, **common), 32
elif given["method"] == "stfpm":
    model, batch = Stfpm(backbone=LITE, layers=LAYERS, **common), 32
elif given["method"] == "fastflow":
    made = fastflow.timm.create_model
    fastflow.timm.create_model = lambda name, **options: made(LITE, **options)
    model, batch = Fastflow(backbone="resnet18", **common), 32
    fastflow.timm.create_model = made
elif given["method"] == "supersimplenet":
    model, batch = Supersimplenet(backbone=LITE, layers=LAYERS[1:], **common), 32
elif given["method"] == "ganomaly":
    model, batch = Ganomaly(**common), 32
elif given["method"] == "draem":
    draem.ReconstructiveSubNetwork = functools.partial(draem.ReconstructiveSubNetwork, base_width=32)
    draem.DiscriminativeSubNetwork = functools.partial(draem.DiscriminativeSubNetwork, base_width=16)
    common["pre_processor"] = PreProcessor(transform=(steps := Resize((SIZE, SIZE), antialias=True)))
    model, batch = Draem(dtd_dir=given["textures"], **common), 8
elif given["method"] == "csflow":
    class Stage(TimmFeatureExtractor):
        def forward(self, images):
            return {"features.6.8": super().forward(images)[LAYERS[2]]}
    made, extractor = csflow.InputNode, Stage(LITE, LAYERS[2:], pre_trained=True).eval()
    csflow.efficientnet_b5, csflow.TimmFeatureExtractor = lambda weights: None, lambda backbone, layers: extractor
    csflow.InputNode = lambda _, *sides, name: made(extractor.out_dims[0], *[2 * side for side in sides], name=name)
    model, batch = Csflow(cross_conv_hidden_channels=128, **common), 1
else:
    cfa.get_return_nodes = lambda backbone: LAYERS
    cfa.get_feature_extractor = lambda backbone, nodes: TimmFeatureExtractor(LITE, LAYERS, pre_trained=True).eval()
    model, batch = Cfa(backbone="resnet18", **common), 4
    channels = sum(model.model.feature_extractor.out_dims)
    model.model.descriptor.layer = cfa.CoordConv2d(in_channels=channels, out_channels=channels, kernel_size=1)
data = Folder(name="set", root=given["folder"], normal_dir="train/good", abnormal_dir="test/bad",
              normal_test_dir="test/good", train_batch_size=batch, num_workers=0, val_split_mode="none")
engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=given["out"], enable_progress_bar=False,
                limit_val_batches=0, **length)
began = time.perf_counter()
engine.fit(model=model, datamodule=data)
found = {"fit_seconds": time.perf_counter() - began, "scores": {}, "ms": []}
model.eval()
with torch.no_grad():
    for path in sorted(glob.glob(given["folder"] + "/test/*/*.png")):
        began = time.perf_counter()
        image = steps(pil_to_tensor(Image.open(path).convert("RGB")).float() / 255)[None]
        found["scores"][path] = float(model.model(image).pred_score)
        found["ms"].append(1000 * (time.perf_counter() - began))
print(json.dumps(found))
"""


def write_set(source: Path, target: Path, most: int) -> Path:
    """The images that both see, as PNG in ``train/good``, ``test/good`` and ``test/bad``; at most so many of each."""
    training, test = read_training(source), open_test_set(source)
    if (source / CHANGED).is_file():
        training, test = alternative_split(training, test, source / CHANGED)
    folders = {
        "train/good": [sample.path for sample in training.normal],
        "test/good": [sample.path for sample in test.samples if not sample.anomalous],
        "test/bad": [sample.path for sample in test.samples if sample.anomalous],
    }
    for folder, paths in folders.items():
        (target / folder).mkdir(parents=True)
        for number, path in enumerate(paths[:: -(-len(paths) // most)]):
            place = target / folder / f"{number:04d}.png"
            if path.suffix == ".png":
                shutil.copy(path, place)
            else:
                Image.open(path).save(place)
    return target


def ours(given: dict[str, Any]) -> dict[str, Any]:
    method, run = given["method"], blemish.Run(seed=given["seed"])
    length = {"epochs": given["epochs"]} if method != "padim" else {}
    backbone = {} if method in SIZES else {"backbone": "efficientnet_lite0"}  # what has a size of its own sees pixels
    settings = {**backbone, "size": given["size"], "calibration": "none", "precision": "fp32"}
    learn, _ = blemish.fit, method_class(method)  # what is imported late is not timed, as it is not with the rival
    began = time.perf_counter()
    inspector = learn(Path(given["folder"]), run=run, method=method, options=OPTIONS[method] | length, **settings)
    found: dict[str, Any] = {"fit_seconds": time.perf_counter() - began, "scores": {}, "ms": []}
    for path in sorted(Path(given["folder"]).glob("test/*/*.png")):
        began = time.perf_counter()
        found["scores"][str(path)] = inspector(path).score
        found["ms"].append(1000 * (time.perf_counter() - began))
    return found


def measure(who: str, command: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """One fit in a process of its own, and what its scores are worth."""
    variables = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    done = subprocess.run(
        [*command, json.dumps(given)], capture_output=True, text=True, env=os.environ | variables, check=False
    )
    row = {"who": who, **{name: given[name] for name in ("set", "method", "seed", "size", "epochs", "images")}}
    if done.returncode:
        return {**row, "failed": done.stderr[-800:]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    bad = [Path(path).parent.name == "bad" for path in found["scores"]]
    milliseconds = sorted(found["ms"])[len(found["ms"]) // 2]
    figures = {"image_auroc": auroc(list(found["scores"].values()), bad), "fit_seconds": found["fit_seconds"]}
    return {**row, **figures, "image_ms": milliseconds, "load": os.getloadavg()[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Our methods beside anomalib's.")
    parser.add_argument("data", type=Path)
    parser.add_argument("--rival-python", type=Path)
    parser.add_argument("--sets", nargs="+", default=["magnetic_tile", "mvtec_screw"])
    parser.add_argument("--methods", nargs="+", choices=sorted(OPTIONS), default=sorted(OPTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=10_000, help="at most, to learn from, and of each kind to judge")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        torch.save(find_weights("efficientnet_lite0", "pretrained")[0], place / "lite0.pth")
        (place / "textures" / "photographs").mkdir(parents=True)
        for number, picture in enumerate(Textures(blemish.Run()).pictures):
            to_pil_image(picture).save(place / "textures" / "photographs" / f"{number}.png")
        who = {"blemish": [sys.executable, __file__, "--ours"]}
        if asked.rival_python:
            who["anomalib"] = [str(asked.rival_python), "-c", RIVAL]
        for chosen in asked.sets:
            folder = write_set(asked.data / chosen, place / chosen, asked.images)
            given = {"set": chosen, "folder": str(folder), "weights": str(place / "lite0.pth"), "size": asked.size}
            given["images"] = len(list(folder.glob("train/good/*")))
            given["textures"] = str(place / "textures")
            for method in asked.methods:
                for seed in asked.seeds:
                    for side, command in who.items():
                        out = tempfile.mkdtemp(dir=place)
                        more = {"method": method, "seed": seed, "epochs": asked.epochs, "out": out}
                        more["size"] = SIZES.get(method, asked.size)
                        print(json.dumps(measure(side, command, given | more)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--ours"]:
        torch.set_num_threads(1)
        print(json.dumps(ours(json.loads(sys.argv[2]))))
    else:
        main()
