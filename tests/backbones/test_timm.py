"""Architectures that only timm knows."""

import pytest
import timm
import torch

from blemish.backbones.backbone import build_backbone, rebuild
from blemish.backbones.timm import published_weights
from blemish.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "stages", "shapes", "signed"),
    [
        ("vit_tiny_patch16_224", (3, 6), [(192, 4, 6), (192, 4, 6)], True),
        ("swin_tiny_patch4_window7_224", (1, 2), [(96, 16, 24), (192, 8, 12)], True),
        ("mobilenetv3_small_050", (2,), [(16, 8, 12)], True),
        ("regnetx_002", (1, 2), [(24, 16, 24), (56, 8, 12)], False),
    ],
)
def test_any_architecture(name, stages, shapes, signed):
    backbone = build_backbone(name, stages, "random")
    batch = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(7))
    maps = backbone(batch)
    assert [tuple(map_.shape[1:]) for map_ in maps] == shapes
    assert [level.signed for level in backbone.levels] == [signed] * len(stages)
    assert backbone.dense == (name not in ("mobilenetv3_small_050",))
    again = rebuild(backbone.spec(), backbone.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again(batch), maps, strict=True))


def test_a_cut_network_equals_the_uncut_one():
    backbone = build_backbone("mobilenetv3_small_050", (1, 2), "random", seed=3)
    whole = timm.create_model("mobilenetv3_small_050", features_only=True).eval()
    assert len(backbone.network.blocks) < len(whole.blocks)
    assert whole.load_state_dict(backbone.network.state_dict(), strict=False).unexpected_keys == []
    batch = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        for mine, theirs in zip(backbone.network(batch), whole(batch)[1:3], strict=True):
            torch.testing.assert_close(mine, theirs)


def test_an_unknown_name_is_answered_with_the_nearest_and_a_tag_names_another_checkpoint():
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        build_backbone("resnet_18")
    assert published_weights("wide_resnet50_2.racm_in1k")[0] == "timm/wide_resnet50_2.racm_in1k"
