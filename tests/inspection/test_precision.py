"""Which precision a model is made and judged in, on machines that this one is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.errors import ConfigError
from blemish.inspection.inspector import load
from blemish.registry import make_config, method_class
from blemish.run import choose_device, choose_precision
from blemish.run import device as precision
from blemish.training.fit import fit

QUICK = {"backbone": "resnet18", "weights": "random", "size": 64, "calibration": "none"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch believes in a GPU; its switches are put back."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for i, pixels in enumerate(np.random.default_rng(0).integers(90, 160, (6, 64, 64), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("method", "options", "gains"),
    [
        ("rd", {}, True),
        ("rdpp", {}, True),
        ("cdd", {}, True),
        ("nkd", {}, False),
        ("fmam", {"base": "rd"}, True),
        ("fmam", {"base": "nkd"}, False),
    ],
)
def test_a_student_of_depthwise_convolutions_gains_as_little_from_bf16_as_its_teacher(method, options, gains):
    cls = method_class(method)
    config = make_config(cls, options)
    assert cls.gains_from_bf16(SimpleNamespace(dense=False), config) is gains
    assert cls.gains_from_bf16(SimpleNamespace(dense=True), config)


def test_depthwise_convolutions_stay_in_fp32_where_there_are_bf16_units(monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: True)
    cpu = torch.device("cpu")
    assert choose_precision(cpu).name == "bf16"
    assert choose_precision(cpu, dense=False).name == "fp32"
    assert choose_precision(cpu, "bf16", dense=False).name == "bf16"  # unless it is asked for


def test_a_model_says_what_it_was_trained_in_and_is_judged_in_what_it_was_calibrated_in(good, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: True)
    for wanted, made in (("fp32", "fp32"), ("auto", "bf16")):
        inspector = fit(good, precision=wanted, method="rd", steps=1, **QUICK | {"options": {"layers": (1, 2)}})
        assert (inspector.provenance["precision"], inspector.provenance["precision_trained"]) == (made, made)
        found = load(inspector.save(tmp_path / f"{made}.blemish"))
        assert (found.method.backbone.precision.name, found.method.precision.name) == (made, made)
    assert load(tmp_path / "fp32.blemish", precision="bf16").method.precision.name == "bf16"
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: False)
    with pytest.warns(
        UserWarning, match=r"bf16\.blemish: the threshold was set in bf16.*--precision bf16 repeats them"
    ):
        assert load(tmp_path / "bf16.blemish").method.backbone.precision.name == "fp32", "another machine"


def test_a_model_asked_for_in_bf16_is_judged_in_bf16_though_its_backbone_gains_nothing(good, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: True)
    inspector = fit(
        good, backbone="efficientnet_lite0", weights="random", size=64, calibration="none", precision="bf16"
    )
    found = load(inspector.save(tmp_path / "m.blemish"))
    assert (found.method.backbone.dense, found.method.backbone.precision.name) == (False, "bf16")
    assert (
        found(good / "0.png").score
        == inspector(good / "0.png").score
        != load(tmp_path / "m.blemish", precision="fp32")(good / "0.png").score
    )


def test_a_gpu_is_told_to_repeat_itself_and_not_to_round_to_tf32(gpu):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    assert choose_device("auto").type == "cuda"
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_images_too_small_for_a_student_are_refused_before_it_learns(good):
    for method, pixels in (("rd", 32), ("fmam", 32), ("rdpp", 32), ("nkd", 16)):
        with pytest.raises(ConfigError, match=f"images of more than {pixels} pixels"):
            fit(good, method=method, steps=1, **{**QUICK, "size": pixels})


def test_one_flat_image_can_be_remembered(tmp_path):
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8), 90).save(tmp_path / "flat" / "0.png")
    inspector = fit(tmp_path / "flat", options={"fraction": 1.0}, **{**QUICK, "size": 8})
    assert len(inspector.method.memory) >= 1
