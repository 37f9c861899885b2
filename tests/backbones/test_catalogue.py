"""The catalogue answers without torch and timm, and says what timm says."""

import subprocess
import sys

from timm.models import get_pretrained_cfg

from blemish.backbones.catalogue import BACKBONES


def test_listing_imports_neither_torch_nor_timm():
    code = "import sys, blemish.backbones.catalogue; print({'torch', 'timm', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_weights_are_where_timm_has_them():
    """The papers' ResNets are torchvision's first weights; timm's own default for a name may be another checkpoint."""
    for name, entry in ((name, entry) for name, entry in BACKBONES.items() if entry.hub_id):
        config = get_pretrained_cfg(entry.hub_id.removeprefix("timm/"))
        assert (entry.hub_id, entry.url) == (config.hf_hub_id, config.url), name
        if "resnet" in name:
            assert entry.url.startswith(f"https://download.pytorch.org/models/{name}-")
            assert (entry.mean, entry.std) == (config.mean, config.std)
