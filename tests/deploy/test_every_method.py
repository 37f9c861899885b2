"""Every method of the registry by its exported file on both engines, or its refusal; on tiny images and networks.

What prepares images inside a graph has tests of its own, and takes most of an export's time: here it is left out.
"""

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import blemish
from blemish.data.images import read_image
from blemish.deploy import export as exporting
from blemish.deploy import graph
from blemish.deploy.export import export, to_onnx
from blemish.errors import ConfigError
from blemish.registry import METHODS, method_class

pytest.importorskip("onnxscript", reason="exporting needs the extra export")

SIDE = 64
QUICK = {"steps": 2, "batch_size": 4, "memory": 50, "flow_steps": 2}
OWN = {  # networks that are too large for a test, and some whose scores after two steps have almost no spread
    "draem": {"network_width": 8, "steps": 40, "rate": 0.01},
    "destseg": {"network_width": 16, "steps": 40, "body_rate": 0.01},
    "recontrast": {"batchnorm": "frozen", "steps": 15},
    "csflow": {"hidden": 16},
    "differnet": {"hidden": 16, "test_turns": 3},
    "students": {"filters": 4, "spacing": 4},
    # Parts as alike as these make its distributions so narrow that they magnify rounding: tests/methods has that score.
    "geotrans": {"steps": 40, "score": "simple", "widen": 1},
    "itae": {"first_width": 8},
    "gammavae": {"iterations": 3},
}


class AsGiven(torch.nn.Module):
    """Images of the input's size need no preparation, and their maps no way back."""

    def __init__(self, *_):
        super().__init__()

    def forward(self, images, *_):
        return images.permute(0, 3, 1, 2) / 255 if images.ndim == 4 else images


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders of good and bad parts, and of ones that nobody has looked at."""
    root, rng = tmp_path_factory.mktemp("every"), np.random.default_rng(0)
    waves = 120 + 40 * np.sin(0.6 * np.arange(SIDE))[:, None, None] + np.zeros((SIDE, SIDE, 3))
    for place, count in (("weak/good", 10), ("weak/anomalous/hole", 3), ("clean", 10), ("contaminated/unlabelled", 10)):
        (root / place).mkdir(parents=True)
        for number in range(count):
            pixels = (waves + rng.normal(0, 5, waves.shape)).astype(np.uint8)
            pixels[20:40, 16:40] = (200, 0, 40) if "hole" in place else pixels[20:40, 16:40]
            Image.fromarray(pixels).save(root / place / f"{number}.png")
    return root


def test_a_walk_that_follows_the_gradient_is_refused(parts, tmp_path):
    walks = {"through": True, "iterations": 1, "steps": 1}
    inspector = blemish.fit(parts / "clean", method="gammavae", options=walks, size=SIDE, calibration="none")
    with pytest.raises(ConfigError, match="gammavae cannot be exported: each of its verdicts needs a gradient"):
        export(inspector, tmp_path / "part.onnx", {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_s_file_judges_as_it_does_on_both_engines_or_is_refused(name, parts, tmp_path, monkeypatch):
    known = {field.name for field in dataclasses.fields(method_class(name).Config)}
    options = {key: value for key, value in (QUICK | OWN.get(name, {})).items() if key in known}
    if getattr(method_class(name).Config(), "layers", ()) == (1, 2, 3):  # a third level is translated as the second is
        options["layers"] = (1, 2)
    # Half the parts calibrate: few, but no matter whether a decision is a good one.
    settings = {"size": SIDE, "calibration": "holdout"}
    settings |= {} if method_class(name).on_pixels else {"backbone": "test_resnet", "weights": "random"}
    if METHODS[name].regime == "contaminated":
        settings["calibration"] = "none"
    folder = parts / METHODS[name].regime
    inspector = blemish.fit(folder, method=name, options=options, precision="fp32", **settings)
    images = sorted((parts / "weak").glob("*/*.png")) + sorted((parts / "weak").glob("*/*/*.png"))
    pictures, path = {path.name: read_image(path) for path in images[:4]}, tmp_path / "part.onnx"
    if not METHODS[name].exports:
        with pytest.raises(ConfigError, match=f"{name} cannot be exported"):
            export(inspector, path, pictures)
        assert list(tmp_path.iterdir()) == []
        return
    monkeypatch.setattr(graph, "Prepare", AsGiven)
    monkeypatch.setattr(graph, "ToOriginal", AsGiven)
    monkeypatch.setattr(exporting, "EXAMPLE", (2, SIDE, SIDE))
    monkeypatch.setattr(exporting, "to_onnx", partial(to_onnx, any_size=False))
    export(inspector, path, pictures)
    expected = list(inspector.many(images))
    spread = np.ptp([verdict.score for verdict in expected])
    limits = (inspector.calibration.threshold, inspector.calibration.review_threshold)
    for engine, off in (("onnxruntime", 1e-3), ("openvino", 1e-2)):
        pytest.importorskip(engine)
        for ours, theirs in zip(blemish.load(path, engine=engine, threads=1).many(images), expected, strict=True):
            assert ours.score == pytest.approx(theirs.score, abs=off * spread), engine
            # Thresholds may be scores of these very images, where rounding decides.
            is_near = any(abs(theirs.score - limit) <= off * spread for limit in limits if limit is not None)
            assert is_near or ours.decision == theirs.decision, engine
            assert (ours.heatmap is None) == (theirs.heatmap is None) == (not METHODS[name].has_map)
            if theirs.heatmap is not None:
                np.testing.assert_allclose(ours.heatmap, theirs.heatmap, atol=2 * off * np.ptp(theirs.heatmap))
