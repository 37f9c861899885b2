"""Cheaper arithmetic is in the network alone, is measured, and is left out where it does not pay."""

import dataclasses
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import blemish
from blemish.cli import app
from blemish.data.images import read_image
from blemish.deploy import precision
from blemish.deploy.precision import Cost, convert
from blemish.errors import DataError, OutputError

onnx = pytest.importorskip("onnx", reason="needs the extra export")
pytest.importorskip("onnxruntime", reason="needs the extra export")
CHEAP = Cost("int8", "onnxruntime", ms=60, ms_fp32=100, shift=0.1, largest_shift=0.3, changed=0, images=40)


@pytest.mark.parametrize(
    ("changed", "pays"),
    [
        ({}, True),
        ({"ms": 95}, False),
        ({"shift": 0.7}, False),
        ({"changed": 4}, True),
        ({"changed": 5}, False),
        ({"changed": None}, True),
    ],
)
def test_what_pays(changed, pays):
    cost = dataclasses.replace(CHEAP, **changed)
    assert cost.pays == pays
    assert f"{cost.ms:.1f} ms an image instead of 100.0" in str(cost)
    assert ("are decided otherwise" in str(cost)) == (cost.changed is not None)


@pytest.mark.slow
def test_int8_is_in_the_network_alone_and_judges_much_as_before(folder, tmp_path, monkeypatch, capfd):
    images = {path.name: read_image(path) for path in sorted((folder / "good").iterdir())}
    source, target = folder / "part.onnx", tmp_path / "int8.onnx"
    cost = convert(source, target, "int8", images, threads=1, is_forced=True)
    assert capfd.readouterr() == ("", "")  # what its packages recommend is not for users
    assert cost.images == 6 and target.stat().st_size < 0.5 * source.stat().st_size
    graph = onnx.load(target).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert {made_by[name] for node in convolutions for name in node.input[:2]} == {"DequantizeLinear"}
    products = [name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input]
    assert products and "DequantizeLinear" not in {made_by.get(name) for name in products}  # distances stay exact
    before, after = (blemish.load(path, engine="onnxruntime") for path in (source, target))
    names = [folder / "good.png", folder / "bad.png"]
    pairs = [(before(name), after(name)) for name in names]
    assert all(one.decision == other.decision for one, other in pairs)
    exact, rounded = (verdict.score for verdict in pairs[1])
    assert 0 < abs(rounded / exact - 1) < 0.2  # ranges hold what a defect excites
    assert after.info()["export"]["precision"] == "int8"

    monkeypatch.setattr(precision, "_compared", lambda *_: dataclasses.replace(CHEAP, ms=99))
    with pytest.raises(OutputError, match="int8 does not pay here, so nothing was written"):
        convert(source, tmp_path / "not.onnx", "int8", images)
    with pytest.raises(DataError, match="8 good images or more, and there are 3"):
        convert(source, tmp_path / "not.onnx", "int8", dict([*images.items()][:3]))
    assert [path.name for path in tmp_path.iterdir()] == ["int8.onnx"]


def test_the_precision_that_keeps_to_a_budget_is_the_one_exported(learned_folder, tmp_path, monkeypatch):
    model = blemish.load(learned_folder / "part.blemish")
    facts = {"asked": 30.0, "p95": 25.0, "engine": "openvino", "precision": "int8"}
    file = dataclasses.replace(model, provenance=model.provenance | {"budget": facts}).save(tmp_path / "a.blemish")
    asked = []

    def stopped(source, target, kind, *_):
        asked.append(kind)
        raise OutputError("seen")

    monkeypatch.setattr("blemish.deploy.export.export", lambda *_, **__: CHEAP)
    monkeypatch.setattr(precision, "convert", stopped)
    command, good = ["export", str(file), "-o", str(tmp_path / "a.onnx")], ["--check", str(learned_folder / "good")]
    done = CliRunner().invoke(app, [*command, "--precision", "fp32", "--budget", "30ms"])
    assert done.exit_code == 2 and "measured on images as you have them" in done.stderr
    done = CliRunner().invoke(app, command)
    assert (
        done.exit_code == 2 and "int8 is measured on 8 good images" in done.stderr and "--precision fp32" in done.stderr
    )
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(learned_folder / "good.png", few)
    monkeypatch.setattr("blemish.deploy.pictures.pictures", lambda *_: 1 / 0)  # nothing is begun
    assert "8 good images or more, and there are 1" in CliRunner().invoke(app, [*command, "--check", str(few)]).stderr
    monkeypatch.undo()
    monkeypatch.setattr("blemish.deploy.export.export", lambda *_, **__: CHEAP)
    monkeypatch.setattr(precision, "convert", stopped)
    for options, expected in ((good, ["int8"]), ([*good, "--precision", "bf16"], ["int8", "bf16"])):
        assert "seen" in CliRunner().invoke(app, [*command, *options]).stderr
        assert asked == expected


@pytest.mark.slow
def test_a_file_in_bf16_asks_for_the_engine_that_has_it(folder, tmp_path):
    pytest.importorskip("openvino", reason="needs the extra openvino")
    images = {path.name: read_image(path) for path in sorted((folder / "good").iterdir())}
    cost = convert(folder / "part.onnx", tmp_path / "bf16.onnx", "bf16", images, threads=1, is_forced=True)
    exact, short = blemish.load(folder / "part.onnx", engine="openvino"), blemish.load(tmp_path / "bf16.onnx")
    assert (cost.engine, short.session.engine) == ("openvino", "openvino")
    scores = [np.array([judge(folder / name).score for name in ("good.png", "bad.png")]) for judge in (exact, short)]
    np.testing.assert_allclose(scores[1], scores[0], rtol=0.1)
    plain = blemish.load(tmp_path / "bf16.onnx", engine="onnxruntime")  # which computes in float32
    assert plain(folder / "bad.png").score == pytest.approx(scores[0][1], rel=1e-3)
