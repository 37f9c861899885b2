"""What a figure was measured with: code, versions, machine. No host name, no path."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("blemish", "torch", "timm", "numpy", "pillow")


def commit() -> tuple[str | None, bool | None]:
    """The commit of the source in use and whether files differ from it; ``results/`` does not count.

    (None, None) for an installed package, which is in no repository.
    """
    home = Path(__file__).resolve().parent
    top = _git(home, "rev-parse", "--show-toplevel")
    if top is None or _git(home, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    changed = _git(Path(top), "status", "--porcelain", "--", "src", "recipes", "pyproject.toml")
    return _git(home, "rev-parse", "HEAD"), bool(changed)


def _git(folder: Path, *words: str) -> str | None:
    try:
        found = subprocess.run(
            ["git", "--no-optional-locks", *words], cwd=folder, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1)
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_mib() -> float:
    """The most memory this process ever held."""
    if sys.platform == "win32":
        return float("nan")
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


def versions() -> dict[str, str]:
    """Of the packages that figures depend on."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


@lru_cache(maxsize=32)
def source_digest(module: str) -> str:
    """16 hexadecimal digits of the code that a method's figures come from: its file, ``ops``, ``backbones``, metrics.

    Recorded beside the method's version, so that a table can say when its rows come from different code.
    """
    root = Path(__file__).resolve().parent.parent
    spec = importlib.util.find_spec(module)
    own = [Path(spec.origin)] if spec is not None and spec.origin else []
    shared = [path for room in ("ops", "backbones", "metrics") for path in sorted((root / room).glob("*.py"))]
    digest = hashlib.sha256()
    for path in own + shared + [root / "data" / "preprocessing.py", root / "training" / "fit.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
