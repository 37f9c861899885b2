"""SuperSimpleNet, DRAEM and DeSTSeg: losses and scores against NumPy and SciPy, sizes against what was published."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from by_hand import array, similarity
from scipy.ndimage import gaussian_filter, uniform_filter

from blemish.errors import ConfigError, DataError
from blemish.methods import destseg, draem, supersimplenet
from blemish.methods.destseg import BASIC, DenoisingStudent, Head
from blemish.methods.draem import UNet
from blemish.methods.supersimplenet import Heads, margin_loss
from blemish.ops.residual import initialise, residual_stage
from blemish.registry import make_config, method_class
from blemish.run import Run
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


MASK = torch.zeros(64, 64, dtype=torch.bool)


MASK[12:44, 20:48] = True  # of cells of 8 pixels some hold a half of it, and some a quarter


def focal(logits, truth, gamma):
    given = np.where(truth, 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(logits)))
    return (-np.log(given) * (1 - given) ** gamma).mean()


@pytest.fixture
def painted(monkeypatch):
    """``painted(module)``: made-up defects are all at ``MASK``; gives what was asked of ``with_textures``."""

    def paint(module):
        asked = []

        def with_textures(images, textures, generator, chance=1.0, alter=True):
            asked.append((chance, alter))
            return torch.where(MASK, 0.3 * images, images), MASK.expand(len(images), 64, 64).clone()

        monkeypatch.setattr(module, "with_textures", with_textures)
        return asked

    return paint


def test_draem_s_first_losses_by_hand(learned, tiny_images, painted):
    asked = painted(draem)
    settings = {"network_width": 2, "steps": 1, "batch_size": 4, "rate": 1e-12, "turned": 0.0, "ssim_weight": 2.0}
    method = learned("draem", settings, count=4)
    assert asked == [(0.5, True)]  # half of the images, textures altered
    clean = tiny_images(4).images
    spoiled = torch.where(MASK, 0.3 * clean, clean)
    with torch.no_grad():
        repaired = method.repair.train()(spoiled)
        classes = array(method.segment.train()(torch.cat([repaired, spoiled], dim=1)))
    repair = np.square(array(repaired) - array(clean)).mean()
    repair += 2 * (1 - np.mean([similarity(*pair) for pair in zip(array(repaired), array(clean))]))
    (logged,) = method.curve
    assert logged["repaired"] == pytest.approx(repair, rel=1e-4)
    truth = np.broadcast_to(MASK.numpy(), (4, 64, 64))
    assert logged["found"] == pytest.approx(focal(classes[:, 1] - classes[:, 0], truth, 2.0), rel=1e-4)
    assert logged["loss"] == pytest.approx(logged["repaired"] + logged["found"], rel=1e-6)
    layers = [
        layer for layer in [*method.repair.modules(), *method.segment.modules()] if isinstance(layer, torch.nn.Conv2d)
    ]
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert float(weights.std()) == pytest.approx(0.02, rel=0.05)


def test_draem_turns_a_share_of_the_images_by_up_to_a_quarter(monkeypatch):
    from torchvision.transforms.v2 import functional as tv

    angles = []
    monkeypatch.setattr(tv, "rotate", lambda image, angle, *_: angles.append(angle) or image)
    draem._turned(torch.zeros(1000, 3, 2, 2), 0.3, torch.Generator().manual_seed(0))
    assert 250 < len(angles) < 350
    assert -90 <= min(angles) < -80 and 80 < max(angles) <= 90


def test_draem_s_u_net_by_hand():
    network = draem.UNet(6, 2, 2, (1, 2, 4), ((2, 2), (1, 1)), skips=True).eval()
    with torch.no_grad():
        for values in network.parameters():
            values.mul_(3 if values.ndim == 4 else 1)  # or little of the image would reach the end

    def through(x, layers):
        for place in range(0, len(layers), 3):
            x = F.relu(F.conv2d(x, layers[place].weight, padding=1) * (1 + 1e-5) ** -0.5)
        return x

    x = torch.randn(1, 6, 12, 8, generator=torch.Generator().manual_seed(0))
    finest = through(x, network.down[0])
    finer = through(F.max_pool2d(finest, 2), network.down[1])
    seen = through(F.max_pool2d(finer, 2), network.down[2])
    for level, skip in enumerate((finer, finest)):
        large = F.interpolate(seen, scale_factor=2, mode="bilinear", align_corners=True)
        seen = through(torch.cat([through(large, network.up[level]), skip], dim=1), network.joined[level])
    expected = F.conv2d(seen, network.out.weight, network.out.bias, padding=1)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_destseg_s_student_is_to_give_the_features_of_the_image_without_its_defect(learned, painted, listener):
    asked = painted(destseg)
    settings = {"network_width": 4, "student_share": 1.0, "steps": 1, "batch_size": 4, "learning_rate": 1e-12}
    method = learned("destseg", settings, count=4, teacher=listener, backbone=listener.backbone)
    (batch,), clean = listener.clean, listener.backbone(listener.clean[0].images)
    assert asked == [(1.0, False)]  # every image, textures as they are
    with torch.no_grad():
        student = method.student.train()(torch.where(MASK, 0.3 * batch.images, batch.images))
    apart = sum(float((1 - F.cosine_similarity(t.double(), s.double())).mean()) for t, s in zip(clean, student))
    assert method.curve[0]["student"] == pytest.approx(4 * apart, rel=1e-4)  # the sum over a batch


def test_destseg_s_segmentation_is_of_products_on_the_spoiled_image(learned, painted, listener, tiny_images):
    painted(destseg)
    still = {"body_rate": 1e-12, "head_rate": 1e-12, "learning_rate": 1e-12}
    settings = {"network_width": 4, "student_share": 0.0, "steps": 1, "batch_size": 4, **still}
    method = learned("destseg", settings, count=4, teacher=listener, backbone=listener.backbone)
    (spoiled,) = listener.noisy
    assert not listener.clean
    with torch.no_grad():
        pairs = zip(listener.backbone(spoiled), method.student.eval()(spoiled))
        products = [-F.normalize(t, dim=1) * F.normalize(s, dim=1) for t, s in pairs]
        joined = torch.cat([F.interpolate(p, size=(8, 8), mode="bilinear", align_corners=False) for p in products], 1)
        logits = array(method.head.train()(method.body.train()(joined))[:, 0])
    small = F.interpolate(MASK[None, None].float(), size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
    truth = np.broadcast_to(small.numpy() >= 0.5, (4, 8, 8))
    assert (truth[0] != (small.numpy() > 0)).any()
    expected = focal(logits, truth, 4.0) + np.abs(1 / (1 + np.exp(-logits)) - truth).mean()
    assert method.curve[0]["segmented"] == pytest.approx(expected, rel=1e-4)


def pooled(seen):
    return [seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3))]


@pytest.mark.parametrize("bad", [0, 2])
def test_supersimplenet_s_first_losses_by_hand(bad, learned, tiny_images, monkeypatch):
    thresholds, mask = [], torch.zeros(16, 16, dtype=torch.bool)
    mask[3:9, 5:12] = True
    monkeypatch.setattr(
        supersimplenet, "perlin_mask", lambda size, _, threshold: thresholds.append(threshold) or mask.clone()
    )
    settings = {"hidden": 8, "steps": 1, "batch_size": 4, "heads_rate": 1e-12, "deviation": 0.7}
    known = tiny_images(bad, seed=7)
    method = learned("supersimplenet", settings, count=2 if bad else 4, bad=known)
    good, heads = tiny_images(2 if bad else 4).images, method.heads.train()
    assert set(thresholds) == {0.6 if bad else 0.2}
    which = "order of images"
    order = torch.randperm(len(good), generator=Run().generator(f"epoch 1/{which}")).tolist()
    levels = method.backbone(good[order])
    sizes = [np.sqrt(np.square(array(map_)).mean()) for map_ in method.backbone(good)]

    def read(maps):
        large = [F.interpolate(m / s, size=(16, 16), mode="bilinear", align_corners=False) for m, s in zip(maps, sizes)]
        return F.avg_pool2d(torch.cat(large, dim=1).float(), 3, 1, 1)

    seen, draws = read(levels).repeat(2, 1, 1, 1), Run().generator("epoch 1/noise")
    count = len(seen)
    masks = mask & (torch.rand(count, generator=draws) < 0.5)[:, None, None]
    noise = 0.7 * torch.randn(seen.shape, generator=draws) * masks[:, None]
    labels = masks.flatten(1).any(dim=1).numpy()
    assert 0 < labels.sum() < count
    if bad:
        order = torch.randperm(bad, generator=Run().generator("epoch 1/order of bad images")).tolist()
        seen = torch.cat([seen, read(method.backbone(known.images[order]))])
        noise, labels = torch.cat([noise, torch.zeros(bad, *noise.shape[1:])]), np.append(labels, [True] * bad)
    with torch.no_grad():
        map_ = heads.places(F.conv2d(seen, heads.adapter.weight, heads.adapter.bias) + noise)
        found = heads.image(torch.cat([seen + noise, map_], dim=1))
        score = array(heads.score(torch.cat([*pooled(found), *pooled(map_)], dim=1))[:, 0])
    places, inside = array(map_[:count, 0]), masks.numpy()
    margin = np.maximum(0, 0.5 - places[inside]).mean() + np.maximum(0, places[~inside] + 0.5).mean()
    (logged,) = method.curve
    assert logged["places"] == pytest.approx(margin + focal(places, inside, 4.0), rel=1e-3)
    assert logged["images"] == pytest.approx(focal(score, labels, 4.0), rel=1e-3)
    assert logged["loss"] == pytest.approx(logged["places"] + logged["images"], rel=1e-5)
