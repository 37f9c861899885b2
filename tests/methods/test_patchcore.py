"""PatchCore: its coreset and its scores against NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch.utils._python_dispatch import TorchDispatchMode

from blemish.errors import ConfigError
from blemish.methods import patchcore
from blemish.methods.patchcore import PatchCore, PatchCoreConfig
from blemish.run import Lines, Run, Silent


@pytest.fixture
def fitted(learned):
    """``fitted(count, layers, run, **settings)``: a PatchCore that has seen ``count`` tiny images."""
    return lambda count=6, layers=(2, 3), run=None, **settings: learned(
        "patchcore", settings, count, layers=layers, run=run
    )


def patch_vectors(backbone, images):
    """3x3 means with zeros counted, the deeper stage interpolated, joined: ``b cells d`` in float64 NumPy."""
    shallow, deep = backbone(images)
    shallow, deep = (F.avg_pool2d(stage.double(), 3, 1, 1) for stage in (shallow, deep))
    deep = F.interpolate(deep, size=shallow.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([shallow, deep], dim=1).flatten(2).transpose(1, 2).numpy()


def remembered(method):
    return (method.memory.points + method.memory.centre).double().numpy()


def test_memory_is_unprojected_training_vectors_a_fraction_rounded_down(fitted, tiny_backbone, tiny_images):
    method = fitted(count=6, fraction=0.05, projection_dim=4)
    vectors = patch_vectors(tiny_backbone(), tiny_images(6).images).reshape(-1, 24)
    kept = remembered(method)
    assert kept.shape == (int(6 * 64 * 0.05), 24)
    gaps = ((kept[:, None] - vectors[None]) ** 2).sum(axis=2)
    assert gaps.min(axis=1).max() < 1e-9
    assert len(set(gaps.argmin(axis=1))) == len(kept)


def test_coreset_is_the_greedy_rule_on_the_projected_vectors(fitted, tiny_backbone, tiny_images):
    run = Run(seed=3)
    method = fitted(count=4, fraction=0.1, projection_dim=8, run=run)
    vectors = patch_vectors(tiny_backbone(), tiny_images(4).images).reshape(-1, 24)
    bound = 24**-0.5
    matrix = torch.empty(24, 8).uniform_(-bound, bound, generator=run.generator("projection"))
    short = vectors @ matrix.double().numpy()
    drawn = torch.randperm(len(short), generator=run.generator("starting points"))[:10].numpy()
    distances = np.linalg.norm(short[:, None] - short[None, drawn], axis=2).mean(axis=1)
    picks = []
    for _ in range(25):
        picks.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(short - short[picks[-1]], axis=1))
    np.testing.assert_allclose(remembered(method), vectors[picks], atol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
def test_score_and_map_are_as_defined(fitted, tiny_backbone, tiny_images, planted, enlarged, k):
    method = fitted(neighbours=k, fraction=0.1)
    images = planted(tiny_images(2, seed=9).images)
    vectors = patch_vectors(tiny_backbone(), images)
    squared = ((vectors[:, :, None] - remembered(method)[None, None]) ** 2).sum(axis=3)
    scores = np.sort(squared, axis=2)[:, :, :k].mean(axis=2)
    prediction = method(images)
    np.testing.assert_allclose(prediction.score.numpy(), scores.max(axis=1), rtol=1e-4)
    np.testing.assert_allclose(prediction.map.numpy(), enlarged(scores), rtol=1e-4, atol=1e-5)


def two_scales(backbone, images):
    """Vectors ``b y x d`` of each cell by itself, and of the means over 3 x 3 cells at every second one; float64."""
    shallow, deep = (stage.double() for stage in backbone(images))
    averaged = [F.avg_pool2d(stage, 3, 1, 1) for stage in (shallow, deep)]
    for stages, step in (((shallow, deep), 1), (averaged, 2)):
        deeper = F.interpolate(stages[1], size=shallow.shape[-2:], mode="bilinear", align_corners=False)
        yield torch.cat([stages[0], deeper], dim=1).permute(0, 2, 3, 1)[:, ::step, ::step].numpy()


@pytest.mark.parametrize("parts", [[0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]])
def test_of_two_scales_brought_together_by_good_images_the_stranger_counts(
    fitted, learned, tiny_backbone, tiny_images, planted, enlarged, parts, monkeypatch
):
    monkeypatch.setattr(tiny_images, "parts", property(lambda images: parts[: len(images)]))
    train, seen = tiny_images(6), tiny_images(4, seed=9).images
    seen[:2] = planted(seen[:2])
    seen[2, :, 24:32, 24:32] = 0.0  # one cell
    options = {"patch_size": 1, "coarse": 3, "fraction": 1.0}
    method = learned("patchcore", options, images=train)
    logs, scores = [], []
    for known, asked in zip(two_scales(tiny_backbone(), train.images), two_scales(tiny_backbone(), seen)):
        own = [
            cdist(one.reshape(-1, 24), np.concatenate([v.reshape(-1, 24) for v, p in zip(known, parts) if p != part]))
            for one, part in zip(known, parts)
        ]
        logs.append(np.log([(distances.min(axis=1) ** 2).max() for distances in own]))
        nearest = cdist(asked.reshape(-1, 24), known.reshape(-1, 24)).min(axis=1) ** 2
        scores.append(nearest.reshape(asked.shape[:3]))
    exponent = np.clip(logs[0].std(ddof=1) / logs[1].std(ddof=1), 0.5, 2)
    coarse = np.exp(logs[0].mean() - exponent * logs[1].mean()) * scores[1] ** exponent
    places = np.minimum(np.arange(8) / 2, 3)  # of fine cells among coarse ones: 0, 1/2, 1 ... 3, and the last again
    rows = np.stack([np.interp(places, range(4), np.eye(4)[i]) for i in range(4)], axis=1)
    large = rows @ coarse @ rows.T
    expected = np.maximum(scores[0], np.where(large > np.exp(logs[0].mean()), large, 0))
    fine = scores[0].max(axis=(1, 2))
    found = method(seen)
    np.testing.assert_allclose(found.score, np.maximum(fine, coarse.max(axis=(1, 2))), rtol=1e-3)
    np.testing.assert_allclose(found.map, enlarged(expected), rtol=1e-3, atol=1e-5)
    assert 0 < (expected == scores[0]).mean() < 0.9  # either decides somewhere
    again = PatchCore(tiny_backbone(), (64, 64), method.config)
    again.load_fitted(method.state_dict())
    assert torch.equal(again(seen).score, found.score)


@pytest.mark.parametrize(("count", "exponent"), [(1, None), (4, 1.0)])
def test_few_images_give_two_scales_one_deviation_and_one_image_gives_the_second_no_say(
    fitted, tiny_images, planted, count, exponent
):
    options = {"patch_size": 1, "fraction": 1.0}
    method, images = fitted(count, coarse=3, **options), planted(tiny_images(2, seed=9).images)
    if exponent is None:
        assert torch.equal(method(images).score, fitted(count, **options)(images).score)
    else:
        assert method.coarse.scale[0] > 0 and method.coarse.scale[1] == exponent


def test_a_second_scale_that_could_not_help_is_refused(fitted):
    with pytest.raises(ConfigError, match="set reweight=0 beside it"):
        fitted(coarse=3, reweight=3)
    with pytest.raises(ConfigError, match="coarse=3 sees no more than patch_size=3 does"):
        fitted(coarse=3)


def test_equal_images_give_the_second_scale_no_say(learned, tiny_images, planted):
    train, seen = tiny_images(6), planted(tiny_images(2, seed=9).images)
    train.images[:] = train.images[:1]
    options = {"patch_size": 1, "fraction": 1.0}
    plain, both = (learned("patchcore", options | more, images=train) for more in ({}, {"coarse": 3}))
    assert torch.equal(both(seen).score, plain(seen).score)


def test_reweighting_by_hand(fitted, tiny_backbone, tiny_images, planted):
    plain, weighted = fitted(fraction=0.1), fitted(fraction=0.1, reweight=5)
    images = planted(tiny_images(3, seed=4).images)
    memory = remembered(plain)
    expected = []
    for vectors in patch_vectors(tiny_backbone(), images):
        distances = np.linalg.norm(vectors[:, None] - memory[None], axis=2)
        worst = distances.min(axis=1).argmax()
        matched = memory[distances[worst].argmin()]
        around = memory[np.linalg.norm(memory - matched, axis=1).argsort()[:5]]
        rooted = np.exp(np.linalg.norm(vectors[worst] - around, axis=1))
        expected.append((1 - rooted[0] / rooted.sum()) * distances[worst].min())
    np.testing.assert_allclose(weighted(images).score.numpy(), expected, rtol=1e-4)
    torch.testing.assert_close(weighted(images).map, plain(images).map)


def test_reweighting_with_a_memory_of_one_leaves_the_score(fitted, tiny_images):
    images = tiny_images(2, seed=3).images
    plain, weighted = fitted(fraction=1e-6), fitted(fraction=1e-6, reweight=9)
    assert len(plain.memory) == 1
    torch.testing.assert_close(weighted(images).score, plain(images).score.sqrt())


def test_batches_change_nothing(fitted, monkeypatch):
    whole = fitted(count=10, fraction=0.05).memory.points
    monkeypatch.setattr(patchcore, "BATCH", 3)
    torch.testing.assert_close(fitted(count=10, fraction=0.05).memory.points, whole)


def test_wide_stages_are_pooled_to_the_target_and_narrow_ones_are_not(tiny_backbone):
    wide = PatchCore(tiny_backbone(width=512), (32, 32), PatchCoreConfig())
    narrow = PatchCore(tiny_backbone(width=40), (32, 32), PatchCoreConfig())
    forced = PatchCore(tiny_backbone(width=40), (32, 32), PatchCoreConfig(dims="paper"))
    assert [m.patches.width for m in (wide, narrow, forced)] == [1024, 120, 1024]


class Rows(TorchDispatchMode):
    """The most rows that any matrix of patch vectors had, of 24 numbers or with the greedy choice's two more."""

    most = 0

    def __torch_dispatch__(self, function, types, given=(), named=None):
        made = function(*given, **(named or {}))
        if isinstance(made, torch.Tensor) and made.ndim == 2 and made.shape[1] in (24, 26):
            self.most = max(self.most, len(made))
        return made


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({"fraction": 0.05}, 4 * 3 * 24),
        ({"fraction": 0.05, "projection_dim": 8}, 4 * (24 + 3 * 8)),
        ({"memory": 80, "coreset_start": "exact"}, 4 * 3 * 24),  # of 80 * 12 candidates, drawn from each image
    ],
)
def test_more_vectors_than_may_be_held_are_thinned_out_shard_by_shard(
    fitted, tiny_backbone, tiny_images, monkeypatch, tmp_path, capsys, settings, each
):
    monkeypatch.setattr(patchcore, "BATCH", 2)
    monkeypatch.setattr(patchcore, "CANDIDATES", 12)
    monkeypatch.setattr("blemish.ops.coreset.ROWS", 64)  # of its workspace, of one size for all sets
    total = 960 if "memory" in settings else 24 * 64
    whole = fitted(24, **settings)
    exactly = fitted(24, held=(total * each + 0.5) / 1e9, **settings)
    assert torch.equal(exactly.memory.points, whole.memory.points) and "held" not in capsys.readouterr().err

    with Rows() as rows:
        parts = fitted(24, held=300 * each / 1e9, run=Run(progress=Lines()), **settings)
    assert 250 < rows.most <= 300
    assert f"{total:,} patch vectors" in (said := capsys.readouterr().err) and "300 are held" in said
    assert len(parts.memory) == len(whole.memory) == settings.get("memory", total // 20)
    vectors = patch_vectors(tiny_backbone(), tiny_images(24).images).reshape(-1, 24)
    radii = [cdist(vectors, remembered(method)).min(axis=1).max() for method in (parts, whole)]
    assert radii[0] <= 2 * radii[1]

    class Stopping(Silent):
        def track(self, items, title, total=None):
            for number, item in enumerate(items):
                if number == 20:
                    raise KeyboardInterrupt
                yield item

    with pytest.raises(KeyboardInterrupt):
        fitted(24, held=300 * each / 1e9, run=Run(progress=Stopping(), checkpoint=tmp_path), **settings)
    again = fitted(24, held=300 * each / 1e9, run=Run(checkpoint=tmp_path, resume=True), **settings)
    assert torch.equal(again.memory.points, parts.memory.points)


def test_identical_images_are_remembered_once(learned, tiny_images):
    one = tiny_images(1)
    many = tiny_images(5)
    many.images = one.images.repeat(5, 1, 1, 1)
    method = learned("patchcore", {"fraction": 1.0}, images=many)
    assert 50 < len(method.memory) <= 64
    assert float(method(one.images).score) < 1e-4


def test_both_stages_report_their_progress_with_totals_and_can_be_stopped(fitted):
    seen = []

    class Watching(Silent):
        def track(self, items, title, total=None):
            seen.append((title, total))
            yield from items
            if stops:
                raise KeyboardInterrupt

    stops = False
    assert len(fitted(count=10, fraction=0.1, run=Run(progress=Watching())).memory) == 64
    assert seen == [("describing patches", None), ("choosing patches to remember", 64)]
    stops = True
    with pytest.raises(KeyboardInterrupt):
        fitted(run=Run(progress=Watching()))
