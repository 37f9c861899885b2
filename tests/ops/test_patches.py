import pytest
import torch
import torch.nn.functional as F

from blemish.ops.patches import PatchVectors, describe_patches, top_mean
from blemish.run import Run


def maps_of(channels, grids, batch=2):
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(batch, c, *g, generator=generator, dtype=torch.float64) for c, g in zip(channels, grids)]


def released(features, patch_size, stage_width, width):
    """The slow order: unfold, interpolate what is unfolded, pool each stage adaptively, join, pool again."""
    batch, grid = len(features[0]), features[0].shape[-2:]
    stages = []
    for stage in features:
        c = stage.shape[1]
        unfolded = F.unfold(stage, patch_size, padding=patch_size // 2)
        unfolded = unfolded.view(batch, c * patch_size**2, *stage.shape[-2:])
        unfolded = F.interpolate(unfolded, size=grid, mode="bilinear", align_corners=False)
        stages.append(F.adaptive_avg_pool1d(unfolded.permute(0, 2, 3, 1).flatten(0, 2)[:, None], stage_width)[:, 0])
    joined = torch.stack(stages, dim=1).flatten(1)
    return F.adaptive_avg_pool1d(joined[:, None], width)[:, 0].view(batch, *grid, width)


@pytest.mark.parametrize(
    ("channels", "stage_width", "width"),
    [
        ((512, 1024), 1024, 1024),  # WideResNet50: windows of 5 that share an entry, and means of 9; then pairs
        ((512, 1024), 1024, 384),  # the ensemble's target: the last pooling straddles the stages
        ((24, 40), 32, 16),
        ((24, 40, 56), 32, 32),  # three stages: straddles as well
        ((10, 14), 9, 18),
        ((7, 12), 64, 16),
        ((24, 40), 1024, 1024),  # inflated: entries repeat
    ],
)
def test_pooling_first_equals_the_released_order(channels, stage_width, width):
    features = maps_of(channels, [(6, 5), (3, 3), (2, 2)])
    pooling = PatchVectors(channels, 3, stage_width, width, inflate=True)
    found = pooling([f.float() for f in features])
    assert found.shape == (2, 6, 5, width) and pooling.width == width
    torch.testing.assert_close(found.double(), released(features, 3, stage_width, width), atol=2e-6, rtol=1e-5)


def test_every_odd_patch_size():
    features = maps_of((16, 32), [(6, 6), (3, 3)])
    for patch_size in (1, 3, 5):
        found = PatchVectors((16, 32), patch_size, 32, 32, inflate=False)([f.float() for f in features])
        torch.testing.assert_close(found.double(), released(features, patch_size, 32, 32), atol=2e-6, rtol=1e-5)


def test_narrow_stages_keep_their_channels_averaged_over_the_neighbourhood_with_zeros_around():
    shallow, deep = maps_of((3, 5), [(4, 4), (2, 2)])
    pooling = PatchVectors((3, 5), 3, 1024, 1024, inflate=False)
    found = pooling([shallow.float(), deep.float()])
    assert found.shape == (2, 4, 4, 8) and pooling.width == 8
    corner = shallow[:, :, :2, :2].sum(dim=(2, 3)) / 9
    torch.testing.assert_close(found[:, 0, 0, :3].double(), corner, atol=1e-6, rtol=1e-5)
    middle = F.interpolate(F.avg_pool2d(deep, 3, 1, 1), size=(4, 4), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found[..., 3:].double(), middle.permute(0, 2, 3, 1), atol=1e-6, rtol=1e-5)


def test_of_more_candidates_than_are_wanted_each_image_gives_an_equal_share(tiny_images, tiny_backbone, tiny_teacher):
    images, teacher, run = tiny_images(4), tiny_teacher(tiny_backbone()), Run()
    patches = PatchVectors([8, 16], 1, 1024, 1024, inflate=False)
    whole, *_ = describe_patches(images, teacher, patches, None, run, 3)
    cells = len(whole) // 4
    some, shortened, *_ = describe_patches(images, teacher, patches, torch.eye(24)[:, :5], run, 3, most=cells)
    share = -(-cells // 4)
    assert len(some) == 4 * share
    assert torch.equal(shortened, some[:, :5])
    for image in range(4):
        own = {row.numpy().tobytes() for row in whole[image * cells : (image + 1) * cells]}
        drawn = [row.numpy().tobytes() for row in some[image * share : (image + 1) * share]]
        assert set(drawn) <= own
    again, *_ = describe_patches(images, teacher, patches, None, run, 2, most=cells)
    assert torch.equal(again, some)


def test_an_images_score_is_the_mean_of_the_strangest_share_and_of_one_patch_at_least():
    scores = torch.arange(200.0).view(2, 100)
    assert top_mean(scores, 0).tolist() == [99, 199]
    assert top_mean(scores, 0.03).tolist() == [98, 198]
