"""From an image's file to a verdict, deployed: torch, ONNX Runtime and OpenVINO here, beside anomalib's inferencers.

    python benchmarks/deploy_latency.py DATA/mvtec_screw [--rival-python ENVIRONMENT/bin/python] [--threads 1 2]
    python benchmarks/deploy_latency.py --table       writes the table of docs/guides/deploy.md from the rows

PatchCore on EfficientNet-Lite0 with 10 % of the patches of 30 images, weighted by 9 neighbours, and reverse
distillation on a ResNet-18 with random weights after one update: what they find is not asked here. Both sides see 256
pixels and have a memory of one size (anomalib's is drawn at random, as that takes a second and judges as fast).
Theirs is exported for one image of the camera's size, which its inferencer for OpenVINO needs. The network alone is
the backbone at batch 1, from its tensor. Rows go to ``results/deploy.jsonl``, kind ``latency``. Run it with nothing
else running; it takes about ten minutes.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import blemish
from blemish.backbones.weights import find_weights
from blemish.data.images import read_image
from blemish.deploy.export import export
from blemish.deploy.precision import note
from blemish.inspection.engines import judged
from blemish.run import set_threads

ROOT = Path(__file__).resolve().parent.parent
ROWS, PAGE = ROOT / "results" / "deploy.jsonl", ROOT / "docs" / "guides" / "deploy.md"
METHODS: dict[str, dict[str, Any]] = {
    "patchcore": {"backbone": "efficientnet_lite0", "options": {"fraction": 0.1, "reweight": 9}},
    "rd": {"backbone": "resnet18", "weights": "random", "options": {"steps": 1, "batch_size": 4}},
}
OURS = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "openvino_bf16": "OpenVINO, bf16"}
THEIRS = {"torch": "torch", "openvino": "OpenVINO", "openvino_f32": "OpenVINO, float32"}

# Runs in the rival's environment, where Blemish is not installed, and judges what each line asks for.
RIVAL = """
import dataclasses, glob, json, logging, os, sys, time, warnings
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING); os.environ["TRUST_REMOTE_CODE"] = "1"
import torch
from timm.models import _registry as registry
given = json.loads(sys.argv[1])
for name, cfg in list(registry._model_pretrained_cfgs.items()):
    if name.startswith("tf_efficientnet_lite0"):
        registry._model_pretrained_cfgs[name] = dataclasses.replace(cfg, file=given["weights"], url="", hf_hub_id=None)
from anomalib.data import MVTecAD
from anomalib.deploy import OpenVINOInferencer, TorchInferencer
from anomalib.engine import Engine
from anomalib.models import Patchcore, ReverseDistillation
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import seed_everything
from torchvision.transforms.v2 import Compose, Normalize, Resize
seed_everything(0, verbose=False)
lite = given["method"] == "patchcore"
normal = ([127 / 255] * 3, [128 / 255] * 3) if lite else ([.485, .456, .406], [.229, .224, .225])
steps = PreProcessor(transform=Compose([Resize((256, 256), antialias=True), Normalize(*normal)]))
rest = dict(pre_processor=steps, evaluator=False, visualizer=False)
if lite:
    model = Patchcore(backbone="tf_efficientnet_lite0", pre_trained=True, layers=["blocks.2", "blocks.4"],
                      coreset_sampling_ratio=0.1, num_neighbors=9, **rest)
    def pick(*_, **__):
        bank = torch.vstack(model.model.embedding_store)
        model.model.embedding_store.clear()
        model.model.memory_bank = bank[torch.randperm(len(bank))[: given["memory"]]]
    subsample, model.model.subsample_embedding = model.model.subsample_embedding, pick
else:
    model = ReverseDistillation(backbone="resnet18", pre_trained=False, layers=["layer1", "layer2", "layer3"], **rest)
data = MVTecAD(root=given["root"], category=given["category"], train_batch_size=8, eval_batch_size=8, num_workers=0)
engine = Engine(accelerator="cpu", devices=1, logger=False, default_root_dir=given["out"], enable_progress_bar=False,
                max_epochs=1)
engine.fit(model=model, datamodule=data)
if lite:
    model.model.subsample_embedding = subsample
found = {}
def export(kind, **options):
    return engine.export(model=model, export_type=kind, export_root=given["out"] + "/" + kind, **options)
def openvino(path, threads, **more):
    return OpenVINOInferencer(path, device="CPU", config={"INFERENCE_NUM_THREADS": threads, **more})
kinds = {
    "torch": (lambda: export("torch"), lambda path, threads: TorchInferencer(path, device="cpu")),
    "openvino": (lambda: export("openvino", input_size=given["size"], onnx_kwargs={"dynamic_axes": {}}), openvino),
}
kinds["openvino_f32"] = (kinds["openvino"][0],
                         lambda path, threads: openvino(path, threads, INFERENCE_PRECISION_HINT="f32"))
infer, failed, paths = {}, {}, {}
for kind, (make, opened) in kinds.items():
    for threads in given["threads"]:
        torch.set_num_threads(threads)
        try:
            if kind.partition("_")[0] not in paths:
                paths[kind] = make()
            infer[kind, threads] = opened(paths[kind.partition("_")[0]], threads).predict
        except BaseException as error:
            failed[kind] = f"{type(error).__name__}: {str(error)[:300]}"
print("ready", json.dumps(failed), flush=True)
for line in sys.stdin:
    kind, threads, path = json.loads(line)
    torch.set_num_threads(threads)
    infer[kind, threads](path)
    print("judged", flush=True)
"""


class Bare(nn.Module):
    """The backbone as a graph of its own."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: D102
        return tuple(self.backbone(images))


def subset(source: Path, place: Path, images: int) -> Path:
    """The first 30 good images, and as many test images as are asked for, of all kinds, with their masks."""
    chosen = sorted((source / "train/good").glob("*.png"))[:30]
    tests = sorted((source / "test").glob("*/*.png"))
    for path in chosen + tests[:: max(1, len(tests) // images)][:images]:
        mask = source / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
        for file in (path, mask) if mask.is_file() else (path,):
            target = place / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    return place


def quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    return dict(zip(("p50", "p95"), np.quantile(milliseconds, (0.5, 0.95)).round(2).tolist()))


def timed(calls: dict[str, Callable[[Any], Any]], items: Sequence[Any], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each call on each item; the first three items warm up.

    All calls take an item before the next one's turn: rented processors are twice as fast in one second as in the next.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for item in items if turn else items[:3]:
            for name, call in calls.items():
                began = time.perf_counter()
                call(item)
                taken[name] += [1000 * (time.perf_counter() - began)] * (turn > 0)
    return {name: quantiles(values) for name, values in taken.items()}


def networks(backbone: Any, place: Path, threads: int, example: torch.Tensor) -> dict[str, Callable[[Any], Any]]:
    """The backbone alone, by torch and by both engines, each of a tensor such as ``example``."""
    import onnxruntime
    import openvino

    file = place / "backbone.onnx"
    if not file.exists():
        torch.onnx.export(Bare(backbone).eval(), (example,), file, dynamo=True, input_names=["image"],
                          external_data=False, verbose=False)  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(file, options)
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(str(file), "CPU", hints)
    return {
        "torch": torch.inference_mode()(lambda images: backbone(images)),  # noqa: PLW0108
        "onnxruntime": lambda images: session.run(None, {"image": images.numpy()}),
        "openvino": lambda images: compiled({"image": images.numpy()}),
    }


@contextmanager
def rival(python: Path | None, asked: dict[str, Any], place: Path) -> Iterator[Callable[[int], dict[str, Any]]]:
    """From a number of threads to the calls of anomalib's inferencers, in a process that is ready; none without it."""
    if python is None:
        yield lambda threads: {}
        return
    out = place / "rival"
    out.mkdir()
    torch.save(find_weights("efficientnet_lite0", "pretrained")[0], place / "lite0.pth")
    asked = asked | {"weights": str(place / "lite0.pth"), "root": str(place), "out": str(out)}
    ours_alone = ("OMP_NUM_THREADS", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in ours_alone}
    environment["MALLOC_MMAP_THRESHOLD_"] = "1000000"  # without it glibc keeps what it should give back
    command = [str(python), "-c", RIVAL, json.dumps(asked)]
    with subprocess.Popen(command, cwd=out, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env=environment) as process:  # fmt: skip
        assert process.stdin and process.stdout
        said, asking = process.stdout, process.stdin

        def answer(word: str) -> str:
            for line in said:
                if line.startswith(word):
                    return line.removeprefix(word)
            raise RuntimeError("anomalib's process ended")

        def call(kind: str, threads: int, path: Path) -> None:
            print(json.dumps([kind, threads, str(path)]), file=asking, flush=True)
            answer("judged")

        failed = json.loads(answer("ready"))
        print(failed, file=sys.stderr)
        yield lambda threads: {name: partial(call, name, threads) for name in THEIRS if name not in failed}


def latencies(
    inspector: Any, place: Path, paths: list[Path], threads: int, rounds: int, theirs: dict[str, Any]
) -> dict[str, Any]:
    """Milliseconds from file to verdict, images a second together, stages, and the backbone's own milliseconds."""
    set_threads(threads)
    file, cheaper = place / "part.onnx", place / "bf16.onnx"
    judges = {"torch": inspector}
    for name in ("onnxruntime", "openvino"):
        judges[name] = blemish.load(file, engine=name, threads=threads)  # type: ignore[arg-type]
    judges["openvino_bf16"] = blemish.load(cheaper, engine="openvino", threads=threads)
    tensors = {path: inspector.preparation.prepare(read_image(path))[None] for path in paths}
    alone = networks(inspector.method.backbone, place, threads, tensors[paths[0]])
    calls = judges | {f"anomalib {name}": call for name, call in theirs.items()}
    calls |= {f"network {name}": lambda path, call=call: call(tensors[path]) for name, call in alone.items()}
    times: dict[str, Any] = timed(calls, paths, rounds)
    found = {name: times[name] for name in judges} | {"backbone": {name: times[f"network {name}"] for name in alone}}
    for name, judge in judges.items():
        began = time.perf_counter()
        count = len(list(judge.many(paths * rounds)))
        found[name]["many"] = round(count / (time.perf_counter() - began), 1)
    engine = judges["onnxruntime"]
    images = [read_image(path) for path in paths]
    prepared = [engine.prepared(image) for image in images]
    found["stages"] = timed({"decode": read_image}, paths, 1) | timed({"prepare": engine.prepared}, images, 1)
    for name in ("onnxruntime", "openvino"):
        found["stages"] |= timed({name: lambda one, s=judges[name].session: judged(s, [one])}, prepared, 1)  # type: ignore
    return {"ours": found, "anomalib": {name: times[f"anomalib {name}"] for name in theirs}}


def measure(method: str, source: Path, given: argparse.Namespace, place: Path) -> list[dict[str, Any]]:
    folder = subset(source, place / source.name, given.images)
    paths = sorted((folder / "test").glob("*/*.png"))
    settings: dict[str, Any] = {"size": 256, "precision": "fp32", **METHODS[method]}
    inspector = blemish.fit(folder, method=method, **settings)
    export(inspector, place / "part.onnx", {path.name: read_image(path) for path in paths[:3]})
    note(place / "part.onnx", place / "bf16.onnx", precision="bf16")
    memory = getattr(inspector.method, "memory", None)
    kept = 0 if memory is None else len(memory.points)
    row = {"kind": "latency", "set": source.name, "method": method, "memory": kept, "images": len(paths)}
    row["size"] = [*read_image(paths[0]).size]
    asked = {"method": method, "category": source.name, "memory": kept, "size": row["size"], "threads": given.threads}
    rows = []
    with rival(given.rival_python, asked, place) as theirs:
        for threads in given.threads:
            found = latencies(inspector, place, paths, threads, given.rounds, theirs(threads))
            rows.append(row | {"threads": threads, **found, "load": [round(load, 2) for load in os.getloadavg()]})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> list[str]:
    def cell(found: dict[str, Any]) -> str:
        return f"{found['p50']:.0f} / {found['p95']:.0f}" if "p50" in found else "–"

    def fastest(found: dict[str, Any], kinds: Sequence[str]) -> float:
        return min((found[kind]["p50"] for kind in kinds if "p50" in found.get(kind, {})), default=float("nan"))

    heads = [*(f"here, {name}" for name in OURS.values()), *(f"anomalib, {name}" for name in THEIRS.values())]
    lines = [
        f"| ms, p50 / p95 | {' | '.join(heads)} | times faster (in float32) | of its network alone | "
        "images a second: ONNX Runtime, OpenVINO |",
        f"|---|{'---:|' * (len(heads) + 3)}",
    ]
    for row in rows:
        said, beside = row["ours"], row["anomalib"]
        exact = [fastest(beside, ("torch", "openvino_f32")), fastest(said, ("torch", "onnxruntime", "openvino"))]
        best, own = [fastest(beside, [*THEIRS]), fastest(said, [*OURS])], said["backbone"]
        shares = [said[name]["p50"] / own[name]["p50"] for name in ("torch", "onnxruntime", "openvino") if name in own]
        threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
        cells = [*(cell(said[name]) for name in OURS), *(cell(beside.get(name, {})) for name in THEIRS)]
        faster = f"{best[0] / best[1]:.1f} ({exact[0] / exact[1]:.1f})"
        many = ", ".join(f"{said[name]['many']:.0f}" for name in ("onnxruntime", "openvino"))
        parts = [*cells, faster, f"{min(shares, default=float('nan')):.2f}", many]
        lines.append(f"| {row['method']}, {threads} | {' | '.join(parts)} |")
    return [line.replace("nan", "–") for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description="From file to verdict, beside anomalib's inferencers.")
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--rival-python", type=Path)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="write no rows")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    for method in given.methods if given.source else ():
        set_threads(max(given.threads))
        with tempfile.TemporaryDirectory() as temporary:
            rows = measure(method, given.source, given, Path(temporary))
        for row in rows:
            print(json.dumps(row), flush=True)
            if not given.dry:
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
        print("\n".join(table(rows)), file=sys.stderr)
    if given.table:
        read = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
        last = {(row["method"], row["threads"]): row for row in read if row.get("kind") == "latency"}
        before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- latency:begin -->")
        after = rest.partition("<!-- latency:end -->")[2]
        listed = table([last[key] for key in sorted(last)])
        parts = [before + "<!-- latency:begin -->", "", *listed, "", "<!-- latency:end -->" + after]
        PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
