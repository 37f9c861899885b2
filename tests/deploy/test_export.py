"""From a model to a file that decides alike, and what happens where it cannot."""

import dataclasses
import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import blemish
from blemish.cli import app
from blemish.data.images import read_image
from blemish.data.preprocessing import stacked
from blemish.deploy import parity
from blemish.deploy.export import export
from blemish.deploy.graph import PValues, below
from blemish.deploy.pictures import pictures as compared_on
from blemish.errors import ConfigError, ImageError, ModelFileError, OutputError
from blemish.inspection.calibration import Calibration, calibrate
from blemish.inspection.model_file import Description

pytest.importorskip("onnxscript", reason="exporting needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="exporting needs the extra export")

RNG = np.random.default_rng(0)


def photographs(folder: Path, count: int, deep: bool = False) -> Path:
    folder.mkdir()
    for number in range(count):
        picture = RNG.normal(120, 20 + number, (90, 70, 3)).clip(0, 255)
        values = picture.astype(np.uint8) if not deep else (picture[..., 0] * 16).astype(np.uint16)
        Image.fromarray(values).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> blemish.Inspector:
    folder = photographs(tmp_path_factory.mktemp("export") / "parts", 12)
    options = {"memory": 50}
    settings = {"method": "patchcore", "backbone": "resnet18", "weights": "random", "size": 64, "options": options}
    return blemish.fit(folder, **settings)


@pytest.mark.parametrize("kind", ["holdout", "crossfit"])
def test_p_values_and_limits_are_the_calibration_s(kind):
    calibration = calibrate(kind, RNG.gamma(3, size=40) * math.pi)  # float64 numbers that float32 does not have
    edges = np.array([*calibration.scores, calibration.threshold, calibration.review_limit]).astype(np.float32)
    beside = [np.nextafter(edges, np.float32(way)) for way in (-np.inf, np.inf)]
    scores = np.concatenate([edges, *beside, RNG.uniform(-5, 90, 200).astype(np.float32)])
    found = PValues(calibration)(torch.from_numpy(scores)).numpy()
    expected = [calibration.p_value(score) for score in scores.tolist()]
    np.testing.assert_allclose(found, expected, rtol=2e-5 if kind == "crossfit" else 1e-7)
    decisions = [
        "reject" if s > np.float32(below(calibration.threshold)) else "review"
        if s > np.float32(below(calibration.review_limit)) else "ok"
        for s in scores
    ]  # fmt: skip
    assert decisions == [calibration.decide(score) for score in scores.tolist()]
    strangest = PValues(calibration)(torch.tensor([math.nan, math.inf])).tolist()
    assert strangest == pytest.approx([calibration.p_value(math.nan), calibration.p_value(math.inf)])


@pytest.mark.slow
def test_a_file_decides_as_the_model_and_says_what_it_is(model, tmp_path):
    model.save(tmp_path / "parts.blemish")
    check = photographs(tmp_path / "check", 3)
    command = ["export", str(tmp_path / "parts.blemish"), "-o", str(tmp_path / "parts.onnx"), "--check", str(check)]
    done = CliRunner().invoke(app, [*command, "--json", "--precision", "fp32"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["images"] == 6 and result["sizes"] == 4 and result["score"] < 0.01

    session = parity.open_session(tmp_path / "parts.onnx")
    properties = session.get_modelmeta().custom_metadata_map
    stored = json.loads(properties["blemish"])
    assert Description.model_validate(stored).method == properties["method"] == "patchcore"
    assert properties["promise"] == model.promise
    arrays = {name: np.array(values) for name, values in stored["calibration_tensors"].items()}
    assert Calibration.from_tensors(arrays, stored["calibration"]).threshold == model.calibration.threshold
    assert stored["export"]["parity"]["images"] == 6 and stored["export"]["input"] == "uint8"
    assert len(stored["export"]["sha256"]) == 64
    assert b".py" not in (tmp_path / "parts.onnx").read_bytes(), "where this machine keeps its code"

    two = np.stack([read_image(check / f"{number}.png").pixels for number in (0, 1)])
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": two})))
    verdicts = [model(picture) for picture in two]
    spread = model.calibration.scores.std()
    np.testing.assert_allclose(found["score"], [verdict.score for verdict in verdicts], atol=0.01 * spread)
    np.testing.assert_allclose(found["map"], [verdict.heatmap for verdict in verdicts], atol=0.05 * spread)
    np.testing.assert_array_equal(found["mask"], found["map"] > model.calibration.pixel_threshold)
    limits = {"reject_above": found["score"][0] + 1, "review_above": found["score"][0] - 1}
    given = {name: np.array(value, np.float32) for name, value in limits.items()}
    assert session.run(["decision"], {"image": two[:1], **given})[0].tolist() == [1]


@pytest.mark.slow
def test_a_letterbox_and_images_of_16_bits_without_calibration(tmp_path):
    parts = photographs(tmp_path / "parts", 4, deep=True)
    settings = {"method": "patchcore", "backbone": "test_resnet", "weights": "random", "calibration": "none"}
    inspector = blemish.fit(parts, size=64, resize="letterbox", options={"memory": 50}, **settings)
    level = inspector.preparation.white_level
    assert level == 4095
    found = export(inspector, tmp_path / "parts.onnx", compared_on(parts, level))
    assert found.images == 8 and found.score <= parity.WORST and found.p_value is None
    session = parity.open_session(tmp_path / "parts.onnx")
    assert [output.name for output in session.get_outputs()] == ["score", "map"]
    eight = RNG.integers(0, 256, (80, 75, 3), dtype=np.uint8)  # of 8 bits, in a file that also takes 16
    score = parity.run_session(session, read_image(eight), level)["score"][0]
    assert score == pytest.approx(inspector(eight).score, rel=1e-3)


@pytest.mark.slow
def test_a_file_for_grey_cameras_takes_one_channel_and_says_the_same(tmp_path):
    parts = photographs(tmp_path / "parts", 4, deep=True)
    settings = {"method": "patchcore", "backbone": "test_resnet", "weights": "random", "calibration": "none"}
    inspector = blemish.fit(parts, size=64, options={"memory": 50}, **settings)
    inspector.save(tmp_path / "parts.blemish")
    command = ["export", str(tmp_path / "parts.blemish"), "-o", str(tmp_path / "parts.onnx"), "--grey", "--check"]
    done = CliRunner().invoke(app, [*command, str(parts)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    session = parity.open_session(tmp_path / "parts.onnx")
    assert session.get_inputs()[0].shape[3] == 1
    grey = np.asarray(Image.open(parts / "0.png"))
    given = {"image": grey[None, ..., None], "white": np.array(4095, np.float32)}
    assert session.run(["score"], given)[0][0] == pytest.approx(inspector(grey).score, rel=1e-3)
    assert blemish.load(tmp_path / "parts.onnx")(grey).score == pytest.approx(inspector(grey).score, rel=1e-3)
    colours = photographs(tmp_path / "colours", 1)
    done = CliRunner().invoke(app, [*command, str(colours)])
    assert done.exit_code != 0 and "0.png has colours, and the file is to take grey images" in done.output


def test_what_cannot_be_exported_leaves_nothing_behind(model, tmp_path, monkeypatch):
    path, pictures = tmp_path / "parts.onnx", compared_on(None, 255)
    with pytest.raises(ConfigError, match="uint16 was asked for, but the model learned from images of 8 bits"):
        export(model, path, pictures, pixels="uint16")
    with pytest.raises(OutputError, match="is a folder"):
        export(model, tmp_path, pictures)
    with monkeypatch.context() as patch:
        patch.setattr("blemish.deploy.export.LARGEST", 1000)
        with pytest.raises(OutputError, match="more than the 2 GB"):
            export(model, path, pictures)
    with monkeypatch.context() as patch:
        patch.setattr("blemish.deploy.export.NEEDED", ("nonexistent_package",))
        with pytest.raises(ConfigError, match=r"nonexistent_package: pip install 'blemish\[export\]'"):
            export(model, path, pictures)
    with pytest.raises(ImageError, match="floats"):
        Image.fromarray(RNG.random((40, 40)).astype(np.float32)).save(tmp_path / "floats.tiff")
        compared_on(tmp_path, 255)
    assert [file.name for file in tmp_path.iterdir()] == ["floats.tiff"]


@pytest.mark.slow
def test_an_operator_without_onnx_form_is_named(model, tmp_path, monkeypatch):
    def refused(self, images, white):
        return torch.zeros(images.shape[0], 3, 64, 64) + torch.linalg.eigvals(torch.eye(2) * white).real.sum()

    monkeypatch.setattr("blemish.deploy.preparation.Prepare.forward", refused)
    monkeypatch.setattr("blemish.deploy.preparation.ToOriginal.forward", lambda self, maps, images: maps)
    with pytest.raises(OutputError, match=r"no ONNX form: aten\.\w*eig"):
        export(model, tmp_path / "parts.onnx", compared_on(None, 255))
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_an_engine_refuses_is_not_kept_and_the_engine_s_words_are_said(model, tmp_path, monkeypatch):
    def refused(path, name, threads):
        raise ModelFileError(
            f"{name} refuses {path} (No conversion for op Frobnicate): export it again"
        ) from ValueError("No conversion for op Frobnicate")

    monkeypatch.setattr("blemish.deploy.export.to_onnx", lambda *_, **__: None)
    monkeypatch.setattr("blemish.deploy.export.save", lambda model, about, file, *_: file.write_bytes(b""))
    monkeypatch.setattr(parity, "open_session", lambda file: None)
    monkeypatch.setattr(parity.engines, "open_session", refused)
    with pytest.raises(
        OutputError, match=r"an engine cannot run the graph \(No conversion for op Frobnicate\): nothing"
    ):
        export(model, tmp_path / "parts.onnx", compared_on(None, 255))
    assert list(tmp_path.iterdir()) == []


def test_a_black_image_can_be_compared_on_at_sixteen_bits(tmp_path):
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "black.png")
    assert not compared_on(tmp_path, 1000)[f"{tmp_path / 'black.png'} at 16 bits"].pixels.any()


def test_maps_of_one_number_are_alike(model, monkeypatch):
    pictures, stream = compared_on(None, 255), blemish.Inspector.stream

    def flat(*given, **named):
        return [dataclasses.replace(one, map=np.zeros_like(one.map)) for one in stream(*given, **named)]

    def run(session, image, white_level):
        return {"score": [model(image.pixels).score], "map": [np.zeros(image.size)]}

    monkeypatch.setattr(blemish.Inspector, "stream", flat)
    monkeypatch.setattr(parity, "run_session", run)
    monkeypatch.setattr(parity, "open_session", lambda file: None)
    monkeypatch.setattr(parity.engines, "open_session", lambda *_: None)
    alone = lambda _, prepared: (model.predict(stacked(prepared)).score.tolist(), [np.zeros((64, 64))])  # noqa: E731
    monkeypatch.setattr(parity.engines, "judged", alone)
    assert parity.check_parity(model, Path("any.onnx"), pictures).map == 0


def test_a_file_that_judges_otherwise_or_finds_no_room_is_not_kept(model, tmp_path, monkeypatch):
    """The graph is a stand-in: what is compared and kept is what counts."""
    path, pictures, limit = tmp_path / "parts.onnx", compared_on(None, 255), model.calibration.threshold
    precise = {id(image): model(image.pixels) for image in pictures.values()}
    offset, content = {"score": 0.0, "map": 1.0}, bytes(10)

    def run(session, image, white_level):
        verdict = precise[id(image)]
        score = verdict.score + offset["score"]
        decision = 2 if score > limit else 1 if score > model.calibration.review_limit else 0
        return {"score": [score], "map": [verdict.heatmap], "p_value": [verdict.p_value], "decision": [decision]}

    monkeypatch.setattr(parity, "run_session", run)
    monkeypatch.setattr(parity, "open_session", lambda file: None)
    monkeypatch.setattr(parity.engines, "open_session", lambda *_: None)

    def alone(_, prepared):
        found = model.predict(stacked(prepared))
        return found.score.tolist(), [offset["map"] * map_.numpy() for map_ in found.map]

    monkeypatch.setattr(parity.engines, "judged", alone)
    monkeypatch.setattr("blemish.deploy.export.to_onnx", lambda *_, **__: None)
    monkeypatch.setattr("blemish.deploy.export.save", lambda model, about, file, *_: file.write_bytes(content))
    assert export(model, path, pictures).score < 1e-3
    assert path.read_bytes() == content
    path.unlink()
    for wrong in (0.0, np.nan):
        offset["map"] = wrong
        with pytest.raises(OutputError, match=r"not kept.*Maps differ by up to .* of what they span"):
            export(model, path, pictures)
    offset["map"] = 1.0
    offset["score"] = -2 * max(verdict.score for verdict in precise.values())
    with pytest.raises(OutputError, match=r"not kept.*Decisions differ: \w+ is ok in the file, reject in the model"):
        export(model, path, pictures)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("blemish.deploy.export.save", full)
    with pytest.raises(OutputError, match="the disk is full"):
        export(model, path, pictures)
    assert list(tmp_path.iterdir()) == []


def test_what_was_compared_is_said_without_maps_and_p_values():
    compared = parity.Parity(3, 2, 1.0, 2e-4, 1e-5, None, None, "fp32", 2e-4, 0)
    said = "3 images of 2 sizes: scores differ by at most 0.0002 of their spread (1e-05 on average)"
    assert str(compared) == said
    assert (
        str(dataclasses.replace(compared, map=0.5, p_value=0.01))
        == f"{said}, maps by 0.5 in their own unit, p-values by 0.01"
    )
