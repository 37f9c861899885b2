"""A real model, exported, on every engine: the same verdicts as torch gives, the first image of a size included."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import blemish
from blemish.data.images import read_image
from blemish.inspection.engines import EXTRAS

exporting = pytest.importorskip("blemish.deploy.export", reason="needs what exports")
for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs pip install 'blemish[export]'")


@pytest.fixture(scope="module")
def exported(inspector, parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "parts.onnx"
    exporting.export(inspector, path, {path.name: read_image(path) for path in parts.bad[:2]})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_judges_as_torch_does(inspector, exported, parts, engine, texture):
    pytest.importorskip(engine, reason=f"needs pip install 'blemish[{engine}]'")
    images = [*parts.bad, *parts.good_tests, texture(3)[..., 0], texture(4, (41, 150)), texture(5, (8, 1200))]
    images += [np.asarray(Image.open(parts.bad[0]).resize((160, 96))), texture(6, (41, 150))]
    other = blemish.load(exported, engine=engine, threads=1)
    assert other.promise == inspector.promise and other.info()["method"] == inspector.name
    spread = np.ptp(inspector.calibration.scores)
    for torch_s, batched, single in zip(inspector.many(images), other.many(images), map(other, images), strict=True):
        for ours in (batched, single):
            assert abs(ours.score - torch_s.score) < 1e-3 * spread
            assert (ours.decision, ours.size, ours.source) == (torch_s.decision, torch_s.size, torch_s.source)
            np.testing.assert_allclose(ours.heatmap, torch_s.heatmap, atol=1e-3 * torch_s.heatmap.max())
            assert len(ours.regions) == len(torch_s.regions)
            assert [region.peak for region in ours.regions] == [region.peak for region in torch_s.regions]


@pytest.mark.slow
def test_lines_tables_and_overlays_are_those_of_the_model_file(blemish, model, exported, parts, tmp_path):
    told = []
    for file in (model, exported):
        table, folder = tmp_path / f"{file.stem}{file.suffix}.csv", tmp_path / file.suffix
        done = blemish("inspect", file, parts.root / "test", "-q", "--csv", table, "-o", folder)
        assert done.exit_code == 0, done.output
        told.append([json.loads(line) for line in done.stdout.splitlines()])
        assert len(table.read_text().splitlines()) > len(told[0])
        assert len(list(folder.glob("*.png"))) == len(told[0])
    for ours, theirs in zip(*told, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("path", "decision", "width", "height"):
            assert ours[name] == theirs[name]
        assert ours["p_value"] == pytest.approx(theirs["p_value"], rel=1e-3)
        assert [region["box"] for region in ours["regions"]] == [region["box"] for region in theirs["regions"]]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_judging_leaves_no_trace_in_a_home_and_tells_nobody(exported, parts, tmp_path, engine):
    """ONNX Runtime 1.32 keeps a number of the machine and what it will send to its maker, unless it is told not to."""
    pytest.importorskip(engine, reason=f"needs pip install 'blemish[{EXTRAS[engine]}]'")
    places = {name: str(tmp_path) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    command = [sys.executable, "-m", "blemish", "inspect", str(exported), str(parts.bad[0]), "--engine", engine]
    subprocess.run(command, env=kept | places, check=True, capture_output=True, cwd=tmp_path)
    assert [*tmp_path.rglob("*")] == []
