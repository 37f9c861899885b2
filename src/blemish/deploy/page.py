"""``blemish export --web``: a folder with a page that judges photographs in a browser, without any network.

The browser's runtime, onnxruntime-web, is an npm package: it is copied from where the user has it, never downloaded.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from blemish.errors import ConfigError
from blemish.inspection.exported_file import read_exported
from blemish.run.files import written_atomically

MODEL = "model.onnx"
OURS = ("index.html", "page.css", "inspect.js")
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


def find_runtime(folder: Path | None = None) -> Path:
    """Where the files of onnxruntime-web are: in ``folder``, or in a node_modules here or above."""
    above = [folder] if folder else [Path.cwd(), *Path.cwd().parents]
    inside = ("", "dist", "onnxruntime-web/dist", "node_modules/onnxruntime-web/dist")
    for place in (parent / name for parent in above for name in inside):
        if all((place / name).is_file() for name in RUNTIME):
            return place
    raise ConfigError(
        f"a page needs {' and '.join(RUNTIME)}, which are not in {folder or 'a node_modules here or above'}: "
        "`npm install onnxruntime-web` here, or name its folder with --onnxruntime-web"
    )


def write_browser_page(folder: Path, runtime: Path, model: Path, promise: str) -> None:
    """A page for an exported ``model`` with all that it needs; ``runtime`` is what ``find_runtime`` gave."""
    description = read_exported(model)
    package = runtime.parent / "package.json"
    exported = description.export
    about: dict[str, Any] = {
        "name": model.stem if model.name != MODEL else folder.resolve().name,
        "method": description.method,
        "images": getattr(description.provenance, "images_learned", "unknown"),
        "promise": promise,
        "made": exported.get("made", ""),
        "version": exported.get("versions", {}).get("blemish", ""),
        "licence": exported.get("licence", "unknown"),
        "runtime": json.loads(package.read_text("utf-8")).get("version", "") if package.is_file() else "",
    }
    sources = {name: Path(__file__).parent / "web" / name for name in OURS} | {name: runtime / name for name in RUNTIME}
    sources[MODEL] = model
    for name, source in sources.items():
        if not (folder / name).exists() or not source.samefile(folder / name):
            with written_atomically(folder / name) as temporary:
                shutil.copyfile(source, temporary)
    with written_atomically(folder / "about.json") as temporary:
        temporary.write_text(json.dumps(about), "utf-8")
