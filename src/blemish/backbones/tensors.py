"""Weights as named tensors: read from a file, matched with a network, digested.

Nothing is unpickled unsafely: safetensors, or ``torch.load`` with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from blemish.backbones import lite
from blemish.errors import WeightsError

# What torch.load raises for a file that is cut short, of another kind, or unsafe.
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, struct.error, pickle.UnpicklingError)


@dataclass(frozen=True)
class FoundWeights:
    """A network's tensors under timm's names, and where they were found, for people (never a path)."""

    tensors: dict[str, Tensor]
    source: str


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, under timm's names.

    Raises:
        WeightsError: the file is damaged, or holds something else than named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (*_UNREADABLE, SafetensorError) as error:
        # The first sentence alone: torch goes on with advice to unpickle whatever the file holds.
        reason = str(error).strip().splitlines()[0].split(". ")[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}): give a .safetensors or .pth file of named tensors, "
            "whole and saved without other Python objects"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} does not hold named tensors: give a state dict, not a whole model")
    tensors = dict(content)
    return lite.under_timm_names(tensors) if lite.is_original(tensors) else tensors


def select_tensors(found: FoundWeights, wanted: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of ``found`` that a cut network needs, under the network's own names.

    Args:
        found: the whole network's tensors; more than needed is fine.
        wanted: the cut network's ``state_dict``; only shapes and types are read.
        name: the backbone, for the message.

    Raises:
        WeightsError: a tensor is missing or has another shape: the file is for another architecture.
    """
    available = {_plain(key): tensor for key, tensor in found.tensors.items()}
    chosen, wrong = {}, []
    for key, like in wanted.items():
        tensor = available.get(_plain(key))
        if tensor is None and key.endswith("num_batches_tracked"):  # absent from old files, unused when frozen
            tensor = torch.zeros((), dtype=like.dtype)
        if tensor is None:
            wrong.append(f"{key} is missing")
        elif tensor.shape != like.shape:
            wrong.append(f"{key} is {tuple(tensor.shape)}, not {tuple(like.shape)}")
        else:
            chosen[key] = tensor.to(like.dtype)
    if wrong:
        raise WeightsError(
            f"the weights from {found.source} do not fit backbone {name!r}: {len(wrong)} of {len(wanted)} tensors "
            f"differ ({wrong[0]}). Give the file that belongs to it, or another --backbone."
        )
    return chosen


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values, in the order of names; counters that a frozen network ignores left out."""
    sha = hashlib.sha256()
    for key in sorted(tensors):
        if key.endswith("num_batches_tracked"):
            continue
        tensor = tensors[key].detach().cpu().contiguous()
        sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _plain(key: str) -> str:
    """A tensor's name without what timm's feature wrappers change: ``stages_0.x`` for ``stages.0.x``, a prefix."""
    key = re.sub(r"^(model|body|module)\.", "", key)
    return re.sub(r"^([A-Za-z]+)_(\d+)\.", r"\1.\2.", key)
