"""The tensors inside an ONNX file that a DINOv2 of the transformers library was exported to, under timm's names.

Read by the few rules of protobuf that such a file needs: no further package is. Only files of known SHA-256 come here,
so nothing is made of malformed ones.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_TIMM_NAMES = (
    *(("backbone.", ""), ("encoder.layer.", "blocks."), ("layernorm.", "norm.")),
    *(("embeddings.patch_embeddings.projection", "patch_embed.proj"), ("embeddings.", "")),
    *(("layer_scale1.lambda1", "ls1.gamma"), ("layer_scale2.lambda1", "ls2.gamma")),
    ("attention.output.dense", "attn.proj"),
)


def read_dinov2(content: bytes) -> dict[str, Tensor]:
    """All float32 tensors of the file; those that are not the network's keep their names."""
    tensors, multipliers = {}, {}
    graph = next(value for field, value in _fields(memoryview(content)) if field == 7)
    for field, value in _fields(graph):
        parts = list(_fields(value)) if field in (1, 5) else []
        if field == 5:  # a tensor: its sizes are fields 1, its name 8, its numbers 9
            numbers = torch.frombuffer(bytearray(dict(parts)[9]), dtype=torch.float32)
            tensors[str(dict(parts)[8], "utf-8")] = numbers.view([size for part, size in parts if part == 1])
        elif field == 1 and dict(parts)[4] == b"MatMul":  # a node: its inputs are fields 1, its name 3, its kind 4
            path = str(dict(parts)[3], "utf-8").removeprefix("/").removesuffix("/MatMul")
            second = [str(text, "utf-8") for part, text in parts if part == 1][1]
            multipliers[second] = path.replace("/", ".") + ".weight"  # which is nowhere else
    positions = [tensor for name, tensor in tensors.items() if name.startswith("onnx::") and name not in multipliers]
    ours = {"pos_embed": torch.cat(sorted(positions, key=Tensor.numel), 1)}  # the class token's, those of a square grid
    for name, tensor in tensors.items():
        renamed = multipliers.get(name, name)
        for theirs, timms in _TIMM_NAMES:
            renamed = renamed.replace(theirs, timms)
        ours[renamed] = tensor.T.contiguous() if name in multipliers else tensor
    for query in [name for name in ours if ".query." in name]:
        three = [ours.pop(query.replace(".query.", f".{part}.")) for part in ("query", "key", "value")]
        ours[query.replace("attention.attention.query", "attn.qkv")] = torch.cat(three)
    return ours


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes for whatever has a length or is a fixed number."""
    at = 0

    def varint() -> int:
        nonlocal at
        start = at
        while message[at] > 127:
            at += 1
        at += 1
        return sum((byte & 127) << 7 * i for i, byte in enumerate(message[start:at]))

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            at += size
            yield key >> 3, message[at - size : at]
