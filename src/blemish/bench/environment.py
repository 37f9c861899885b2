"""What a figure was measured with: code, versions, machine. No host name, no path."""

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent


def commit() -> tuple[str | None, bool | None]:
    """The commit of the source in use and whether files differ from it; (None, None) for an installed package."""

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(HOME), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--", ":/src", ":/recipes", ":/pyproject.toml")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None, None


def machine() -> dict[str, Any]:
    memory, info = None, Path("/proc/cpuinfo")
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1)
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return {
        "processor": next(names, platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "system": platform.system(),
        "python": platform.python_version(),
    }


def peak_memory_mib() -> float | None:
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024**2 if sys.platform == "darwin" else 1024), 1)


def versions() -> dict[str, str]:
    installed = {package.name.lower(): package.version for package in distributions()}
    return {name: installed.get(name, "unknown") for name in ("blemish", "torch", "timm", "numpy", "pillow")}


def source_digest(module: str) -> str:
    """16 hexadecimal digits of the code that a method's figures come from: its file and all that it stands on."""
    spec = importlib.util.find_spec(module)
    files = [Path(spec.origin)] if spec is not None and spec.origin else []
    files += [path for name in ("ops", "backbones", "metrics") for path in sorted((HOME / name).glob("*.py"))]
    digest = hashlib.sha256()
    for path in [*files, HOME / "data" / "preprocessing.py", HOME / "training" / "fit.py"]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
