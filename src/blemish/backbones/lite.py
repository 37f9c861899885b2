"""EfficientNet-Lite's tensors under timm's names: the published files number blocks through, timm counts by stage."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from blemish.errors import WeightsError

# Blocks in each of the seven stages, by their sum: Lite0, and Lite1 and Lite2, which differ in width and size only.
_STAGES = {16: (1, 2, 2, 3, 3, 4, 1), 21: (1, 3, 3, 4, 4, 5, 1)}

_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first stage does not expand its channels, so timm's names for its blocks are shifted by one.
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def is_original(tensors: Mapping[str, object]) -> bool:
    """Whether the names are those of the original PyTorch port."""
    return "_conv_stem.weight" in tensors


def under_timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the names of timm's ``tf_efficientnet_lite*``.

    Raises:
        WeightsError: the number of blocks is that of no Lite0, Lite1 or Lite2, or a name is foreign.
    """
    blocks = len({key.split(".")[1] for key in tensors if key.startswith("_blocks.")})
    if blocks not in _STAGES:
        raise WeightsError(f"an EfficientNet-Lite file of {blocks} blocks: give Lite0's (16), Lite1's or Lite2's (21)")
    places = [(stage, block) for stage, count in enumerate(_STAGES[blocks]) for block in range(count)]
    try:
        return {_renamed(key, places): tensor for key, tensor in tensors.items()}
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"an EfficientNet-Lite file with a tensor named {error}: give the published file") from error


def _renamed(key: str, places: list[tuple[int, int]]) -> str:
    head, *rest = key.split(".")
    if head != "_blocks":
        return ".".join([_OUTSIDE_BLOCKS[head], *rest])
    stage, block = places[int(rest[0])]
    names = _LATER_STAGES if stage else _FIRST_STAGE
    return ".".join([f"blocks.{stage}.{block}", names[rest[1]], *rest[2:]])
