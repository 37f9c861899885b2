"""What resizing inside an exported graph costs, by how many outputs share a window of inputs.

All of them give the same numbers: 1 gathers the pixels of each output alone, the input's whole side is a plain product
of matrices. Run with nothing else going on: ``python benchmarks/resize.py [SIDE of the image] [THREADS]``.
"""

import statistics
import sys
import time

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn

from blemish.data.preprocessing import Preprocessing
from blemish.deploy import preparation
from blemish.deploy.export import to_onnx

SIZE = 256


class Resize(nn.Module):
    """``uint8 n h w 3`` to what a network sees."""

    inputs, outputs = {}, ["resized"]

    def __init__(self):
        super().__init__()
        self.prepare = preparation.Prepare(Preprocessing(size=SIZE))

    def forward(self, image):  # noqa: D102
        return (self.prepare(image, torch.full((), 255.0)),)


def median(call, repeats=15):
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, 1000 * statistics.median(seconds)


def main(side=1024, threads=1):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pillow = Image.fromarray(image)
    expected, milliseconds = median(lambda: np.asarray(pillow.resize((SIZE, SIZE), Image.Resampling.BILINEAR)))
    print(f"{side} to {SIZE} pixels, {threads} threads: Pillow {milliseconds:.1f} ms")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    for block in (1, 4, 8, 16, 32, 64, SIZE):
        preparation.BLOCK = block
        session = onnxruntime.InferenceSession(to_onnx(Resize().eval(), "uint8").SerializeToString(), options)
        (found,), milliseconds = median(lambda: session.run(None, {"image": image[None]}))  # noqa: B023
        differing = (np.rint(found[0].transpose(1, 2, 0) * 255) != expected).mean()
        print(f"blocks of {block:3}: {milliseconds:6.1f} ms, {differing:.2%} of the numbers differ from Pillow's")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
