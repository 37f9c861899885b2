"""On a graphics card: every method learns there, and what it learned says the same there and on the processor.

How a method behaves otherwise is the contract's matter, which ``BLEMISH_TEST_DEVICE=cuda`` asks of the card as well.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blemish.cli.options import Machine
from blemish.inspection.load import load
from blemish.registry import METHODS, make_config, method_class
from blemish.run import Run, Step, choose_device
from blemish.training.fit import fit

ROOT = Path(__file__).resolve().parents[2]
on_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no graphics card")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight good images, two known-bad ones and, beside them, all ten as a pile."""
    rng = np.random.default_rng(0)
    for number in range(10):
        pixels = rng.normal(120, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        pixels[20:40, 20:40] = (255, 0, 0) if number > 7 else pixels[20:40, 20:40]
        for place in ("pile/unlabelled", "known/good" if number < 8 else "known/anomalous/paint"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")
    return tmp_path


@pytest.mark.cuda
@on_card
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_learned_on_the_card_and_judged_on_both(name: str, precision: str, folder: Path, tmp_path: Path) -> None:
    """Scores agree within a hundredth in fp32 and a twentieth in bf16; the same seed gives the same score twice."""
    cls, kind = method_class(name), METHODS[name].regime
    options = {"steps": 2, "batch_size": 4, "memory": 100}
    options = {key: value for key, value in options.items() if hasattr(make_config(cls, {}), key)}
    backbone = {} if cls.on_pixels else {"backbone": "test_resnet", "weights": "random"}
    training, image = folder / ("pile" if kind == "contaminated" else "known"), folder / "pile/unlabelled/9.png"
    settings = {
        "method": name,
        "options": options,
        "size": 64,
        "calibration": "none",
        "precision": precision,
        **backbone,
    }
    first, second = (fit(training, run=Run(device=choose_device("cuda")), **settings) for _ in range(2))
    assert first(image).score == second(image).score
    there = first(image)
    here = load(first.save(tmp_path / "m.blemish"), device="cpu", precision=precision)(image)
    assert here.score == pytest.approx(there.score, rel=0.01 if precision == "fp32" else 0.05, abs=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, on_card])])
def test_steps_recorded_on_a_card_are_the_steps_as_written(device: str) -> None:
    """To the bit: a loop beside it, batches of two sizes in turn, and once another state of the optimiser."""
    both = []
    for is_ours in (True, False):
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 1, 3))
        generator = torch.Generator().manual_seed(0)
        for values in network.parameters():
            values.data.copy_(torch.randn(values.shape, generator=generator))
        network.to(device)
        optimiser = torch.optim.Adam(network.parameters(), lr=0.01, fused=True)
        run = Run(device=choose_device(device))
        step = Step(run, [optimiser], lambda images, of=network: [of(images).square().mean()])
        losses = []
        for number in range(16):
            images = torch.rand(4 if number % 3 else 2, 3, 16, 16, generator=generator).to(device)
            if number == 12:
                optimiser.state.clear()
                step.forget()
            if is_ours:
                losses.append(float(step([images])[0][0]))
                continue
            loss = network(images).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        both.append((losses, [values.tolist() for values in network.state_dict().values()]))
    assert both[0] == both[1]


def test_a_card_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("blemish.run.device.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "NVIDIA H200")
    assert Machine(threads=1).run().device.type == "cuda"
    assert capsys.readouterr().err == "computes on NVIDIA H200\n"


def test_a_full_card_is_said_with_a_smaller_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(method_class("nkd"), "train_on", full)
    settings = {"backbone": "test_resnet", "weights": "random", "size": 64, "calibration": "none"}
    with pytest.raises(MemoryError, match=r"batch_size=8 in place of 16, or a smaller --size"):
        fit(folder / "known", method="nkd", **settings)


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_try_of_the_script_on_the_processor(tmp_path: Path) -> None:
    """All that the script does on a card, tiny: every part but those that need one ends well and leaves its rows."""
    rng = np.random.default_rng(1)
    for name in ("magnetic_tile",):
        for place, count in (("train/good", 6), ("test/good", 2), ("test/hole", 2)):
            (tmp_path / "in/data" / name / place).mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(120, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
                pixels[20:40, 20:40] = 0 if place == "test/hole" else pixels[20:40, 20:40]
                Image.fromarray(pixels).save(tmp_path / "in/data" / name / place / f"{number}.png")
    command = ["bash", str(ROOT / "scripts/gpu/check.sh"), str(tmp_path / "in"), str(tmp_path / "out")]
    environment = {"BLEMISH_GPU_TRY": "1", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    parts = (tmp_path / "out/parts.txt").read_text(encoding="utf-8")
    assert "no time left" not in parts
    wrong = [line for line in parts.splitlines() if "exit status 0" not in line]
    assert not wrong, [*wrong, (tmp_path / "out/log.txt").read_text(encoding="utf-8")[-5000:]]
    assert len((tmp_path / "out/ledger.jsonl").read_text(encoding="utf-8").splitlines()) == 1, done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "machine.txt",
        "parts.txt",
        "log.txt",
        "ledger.jsonl",
    }
