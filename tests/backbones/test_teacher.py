"""The teacher gives the backbone's features, without gradient, for batches and bare tensors alike.

Also what it keeps: no features of another backbone, precision or processor, and no more than there is room for.
"""

import shutil
from types import SimpleNamespace

import torch

from blemish.backbones import teacher as teachers
from blemish.backbones.backbone import build_backbone
from blemish.backbones.cache import FeatureCache
from blemish.backbones.teacher import FACT, FrozenTeacher, identity
from blemish.contract import Batch
from blemish.run import Run, choose_precision


def seen_by(backbone):
    """A list that grows by the count of images of every batch that the backbone is shown."""
    seen = []
    backbone.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return seen


def needed(backbone, images):
    """Bytes that the features of the images take."""
    return len(images) * FeatureCache(backbone(images.images[:1]), {}).bytes_each


def decision(backbone, images, folder=None):
    run = Run()
    FrozenTeacher(backbone).keep_features([images], run, folder)
    return run.log.facts[FACT]


def test_batch_and_tensor_give_the_backbones_features_without_gradient():
    backbone = build_backbone("resnet18", (1, 2), "random")
    teacher = FrozenTeacher(backbone)
    images = torch.rand((2, 3, 32, 48), generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.no_grad():
        expected = backbone(images)
    for maps in (teacher(Batch(images, ("a", "b"))), teacher(images)):
        assert not any(map_.requires_grad for map_ in maps)
        assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))


def test_two_choices_of_stages_have_two_identities_where_their_weights_are_the_same():
    """A transformer's stages are all of one size and hold the same tensors up to the last one."""
    one, other = (identity(build_backbone("vit_tiny_patch16_224", stages, "random")) for stages in ((2, 6), (3, 6)))
    assert one != other
    assert {**one, "stages": ""} == {**other, "stages": ""}


def test_features_of_another_precision_are_not_taken(tmp_path, tiny_images):
    images = tiny_images(3)
    for name in ("fp32", "bf16"):
        backbone = build_backbone("resnet18", (1,), "random")
        backbone.precision = choose_precision(torch.device("cpu"), name)
        seen, teacher, batch = seen_by(backbone), FrozenTeacher(backbone), images.batch(range(3))
        teacher.keep_features([images], Run(), tmp_path)
        assert sum(seen) == 2 + 3, name  # the first image, twice over, tells the features' size
        assert torch.equal(teacher(batch)[0], FrozenTeacher(backbone)(batch)[0]), name


def test_features_of_another_torch_processor_or_thread_count_are_not_taken(monkeypatch, tiny_backbone):
    backbone = tiny_backbone()
    found = [identity(backbone)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    found.append(identity(backbone))
    monkeypatch.setattr(torch, "__version__", "1.0")
    found.append(identity(backbone))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    found.append(identity(backbone))
    backbone.digest = identity(backbone)["weights"]  # weights on "meta" have no numbers to make a digest of
    backbone.to("meta")  # stands in for a GPU
    for gpu in ("one GPU", "another"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, gpu=gpu: gpu)
        found.append(identity(backbone))
    assert len({tuple(one.items()) for one in found}) == len(found)


def test_features_take_a_quarter_of_the_available_memory_at_most(monkeypatch, tiny_backbone, tiny_images):
    backbone, images = tiny_backbone(), tiny_images(4)
    for less, expected in ((0, "memory"), (1, "off")):
        available = 4 * needed(backbone, images) - less
        monkeypatch.setattr(teachers, "available_memory", lambda available=available: available)
        assert decision(backbone, images) == expected


def test_features_take_half_of_a_disks_free_space_at_most(tmp_path, monkeypatch, tiny_backbone, tiny_images):
    backbone, images = tiny_backbone(), tiny_images(4)
    for free, expected in ((2 * needed(backbone, images) - 1, "off"), (2 * needed(backbone, images), "disk")):
        usage = SimpleNamespace(total=10**12, used=10**12 - free, free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda _, usage=usage: usage)
        assert decision(backbone, images, tmp_path) == expected


def test_features_that_filled_the_disk_are_still_used(tmp_path, monkeypatch, tiny_backbone, tiny_images):
    assert decision(tiny_backbone(), tiny_images(4), tmp_path) == "disk"
    usage = SimpleNamespace(total=10**12, used=10**12, free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    backbone = tiny_backbone()
    seen = seen_by(backbone)
    assert decision(backbone, tiny_images(4), tmp_path) == "disk"
    assert sum(seen) == 2  # the first image, twice over, tells the features' size
    assert decision(backbone, tiny_images(5), tmp_path) == "off"
