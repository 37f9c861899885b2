"""The programs in examples/ and the page in a browser say of an exported file what ONNX Runtime here says of it.

What a machine lacks is skipped: node, its packages (in node_modules beside this repository's files, or where
BLEMISH_NODE_MODULES says), g++ and ONNX Runtime's headers (in BLEMISH_ONNXRUNTIME_INCLUDE), dotnet, Chromium.
"""

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import blemish
from blemish.cli import app
from blemish.data.images import read_image
from blemish.deploy import page
from blemish.deploy.export import export
from blemish.errors import ConfigError

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
MODULES = Path(os.environ.get("BLEMISH_NODE_MODULES", ROOT / "node_modules"))
HEADERS = Path(os.environ.get("BLEMISH_ONNXRUNTIME_INCLUDE", "/usr/include/onnxruntime"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def judged_here(folder: Path, name: str) -> tuple[str, float, np.ndarray]:
    session = onnxruntime.InferenceSession(folder / "part.onnx")
    pixels = np.asarray(Image.open(folder / name).convert("RGB"))
    score, decision, mask = session.run(["score", "decision", "mask"], {"image": pixels[None]})
    return ("ok", "review", "reject")[decision[0]], float(score[0]), mask[0]


def python(_: Path) -> list[str]:
    return [sys.executable, str(EXAMPLES / "python/inspect_image.py")]


def node(place: Path) -> list[str]:
    if shutil.which("node") is None or not all((MODULES / name).is_dir() for name in ("onnxruntime-node", "sharp")):
        pytest.skip("node, or its packages onnxruntime-node and sharp, are not here")
    shutil.copy(EXAMPLES / "node/inspect.mjs", place)
    (place / "node_modules").symlink_to(MODULES)
    return ["node", str(place / "inspect.mjs")]


def cpp(place: Path) -> list[str]:
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"), None)
    if shutil.which("g++") is None or library is None or not (HEADERS / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("g++, or the headers or library of ONNX Runtime, are not here")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (place / name).symlink_to(library)
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-isystem{HEADERS}", f"-L{place}", f"-Wl,-rpath,{place}"]
    libraries = ["-lonnxruntime", "-lpng", "-ljpeg"]
    command = ["g++", *options, str(EXAMPLES / "cpp/inspect.cpp"), *libraries, "-o", str(place / "inspect")]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False)
    if "png.h" in compiled.stderr or "jpeglib.h" in compiled.stderr:
        pytest.skip("libpng-dev or libjpeg-dev is not here")
    assert compiled.returncode == 0, compiled.stderr
    return [str(place / "inspect")]


def csharp(_: Path) -> list[str]:
    if shutil.which("dotnet") is None:
        pytest.skip("dotnet is not here")
    return ["dotnet", "run", "--project", str(EXAMPLES / "csharp"), "--"]


@pytest.mark.slow
@pytest.mark.parametrize("sample", [python, node, cpp, csharp])
def test_a_sample_decides_and_scores_as_the_file_here(sample, folder, tmp_path):
    command = sample(tmp_path)
    decisions = set()
    for name in ("good.png", "bad.png", "bad.jpg", "grey.png"):
        mask = tmp_path / ("mask.pgm" if sample in (cpp, csharp) else "mask.png")
        arguments = [str(folder / "part.onnx"), str(folder / name), str(mask)]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=250)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        decision, score, expected = judged_here(folder, name)
        assert (said["decision"], said["score"]) == (decision, pytest.approx(score, rel=1e-6)), name
        np.testing.assert_array_equal(np.asarray(Image.open(mask).convert("L")) > 0, expected)
        decisions.add(decision)
    assert {"ok", "reject"} <= decisions


@pytest.mark.slow
@pytest.mark.parametrize("sample", [python, node])
def test_a_sample_lays_transparency_over_black_and_turns_as_told(sample, folder, tmp_path):
    image = Image.open(folder / "bad.png").transpose(Image.Transpose.ROTATE_90).convert("RGBA")
    image.putalpha(
        Image.fromarray(np.linspace(40, 255, image.width * image.height).reshape(image.size[::-1]).astype("u1"))
    )
    turned = image.getexif()
    turned[274] = 6  # shown turned to the right
    image.save(tmp_path / "clear.png", exif=turned)
    command = [*sample(tmp_path), str(folder / "part.onnx"), str(tmp_path / "clear.png"), str(tmp_path / "mask.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    verdict = blemish.load(folder / "part.onnx")(tmp_path / "clear.png")
    assert json.loads(done.stdout)["score"] == pytest.approx(verdict.score, rel=0.02)
    assert verdict.size == np.asarray(Image.open(tmp_path / "mask.png")).shape == (60, 90)


@pytest.mark.slow
@pytest.mark.parametrize(("tile", "grey"), [(48, True), (None, False)])
def test_the_sample_for_large_images_cuts_tiles_and_covers_what_is_outside(folder, tmp_path, tile, grey):
    mask = np.ones((72, 90), bool)
    mask[:, :30] = mask[60:, 80:] = False
    photographs = [*sorted((folder / "good").glob("*.png")), folder / "good.png", folder / "bad.png"]
    (tmp_path / "good").mkdir()
    for path in photographs:
        image = Image.open(path).convert("L" if grey else "RGB").resize((90, 72))
        image.save(tmp_path / ("good" if path.parent.name == "good" else ".") / path.name)
    Image.fromarray(mask).save(tmp_path / "roi.png")
    settings = {"method": "patchcore", "backbone": "resnet18", "weights": "random", "size": 64}
    tiled = {"tile": tile, "tile_overlap": 12} if tile else {}
    inspector = blemish.fit(tmp_path / "good", options={"memory": 50}, roi=tmp_path / "roi.png", **tiled, **settings)
    images = {path.name: read_image(path) for path in (tmp_path / "good").iterdir()}
    export(inspector, tmp_path / "part.onnx", images, grey=grey)
    usual, decisions = blemish.load(tmp_path / "part.onnx"), set()
    for name in ("good.png", "bad.png"):
        command = [sys.executable, EXAMPLES / "python/inspect_large.py", tmp_path / "part.onnx", tmp_path / name]
        done = subprocess.run([*command, tmp_path / "mask.png"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said, verdict = json.loads(done.stdout), usual(tmp_path / name)
        assert (said["decision"], said["score"]) == (verdict.decision, pytest.approx(verdict.score, rel=1e-5))
        assert said["p_value"] == pytest.approx(verdict.p_value, rel=1e-4)
        expected = verdict.heatmap > usual.calibration.pixel_threshold
        assert (np.asarray(Image.open(tmp_path / "mask.png")) != expected).mean() < 0.002
        decisions.add(verdict.decision)
    assert decisions == {"ok", "reject"}
    wrong = tmp_path / "wrong.png"
    Image.new("RGB", (90, 90)).save(wrong)
    done = subprocess.run([*command[:3], wrong, tmp_path / "m.png"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "90 x 90 pixels, the region of interest 90 x 72" in done.stderr


@pytest.mark.parametrize(
    ("language", "program"),
    [("c_sharp", "csharp/Program.cs"), ("cpp", "cpp/inspect.cpp"), ("javascript", "node/inspect.mjs")],
)
def test_samples_can_be_parsed_where_they_cannot_run(language, program):
    tree_sitter = pytest.importorskip("tree_sitter", reason="needs the extra dev")
    grammar = pytest.importorskip(f"tree_sitter_{language}", reason="needs the extra dev").language()
    parse = tree_sitter.Parser(tree_sitter.Language(grammar)).parse
    assert not parse((EXAMPLES / program).read_bytes()).root_node.has_error
    assert parse(b"var wrong = = 1;").root_node.has_error


def test_without_the_browser_s_runtime_the_way_to_it_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"npm install onnxruntime-web.*--onnxruntime-web"):
        page.find_runtime(tmp_path)
    for place in (tmp_path / "node_modules/onnxruntime-web/dist", tmp_path / "copied"):
        place.mkdir(parents=True)
        for name in page.RUNTIME:
            (place / name).touch()
    assert page.find_runtime(tmp_path) == tmp_path / "node_modules/onnxruntime-web/dist"
    assert page.find_runtime(tmp_path / "copied") == tmp_path / "copied"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.skipif(not (MODULES / "onnxruntime-web").is_dir(), reason="onnxruntime-web is not here")
def test_the_page_judges_in_a_browser_and_asks_nobody_else(folder, tmp_path):
    sync = pytest.importorskip("playwright.sync_api")
    arguments = ["export", folder / "part.blemish", "--web", tmp_path / "site", "--onnxruntime-web", MODULES, "-q"]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path / "site"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{server.server_port}"
    asked, failures = [], []
    with sync.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.goto(origin)
        tab.wait_for_selector("#file:enabled, #state.failed", state="attached", timeout=120_000)
        shapes = set()
        for name, word in (("good.png", "Good"), ("bad.png", "Reject"), ("bad.jpg", "Reject")):
            tab.set_input_files("#file", folder / name)
            tab.wait_for_selector("#verdict:not([hidden]), #state.failed", timeout=120_000)
            decision, score, mask = judged_here(folder, name)
            assert tab.inner_text("#state") == "" and tab.get_attribute("#decision", "class") == decision
            assert tab.inner_text("#word") == word
            assert float(tab.get_attribute("#score", "value")) == pytest.approx(score, rel=1e-4)
            assert int(tab.get_attribute("#marked", "value")) == pytest.approx(mask.sum(), abs=mask.size / 200)
            shapes.add((tab.get_attribute("#shape", "d"), decision))
            drawn = tab.locator("#picture").evaluate("c => [...c.getContext('2d').getImageData(0, 0, 90, 60).data]")
            painted = (np.array(drawn).reshape(60, 90, 4)[..., :3] == (255, 110, 0)).all(axis=2)
            assert painted.any() == mask.any() and not painted[~mask].any()
        tab.uncheck("#show")
        drawn = tab.locator("#picture").evaluate("c => [...c.getContext('2d').getImageData(0, 0, 90, 60).data]")
        np.testing.assert_array_equal(
            np.array(drawn).reshape(60, 90, 4)[..., :3], np.asarray(Image.open(folder / "bad.jpg"))
        )
        (tmp_path / "broken.png").write_bytes(b"no image")
        Image.fromarray(np.zeros((60, 90), np.uint16)).save(tmp_path / "deep.png")
        Image.new("RGB", (1, 90)).save(tmp_path / "thin.png")
        for name, why in (("broken.png", ""), ("deep.png", "it has 16 bits"), ("thin.png", "it has 1 x 90 pixels")):
            tab.set_input_files("#file", tmp_path / name)
            tab.wait_for_selector(f"#state.failed:has-text('{name} could not be judged: {why}')", timeout=60_000)
        browser.close()
    server.shutdown()
    server.server_close()
    assert len(shapes) == 2 and failures == []
    assert asked and all(url.startswith(origin) or url.startswith(f"blob:{origin}") for url in asked)
