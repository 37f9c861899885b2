"""What RD++'s noise and its transport loss cost, as shares of one training step.

    python benchmarks/rdpp.py [--backbone NAME] [--size PIXELS] [--batch IMAGES] [--threads N] [--rounds N]

One JSON object on standard output; times are medians in milliseconds. A step is what ``fit`` does with one batch,
gradients included; the update of the weights, which comes after every second batch, is timed apart and counted by
half. The teacher's pass over the clean images is counted apart, because a feature cache saves it. Random weights
take the same time as trained ones. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

from blemish.backbones.backbone import build_backbone
from blemish.methods.rdpp import RDPP, RDPPConfig, contrast
from blemish.ops.cosine import layer_loss, vector_loss
from blemish.ops.residual import initialise, initialise_uniform
from blemish.ops.simplex import Patches, noise_field, with_noise
from blemish.ops.sinkhorn import paired_transport, random_places, released_transport
from blemish.run import choose_device, choose_precision, set_threads


def milliseconds(work: Callable[[], object], rounds: int, device: torch.device) -> float:
    def once() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return 1000 * statistics.median(once() for _ in range(rounds))


class Parts:
    """The parts of one training step, each by itself."""

    def __init__(self, backbone: str, size: int, batch: int, device: torch.device) -> None:
        self.device, self.precision = device, choose_precision(device)
        teacher = build_backbone(backbone, (1, 2, 3), weights="random").to(device)
        teacher.precision = choose_precision(device, dense=teacher.dense)
        self.method = RDPP(teacher, (size, size), RDPPConfig()).to(device).train()
        generator = torch.Generator().manual_seed(0)
        initialise(self.method.student, generator)
        initialise_uniform(self.method.projections, generator)
        networks = (self.method.student, self.method.projections)
        self.optimisers = [torch.optim.Adam(network.parameters(), fused=True) for network in networks]
        self.images, self.generator = torch.rand((batch, 3, size, size), generator=generator), generator
        self.field = noise_field(generator, 128)
        self.partners = torch.arange(batch).roll(1)
        self.clean, self.noisy = self.teach(), self.teach()
        with torch.no_grad():
            self.projected = [map_.float() for map_ in self.project(self.clean)]

    def noise(self) -> torch.Tensor:
        """The twins of one batch."""
        return with_noise(self.images, self.field, self.generator, Patches())

    def teach(self) -> list[torch.Tensor]:
        """The teacher's pass over the twins: as long as one over any images."""
        with torch.no_grad():
            return self.method.backbone(self.images.to(self.device))

    def project(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each level through its projection."""
        return [projection(map_) for projection, map_ in zip(self.method.projections, features)]

    def learn(self) -> None:
        """All of a step but noise, teacher, transport and update."""
        with self.precision.autocast(self.device):
            projected, twins = self.project(self.clean), self.project(self.noisy)
            student = self.method.student(projected)
        terms = layer_loss(self.clean, student) + vector_loss(twins, projected) + contrast(self.noisy, projected)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        terms.backward()

    def update(self) -> None:
        """Both optimisers' updates."""
        for optimiser in self.optimisers:
            optimiser.step()

    def paired(self) -> None:
        """The default SSOT and its gradient."""
        maps = [m.requires_grad_() for m in self.projected]
        paired_transport(maps, self.partners, random_places(maps, self.generator, 64)).backward()

    def released(self) -> None:
        """SSOT as released and its gradient."""
        released_transport([m.requires_grad_() for m in self.projected], self.partners).backward()


def measured(given: argparse.Namespace, device: torch.device) -> dict[str, object]:
    parts = Parts(given.backbone, given.size, given.batch, device)

    def timed(work: Callable[[], object]) -> float:
        return milliseconds(work, given.rounds, device)

    field = timed(lambda: noise_field(parts.generator, 128))
    times = {
        "noise": timed(parts.noise),
        "teacher, twins": timed(parts.teach),
        "networks and other losses": timed(parts.learn),
        "half an update": timed(parts.update) / 2,
        "ssot=paired": timed(parts.paired),
    }
    released, total = timed(parts.released), sum(times.values())
    return {
        "step_ms": round(total, 1),
        "parts_ms": {name: round(value, 2) for name, value in times.items()},
        "share": {name: round(value / total, 4) for name, value in times.items()},
        "ssot=code_ms": round(released, 2),
        "ssot=code_share": round(released / (total - times["ssot=paired"] + released), 4),
        "noise_field_once_a_fit_ms": round(field, 1),
        "precision": parts.precision.name,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the parts of RD++'s training step.")
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    threads, device = set_threads(given.threads), choose_device(given.device)
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": threads,
        "torch": torch.__version__,
    }
    asked = {"backbone": given.backbone, "size": given.size, "batch": given.batch}
    print(json.dumps({"machine": machine, **asked, **measured(given, device)}, indent=2))


if __name__ == "__main__":
    main()
