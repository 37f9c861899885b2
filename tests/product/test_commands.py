"""Every command as a person types it: what it prints where, what it writes, how it exits."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish import __version__
from blemish.cli.app import ORDER
from blemish.data.demo import write_demo
from blemish.inspection.inspector import load


def shell(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as after a fresh installation."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_fit_of_a_folder_says_all_on_the_error_stream_and_the_outcome_on_the_output(
    blemish, parts, quick_fit, tmp_path
):
    model = tmp_path / "new folder" / "parts.blemish"
    done = blemish("fit", parts.root, "-o", model, *quick_fit, "--set", "fraction=0.5", "--set", "layers=2,3")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{model}: {load(model).calibration.sentence()}\n"
    assert "12 good, 0 unlabelled, 0 known-bad images" in done.stderr
    assert "calibration: 5-fold cross-fitting" in done.stderr
    config = load(model).method.config
    assert (config.fraction, config.layers) == (0.5, (2, 3))
    assert [path.name for path in model.parent.iterdir()] == ["parts.blemish"]


def test_fit_of_patterns(blemish, parts, quick_fit, tmp_path):
    good, bad = parts.good / "00*.png", parts.root / "test" / "*" / "001.png"
    model = tmp_path / "weak.blemish"
    patterns = ("--good", good, "--anomalous", bad)
    done = blemish("fit", *patterns, "-o", model, "-m", "patchcore", *quick_fit, "--json", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["regime"], found["images"], found["model"]) == ("weak", 10, str(model))


def test_fit_of_a_manifest_reads_its_training_rows_and_its_groups(blemish, texture, save, quick_fit, tmp_path):
    lines = ["path,label,split,group"]
    for i in range(12):
        pixels = texture(i // 2)
        pixels[0, 0] = i  # a copy would count as nothing
        save(tmp_path / f"{i}.png", pixels)
        lines.append(f"{i}.png,{'good' if i < 10 else 'anomalous'},{'train' if i < 10 else 'test'},part{i // 2}")
    (tmp_path / "set.csv").write_text("\n".join(lines))
    done = blemish("fit", tmp_path / "set.csv", "-o", tmp_path / "m.blemish", *quick_fit, "--json", "-q")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["images"], found["groups"], found["regime"]) == (10, 5, "clean")
    calibration = load(tmp_path / "m.blemish").calibration
    assert (calibration.n, calibration.images) == (5, 10)
    # The two photographs of a part are all but equal: had one stayed in the memory, the other's score would be nothing.
    assert calibration.scores.min() > 0.01


def test_inspect_prints_one_json_line_an_image_in_order(blemish, parts, model, inspector):
    good = parts.good_tests
    done = blemish("inspect", model, *good, *parts.bad)
    assert done.exit_code == 0, done.output
    assert blemish("inspect", model, *good, *parts.bad, "--json").stdout == done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["path"] for line in lines] == [str(path) for path in (*good, *parts.bad)]
    assert {line["decision"] for line in lines[5:]} == {"reject"}
    assert set(lines[0]) == {"path", "decision", "score", "p_value", "regions", "width", "height"}
    for line, path in zip(lines, (*good, *parts.bad)):
        verdict = inspector(path)
        assert line["score"] == pytest.approx(verdict.score, rel=1e-4)
        assert line["decision"] == verdict.decision
        assert [r["box"] for r in line["regions"]] == [list(r.box) for r in verdict.regions]


def test_no_two_images_share_a_name(tmp_path):
    from blemish.inspection.output import _distinct_names

    images = [tmp_path / name for name in ("a.png", "a.jpg", "a_png_0.png", f"{'x' * 245}.png", f"{'x' * 245}.jpg")]
    names = _distinct_names(images)
    assert len({name.casefold() for name in names.values()}) == len(names) == 5
    assert max(map(len, names.values())) <= 210  # with an ending, and a temporary one, still a file's name


def test_on_a_terminal_a_verdict_is_a_line_for_people(parts, inspector, capsys):
    from blemish.cli.inspect import _for_people

    bad = inspector(parts.bad[0])
    _for_people(bad.as_dict(), bad)
    _for_people({"path": "x.png", "error": "x.png is not an image"}, None)
    _for_people({"path": "a\nb.png", "error": "a 16-bit image"}, None)
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"{parts.bad[0]}: reject: score [\d.]+, p [\d.e-]+, \d regions?", first)
    assert second == "x.png is not an image"
    assert third == r"a\nb.png: a 16-bit image"  # a line for each, whatever a file is called


def test_inspect_writes_overlays_maps_and_a_table(blemish, parts, model, inspector, tmp_path):
    folders = parts.root / "test" / "square", parts.root / "test" / "scratch"
    done = blemish(
        *("inspect", model, *folders, "-o", tmp_path / "pictures"),
        *("--maps", tmp_path / "maps", "--csv", tmp_path / "regions.csv"),
    )
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    # The folders share file names, so the pictures are led by the folders' names.
    wanted = {f"{kind}_{i:03}" for kind in ("square", "scratch") for i in range(3)}
    assert {Path(line["overlay"]).stem for line in lines} == {Path(line["map"]).stem for line in lines} == wanted
    for line in lines:
        heatmap = np.asarray(Image.open(line["map"]))
        np.testing.assert_allclose(heatmap, inspector(line["path"]).heatmap, rtol=1e-4)
        with Image.open(line["overlay"]) as picture:
            assert min(picture.size) >= 64
    with (tmp_path / "regions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(max(1, len(line["regions"])) for line in lines)


def test_pictures_do_not_replace_each_other(blemish, model, texture, save, tmp_path):
    images = [save(tmp_path / "new" / name, texture(3)) for name in ("part.png", "part.bmp", "PART.png")]
    assert blemish("inspect", model, *images, "-o", tmp_path / "out", "-q").exit_code == 0
    assert len({name.name.casefold() for name in (tmp_path / "out").glob("*.png")}) == 3


def test_inspect_and_evaluate_write_a_page(blemish, parts, model, inspector, tmp_path):
    tests = [*parts.good_tests, *parts.bad]
    counts = Counter(inspector(path).decision for path in tests)
    said = f"11 judged: {counts['ok']} ok, {counts['review']} review, {counts['reject']} reject"
    assert counts["reject"] >= 6
    done = blemish("inspect", model, parts.root / "test", "-o", tmp_path / "new")
    assert done.exit_code == 0 and done.stderr.endswith(f"\n{said}\n")
    assert said in (tmp_path / "new" / "index.html").read_text()
    done = blemish("evaluate", model, parts.root, "-o", tmp_path / "test")
    assert done.exit_code == 0 and done.stderr.endswith(f"\n{said}\n")
    page = (tmp_path / "test" / "index.html").read_text()
    assert f"<h1>{said}</h1>" in page
    assert "Bad, rejected or for review (6 of 6)" in page and "Bad, and left alone" not in page
    titles = re.findall(r"<b>(\w+): \d+\.png</b>", page)
    assert sorted(titles) == ["good"] * 5 + ["scratch"] * 3 + ["square"] * 3
    above = [inspector(path).score > inspector.calibration.threshold for path in parts.good_tests]
    assert re.search(rf"reject above</td><td>[\d.]+</td><td>{sum(above)} of 5</td><td>6 of 6</td>", page)


def test_fail_on(blemish, parts, model, inspector):
    bad, good = parts.bad[:2], parts.good_tests[1:2]
    assert {inspector(path).decision for path in bad} == {"reject"} != {inspector(path).decision for path in good}
    for fail_on, images, code in (("never", bad, 0), ("reject", bad, 3), ("review", bad, 3), ("reject", good, 0)):
        assert blemish("inspect", model, *images, "--fail-on", fail_on, "-q").exit_code == code


def test_an_unreadable_image_is_one_error_line_and_the_others_are_judged(blemish, parts, model, tmp_path):
    broken, missing = tmp_path / "broken.png", tmp_path / "missing.png"
    broken.write_bytes(b"no image at all")
    done = blemish("inspect", model, parts.bad[0], broken, missing, parts.bad[1], "--fail-on", "reject", "-q")
    assert done.exit_code == 1
    lines = {line["path"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert len(lines) == 4
    assert set(lines[str(broken)]) == set(lines[str(missing)]) == {"path", "error"}
    assert {lines[str(path)]["decision"] for path in parts.bad[:2]} == {"reject"}


def test_evaluate_gives_the_named_figures_as_one_object(blemish, parts, model):
    done = blemish("evaluate", model, parts.root, "--json", "--per-image-pro")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    figures = "image_auroc image_ap image_f1_max_oracle accuracy_oracle pixel_auroc pixel_ap pixel_fpr95 aupro aupro_05"
    rates = "false_reject_rate false_review_rate escape_rate caught_at_5 caught_at_1"
    for name in (*figures.split(), *rates.split(), "aupro_per_image"):
        assert 0 <= found[name] <= 1, name
    for name in ("false_reject", "false_review", "escape"):
        low, high = found[f"{name}_interval"]
        assert low <= found[f"{name}_rate"] <= high
    assert (found["caught_at_1"], found["caught_at_1_interval"]) == (1.0, [pytest.approx(0.025 ** (1 / 6)), 1.0])
    text = blemish("evaluate", model, parts.root).stdout
    assert re.search(r"caught_at_5 +1.0000   \(95 % interval 0.541 to 1.000, by part\)", text)
    assert re.search(r"false_review_rate +0.\d+ ", text)
    assert (found["images"], found["anomalous"], set(found["kinds"])) == (11, 6, {"square", "scratch"})
    assert found["image_auroc"] == 1.0
    assert found["pixel_auroc"] > 0.8
    assert found["escape_rate"] == 0.0


def test_calibrate_gives_a_new_threshold_and_keeps_what_was_learned(blemish, parts, model, inspector, tmp_path):
    path, good = tmp_path / "fresh.blemish", parts.root / "test" / "good"
    # An image that is given twice counts once.
    shares = "--false-reject", "0.2", "--review", "0.3"
    done = blemish("calibrate", model, good, good / "000.png", "-o", path, *shares, "--json")
    assert done.exit_code == 0, done.output
    fresh = load(path)
    calibration = fresh.calibration
    assert json.loads(done.stdout)["threshold"] == pytest.approx(calibration.threshold)
    assert calibration.scores == pytest.approx(sorted(inspector(path).score for path in parts.good_tests), rel=1e-4)
    assert (calibration.kind, calibration.rate, calibration.review, calibration.n) == ("holdout", 0.2, 0.3, 5)
    assert fresh(parts.bad[0]).score == inspector(parts.bad[0]).score
    mixed = blemish("calibrate", model, parts.root / "test", "-o", tmp_path / "mixed.blemish")
    assert "6 of 11 images lie not in a folder good" in mixed.stderr and "lie not" not in done.stderr


def test_rates_that_cannot_be_had_are_refused_before_any_image_is_judged(blemish, parts, model, tmp_path, monkeypatch):
    monkeypatch.setattr("blemish.inspection.inspector.Inspector.scores", lambda *_: 1 / 0)
    for shares, words in (("--false-reject 0", "above 0"), ("--false-reject 0.6 --review 0.6", "stay below 1")):
        line = ["calibrate", model, parts.root / "test" / "good", "-o", tmp_path / "m.blemish", *shares.split()]
        assert words in blemish(*line).stderr


def test_info_says_what_a_model_is(blemish, model, inspector):
    found = json.loads(blemish("info", model, "--json").stdout)
    assert found["method"] == "patchcore"
    assert found["promise"] == inspector.calibration.sentence()
    assert found["backbone"]["name"] == "efficientnet_lite0"
    assert found["weights_digest"] == found["backbone"]["digest"]
    assert (found["images"], found["seed"], found["regime"]) == (12, 0, "clean")
    assert str(model.parent) not in json.dumps(found)
    text = blemish("info", model).stdout
    assert inspector.calibration.sentence() in text
    layers = json.dumps(list(inspector.method.config.layers))
    assert f"layers {layers}, " in text, "as JSON has it, not as Python"
    assert inspector.info() == found


def test_the_version(blemish):
    assert blemish("--version").stdout == f"blemish {__version__}\n"


def test_every_command_answers_in_json_on_request(blemish):
    silent = [command for command in ORDER if "--json" not in blemish(command, "--help").stdout]
    assert silent == ["serve"]  # which answers over HTTP


@pytest.mark.slow
def test_the_demo_in_json(blemish, tmp_path, monkeypatch):
    monkeypatch.setattr("blemish.report.demo.write_demo", partial(write_demo, categories=["brick"]))
    done = blemish("demo", "-o", tmp_path, "--json", "-q", "--threads", "1")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert Path(found["page"]) == tmp_path / "index.html"
    assert Path(found["page"]).read_text().count(f"{found['textures']['brick']['image_auroc']:.3f}") >= 1
    assert found["textures"]["brick"]["seconds"] > 0


def test_lists_are_the_same_in_words_and_as_json(blemish):
    for command in ("methods", "backbones", "datasets"):
        rows = json.loads(blemish(command, "--json").stdout)
        text = blemish(command)
        assert (text.exit_code, text.stderr) == (0, "")
        header, *lines = text.stdout.splitlines()
        assert header.split(" | ")[-1] in next(iter(rows.values()))
        assert [line.split()[0] for line in lines] == list(rows)
        for line, row in zip(lines, rows.values()):
            assert all(value in line for value in row.values())


@pytest.mark.parametrize("arguments", [None, "--help", "fit --help", "methods", "backbones", "datasets"])
def test_answers_at_once(arguments):
    """Under half a second, the interpreter's own start included; torch and timm would cost seconds.

    Processor seconds are counted, which for a program of one thread are the seconds of a machine with nothing else to
    do: the clock on the wall also measures whatever else is running.
    """
    program = f"from blemish.__main__ import main; sys.argv = ['blemish', *'{arguments}'.split()]; main()"
    program = "import blemish" if arguments is None else program
    watched = f"import sys, atexit\natexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))\n{program}"
    seconds: list[float] = []
    while len(seconds) < 5 and (not seconds or min(seconds) >= 0.5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = shell("-c", watched)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0, done.stderr
    assert not {"torch", "timm", "torchvision", "scipy", "safetensors"} & set(done.stderr.split())
    assert min(seconds) < 0.5


def test_the_installed_command_runs_a_whole_inspection(parts, model):
    """One real process: results on standard output, all else on standard error, exit code 3 for a reject."""
    program = "from blemish.cli import main; main()"
    done = shell("-c", program, "inspect", str(model), str(parts.bad[0]), "--fail-on", "reject")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["decision"] == "reject"
    assert "inspecting: 1 done" in done.stderr
