"""An epoch of RD as ``fit`` runs it, beside the same epoch as it is usually written, and beside anomalib's.

    python benchmarks/rd.py [--backbone NAME] [--images N] [--rounds N] [--rival-python ENVIRONMENT/bin/python]

The usual loop: fp32, memory as torch lays it out, the teacher with its BatchNorm recomputed at every step, the loss
from ``cosine_similarity``. Both start from the same weights and see the same batches of the same images, which are
in memory already, so that the losses must agree. The first epoch of ours fills the feature cache and the later ones
read it. The rival's step is its own network, loss and optimiser in a bare loop, without its engine. Random weights
take the same time as trained ones. One JSON object on standard output; run it with nothing else running.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.flop_counter import FlopCounterMode

import blemish.run.step as step_module
from blemish.backbones.backbone import build_backbone
from blemish.backbones.networks import random_network
from blemish.backbones.teacher import FrozenTeacher
from blemish.contract import Batch, TrainingImages
from blemish.methods.rd import RD, RDConfig
from blemish.ops.cosine import layer_loss
from blemish.ops.residual import initialise
from blemish.run import Precision, Run, choose_device, choose_precision, set_threads

STAGES = (1, 2, 3)
BATCH = 16

# Runs in the rival's environment; its last line is the seconds of each step.
RIVAL = """
import json, logging, sys, time, warnings
warnings.filterwarnings("ignore"); logging.disable(logging.WARNING)
import torch
from anomalib.models import ReverseDistillation
from lightning.pytorch import seed_everything
backbone, size, steps, threads = sys.argv[1], *map(int, sys.argv[2:5])
torch.set_num_threads(threads); seed_everything(0, verbose=False)
whole = ReverseDistillation(backbone=backbone, pre_trained=False)
network, loss, optimiser = whole.model.train(), whole.loss, whole.configure_optimizers()
images, seconds = torch.rand(16, 3, size, size), []
for _ in range(steps + 1):
    began = time.perf_counter()
    optimiser.zero_grad(); loss(*network(images)).backward(); optimiser.step()
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds[1:]))
"""


class Drawn:
    """Training images of noise, and in which batches they were asked for."""

    def __init__(self, count: int, size: int) -> None:
        self.images = torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(0))
        self.keys = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(count)]
        self.asked: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at ``indices``."""
        chosen = list(indices)
        self.asked.append(chosen)
        return Batch(self.images[chosen], tuple(self.keys[i] for i in chosen))


def ours(
    name: str, images: Drawn, epochs: int, is_cached: bool, device: torch.device
) -> tuple[list[float], list[float], list[list[int]]]:
    """Seconds and mean loss of each epoch, and the batches. The first epoch includes filling the cache."""
    backbone = build_backbone(name, STAGES, weights="random").to(device)
    backbone.precision = choose_precision(device, dense=backbone.dense)
    height, width = images.images.shape[-2:]
    method = RD(backbone, (height, width), RDConfig(epochs=epochs, batch_size=BATCH)).to(device)
    teacher, ends, losses = FrozenTeacher(backbone), [], []

    def ended(_: int, means: dict[str, float]) -> None:
        ends.append(time.perf_counter())
        losses.append(means["loss"])

    run = Run(on_epoch=ended, device=device, precision=choose_precision(device))
    nothing = Drawn(0, 8)
    began = time.perf_counter()
    if is_cached:
        teacher.keep_features([images], run)
    images.asked.clear()
    method.fit(TrainingImages(images, nothing, "clean"), teacher, run)
    return [end - start for start, end in zip([began, *ends], ends)], losses, list(images.asked)


def usual(name: str, images: Tensor, batches: Sequence[Sequence[int]], device: torch.device) -> tuple[float, float]:
    """Seconds and mean loss of one epoch of the loop as it is usually written."""
    frozen = build_backbone(name, STAGES, weights="random").to(device)
    teacher = random_network(name, STAGES, 0).eval().to(device)
    student: nn.Module = RD(frozen, (64, 64), RDConfig()).student
    initialise(student, Run().generator("student"))
    student = student.to(device, memory_format=torch.contiguous_format).train()
    optimiser = torch.optim.Adam(student.parameters(), lr=0.005, betas=(0.5, 0.999))
    losses = []
    began = time.perf_counter()
    for indices in batches:
        with torch.no_grad():
            features = teacher(frozen.normalise(images[list(indices)].to(device)))
        made = student(features)
        loss = torch.zeros((), device=device)
        for t, s in zip(features, made):
            loss = loss + torch.mean(1 - cosine_similarity(t.flatten(1), s.flatten(1)))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return time.perf_counter() - began, statistics.mean(losses)


def parts(name: str, images: Tensor, rounds: int, device: torch.device) -> tuple[dict[str, float], float]:
    """Milliseconds of the parts of one step of ours, and its products in GFLOP (teacher left out)."""
    backbone, images = build_backbone(name, STAGES, weights="random").to(device), images.to(device)
    precision = choose_precision(device)
    backbone.precision = choose_precision(device, dense=backbone.dense)
    method = RD(backbone, (64, 64), RDConfig())
    initialise(method.student, torch.Generator().manual_seed(0))
    method.to(device).student.train()
    optimiser = torch.optim.Adam(method.student.parameters(), lr=0.005, fused=True)
    found: dict[str, list[float]] = {}

    def timed(part: str, began: float) -> float:
        settled(device)
        now = time.perf_counter()
        found.setdefault(part, []).append(1000 * (now - began))
        return time.perf_counter()

    for _ in range(rounds + 1):
        at = time.perf_counter()
        with torch.no_grad():
            features = backbone(images)
        at = timed("teacher", at)
        with precision.autocast(device):
            made = method.student(features)
        at = timed("student", at)
        loss = layer_loss(features, made)
        at = timed("loss", at)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        at = timed("gradients", at)
        optimiser.step()
        timed("update", at)
    with FlopCounterMode(display=False) as counter:
        layer_loss(features, method.student(features)).backward()
    return {part: statistics.median(values[1:]) for part, values in found.items()}, counter.get_total_flops() / 1e9


def settled(device: torch.device) -> None:
    """Wait until a graphics card has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(dtype: torch.dtype, device: torch.device, rounds: int = 7) -> float:
    """GFLOP a second of one large matrix product: the best of several."""
    side = 8192 if device.type == "cuda" else 2048
    one = torch.rand(side, side).to(device, dtype)
    seconds = []
    for _ in range(rounds):
        settled(device)
        began = time.perf_counter()
        one @ one
        settled(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds) / 1e9


def rival(python: str, backbone: str, size: int, steps: int, threads: int) -> float | str:
    """Median seconds of a step of the rival's, or why there is none."""
    arguments = [python, "-c", RIVAL, backbone, str(size), str(steps), str(threads)]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:200]
    return statistics.median(json.loads(done.stdout.strip().splitlines()[-1]))


def measured(given: argparse.Namespace, threads: int, device: torch.device) -> dict[str, object]:
    images = Drawn(given.images, given.size)
    steps = -(-given.images // BATCH)
    first, cached, uncached, unrecorded, plain, gaps = [], [], [], [], [], []
    for _ in range(given.rounds):
        seconds, losses, batches = ours(given.backbone, images, 2, True, device)
        first.append(seconds[0])
        cached.append(seconds[1])
        uncached.append(ours(given.backbone, images, 1, False, device)[0][0])
        step_module.UNRECORDED, before = 1_000_000, step_module.UNRECORDED
        unrecorded.append(ours(given.backbone, images, 2, True, device)[0][1])
        step_module.UNRECORDED = before
        seconds_usual, loss_usual = usual(given.backbone, images.images, batches[:steps], device)
        plain.append(seconds_usual)
        gaps.append(abs(losses[0] / loss_usual - 1))
    pieces, gflop = parts(given.backbone, images.images[:BATCH], given.rounds + 2, device)
    products = statistics.median([pieces["student"] + pieces["gradients"]])
    ceiling = {"fp32": peak(torch.float32, device), "bf16": peak(torch.bfloat16, device)}
    middle = {
        "usual": statistics.median(plain),
        "ours, every epoch but the first": statistics.median(cached),
        "ours, first epoch with the filling of the cache": statistics.median(first),
        "ours without a cache": statistics.median(uncached),
    }
    if device.type == "cuda":
        middle["ours, every epoch but the first, steps not recorded"] = statistics.median(unrecorded)
    found: dict[str, object] = {
        "epoch_s": {key: round(value, 2) for key, value in middle.items()},
        "images_a_second": round(given.images / middle["ours, every epoch but the first"], 1),
        "usual_over_ours": round(middle["usual"] / middle["ours, every epoch but the first"], 2),
        "losses_differ_by": f"{max(gaps):.2%}",
        "parts_of_a_step_ms": {part: round(value, 1) for part, value in pieces.items()},
        "student_gflop_a_step": round(gflop, 1),
        "student_gflops_a_second": round(gflop / products * 1000, 1),
        "largest_gflops_a_second": {key: round(value, 1) for key, value in ceiling.items()},
    }
    if given.rival_python:
        step = rival(given.rival_python, given.backbone, given.size, 5, threads)
        found["rival_epoch_s"] = round(step * given.images / BATCH, 2) if isinstance(step, float) else step
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time an epoch of RD beside the usual loop.")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rival-python")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    threads, device = set_threads(given.threads), choose_device(given.device)
    chosen: Precision = choose_precision(device)
    asked = {"backbone": given.backbone, "size": given.size, "images": given.images, "threads": threads}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    machine = {"device": name, "torch": torch.__version__, "precision": chosen.name, "why": chosen.reason}
    print(json.dumps({**asked, **machine, **measured(given, threads, device)}, indent=2))


if __name__ == "__main__":
    main()
