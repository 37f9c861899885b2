"""Exported files, judged by an engine: the graph here is made by hand, so that every number is known beforehand.

Its map is the mean of a pixel's channels as a share of white, its score the largest of these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import blemish
from blemish.cli import app
from blemish.data.roi import Roi
from blemish.data.tiles import Tiling
from blemish.deploy.precision import note, within_budget
from blemish.errors import ConfigError, ImageError, ModelFileError
from blemish.inspection.exported_file import sealed
from blemish.training.evaluate import evaluate

onnx = pytest.importorskip("onnx", reason="needs pip install 'blemish[export]'")
pytest.importorskip("onnxruntime", reason="needs pip install 'blemish[runtime]'")

GOOD = [0.5 + i / 1000 for i in range(120)]  # rejected are scores above the highest of 120: .619
ROOT = Path(__file__).parents[2]
HIDDEN = "torch torchvision timm scipy safetensors geomloss filelock matplotlib onnx pandas"
HIDING = f"import sys\nfor name in {HIDDEN.split()}: sys.modules[name] = None\n"


SIZE = (40, 50)  # of the network's input, and of most pictures: resizing then changes nothing


def graph(white: int = 255, maps: bool = True, named: bool = True, score: str = "both", size=SIZE):
    """``named``: what engines go from and to; ``score``: axes over which it is the maximum."""
    helper, kinds = onnx.helper, onnx.TensorProto
    values = {"white": np.float32(white), "colours": np.array([1]), "both": np.array([1, 2]), "rows": np.array([1])}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=kinds.FLOAT),
        helper.make_node("Div", ["float", "white"], ["shares"]),
        helper.make_node("Transpose", ["shares"], ["prepared"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["prepared", "colours"], ["input_map"], keepdims=0),
        helper.make_node("ReduceMax", ["input_map", score], ["score"], keepdims=0),
        helper.make_node("Identity", ["input_map"], ["map"]),
    ]
    given = [helper.make_tensor_value_info("image", kinds.UINT8 if white == 255 else kinds.UINT16, ["n", "h", "w", 3])]
    given += [helper.make_tensor_value_info("white", kinds.FLOAT, [])]
    found = [helper.make_tensor_value_info("score", kinds.FLOAT, None)]
    found += [helper.make_tensor_value_info("map", kinds.FLOAT, ["n", "h", "w"])] * maps
    inside = [helper.make_tensor_value_info("prepared", kinds.FLOAT, ["n", 3, *size])] * named
    inside += [helper.make_tensor_value_info("input_map", kinds.FLOAT, ["n", *size])] * maps
    initializers = [onnx.numpy_helper.from_array(np.asarray(value), key) for key, value in values.items()]
    whole = helper.make_graph(nodes, "g", given, found, initializers, value_info=inside)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def description(white: int = 255, size=SIZE, **changed) -> str:
    return json.dumps(
        {
            "method": "patchcore", "config": {"layers": [2, 3]}, "backbone": {"name": "none"}, "with_backbone": True,
            "preparation": {"family": "stretch", "size": size, "crop": None, "full_scale": white},
            "calibration": {"kind": "holdout", "rate": 0.01, "images": 120, "trusted": True, "review": 0.02},
            "calibration_tensors": {"scores": GOOD, "peaks": GOOD}, "smallest_area": 1,
            "provenance": {"images_learned": 7, "data": "parts"}, "export": {"opset": 18},
        } | changed
    )  # fmt: skip


def write(path: Path, white: int = 255, says: str | None = None, seal: bool = True, size=SIZE, **options) -> Path:
    model = graph(white, size=size, **options)
    onnx.helper.set_model_props(model, {"blemish": says or description(white, size)})
    content = model.SerializeToString()
    path.write_bytes(sealed(content) if seal else content)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("exported") / "part.onnx")


def part(grey: int, spot: int | None = None, size: tuple[int, int] = (40, 50)) -> np.ndarray:
    """Grey, with a square of ``spot`` in rows 5 to 15 and columns 20 to 30."""
    pixels = np.full((*size, 3), grey, np.uint8)
    pixels[5:15, 20:30] = grey if spot is None else spot
    return pixels


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_scores_maps_decisions_and_regions_are_the_graph_s_and_the_calibration_s(exported, engine):
    pytest.importorskip(engine, reason=f"needs pip install 'blemish[{engine}]'")
    inspector = blemish.load(exported, engine=engine, threads=1)
    assert isinstance(inspector, blemish.ExportedInspector) and inspector.info()["engine"] == engine
    images = [part(100), part(100, 240), part(90), part(100, 158, (80, 50)), part(100, 157), part(100, 150)[..., 0]]
    verdicts = list(inspector.many(images, batch_size=4))  # of several sizes, in order
    shares = [100 / 255, 240 / 255, 90 / 255, 158 / 255, 157 / 255, 150 / 255]
    assert [verdict.score for verdict in verdicts] == pytest.approx(shares, rel=1e-6)
    # .6196 is above .619, .6157 above all but the 4 highest, and .588 no longer among the strangest 3 in 100.
    assert [verdict.decision for verdict in verdicts] == ["ok", "reject", "ok", "reject", "ok", "ok"]
    assert [verdict.p_value for verdict in verdicts] == pytest.approx(
        [1, 1 / 121, 1, 1 / 121, 5 / 121, (1 + sum(score >= 150 / 255 for score in GOOD)) / 121]
    )
    for image, verdict in zip(images, verdicts, strict=True):
        assert verdict.size == verdict.heatmap.shape == image.shape[:2]
        if verdict.size == SIZE:  # else resized, and back
            expected = (image if image.ndim == 2 else image[..., 0]) / 255
            np.testing.assert_allclose(verdict.heatmap, expected, rtol=1e-6)
    assert [[region.box for region in verdict.regions] for verdict in verdicts] == [
        [], [(20, 5, 30, 15)], [], [(20, 7, 30, 13)], [], [],
    ]  # fmt: skip
    assert inspector(images[1]).score == verdicts[1].score
    assert "no more than 1 in 40" in inspector.promise and "learned from 7 images of parts" in repr(inspector)


def test_a_graph_without_maps_gives_decisions_alone(tmp_path):
    says = description(calibration_tensors={"scores": GOOD})
    verdict = blemish.load(write(tmp_path / "score.onnx", maps=False, says=says))(part(100, 240))
    assert (verdict.decision, verdict.heatmap, verdict.regions, verdict.overlay().size) == (
        "reject",
        None,
        (),
        (50, 40),
    )


def test_images_of_any_depth_come_to_the_scale_that_the_graph_takes(tmp_path):
    inspector = blemish.load(write(tmp_path / "deep.onnx", white=4095))
    deep = part(0)[..., 0].astype(np.uint16) + 2048
    score = 2048 / 4095
    for image, expected in (
        (deep, score), (np.repeat(deep[..., None], 3, 2), score), (part(128), 128 / 255),
        (deep.astype(np.float32) / 4095, score), (deep + 60000 - 2048, 1),
    ):  # fmt: skip
        assert inspector(image).score == pytest.approx(expected, abs=1e-6)
    shallow = blemish.load(write(tmp_path / "part.onnx"))
    assert shallow(part(128)[..., 0].astype(np.uint16)).score == pytest.approx(128 / 255)
    with pytest.raises(ImageError, match="16-bit image with values up to 2048, but no training image"):
        shallow(deep)


def test_bad_images_are_named_and_stop_nothing(exported, tmp_path):
    (tmp_path / "empty.png").touch()
    Image.new("L", (1, 1)).save(tmp_path / "dot.png")
    Image.fromarray(np.full((40, 50), 3000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(part(100, 240, (16, 20_000))).save(tmp_path / "long.png")
    done = CliRunner().invoke(app, ["inspect", str(exported), str(tmp_path), "-q", "-o", str(tmp_path / "out")])
    assert done.exit_code == 1 and done.stderr == ""
    lines = {Path(line["path"]).name: line for line in map(json.loads, done.stdout.splitlines())}
    said = {"empty.png": "not an image", "dot.png": "1 x 1 pixels: at least 8", "deep.png": "values up to 3000"}
    assert {name: words in lines[name]["error"] for name, words in said.items()} == dict.fromkeys(said, True)
    assert (lines["long.png"]["decision"], lines["long.png"]["width"]) == ("ok", 20_000)  # 10 of 400 columns


def test_a_file_that_is_not_whole_or_not_ours_is_refused_in_words(exported, tmp_path):
    content = exported.read_bytes()
    model, path = onnx.load_from_string(content), tmp_path / "bad.onnx"
    last = model.metadata_props[-1]  # the seal, which other readers take for one more entry
    assert last.value == hashlib.sha256(content[: -len(sealed(b""))]).hexdigest()
    del model.metadata_props[:]
    cases = {
        b"": "no graph in it", b"\x08": "not a whole ONNX file", b"hello, world": "not a whole ONNX file",
        model.SerializeToString(): "none that `blemish export` wrote", content + b"\0\0": "damaged or was changed",
        content.replace(b'"rate": 0.01', b'"rate": 0.10'): "damaged or was changed",
    }  # fmt: skip
    for end in (1, 9, len(content) // 2, len(content) - len(sealed(b"")) - 5, len(content) - 1):
        cases[content[:end]] = "not a whole ONNX file"
    for given, words in cases.items():
        path.write_bytes(given)
        with pytest.raises(ModelFileError, match=words):
            blemish.load(path)
    for at in [*range(0, len(content), 23), *range(len(content) - len(sealed(b"")), len(content))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 32]) + content[at + 1 :])
        with pytest.raises(ModelFileError):
            blemish.load(path)
    for where, words in ((tmp_path, "is a folder"), (tmp_path / "none.onnx", "no model file")):
        with pytest.raises(ModelFileError, match=words):
            blemish.load(where)
    renamed = tmp_path / "part.model"
    renamed.write_bytes(content)
    assert blemish.load(renamed)(part(100)).decision == "ok"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({"says": "{"}, "does not describe a model"),
        ({"says": description(calibration_tensors={"scores": ["many"]})}, "calibration_tensors.scores.0"),
        ({"says": description(calibration_tensors={})}, "calibration is not whole"),
        ({"says": description(preparation={"size": 64, "full_scale": 256})}, "full_scale 256"),
        ({"named": False}, "exported by an older Blemish, or changed"),
        ({"score": "rows"}, "no score and map of its input's size"),
    ],
)
def test_a_whole_file_that_is_not_what_it_should_be_is_refused_in_words(made, words, tmp_path):
    with pytest.raises(ModelFileError, match=words):
        blemish.load(write(tmp_path / "odd.onnx", **made))(part(100))


def test_without_a_digest_a_flipped_byte_still_breaks_no_process(tmp_path):
    """In a process of its own, because what is tried here is an engine in C++."""
    content = write(tmp_path / "part.onnx", seal=False).read_bytes()
    program = (
        "import pathlib, sys, blemish\nfrom blemish.errors import BlemishError\nimport numpy as np\n"
        "from blemish.inspection import exported_file\n"
        "exported_file.is_whole = lambda content: True\n"
        "path = pathlib.Path(sys.argv[1]); content = path.read_bytes()\n"
        "for at in [*range(0, 300, 5), *range(300, len(content), 97)]:\n"
        "    path.write_bytes(content[:at] + bytes([content[at] ^ 64]) + content[at + 1:])\n"
        "    try: blemish.load(path, threads=1)(np.zeros((9, 9, 3), np.uint8))\n"
        "    except BlemishError as error: print(type(error).__name__)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "part.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == {"ModelFileError"} and len(content) > 1000


def test_what_is_not_installed_is_named_with_its_extra(exported, monkeypatch):
    for absent, asked, words in (
        (["openvino"], "openvino", r"openvino is needed and not installed: pip install 'blemish\[openvino\]'"),
        (["openvino", "onnxruntime"], "auto", r"pip install 'blemish\[runtime\]'"),
    ):
        with monkeypatch.context() as patch:
            for name in absent:
                patch.setitem(sys.modules, name, None)
            with pytest.raises(ConfigError, match=words):
                blemish.load(exported, engine=asked)


def test_the_engine_that_is_fastest_here_is_measured_noted_and_taken(tmp_path):
    pytest.importorskip("openvino", reason="needs pip install 'blemish[openvino]'")
    file, images = write(tmp_path / "part.onnx"), [part(100), part(100, 240, (60, 70))]
    facts, words = within_budget(file, 10_000, images, threads=1)
    quick, slow = sorted(facts["milliseconds"], key=lambda name: facts["milliseconds"][name]["p95"])
    assert facts["fastest"] == quick and words.index(quick) < words.index(slow)
    assert blemish.load(file).session.engine == quick and blemish.load(file, engine=slow).session.engine == slow
    noted = file.read_bytes()
    with pytest.raises(ConfigError, match=r"in 0\.001 ms here, so nothing was written.*openvino"):
        within_budget(file, 0.001, images, threads=1)
    assert file.read_bytes() == noted
    note(file, file, fastest="openvino")
    assert blemish.load(file).info()["engine"] == "openvino"
    note(file, file, fastest="an engine of tomorrow")
    assert blemish.load(file).info()["engine"] == "onnxruntime"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "tensorrt"}, "choose auto, onnxruntime, openvino"),
        ({"threads": 0}, "give 1 to"),
        ({"device": "cuda"}, "runs on the processor"),
        ({"precision": "bf16"}, "leave device, precision and weights out"),
    ],
)
def test_options_that_do_not_go_with_it_are_refused(exported, options, words):
    with pytest.raises(ConfigError, match=words):
        blemish.load(exported, **options)


def test_an_exported_file_judges_tiles_and_regions_by_the_same_graph(tmp_path):
    whole, pixels = blemish.load(write(tmp_path / "whole.onnx", size=(120, 150))), part(100, 240, (120, 150))
    mask = np.arange(150) < np.full((120, 1), 25)
    # Without the spot the grey outside is the brightest: this graph has not learned that it is normal.
    whole_roi = dataclasses.replace(whole, preparation=dataclasses.replace(whole.preparation, roi=Roi.of(mask, 9)))
    np.testing.assert_allclose(whole_roi(pixels).heatmap, np.where(mask, pixels[..., 0], 100) / 255, atol=1e-6)
    with pytest.raises(ImageError, match="50 x 40 pixels, the region of interest 150 x 120"):
        whole_roi(part(100))
    whole = blemish.load(write(tmp_path / "tiles.onnx", size=(64, 64)))
    for roi, highest in ((None, 240), (Roi.of(mask), 240), (Roi.of(np.arange(150) >= 40 + 0 * mask), 128)):
        preparation = dataclasses.replace(whole.preparation, tiling=Tiling(64, 16), roi=roi)
        verdict = dataclasses.replace(whole, preparation=preparation)(pixels)
        assert verdict.score == np.float32(highest / 255)
        inside = np.ones_like(mask) if roi is None else roi.mask
        expected = np.where(inside, pixels[..., 0] / 255, 100 / 255)  # the smallest inside
        np.testing.assert_allclose(verdict.heatmap, expected, atol=1e-6)


def test_an_exported_file_is_measured_as_its_model_and_not_calibrated(exported, tmp_path):
    for kind, images in (("good", [part(100), part(110)]), ("spot", [part(100, 240), part(90, 200, (60, 70))])):
        for i, pixels in enumerate(images):
            (tmp_path / "test" / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "test" / kind / f"{i}.png")
    measured = evaluate(blemish.load(exported), tmp_path)
    assert (measured.at, measured.metrics["image_auroc"], measured.decisions["escape_count"]) == ("input", 1, 0)
    done = CliRunner().invoke(app, ["calibrate", str(exported), str(tmp_path), "-o", str(tmp_path / "new.onnx")])
    assert done.exit_code == 1 and "give the file that it was exported from" in done.stderr


def test_without_torch_it_judges_and_says_what_learning_needs(exported, tmp_path):
    """The packages are hidden; the next test installs an environment that lacks them."""
    image, table = tmp_path / "bad.png", tmp_path / "t.csv"
    Image.fromarray(part(100, 240)).save(image)
    cases = (
        (["info", exported, "--json"], 0, '"method": "patchcore"', ""),
        (["inspect", exported, image, "-q", "-o", tmp_path / "out", "--csv", table], 0, '"decision": "reject"', ""),
        (["fit", tmp_path], 1, "", "pip install 'blemish[learn]'"),
        (["inspect", tmp_path / "parts.blemish", image], 2, "", "pip install 'blemish[learn]', or give what `blemish"),
    )
    program = HIDING + (
        "import json\nfrom typer.testing import CliRunner\nfrom blemish.cli import app\n"
        "for line in json.loads(sys.argv[1]):\n"
        "    done = CliRunner().invoke(app, line)\n"
        "    print(json.dumps([done.exit_code, done.stdout, done.stderr]))\n"
    )
    lines = json.dumps([[str(word) for word in line] for line, *_ in cases])
    command = [sys.executable, "-c", program, lines]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for (_, *expected), line in zip(cases, done.stdout.splitlines(), strict=True):
        code, out, err = json.loads(line)
        assert (code, expected[1] in out, expected[2] in err) == (expected[0], True, True), line
        assert len(err.splitlines()) == bool(expected[2])
    assert "20,5,30,15,100" in table.read_text() and (tmp_path / "out" / "bad.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_environment_made_from_nothing_judges_alike(tmp_path):
    """Through Python and the command line, by the script that measures it."""
    model, images = write(tmp_path / "part.onnx"), [tmp_path / f"{grey}.png" for grey in (100, 240)]
    for path in images:
        Image.fromarray(part(100, int(path.stem))).save(path)
    command = [sys.executable, ROOT / "benchmarks" / "runtime.py", model, *images, "--runs", "1"]
    done = subprocess.run([*command, "--into", tmp_path / "made"], capture_output=True, text=True, check=False)
    if done.returncode and ("'pip', 'install'" in done.stderr or "'venv'" in done.stderr):
        pytest.skip("pip cannot install here: no package index, or no venv module")
    assert done.returncode == 0, done.stderr
    result, inspector = json.loads(done.stdout), blemish.load(model)
    assert result["torch"] is False and not {"torch", "timm", "scipy", "safetensors"} & result["mb"].keys()
    assert result["mb"]["all but pip"] < 250
    for path, said in zip(images, result["verdicts"], strict=True):
        ours = inspector(path).as_dict()
        assert said == json.loads(json.dumps(ours))
    assert [said["decision"] for said in result["verdicts"]] == ["ok", "reject"]
