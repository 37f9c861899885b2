"""SuperSimpleNet, DRAEM and DeSTSeg: losses and scores against NumPy and SciPy, sizes against what was published."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, uniform_filter

from blemish.errors import ConfigError, DataError
from blemish.methods import draem
from blemish.methods.destseg import BASIC, DenoisingStudent, Head
from blemish.methods.draem import UNet
from blemish.methods.supersimplenet import Heads, margin_loss
from blemish.ops.residual import initialise, residual_stage
from blemish.registry import make_config, method_class
from blemish.run.loop import Epoch

SMALL = {
    "supersimplenet": {"hidden": 16},
    "draem": {"network_width": 2},
    "destseg": {"network_width": 4, "layers": (1, 2, 3)},
}


def parameters(module):
    return sum(value.numel() for value in module.parameters())


def trainable(method):
    return {key: value.clone() for key, value in method.state_dict().items() if not key.startswith("backbone.")}


# SuperSimpleNet


def test_the_margin_loss_is_numpy_s_and_empty_masks_cost_nothing():
    rng = np.random.default_rng(0)
    map_, masks = rng.normal(0, 1, (2, 6, 5)), rng.random((2, 6, 5)) < 0.3
    expected = np.maximum(0, 0.5 - map_[masks]).mean() + np.maximum(0, map_[~masks] + 0.5).mean()
    assert float(margin_loss(torch.from_numpy(map_), torch.from_numpy(masks))) == pytest.approx(expected)
    nothing = margin_loss(torch.from_numpy(map_), torch.zeros(2, 6, 5, dtype=torch.bool))
    assert float(nothing) == pytest.approx(np.maximum(0, map_ + 0.5).mean())


def test_supersimplenet_reads_levels_on_a_grid_twice_as_fine(learned, tiny_backbone, tiny_images):
    method = learned("supersimplenet", SMALL["supersimplenet"])
    images = tiny_images(3, seed=5).images
    with torch.no_grad():
        found, joined = method(images), method._joined(method.backbone(images))
        map_, score = method.heads(joined)
    assert joined.shape == (3, 24, 16, 16)
    torch.testing.assert_close(found.score, score.sigmoid())
    coarse = torch.nn.functional.interpolate(map_[:, None], size=(64, 64), mode="bilinear")[:, 0]
    expected = np.stack([gaussian_filter(one, 4.0) for one in coarse.numpy()])
    np.testing.assert_allclose(found.map.numpy(), expected, atol=1e-4)


def test_a_score_is_no_bf16_number_where_the_rest_is():
    heads = Heads(6, 8).eval()
    initialise(heads, torch.Generator().manual_seed(0), xavier=True)
    features = torch.randn(16, 6, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        score = heads(features)[1]
    assert score.dtype == torch.float32 and not torch.equal(score, score.bfloat16().float())


def test_what_is_learned_of_whole_images_stays_out_of_the_map_only_without_known_bad_ones():
    heads = Heads(6, 8)
    initialise(heads, torch.Generator().manual_seed(0), xavier=True)
    for stop in (True, False):
        heads.zero_grad(set_to_none=True)
        heads(torch.randn(2, 6, 4, 4), stop=stop)[1].sum().backward()
        assert (heads.places[0].weight.grad is None) == stop


def test_known_bad_images_are_learned_from_only_where_asked(learned, tiny_images, planted):
    bad = tiny_images(3, seed=7)
    bad.images = planted(bad.images)
    told, ignored = (
        learned("supersimplenet", {**SMALL["supersimplenet"], "known_bad": k}, bad=bad) for k in (True, False)
    )
    plain = learned("supersimplenet", SMALL["supersimplenet"])
    assert all(torch.equal(value, trainable(plain)[key]) for key, value in trainable(ignored).items())
    assert not torch.equal(told.heads.score.weight, plain.heads.score.weight)
    cls = method_class("supersimplenet")
    assert cls.without_anomalous(cls.Config()).known_bad is False
    assert cls.without_anomalous(make_config(cls, {"known_bad": False})) is None


# DRAEM


@pytest.mark.parametrize(("epochs", "drops"), [(1, [0]), (10, [0] * 8 + [1, 2])])
@pytest.mark.parametrize(("name", "less"), [("draem", 0.2), ("supersimplenet", 0.4)])
def test_the_rate_falls_after_four_fifths_and_nine_tenths(name, less, epochs, drops, learned, monkeypatch):
    rates, descend = [], Epoch.descend

    def watched(epoch, loss, optimiser, /, **values):
        rates.append(optimiser.param_groups[-1]["lr"])
        return descend(epoch, loss, optimiser, **values)

    monkeypatch.setattr(Epoch, "descend", watched)
    settings = SMALL[name] | {"steps": None, "epochs": epochs, "batch_size": 4, "rate": 0.01, "heads_rate": 0.01}
    settings = {key: value for key, value in settings.items() if hasattr(method_class(name).Config(), key)}
    learned(name, settings, 4)
    assert rates == pytest.approx([0.01 * less**drop for drop in drops])


def test_draem_s_networks_are_as_large_as_published():
    """Counted by hand: 3x3 weights and biases of all convolutions, two numbers a channel of every norm."""
    repair = [(3, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 8), (8, 8)]
    repair += [(8, 8), (8, 8), (8, 4), (4, 4), (4, 4), (4, 2), (2, 2), (2, 2), (2, 1), (1, 1), (1, 1), (1, 1)]
    segment = [(6, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), *[(8, 8)] * 5, (8, 8), (16, 8), (8, 8)]
    segment += [(8, 4), (12, 4), (4, 4), (4, 2), (6, 2), (2, 2), (2, 1), (3, 1), (1, 1), (1, 1), (2, 1), (1, 1)]
    for ins, outs, width, stages, blocks in ((3, 3, 128, draem.REPAIR, repair), (6, 2, 64, draem.SEGMENT, segment)):
        with torch.device("meta"):
            network = UNet(ins, outs, width, *stages, skips=ins == 6)
        first, *others = blocks
        counted = 9 * first[0] * width + sum(9 * a * b * width**2 for a, b in others) + 9 * width * outs + outs
        counted += 2 * width * sum(b for _, b in blocks)  # norms; those of the biases before them are not kept
        assert parameters(network) == counted


def test_draem_s_score_is_the_highest_mean_of_21_by_21_pixels(learned, tiny_images):
    method = learned("draem", SMALL["draem"])
    with torch.no_grad():
        found = method(tiny_images(2, seed=5).images)
    means = [uniform_filter(map_.astype(np.float64), 21, mode="constant") for map_ in found.map.numpy()]
    np.testing.assert_allclose(found.score.numpy(), [mean.max() for mean in means], rtol=1e-5)
    assert found.map.min() >= 0 and found.map.max() <= 1


def test_draem_sees_no_backbone_and_refuses_images_that_leave_a_norm_nothing(learned):
    assert not hasattr(method_class("draem").Config(), "layers")
    for height, width in ((32, 32), (48, 48), (33, 63), (20, 80)):
        with pytest.raises(ConfigError, match=f"images of {height} x {width} leave the segmenting network a single"):
            learned("draem", SMALL["draem"], size=(height, width))


# DeSTSeg


def test_destseg_has_resnet18_s_fourth_stage_and_as_large_a_head(tiny_backbone):
    def basic(ins, outs):
        """A basic block: two 3x3 convolutions, and a 1x1 where the width changes; a norm after each."""
        return 9 * ins * outs + 9 * outs**2 + 4 * outs + (ins * outs + 2 * outs if ins != outs else 0)

    like_resnet = tiny_backbone((1, 2, 3), width=64, signed=False)
    with torch.device("meta"):
        body, head = residual_stage(448, 256, 2, BASIC, "same"), Head(256)
    student = DenoisingStudent(like_resnet, (64, 64))
    assert parameters(student.code) == 8_393_728  # torchvision's resnet18.layer4
    decoder = [(512, 512), (512, 512), (512, 256), (256, 256), (256, 128), (128, 128), (128, 64), (64, 64)]
    assert parameters(student.stages) == sum(basic(*pair) for pair in decoder)
    assert parameters(student.heads) == 0
    assert parameters(body) == basic(448, 256) + basic(256, 256)
    pyramid = 256**2 + 3 * 9 * 256**2 + 9 * 4 * 256**2 + 9 * 256**2 + 6 * 2 * 256 + 256 + 1
    assert parameters(head) == pyramid


def test_destseg_s_head_begins_without_an_opinion(learned):
    method = learned("destseg", {**SMALL["destseg"], "student_share": 1.0, "steps": 1}, layers=(1, 2, 3))
    weights = method.head.out.weight
    assert weights.abs().max() <= weights[0].numel() ** -0.5  # torch's rule, and the student alone has learned


@pytest.mark.parametrize(("share", "learns"), [(1.0, "student"), (0.0, "segmented")])
def test_of_destseg_s_two_networks_one_learns_and_one_rests(share, learns, learned):
    settings = {**SMALL["destseg"], "student_share": share}
    short, longer = (learned("destseg", {**settings, "steps": steps}, layers=(1, 2, 3)) for steps in (1, 3))
    assert set(longer.curve[-1]) == {learns}
    changed = {
        key.split(".")[0] for key, value in trainable(longer).items() if not torch.equal(value, trainable(short)[key])
    }
    assert changed == ({"student"} if learns == "student" else {"body", "head"})


def test_destseg_s_score_is_the_mean_of_its_hundred_highest(learned, tiny_images):
    method = learned("destseg", SMALL["destseg"], layers=(1, 2, 3))
    with torch.no_grad():
        found = method(tiny_images(2, seed=5).images)
    highest = np.sort(found.map.numpy().reshape(2, -1))[:, -100:].mean(axis=1)
    np.testing.assert_allclose(found.score.numpy(), highest, rtol=1e-5)
    with pytest.raises(DataError, match="destseg estimates how whole images differ and was given 1 images"):
        learned("destseg", SMALL["destseg"], count=1, layers=(1, 2, 3))
