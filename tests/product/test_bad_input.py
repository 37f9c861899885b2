"""What people will do to it: every kind of bad input ends in one line that says what to do, and breaks nothing else."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from blemish.data.testset import open_test_set
from blemish.errors import BlemishError, ImageError, ModelFileError, OutputError
from blemish.inspection.calibration import Calibration
from blemish.inspection.inspector import load
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.fit import fit


def refused(done, *words, code=1):
    """The command failed with ``code``, one line on the error stream that has all of ``words``, and no traceback."""
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    last = done.stderr.strip().splitlines()[-1]
    assert all(word in last for word in words), last
    return last


def accepted(done, *words):
    assert done.exit_code == 0, done.output
    assert all(word in done.stderr for word in words), done.stderr


@pytest.fixture
def pile(texture, save, tmp_path):
    """A folder of eight good images, for a test to spoil."""
    for i in range(8):
        save(tmp_path / "pile" / f"{i}.png", texture(i))
    return tmp_path / "pile"


FIT = "fit {root} -o {out} "
REFUSED = [  # a command line, its exit code, words of the last line that it says
    ("fit {tmp}/empty -o {out}", 1, ("empty", "no image to learn from", "needed")),
    ("fit {tmp}/absent -o {out}", 1, ("absent", "does not exist")),
    ("fit {tmp}/bad -o {out}", 1, ("1 known-bad images", "put good images into good/")),
    ("fit {tmp}/inside/up.csv -o {out}", 1, ("line 2", "../secret.png", "leaves the manifest's folder")),
    ("fit {tmp}/inside/absolute.csv -o {out}", 1, ("line 2", "/secret.png", "leaves the manifest's folder")),
    ("fit {tmp}/inside/link.csv -o {out}", 1, ("line 2", "link.png", "leaves the manifest's folder")),
    ("evaluate {model} {tmp}/inside/mask.csv", 1, ("leaves the manifest's folder",)),
    # Places to write to
    ("fit {root} -o {tmp}/file/m.blemish", 1, ("was not written",)),
    ("fit {root} -o {tmp}", 1, ("is a folder",)),
    ("inspect {model} {image} -q -o {tmp}/file", 1, ("was not written",)),
    ("inspect {model} {image} -q --maps {tmp}/file", 1, ("was not written",)),
    ("inspect {model} {image} -q --csv {tmp}/file/t.csv", 1, ("was not written",)),
    ("inspect {model} {image} -q --csv {model}", 1, ("would be replaced",)),
    ("inspect {model} {image} -q --csv {image}", 1, ("written over",)),
    ("inspect {model} {good}/003.png -q -o {good}", 1, ("written over",)),
    ("fit {good} -o {good}/003.png", 1, ("is an image of this set and would be replaced",)),
    ("audit {good} -o {good}/003.png", 1, ("is an image of this set and would be replaced",)),
    ("audit {good} -o {tmp}/page.html --clean {tmp}/elsewhere.csv", 1, ("inside its own folder",)),
    ("audit {good} -o {tmp}/page.html --clean {good}/003.png", 1, ("is an image of this set and would be replaced",)),
    ("audit {good} -o {tmp}/one.html --clean {tmp}/one.html", 1, ("cannot hold both",)),
    ("inspect {model} {image} -q -o {tmp}/album", 1, ("holds others, such as 0001.jpg", "another folder")),
    ("calibrate {model} {root}/test/good -o {root}/test/good/000.png -q", 1, ("is one of the good images",)),
    ("calibrate {model} {root}/test/good -o {tmp}/file/m.blemish -q", 1, ("was not written",)),
    ("calibrate {model} {root}/test/good -o {tmp}/part.onnx -q", 2, ("writes no ONNX file",)),
    ("export {model} -o {model} -q", 1, ("is the model and would be replaced",)),
    ("export {model} -o {good}/003.png --check {good} -q", 1, ("is an image to compare on and would be replaced",)),
    ("inspect {model} {image} -q --weights {tmp}/absent.pth", 2, ("holds its own backbone",)),
    ("contaminate {root} -o {tmp}", 1, ("is a folder",)),
    ("reveal {root} -o {tmp}", 1, ("is a folder",)),
    ("bench recipes/quick.toml --dry-run --results {tmp}/file/results", 1, ("name another folder, --results",)),
    # Model files and weights
    ("inspect {tmp}/none.blemish {image}", 1, ("no model file", "blemish fit")),
    ("inspect {tmp}/none.onnx {image}", 1, ("no model file", "fit DATA -o none.blemish", "export none.blemish")),
    (FIT + "-o {tmp}/part.onnx", 2, ("part.blemish, and then blemish export",)),
    ("info {tmp}", 1, ("is a folder", "the model comes first")),
    ("inspect {root} {image}", 1, ("is a folder", "the model comes first, then images")),
    ("inspect {image} {image}", 1, ("not a whole model file", "the model first, then images")),
    ("inspect {model} {image} --threads 100000", 2, ("--threads 100000", "cores", "give 1 to")),
    ("evaluate {model} {root} -o {tmp}/file -q", 1, ("file is a file, not a folder",)),
    ("export {model} -o {tmp}/part.blemish -q", 2, ("this writes an ONNX file", "part.onnx")),
    (FIT + "-m devnet", 1, ("devnet learns from weak sets", "--anomalous 'bad/*.png'")),
    ("inspect {plain} {image} --fail-on reject -q", 1, ("not calibrated", "blemish calibrate")),
    (FIT + "--backbone resnet18 --weights {tmp}/absent.pth", 1, ("no weights file", "absent.pth")),
    (FIT + "--backbone resnet18 --weights {image}", 1, ("cannot be read as weights",)),
    # Promises that cannot be kept
    (FIT + "--false-reject 0.01", 1, ("needs at least 49", "there are 12")),
    ("calibrate {model} {root}/test/good -o {out} --false-reject 0.05 -q", 1, ("needs at least 19", "there are 5")),
    # Arguments that name nothing
    (FIT + "-m pachcore", 2, ("'pachcore'", "did you mean 'patchcore'?")),
    (FIT + "--backbone resnet81", 2, ("resnet81",)),
    (FIT + "--set fraction=lots", 2, ("fraction='lots'", "valid number")),
    (FIT + "--set fraction", 2, ("key=value",)),
    (FIT + "--device tpu", 2, ("'tpu'", "auto, cpu or cuda")),
    (FIT + "--epochs 3", 2, ("patchcore is not trained in epochs",)),
    (FIT + "--size 0", 2, ("--size", "a side such as 448")),
    (FIT + "--size 1000000", 2, ("--size", "a side such as 448")),
    (FIT + "--false-reject 1.5", 2, ("1.5", "below 1")),
    (FIT + "--review 0.95", 2, ("0.95", "both together must stay below 1")),
    ("demo --seed -1", 2, ("seed",)),
    (FIT + "--calibration none --false-reject 0.1", 2, ("a false-reject rate needs a calibration",)),
    (FIT + "--calibration none --review 0.1", 2, ("a share for review needs a calibration",)),
    ("fit {good} -o {out} --profile fast --poses none --smallest-defect 500", 2, ("wider than the images",)),
    (FIT + "--calibration sometimes", 2, ()),
    ("fit parts --good x/*.png", 2, ()),
    ("fit --good {good}/*.png --pile -o {out}", 2, ("--unlabelled",)),
    ("inspect {model} {image} -q -o {good}", 1, ("no picture of blemish",)),
    ("inspect", 2, ()),
    ("nonsense", 2, ()),
    ("evaluate {model} {root} --at somewhere", 2, ()),
]


@pytest.fixture(scope="module")
def places(parts, model, inspector, tmp_path_factory):
    """What the command lines above name."""
    tmp = tmp_path_factory.mktemp("refused")
    for folder in ("empty", "bad/anomalous", "inside"):
        (tmp / folder).mkdir(parents=True)
    (tmp / "file").write_text("in the way")
    (tmp / "album" / "page").mkdir(parents=True)
    for copy in ("bad/anomalous/1.png", "secret.png", "album/page/0001.jpg"):
        shutil.copy(parts.bad[0], tmp / copy)
    (tmp / "inside" / "link.png").symlink_to(tmp / "secret.png")
    for name, named in (("up", "../secret.png"), ("absolute", tmp / "secret.png"), ("link", "link.png")):
        (tmp / "inside" / f"{name}.csv").write_text(f"path,label\n{named},normal\n")
    shutil.copy(parts.bad[0], tmp / "inside" / "own.png")
    rows = "path,label,split,mask\nown.png,anomalous,test,../secret.png\n"
    (tmp / "inside" / "mask.csv").write_text(rows)
    plain = dataclasses.replace(inspector, calibration=Calibration()).save(tmp / "plain.blemish")
    known = {"root": parts.root, "good": parts.good, "image": parts.bad[0], "model": model}
    return {**known, "tmp": tmp, "out": tmp / "m.blemish", "plain": plain}


def contents(*folders):
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("line", "code", "words"), REFUSED)
def test_refusals_are_one_line_and_change_nothing(blemish, places, line, code, words):
    before = contents(places["tmp"], places["root"], places["model"].parent)
    done = blemish(*line.format(**places).split())
    refused(done, *words, code=code)
    assert done.stdout == "" and "weights_only" not in done.stderr
    assert contents(places["tmp"], places["root"], places["model"].parent) == before


# Folders


def test_one_image_is_learned_without_a_threshold(blemish, texture, save, quick_fit, tmp_path):
    image = save(tmp_path / "one" / "1.png", texture(1))
    done = blemish("fit", image.parent, "-o", tmp_path / "m.blemish", *quick_fit)
    accepted(done, "1 good parts are too few to calibrate on")
    judged = json.loads(blemish("inspect", tmp_path / "m.blemish", image, "-q").stdout)
    assert (judged["decision"], judged["p_value"]) == (None, None) and judged["score"] >= 0


def test_spaces_and_letters_of_other_languages_in_every_path(blemish, texture, save, quick_fit, tmp_path):
    folder = tmp_path / "Bauteile für Größe 3 [neu]" / "良品 ñ"
    for i in range(6):
        save(folder / f"foto nº {i}.png", texture(i))
    model = tmp_path / "модель é.blemish"
    accepted(blemish("fit", folder, "-o", model, *quick_fit, "-q"))
    done = blemish("inspect", model, folder / "foto nº 3.png", "-o", tmp_path / "Ausgänge 1", "-q")
    accepted(done)
    line = json.loads(done.stdout)
    assert line["path"] == str(folder / "foto nº 3.png") and Path(line["overlay"]).is_file()


def test_the_same_images_twice_are_a_warning(blemish, parts, quick_fit, pile, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(parts.root / "train", root / "train")
    shutil.copytree(parts.root / "test" / "good", root / "test" / "good")
    shutil.copy(root / "train" / "good" / "004.png", root / "test" / "good" / "copy.png")
    shutil.copy(pile / "1.png", pile / "1 (copy).png")
    for data, warning in (
        (root, "warning: 004.png in train is byte for byte copy.png in test"),
        (pile, "warning: 1 training images are copies of others: equal images count as one part"),
    ):
        done = blemish("fit", data, "-o", tmp_path / "m.blemish", *quick_fit)
        accepted(done)
        assert [line for line in done.stderr.splitlines() if line.startswith("warning")] == [warning]


# Single images


@pytest.fixture(params=["cut.jpg", "text.png", "gone.png"])
def broken(request, texture, save, tmp_path):
    """A file that is no whole image, or a link to none, and why."""
    path = save(tmp_path / request.param, texture(1))
    if path.name == "gone.png":
        path.unlink()
        path.symlink_to(tmp_path / "nowhere.png")
        return path, "cannot be opened"
    content, reason = (b"hello", "not an image") if path.suffix == ".png" else (path.read_bytes(), "damaged")
    path.write_bytes(content[: 1 + len(content) // 2])
    return path, reason


def test_bad_images_in_a_training_folder_are_named_and_left_out_or_fail_when_strict(broken, pile, blemish, quick_fit):
    path, reason = broken
    shutil.copy(path, pile, follow_symlinks=False)
    model = pile.parent / "m.blemish"
    refused(blemish("fit", pile, "-o", model, *quick_fit, "--strict"), path.name, reason)
    assert not model.exists()
    done = blemish("fit", pile, "--pile", "-m", "patchcore", "-o", model, *quick_fit, "-q")
    warning, skipped = done.stderr.splitlines()  # all that is said when quiet
    assert skipped.startswith("skipped: ") and path.name in skipped and reason in skipped
    assert warning.startswith("warning: patchcore takes every unlabelled image as good")
    assert "Nobody has looked at them" in done.stdout
    assert load(model).provenance["images"] == 8


def test_a_bad_image_at_inspection_is_an_error_for_that_one(broken, parts, inspector):
    path, reason = broken
    with pytest.raises(ImageError, match=reason):
        inspector(path)
    failed: list[tuple[object, str]] = []
    three = [parts.bad[0], path, parts.bad[1]]
    judged = list(inspector.many(three, on_error=lambda path, error: failed.append((path, str(error)))))
    assert [verdict.source for verdict in judged] == [str(parts.bad[0]), str(parts.bad[1])]
    assert [path for path, _ in failed] == [path] and reason in failed[0][1]


def test_what_does_not_fit_the_others_of_a_test_set(blemish, inspector, model, parts, save, tmp_path):
    shutil.copytree(parts.root, tmp_path / "set")
    deep = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)  # decodes, but no image in training was as deep
    save(tmp_path / "set" / "test" / "good" / "deep.png", deep)
    found = evaluate(inspector, open_test_set(tmp_path / "set"), Run())
    assert len(found.judged) == 11
    assert any("deep.png" in note and "16-bit" in note for note in found.notes)
    mask = save(tmp_path / "set" / "ground_truth" / "square" / "001_mask.png", np.zeros((32, 64), np.uint8))
    done = blemish("evaluate", model, tmp_path / "set", "--json")
    accepted(done)  # one bad mask ends nothing: its image is left out of the pixel metrics, and counted
    (note,) = (note for note in json.loads(done.stdout)["notes"] if "masks" in note)
    assert (
        note.startswith("1 images are left out of the pixel metrics") and str(mask) in note and "must be equal" in note
    )


def test_what_is_no_image_goes_to_on_error_and_bytes_of_any_kind_are_read(parts, inspector):
    content, refused = parts.bad[0].read_bytes(), []
    given = [
        bytearray(content),
        None,
        memoryview(content),
        [1, 2],
        "a\0.png",
        torch.zeros(3, 9, 9),
        io.BytesIO(content),
    ]
    scores = [verdict.score for verdict in inspector.many(given, on_error=lambda source, _: refused.append(source))]
    assert len(scores) == 3 and len(set(scores)) == 1
    assert [type(source).__name__ for source in refused] == ["NoneType", "list", "str", "Tensor"]


def test_names_that_steer_terminals_compute_or_are_no_utf8(blemish, model, texture, save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["=HYPERLINK(x).png", "-1.png", os.fsdecode(b"x\xff.png")]
    for number, name in enumerate(names):
        save(tmp_path / "one.png", texture(number)).rename(name)
    Path("\x1b[2Jbad.png").write_bytes(b"no image")
    done = blemish("inspect", model, "--csv", "r.csv", "-q", "--", *names, "\x1b[2Jbad.png")
    assert {json.loads(line)["path"] for line in done.stdout.splitlines()} == {*names, "\x1b[2Jbad.png"}
    paths = [row.split(",")[0] for row in Path("r.csv").read_text().splitlines()[1:]]
    assert set(paths) == {"./=HYPERLINK(x).png", "./-1.png", r"x\udcff.png"}
    done = blemish("fit", tmp_path, "-o", "m.blemish", "--size", "64", "--set", "fraction=0.1")
    assert r"\x1b[2Jbad.png" in done.stderr and "\x1b" not in done.stderr


# Places to write to


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EROFS, "not writable"), (errno.EACCES, "not writable"), (errno.ENOSPC, "disk is full")],
)
def test_a_place_that_cannot_be_written_to_is_found_out_before_learning(
    blemish, parts, monkeypatch, tmp_path, number, words
):
    """Every attempt to make a temporary file fails: tests may run as root, whom no permission stops."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr("blemish.training.fit.fit", None)  # nothing may be learned before that is known
    refused(blemish("fit", parts.root, "-o", tmp_path / "m.blemish"), "m.blemish was not written", words, "-o")


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), OutputError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_model_not_written_to_its_end_leaves_the_old_one(inspector, monkeypatch, tmp_path, error, expected):
    whole = inspector.save(tmp_path / "m.blemish").read_bytes()

    def stopped(tensors, path, metadata=None):
        Path(path).write_bytes(whole[:1000])
        raise error

    monkeypatch.setattr("blemish.inspection.model_file.save_file", stopped)
    with pytest.raises(expected, match="disk is full" if expected is OutputError else None):
        inspector.save(tmp_path / "m.blemish")
    assert [path.name for path in tmp_path.iterdir()] == ["m.blemish"]
    assert (tmp_path / "m.blemish").read_bytes() == whole


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_standard_output_is_one_line():
    command = [sys.executable, "-c", "from blemish.cli import main; main()", "methods"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "standard output" in done.stderr


# Model files


def test_a_model_cut_short_or_with_one_byte_flipped_anywhere(blemish, model, tmp_path):
    content = bytearray(model.read_bytes())
    damaged = tmp_path / "damaged.blemish"
    for share in (0.0, 0.0005, 0.3, 0.999):
        damaged.write_bytes(content[: int(share * len(content))])
        refused(blemish("info", damaged), "damaged.blemish", "not a whole model file")
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    for place in [*range(9), *rng.integers(9, header, 40), *rng.integers(header, len(content), 25), len(content) - 1]:
        content[place] ^= 0x01
        damaged.write_bytes(content)
        with pytest.raises(ModelFileError):
            load(damaged)
        content[place] ^= 0x01


def test_a_model_of_another_version(blemish, model, tmp_path):
    with safe_open(model, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for changed, words in (
        ({"schema": "4"}, "Update Blemish"),
        ({"schema": "0"}, "Fit anew"),
        ({"schema": "one"}, "Fit anew"),
        ({"format": "other"}, "not a Blemish model"),
        ({"description": "{}"}, "damaged"),
    ):
        save_file(tensors, tmp_path / "other.blemish", metadata=header | changed)
        refused(blemish("info", tmp_path / "other.blemish"), "other.blemish", words)


def test_an_unknown_setting_from_python_names_the_nearest(parts):
    with pytest.raises(BlemishError, match="did you mean 'backbone'"):
        fit(parts.root, backbon="resnet18")


# Labels that a method cannot use


def test_known_bad_images_are_scored_not_learned_from_and_part_of_where_a_model_comes_from(
    blemish, texture, save, quick_fit, pile, tmp_path
):
    digests = set()
    for number, seeds in enumerate(([], [40], [41])):
        folder, model = tmp_path / f"set{number}", tmp_path / f"{number}.blemish"
        shutil.copytree(pile, folder / "good")
        for seed in seeds:
            save(folder / "anomalous" / "hole" / f"{seed}.png", 255 - texture(seed))
        done = blemish("fit", folder, "-m", "patchcore", "-o", model, *quick_fit, "--json")
        said = ["learns from the good images alone", "of 1 known-bad images this model rejects 1"] if seeds else []
        accepted(done, *said)
        provenance = json.loads(done.stdout)
        assert provenance["known_bad"] == len(seeds)
        assert provenance["known_bad_found"].get("rejected") == (1 if seeds else None)
        digests.add(provenance["data_digest"])
    assert len(digests) == 3


def test_a_training_that_ran_away_leaves_no_model(blemish, pile, quick_fit, tmp_path):
    runaway = ("--set", "learning_rate=1e30", "--set", "layers=1,2", "--epochs", "2", "--calibration", "none")
    done = blemish("fit", pile, "-m", "rd", "-o", tmp_path / "m.blemish", *quick_fit, *runaway, "-q")
    refused(done, "what rd learned is not finite", code=2)
    assert not (tmp_path / "m.blemish").exists()


def test_an_audit_takes_methods_of_the_clean_regime(blemish, pile, tmp_path):
    quick = ("--size", "64", "--threads", "1", "--epochs", "1", "--set", "layers=2,3", "-o", tmp_path / "page.html")
    done = blemish("audit", pile, "-m", "rd", *quick, "--json", "-q")
    accepted(done)
    assert len(done.stdout.splitlines()) == 8
    said = "devnet learns from known-bad images, and an audit has none"
    refused(blemish("audit", pile, "-m", "devnet", *quick), said)


# The user changes their mind


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_takes_away_what_it_had_half_written(tmp_path, number):
    program = (
        "import sys, time, pathlib\n"
        "from blemish.cli import app, main\n"
        "from blemish.run import written_atomically\n"
        "@app.command()\n"
        "def hang(path: pathlib.Path):\n"
        "    with written_atomically(path) as temporary:\n"
        "        sys.stdout.write('half')\n"
        "        sys.stdout.flush()\n"
        "        time.sleep(60)\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, "hang", str(tmp_path / "whole")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.read(4) == "half"
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    process.send_signal(number)
    assert process.communicate(timeout=30)[1].startswith("blemish: stopped")
    assert process.returncode == 1 and list(tmp_path.iterdir()) == []


SILENT = ("sys.stderr = None", "sys.stdout = sys.stderr = None")


@pytest.mark.parametrize("start", ["sys.stderr.close()", *(pytest.param(s, marks=pytest.mark.slow) for s in SILENT)])
def test_without_an_error_stream_it_works_quietly(model, parts, start):
    """A service, a program without a console, ``2>&-``."""
    program = f"import sys; {start}; from blemish.cli import main; main()"
    command = [sys.executable, "-c", program, "inspect", str(model), str(parts.bad[0]), "--fail-on", "reject"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert ('"decision": "reject"' in done.stdout) == ("stdout" not in start)


@pytest.mark.slow
def test_ctrl_c_while_learning_leaves_nothing_half_written(parts, tmp_path):
    """A real process, interrupted once it has begun to learn."""
    slow = (
        "import time\n"
        "import blemish.training.setup as fitting\n"
        "def slow(*a, **k):\n"
        "    import sys; sys.stderr.write('LEARNING\\n'); sys.stderr.flush(); time.sleep(60)\n"
        "fitting.build_backbone = slow\n"
        "from blemish.cli import main; main()\n"
    )
    model = tmp_path / "out" / "m.blemish"
    command = [sys.executable, "-c", slow, "fit", str(parts.root), "-o", str(model), "--size", "64", "--poses", "none"]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    assert process.stderr is not None
    said = [next(process.stderr)]
    while said[-1] != "LEARNING\n":
        said.append(next(process.stderr, "LEARNING\n"))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=30)
    assert time.monotonic() - began < 20
    assert (process.returncode, out) == (1, ""), "".join(said) + rest
    (line,) = rest.splitlines()
    assert line.startswith("blemish: stopped")
    assert list(model.parent.iterdir()) == []


@pytest.mark.parametrize(
    "start", ["from blemish.__main__ import main; main()", "runpy.run_module('blemish', run_name='__main__')"]
)
def test_ctrl_c_while_python_still_imports(start):
    """Interrupted in its first tenths of a second, called as ``blemish`` or ``python -m blemish``."""
    interrupting = (
        "import sys, runpy\n"
        "class Interrupting:\n"
        "    def find_spec(name, *rest):\n"
        "        if name == 'blemish.cli.fit': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting)\n"
    )
    command = [sys.executable, "-c", interrupting + start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "blemish: stopped; nothing half-written is left behind\n"
