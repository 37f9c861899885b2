"""PatchCore: its coreset and its scores against NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import cdist
from torch.utils._python_dispatch import TorchDispatchMode

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
