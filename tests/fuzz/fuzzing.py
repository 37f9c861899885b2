"""Inputs changed at random, by fixed seeds: ``python tests/fuzz/fuzzing.py TARGET INPUTS [FIRST]``, or all targets.

Each input is either taken or refused by a BlemishError. Counts are printed as JSON, with the number of each input that
ended otherwise, took more than ``SECONDS`` of processor time, or asked for more than ``BYTES`` beyond what the imports
and the seeds took. Input n of a target is the same today and tomorrow: ``... models 1 4711`` makes it once more.
"""

import csv
import hashlib
import io
import json
import random
import resource
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import blemish
from blemish.bench.jobs import experiments, plan
from blemish.bench.recipe import load_recipe
from blemish.data.images import read_image
from blemish.data.manifest import read_manifest
from blemish.data.preprocessing import Preprocessing
from blemish.errors import BlemishError
from blemish.inspection import model_file
from blemish.run.checkpoint import HEADER, MAGIC, CheckpointManager

BYTES, SECONDS = 2 * 1024**3, 20
ROOT = Path(__file__).parents[2]
NAMES = ("vit_giant_patch14_clip_224", "swinv2_cr_giant_384", "wide_resnet101_2", "hf-hub:timm/x", "resnet18", "x")
ODD = (None, True, False, 0, -1, 2, 255, 4096, 10**9, 2**63, 10**400, 0.5, 1e308, 1e-320, float("nan"), float("inf"))
ODD += ("", "x", "../x", "/etc/passwd", "\x1b[31m\0", "a" * 5000, [], {}, [1, 2], [[]], {"x": 1}, *NAMES)
TOML = (b"nan", b"-1", b"1e999", b"true", b'"../x"', b"[]", b"{}", b"[" * 3000, b"9" * 5000, b"1979-05-27")
TOML += (b'"\\u0000"', b"[[1], {a = 2}]", b'["x", "x"]', b"4e9", b"0")
DTYPES = (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)


class StoppedError(BaseException):
    """What no handler of ours may take for an error of its own."""


def stop(*_: object) -> None:
    raise StoppedError("more than was allowed: processor time, or a connection")


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some of: bits flipped, numbers at their limits written, a piece cut out, doubled, or the end lost."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        place, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 8, rng.randrange(1, 200)))
        if (kind := rng.randrange(5)) == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + length] = rng.choice((b"\xff", b"\0", b"\x7f", b"\x80", b"[", b'"')) * length
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        elif rng.random() < 0.2:
            del data[place:]
    return bytes(data)


def changed_value(value: object, rng: random.Random) -> object:
    """JSON-like values with one of them, anywhere inside, replaced, removed, doubled or made large."""
    if isinstance(value, dict) and value and rng.random() < 0.93:
        key = rng.choice(list(value))
        rest = {name: kept for name, kept in value.items() if name != key}
        return rest if rng.random() < 0.05 else {**value, key: changed_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        return [*value[:place], changed_value(value[place], rng), *value[place + rng.choice((0, 1, 1, 1)) :]]
    if isinstance(value, int | float) and rng.random() < 0.4:
        return rng.choice((-value, value + 1, value * 1000, value / 3, str(value), [value]))
    return rng.choice(ODD)


def changed_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    name = rng.choice(list(tensors))
    old, others = tensors[name], {key: tensor for key, tensor in tensors.items() if key != name}
    rows = old if old.ndim else old[None]
    new = rng.choice(
        (
            *(old.flatten(), old[None], old.T if old.ndim == 2 else old, rows[:0], rows[:-1], torch.cat([rows, rows])),
            *(
                old * float("nan"),
                old.double() * 1e300,
                old.to(rng.choice(DTYPES)),
                torch.full_like(old, 100),
                rows[:1],
            ),
        )
    )
    if (kind := rng.random()) < 0.1:
        return others
    return {**others, (name + "x" if kind < 0.2 else name): new.contiguous()}


class Images:
    def __init__(self, folder: Path) -> None:
        noise, self.seeds = np.random.default_rng(0).integers(0, 256, (12, 14, 4), np.uint8), []
        rgba = Image.fromarray(noise)
        modes = {mode: rgba.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")}
        grey = noise[..., 0]
        modes["I;16"], modes["F"] = (
            Image.fromarray(grey.astype(np.uint16) * 200),
            Image.fromarray(grey / np.float32(255)),
        )
        compressions = (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4")
        options = [("TIFF", {"compression": name}) for name in compressions]
        options += [(name, {}) for name in ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM")]
        for image in modes.values():
            for form, how in options:
                file = io.BytesIO()
                try:
                    image.save(file, form, **how)
                except (OSError, ValueError, RuntimeError, KeyError):  # not every format takes every mode
                    continue
                self.seeds.append(file.getvalue())

    def __call__(self, rng: random.Random) -> None:
        resize = rng.choice(("stretch", "crop", "letterbox", "opencv"))
        Preprocessing(resize, 32).prepare(read_image(changed_bytes(rng.choice(self.seeds), rng)))


class Models:
    """Edited by someone who writes the digest anew, or damaged."""

    def __init__(self, folder: Path) -> None:
        for kind in ("good", "anomalous"):
            (folder / kind).mkdir()
            for i in range(6):
                Image.effect_noise((32, 32), 30 + i).save(folder / kind / f"{i}.png")
        self.path, self.seeds = folder / "m.blemish", []
        for method, backbone, weights in (
            ("patchcore", "efficientnet_lite0", "pretrained"),
            ("softpatch", "resnet18", "random"),
            ("rd", "test_resnet", "random"),
            ("deepsad", "test_resnet", "random"),
        ):
            data = folder / "good" if method in ("rd", "softpatch") else folder
            training = blemish.read_training(data, unlabelled=method == "softpatch")
            length = {} if method in ("patchcore", "softpatch") else {"steps": 1}
            how = {"backbone": backbone, "weights": weights, "options": {"layers": [1, 2]}, "size": 32, **length}
            learned = blemish.fit(training, method=method, **how)
            for with_backbone in (True, False):
                tensors, description = model_file.read_model(learned.save(self.path, with_backbone))
                self.seeds.append((tensors, description.model_dump(mode="json", exclude_unset=True)))
        self.image = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)

    def __call__(self, rng: random.Random) -> None:
        tensors, description = rng.choice(self.seeds)
        kind = rng.random()
        if kind < 0.6:
            description = changed_value(description, rng)
        elif kind < 0.9:
            tensors = changed_tensors(tensors, rng)
        text = json.dumps(description)
        if rng.random() < 0.02:
            text = "[" * 20_000 + "]" * 20_000
        header = {"format": "blemish", "schema": rng.choice("2222210") * rng.choice((1, 1, 1, 5000))}
        header |= {"description": text, "sha256": model_file._digest(tensors, text)}
        save_file(tensors, self.path, metadata=header)
        if kind > 0.95:
            self.path.write_bytes(changed_bytes(self.path.read_bytes(), rng))
        inspector = blemish.load(self.path)
        json.dumps(inspector.info(), allow_nan=False)
        repr(inspector)
        if max(inspector.preparation.input_size) <= 512:
            verdict = inspector(self.image)
            json.dumps(verdict.as_dict(), allow_nan=False)
            verdict.overlay()


class Manifests:
    def __init__(self, folder: Path) -> None:
        for name in ("a.png", "b.png", "c d.png", "m.png"):
            Image.new("L", (16, 16)).save(folder / name)
        rows = [["path", "label", "split", "mask", "kind", "group"], ["a.png", "good", "train", "", "", "1"]]
        rows += [["b.png", "anomalous", "test", "m.png", "hole", "2"], ["c d.png", "unlabelled", "", "", "", ""]]
        file = io.StringIO()
        csv.writer(file).writerows(rows)
        self.seed, self.path = file.getvalue().encode(), folder / "manifest.csv"

    def __call__(self, rng: random.Random) -> None:
        text = rng.choice((self.seed, self.seed.replace(b",", b";"), self.seed.decode().encode("utf-16")))
        self.path.write_bytes(changed_bytes(text, rng))
        read_manifest(self.path, ground_truth=rng.random() < 0.5)
        blemish.read_training(self.path)


class Recipes:
    def __init__(self, folder: Path) -> None:
        self.seeds = [path.read_bytes() for path in sorted((ROOT / "recipes").rglob("*.toml"))]
        self.path, self.results = folder / "r.toml", folder / "results"

    def __call__(self, rng: random.Random) -> None:
        content = rng.choice(self.seeds)
        if rng.random() < 0.7:  # one value for another
            lines = content.split(b"\n")
            numbers = [number for number, line in enumerate(lines) if b" = " in line]
            number = rng.choice(numbers)
            lines[number] = lines[number].partition(b" = ")[0] + b" = " + rng.choice(TOML)
            content = b"\n".join(lines)
        else:
            content = changed_bytes(content, rng)
        self.path.write_bytes(content)
        recipe = load_recipe(self.path)
        experiments(recipe)
        if not any(entry.set == "demo" for entry in recipe.data):
            plan(recipe, self.results)


class Checkpoints:
    """Of another version, or crafted: the digest fits."""

    def __init__(self, folder: Path) -> None:
        self.network = torch.nn.Linear(3, 2)
        optimiser = torch.optim.Adam(self.network.parameters())
        self.network(torch.ones(1, 3)).sum().backward()
        optimiser.step()
        self.path = folder / "a.checkpoint"
        self.manager = CheckpointManager(self.path, {"network": self.network, "optimiser": optimiser}, {"work": "1"})
        self.manager.write(2, [{"loss": 0.5}, {"loss": 0.25}], {"cache": "memory"})
        self.seed = self.path.read_bytes()
        self.content = torch.load(io.BytesIO(self.seed[HEADER:]), weights_only=True)

    def __call__(self, rng: random.Random) -> None:
        if (kind := rng.random()) < 0.6:
            file = io.BytesIO()
            torch.save(changed_value(self.content, rng), file)
            content = file.getvalue()
        else:
            content = changed_bytes(self.seed[HEADER:], rng)
        self.path.write_bytes(MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
        if kind > 0.95:
            self.path.write_bytes(changed_bytes(self.seed, rng))
        self.manager.restore()


TARGETS = {kind.__name__.lower(): kind for kind in (Images, Models, Manifests, Recipes, Checkpoints)}


def attack(name: str, inputs: int, first: int = 0) -> dict[str, object]:
    """What became of so many inputs of a target."""
    counts, wrong, began = Counter[str](), {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, -1))
        for number in range(first, first + inputs):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            try:
                target(random.Random(f"{name} {number}"))
                counts["taken"] += 1
            except BlemishError as error:
                counts[type(error).__name__] += 1
            except (Exception, StoppedError) as error:
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:120]}"
                wrong.setdefault(where, []).append(number)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024
    return {"inputs": inputs, **counts, "mib": more, "seconds": round(time.monotonic() - began, 1), "wrong": wrong}


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, stop)
    socket.socket.connect = stop  # nothing is downloaded unasked
    plans = [*zip(sys.argv[1::2], map(int, sys.argv[2::2]))] if len(sys.argv) != 4 else []
    for name, inputs in plans:
        print(json.dumps({name: attack(name, inputs)}), flush=True)
    if not plans:
        print(json.dumps({sys.argv[1]: attack(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))}))
