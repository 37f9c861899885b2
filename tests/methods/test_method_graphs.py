"""Graphs of methods with their further options against themselves, and what a file says of thresholds.

Every method as it comes is judged by its file in tests/deploy.
"""

import numpy as np
import pytest
import torch

from blemish.data.preprocessing import Preprocessing
from blemish.deploy.export import to_onnx
from blemish.deploy.graph import Deployed
from blemish.inspection.calibration import calibrate
from blemish.inspection.inspector import Inspector

pytest.importorskip("onnxscript", reason="exporting needs the extra export")
onnxruntime = pytest.importorskip("onnxruntime", reason="exporting needs the extra export")

SIZE = (64, 64)
CASES = [
    ("patchcore", {"reweight": 3, "neighbours": 2, "top": 0.1, "target_dim": 16}),
    ("patchcore", {"whitened": 0.07}),
    ("patchcore", {"patch_size": 1, "coarse": 3, "neighbours": 3}),
    ("devnet", {"scales": 2}),
    ("fmam", {"base": "nkd", "internal": "memory"}),
    ("softpatch", {"weighting": "nearest"}),
    ("ensemble", {"backbones": ("test_resnet",), "weights": "random"}),
    # After two steps its answers hardly hang on the image, and what it makes of them magnifies rounding.
    ("geotrans", {"steps": 40, "widen": 1}),
]


class AsGiven(torch.nn.Module):
    """In place of preparation, which has tests of its own and takes most of an export's time."""

    def forward(self, images, *_):
        return images.permute(0, 3, 1, 2) / 255 if images.ndim == 4 else images


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_a_graph_gives_its_method_s_scores_maps_and_decisions(name, settings, learned, tiny_images, monkeypatch):
    method = learned(name, settings, bad=tiny_images(4, seed=3))
    images = (tiny_images(24, seed=5).images.permute(0, 2, 3, 1) * 255).byte()
    images[::2, 20:32, 28:40] = 0
    with torch.inference_mode():
        expected = method(images.permute(0, 3, 1, 2) / 255)
    scores, maps = expected.score.numpy(), expected.map
    maxima = None if maps is None else maps.amax(dim=(1, 2)).numpy()
    calibration = calibrate("holdout", scores, max_map_values=maxima, false_reject=0.1)
    judge = Inspector(method=method, name=name, preparation=Preprocessing(size=SIZE), calibration=calibration)
    deployed = Deployed(judge, with_white=False)
    deployed.prepare = deployed.to_original = AsGiven()
    monkeypatch.setattr("blemish.deploy.export.EXAMPLE", (2, *SIZE))
    model = to_onnx(deployed.eval(), "uint8", any_size=False)

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"image": images.numpy()})))
    spread = scores.std()
    np.testing.assert_allclose(found["score"], scores, atol=1e-3 * spread)
    np.testing.assert_allclose(found["p_value"], [calibration.p_value(s) for s in found["score"].tolist()], rtol=1e-6)
    assert [("ok", "review", "reject")[d] for d in found["decision"]] == [
        calibration.decide(score) for score in found["score"].tolist()
    ]
    assert (maps is None) == ("map" not in names) == ("mask" not in names)
    if maps is not None:
        np.testing.assert_allclose(found["map"], maps.numpy(), rtol=1e-6, atol=1e-3 * float(maps.std()))
        np.testing.assert_array_equal(found["mask"], found["map"] > calibration.pixel_threshold)
    lower = {"reject_above": np.array(scores.min() - 1, np.float32)}
    assert session.run(["decision"], {"image": images.numpy(), **lower})[0].tolist() == [2] * 24
