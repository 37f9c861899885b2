"""The catalogue answers without torch and timm, and says what timm says."""

import subprocess
import sys

import pytest

from blemish.backbones.catalogue import BACKBONES, DEFAULT_BACKBONE, IMAGENET_MEAN, IMAGENET_STD


def test_listing_imports_neither_torch_nor_timm():
    code = (
        "import sys, blemish.backbones.catalogue as c; assert c.BACKBONES; "
        "print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_default_needs_no_hub():
    assert BACKBONES[DEFAULT_BACKBONE].package is not None


@pytest.mark.parametrize("name", [name for name in BACKBONES if "resnet" in name])
def test_resnets_are_torchvisions_first_weights(name):
    from timm.models import get_pretrained_cfg

    entry = BACKBONES[name]
    config = get_pretrained_cfg(f"{entry.timm_name}.{entry.tag}")
    assert config.url.endswith(f"/{entry.file}")
    assert config.url.startswith("https://download.pytorch.org/models/")
    assert (entry.mean, entry.std) == (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("name", [name for name in BACKBONES if "lite" in name])
def test_lites_normalise_as_they_were_trained(name):
    pixel = 200 / 255
    entry = BACKBONES[name]
    assert [(pixel - m) / s for m, s in zip(entry.mean, entry.std)] == pytest.approx([(200 - 127) / 128] * 3)
