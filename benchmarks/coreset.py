"""How quickly a coreset is chosen, in what memory, and whether it is the one the literal rule chooses.

    python benchmarks/coreset.py speed       60,000 x 128, 6,000 picks: ours beside two literal loops
    python benchmarks/coreset.py memory      300,272 x 1,024 through PatchCore.fit: seconds and peak memory
    python benchmarks/coreset.py equality    3,000 x 32: picks beside a float64 loop

Prints one JSON object. Vectors are made up (16 hidden factors and noise, squashed); run with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.contract import Backbone, Batch, Level, TrainingImages
from blemish.methods.patchcore import PatchCore, PatchCoreConfig
from blemish.ops.coreset import farthest_first, first_distances
from blemish.run import Run, choose_device

DEVICE = torch.device("cpu")


def made_up_vectors(n: int, m: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(n, 16, generator=generator) @ torch.randn(16, m, generator=generator)
    return (torch.tanh(0.3 * factors) + 0.1 * torch.randn(n, m, generator=generator)).to(DEVICE)


def starts(points: Tensor) -> Tensor:
    return first_distances(points, "approximate", 10, torch.Generator().manual_seed(1))


def in_blocks(points: Tensor, count: int) -> list[int]:
    return list(farthest_first(points, count, starts(points)))


def one_product_a_pick(points: Tensor, count: int) -> list[int]:
    norms = points.square().sum(dim=1)
    distances, picks = starts(points), []
    for _ in range(count):
        best = int(distances.argmax())
        picks.append(best)
        new = torch.addmv(norms, points, points[best], alpha=-2).add_(norms[best]).clamp_(min=0)
        torch.minimum(distances, new, out=distances)
        distances[best] = 0
    return picks


def one_pairwise_distance_a_pick(points: Tensor, count: int) -> list[int]:
    distances, picks = starts(points).sqrt(), []
    for _ in range(count):
        best = int(distances.argmax())
        picks.append(best)
        distances = torch.minimum(distances, F.pairwise_distance(points, points[best : best + 1]))
        distances[best] = 0
    return picks


def in_float64(points: Tensor, count: int) -> list[int]:
    exact = points.double().numpy()
    distances, picks = starts(points).double().sqrt().numpy(), []
    for _ in range(count):
        best = int(distances.argmax())
        picks.append(best)
        distances = np.minimum(distances, np.linalg.norm(exact - exact[best], axis=1))
    return picks


def radius(points: Tensor, picks: Sequence[int]) -> float:
    """The largest distance from any point to its nearest pick, in float64."""
    exact = points.double()
    nearest = [torch.cdist(part, exact[list(picks)]).amin(dim=1).max() for part in exact.split(2000)]
    return float(torch.stack(nearest).max())


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def speed(n: int = 60_000, m: int = 128, count: int = 6_000, sample: int = 200) -> dict[str, object]:
    points = made_up_vectors(n, m)
    in_blocks(points[:5000], 100)
    ours = statistics.median(seconds(lambda: in_blocks(points, count)) for _ in range(3))
    product = seconds(lambda: one_product_a_pick(points, count))
    pairwise = seconds(lambda: one_pairwise_distance_a_pick(points, sample)) * count / sample
    return {
        "points": n,
        "width": m,
        "picks": count,
        "in_blocks_s": round(ours, 3),
        "one_product_a_pick_s": round(product, 3),
        f"one_pairwise_distance_a_pick_s_extrapolated_from_{sample}": round(pairwise, 1),
        "ratio_to_product": round(product / ours, 2),
        "ratio_to_pairwise": round(pairwise / ours, 1),
    }


class MadeUpFeatures(Backbone):
    """Gives feature maps of a WideResNet50's sizes at 224 pixels, drawn instead of computed."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = (Level(2, 512, 8, signed=False), Level(3, 1024, 16, signed=False))
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps for as many images as are given."""
        return self(images)

    def spec(self) -> dict[str, str]:
        """Nothing could build it again."""
        return {}

    def __call__(self, given: Batch | Tensor) -> list[Tensor]:
        """Feature maps for as many images as are given."""
        batch = len(given.images) if isinstance(given, Batch) else len(given)
        sizes = ((512, 28, 28), (1024, 14, 14))
        return [torch.rand(batch, *size, generator=self.generator).to(DEVICE) for size in sizes]


class NoPixels:
    """Images that only have a number: implements ``blemish.contract.Images``."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, indices: Sequence[int]) -> Batch:
        """Images of one pixel: only their number is read."""
        return Batch(torch.zeros(len(indices), 3, 1, 1), tuple(str(i) for i in indices))


class Timed:
    """Progress that remembers how long each stage took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def track(self, items: Iterable[object], title: str, total: int | None = None) -> Iterator[object]:
        """Pass ``items`` on and keep the time."""
        began = time.perf_counter()
        yield from items
        self.seconds[title] = round(time.perf_counter() - began, 1)

    def note(self, text: str) -> None:
        """Keep nothing."""


def memory(images: int = 383, fractions: Sequence[float] = (0.01, 0.1)) -> list[dict[str, object]]:
    results = []
    for fraction in fractions:
        backbone, timed = MadeUpFeatures(), Timed()
        method = PatchCore(backbone, (224, 224), PatchCoreConfig(fraction=fraction)).to(DEVICE)
        training = TrainingImages(NoPixels(images), NoPixels(0), "clean")
        whole = seconds(lambda: method.fit(training, backbone, Run(progress=timed, device=DEVICE)))  # noqa: B023
        results.append(
            {
                "vectors": images * 784,
                "width": method.patches.width,
                "fraction": fraction,
                "remembered": len(method.memory),
                "seconds": timed.seconds | {"whole": round(whole, 1)},
                "peak_rss_gb_so_far": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            }
        )
    return results


def equality(n: int = 3_000, m: int = 32, count: int = 600) -> dict[str, object]:
    points = made_up_vectors(n, m)
    ours, literal = in_blocks(points, count), in_float64(points, count)
    return {
        "points": n,
        "width": m,
        "picks": count,
        "same_picks_in_the_same_order": ours == literal,
        "picks_in_common": len(set(ours) & set(literal)),
        "radius": radius(points, ours),
        "radius_of_float64": radius(points, literal),
    }


def main() -> None:
    global DEVICE  # noqa: PLW0603
    parts: dict[str, Callable[[], object]] = {"speed": speed, "memory": memory, "equality": equality}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(parts)}; all by default")
    parser.add_argument("--threads", type=int, help="torch's threads")
    parser.add_argument("--device", default="cpu", help="of speed and memory")
    given = parser.parse_args()
    DEVICE = choose_device(given.device)
    if unknown := set(given.parts) - set(parts):
        parser.error(f"unknown part {sorted(unknown)[0]!r}: choose from {', '.join(parts)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    found: dict[str, object] = {
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(DEVICE) if DEVICE.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    for name in given.parts or parts:
        found[name] = parts[name]()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
