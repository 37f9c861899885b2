"""Times each backbone in fp32 and bf16, channels last and contiguous, and whether the chosen precision is the best.

    python benchmarks/precision.py [--backbone NAME ...] [--threads N] [--rounds N] [--size PIXELS]

One JSON object on standard output; times are medians in milliseconds an image. Run it with nothing else running: the
rule in ``blemish.run.choose_precision`` rests on what it prints.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import torch

from blemish.backbones.backbone import build_backbone
from blemish.backbones.catalogue import BACKBONES
from blemish.contract import Backbone
from blemish.run import Precision, choose_device, choose_precision, has_bf16_units, set_threads

FORMS = {
    "fp32 contiguous": Precision(torch.float32, channels_last=False, reason="timed"),
    "fp32 channels_last": Precision(torch.float32, channels_last=True, reason="timed"),
    "bf16 contiguous": Precision(torch.bfloat16, channels_last=False, reason="timed"),
    "bf16 channels_last": Precision(torch.bfloat16, channels_last=True, reason="timed"),
}


def milliseconds_an_image(backbone: Backbone, images: torch.Tensor, rounds: int) -> float:
    def once() -> float:
        began = time.perf_counter()
        backbone(images)
        if images.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    with torch.inference_mode():
        once()
        return 1000 * statistics.median(once() for _ in range(rounds)) / len(images)


def timed(name: str, size: int, batches: list[int], rounds: int, device: torch.device) -> dict[str, object]:
    # Random weights take the same time as trained ones and need no hub.
    backbone = build_backbone(name, (1, 2, 3), weights="random").to(device)
    chosen = choose_precision(device, dense=backbone.dense)
    chosen_form = f"{chosen.name} {'channels_last' if chosen.channels_last else 'contiguous'}"
    figures = {}
    for batch in batches:
        images = torch.rand((batch, 3, size, size), generator=torch.Generator().manual_seed(0)).to(device)
        times = {}
        for form, precision in FORMS.items():
            backbone.precision = precision
            times[form] = round(milliseconds_an_image(backbone, images, rounds), 2)
        best = min(times, key=lambda form: times[form])
        ratio = round(times[chosen_form] / times[best], 2)
        figures[f"batch {batch}"] = {"ms_an_image": times, "best": best, "chosen_over_best": ratio}
    return {"chosen": chosen_form, "reason": chosen.reason, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time backbones by precision and memory format.")
    parser.add_argument("--backbone", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    threads, device = set_threads(given.threads), choose_device(given.device)
    found = {name: timed(name, given.size, given.batch, given.rounds, device) for name in given.backbone}
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "threads": threads,
        "bf16_units": has_bf16_units(device),
        "torch": torch.__version__,
    }
    print(json.dumps({"machine": machine, "size": given.size, "backbones": found}, indent=2))


if __name__ == "__main__":
    main()
