"""What judging without torch takes: an environment made from nothing, its size, and the time to a first verdict.

    python benchmarks/runtime.py part.onnx IMAGE ... [--extra openvino] [--runs 9] [--into FOLDER]

Makes an environment with pip (which asks the package index), installs this folder with the extra ``runtime``, and
starts processes in it: one imports ``blemish``, loads the file and judges the first image; one is the command line over
all images. Prints one JSON object: medians over ``--runs`` processes of either kind, all verdicts, sizes in MB of 10^6
bytes. Run it with nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# What is installed is measured, not this source.
CLEAN = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
FIRST = """
import json, resource, sys, time
began = time.perf_counter()
import blemish
imported = time.perf_counter()
inspector = blemish.load(sys.argv[1], engine=sys.argv[3])
loaded = time.perf_counter()
inspector(sys.argv[2])
judged = time.perf_counter()
inspector(sys.argv[2])
again = time.perf_counter()
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps({"import_s": imported - began, "load_s": loaded - imported, "first_image_s": judged - loaded,
                  "first_verdict_s": judged - began, "second_image_s": again - judged, "memory_mb": memory,
                  "torch": "torch" in sys.modules}))
"""


def build(folder: Path, extra: str) -> Path:
    """An environment in ``folder`` with this package and one extra; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True, text=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{ROOT}[{extra}]"]
    subprocess.run(install, check=True, capture_output=True, text=True, env=CLEAN)
    return python


def sizes(python: Path) -> dict[str, float]:
    """Megabytes of each package that takes above one, and of all."""
    place = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", place], check=True, capture_output=True, text=True).stdout.strip())

    def size(path: Path) -> float:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        return sum(file.stat().st_size for file in files) / 1e6

    packages = {path.name: round(size(path), 1) for path in site.iterdir()}
    largest = sorted(((mb, name) for name, mb in packages.items() if mb >= 1), reverse=True)
    installer = sum(mb for name, mb in packages.items() if name in ("pip", "setuptools", "pkg_resources"))
    whole = size(site)
    return {name: mb for mb, name in largest} | {"all": round(whole, 1), "all but pip": round(whole - installer, 1)}


def measure(python: Path, model: Path, images: list[Path], engine: str, runs: int) -> dict[str, Any]:
    """Medians over ``runs`` processes, and what the command line said of all images."""
    first = [python, "-c", FIRST, model, images[0], engine]
    command = [python, "-m", "blemish", "inspect", model, *images, "-q", "--engine", engine]
    told, seconds, said = list[dict[str, float]](), list[float](), ""
    for _ in range(runs):
        told.append(json.loads(subprocess.run(first, check=True, capture_output=True, text=True, env=CLEAN).stdout))
        began = time.perf_counter()
        said = subprocess.run(command, check=True, capture_output=True, text=True, env=CLEAN).stdout
        seconds.append(time.perf_counter() - began)
    figures = {name: round(statistics.median(one[name] for one in told), 3) for name in told[0] if name != "torch"}
    figures |= {"torch": any(one["torch"] for one in told), "command_s": round(statistics.median(seconds), 3)}
    return figures | {"runs": runs, "verdicts": [json.loads(line) for line in said.splitlines()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--extra", choices=("runtime", "openvino"), default="runtime")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--into", type=Path, help="keep the environment in this folder")
    options = parser.parse_args()
    engine = {"runtime": "onnxruntime"}.get(options.extra, options.extra)
    with tempfile.TemporaryDirectory() as temporary:
        python = build(options.into or Path(temporary) / "environment", options.extra)
        figures = measure(python, options.model, options.images, engine, options.runs)
        result = {"engine": engine, "cores": os.cpu_count(), "system": platform.platform(), "mb": sizes(python)}
    print(json.dumps(result | figures, indent=1))


if __name__ == "__main__":
    main()
