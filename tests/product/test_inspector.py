"""The inspector from Python: the same verdict whatever the way in, before and after saving, alone or among many."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import blemish
from blemish.data.testset import open_test_set
from blemish.errors import BlemishError, CalibrationError, ConfigError, DataError, ModelFileError, WeightsError
from blemish.inspection.calibration import PROMISE_FROM
from blemish.inspection.inspector import load
from blemish.inspection.overlay import Scale
from blemish.run import Silent
from blemish.training.evaluate import evaluate
from blemish.training.fit import fit

QUICK = {"size": 64, "backbone": "resnet18", "weights": "random", "options": {"fraction": 0.05}}
BATCHED = 1e-4
"""Relative difference that batched products may make; ``many`` states about 1e-5."""


def alike(ours, theirs):
    """Equal in everything that counts, to the bit."""
    assert ours.score == theirs.score
    for name in ("p_value", "decision", "regions", "size"):
        assert getattr(ours, name) == getattr(theirs, name)
    np.testing.assert_array_equal(ours.heatmap, theirs.heatmap)
    np.testing.assert_array_equal(np.asarray(ours.overlay()), np.asarray(theirs.overlay()))


def test_path_text_bytes_pillow_and_array_give_one_verdict(inspector, parts):
    path = parts.bad[0]
    expected = inspector(path)
    assert expected.source == str(path)
    pixels = np.asarray(Image.open(path))
    for given in (str(path), path.read_bytes(), Image.open(path), pixels, np.ascontiguousarray(pixels)):
        verdict = inspector(given)
        alike(verdict, expected)
        assert verdict.source == (given if isinstance(given, str) else None)


def test_sixteen_bits_on_the_scale_that_was_learned(texture, save, tmp_path):
    """12-bit images fit a scale of 4095: the same picture at 8 bits and at 12 scores nearly alike."""
    for i in range(6):
        save(tmp_path / "good" / f"{i}.png", texture(i)[..., 0].astype(np.uint16) * 16)
    deep = fit(tmp_path, **QUICK)
    assert deep.preparation.white_level == 4095
    part = texture(9)[..., 0].astype(np.uint16) * 16
    spoiled = part.copy()
    spoiled[20:40, 20:40] = 4000
    alike(deep(part), deep(Image.fromarray(part)))
    assert deep(spoiled).score > deep(part).score
    # On a screen the learned scale is white, so that pictures of one model are comparable.
    assert np.abs(deep(part).pixels[..., 0].astype(float) - part / 4095 * 255).max() <= 0.5


def test_heat_map_regions_and_picture_are_in_the_original_image_s_own_pixels(inspector, parts):
    """The image is enlarged to 160 x 96 pixels; the network still sees 64 x 64."""
    for name, (top, left, bottom, right) in parts.squares.items():
        image = Image.open(parts.root / "test" / "square" / name).resize((160, 96), Image.Resampling.BICUBIC)
        verdict = inspector(image)
        assert verdict.size == verdict.heatmap.shape == (96, 160)
        assert verdict.decision == "reject"
        x, y = verdict.regions[0].peak
        tolerance = 6  # a patch of 8 pixels at the network's size
        assert (left - tolerance) * 2.5 <= x <= (right + tolerance) * 2.5
        assert (top - tolerance) * 1.5 <= y <= (bottom + tolerance) * 1.5
        assert verdict.heatmap[y, x] == pytest.approx(verdict.heatmap.max())
        x0, y0, x1, y1 = verdict.regions[0].box
        inside = verdict.heatmap[y0:y1, x0:x1] > inspector.calibration.pixel_threshold
        assert inside.any(axis=0).all() and inside.any(axis=1).all()


def test_smallest_area_leaves_small_regions_out_and_changes_nothing_else(inspector, parts):
    verdict = inspector(parts.bad[0])
    largest = max(region.area for region in verdict.regions)
    for smallest, areas in ((largest, [largest]), (largest + 1, [])):
        stricter = dataclasses.replace(inspector, smallest_area=smallest)(parts.bad[0])
        assert [region.area for region in stricter.regions] == areas
        assert (stricter.score, stricter.decision) == (verdict.score, verdict.decision)


def test_pictures_are_magnified_unless_long_and_thin(inspector, parts):
    path = parts.good_tests[1]
    verdict = inspector(path)
    assert (verdict.decision, verdict.regions) == ("ok", ())
    picture, pixels = np.asarray(verdict.overlay()), np.asarray(Image.open(path))
    zoom = len(picture) // 64
    assert zoom > 1
    np.testing.assert_array_equal(picture, pixels.repeat(zoom, axis=0).repeat(zoom, axis=1))
    long = np.random.default_rng(0).integers(0, 255, (8, 1200, 3), dtype=np.uint8)
    assert inspector(long).overlay().size == (1200, 8)


def test_many_is_single_calls_in_order_of_any_size_and_kind(inspector, parts, texture):
    images = [*parts.bad, texture(1, (64, 64)), texture(2, (50, 90)), parts.bad[1].read_bytes()]
    single = [inspector(image) for image in images]
    for batch_size in (1, 4, 16):
        many = list(inspector.many(iter(images), batch_size=batch_size))
        assert [verdict.source for verdict in many] == [*(str(path) for path in parts.bad), None, None, None]
        for one, other in zip(many, single, strict=True):
            assert one.score == pytest.approx(other.score, rel=BATCHED)
            assert one.p_value == pytest.approx(other.p_value, rel=1e-3)  # a steep function of the score
            assert (one.decision, one.size) == (other.decision, other.size)
            np.testing.assert_allclose(one.heatmap, other.heatmap, rtol=BATCHED, atol=BATCHED * other.heatmap.max())
    assert list(inspector.many([])) == []


@pytest.mark.slow
def test_folders_patterns_and_lists_are_taken_wherever_images_are(inspector, parts, monkeypatch):
    good, bad, pattern = parts.root / "test" / "good", parts.root / "test" / "square", "test/g*/*.png"
    monkeypatch.chdir(parts.root)
    expected = [inspector(path).score for path in parts.good_tests]
    for given in (good, str(good), pattern, parts.good_tests):
        assert [verdict.score for verdict in inspector.many(given)] == pytest.approx(expected, rel=BATCHED)
    with pytest.raises(DataError, match="no image in"):
        list(inspector.many("test/none-*.png"))
    for given in (good, [good], parts.good_tests, pattern):
        again = inspector.calibrated(given, 0.2)
        assert (again.calibration.n, again.calibration.rate) == (5, 0.2)
        assert again.promise != inspector.promise
    for data in (parts.root, str(parts.root)):
        assert len(evaluate(inspector, data).judged) == 11
    named = [path.name for path in sorted(parts.good.iterdir())]
    for data in ("train/good/*.png", ["train/good"], sorted(parts.good.iterdir())):
        training = blemish.read_training(data)
        assert ([sample.path.name for sample in training.normal], training.regime) == (named, "clean")
    one, other = (fit(data, **QUICK) for data in ("train/good/*.png", parts.good))
    assert one(bad / "000.png").score == other(bad / "000.png").score


def test_a_batch_holds_at_least_one_image(inspector, parts):
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size={size}: at least 1"):
            list(inspector.many(parts.bad, batch_size=size))


def test_a_verdict_is_pickled_with_its_pictures(inspector, parts):
    verdict = inspector(parts.bad[0])
    again = pickle.loads(pickle.dumps(verdict))
    alike(again, verdict)
    alike(dataclasses.replace(again), verdict)
    np.testing.assert_array_equal(again.pixels, verdict.pixels)


def test_inspector_and_verdict_show_themselves(inspector, parts):
    first, second, third = repr(inspector).splitlines()
    size = " x ".join(map(str, inspector.preparation.input_size))
    assert f"patchcore on {inspector.method.backbone.name}" in first and f"{size} pixels" in first
    assert "12 images of parts" in second and str(inspector.calibration.threshold) in second
    assert third == inspector.promise
    assert inspector._repr_html_().startswith("<pre>Inspector: patchcore")
    page = inspector(parts.bad[0])._repr_html_()
    assert "data:image/png;base64," in page and "<figcaption>reject: score" in page


def test_warnings_reach_programs_and_name_their_line(parts, save, texture, tmp_path):
    for i in range(6):
        save(tmp_path / "good" / f"{i}.png", texture(i // 2))
    with pytest.warns(blemish.BlemishWarning, match="copies of others") as said:
        fit(tmp_path, **QUICK, calibration="none")
    assert Path(said[0].filename) == Path(__file__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(tmp_path, **QUICK, calibration="none", run=blemish.Run(progress=Silent()))


def test_progress_counts_images(parts):
    class Recorded(Silent):
        def track(self, items, title, total=None):
            items = list(items)
            counts[title] = len(items)
            return iter(items)

    counts = {}
    fit(parts.root, **QUICK, run=blemish.Run(progress=Recorded()))
    named = ("decoding", "features of the training images", "describing patches")
    assert [counts[title] for title in named] == [12, 12, 12]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_judges_too(model, parts):
    """torch's threads do not come along; without a guard the child waits for them for ever."""
    program = (
        "import os, signal, sys, torch, blemish\n"
        "torch.set_num_threads(2)\n"
        "inspector = blemish.load(sys.argv[1])\n"
        "expected = inspector(sys.argv[2]).score\n"
        "if (child := os.fork()) == 0:\n"
        "    signal.alarm(60)\n"
        "    os._exit(abs(inspector(sys.argv[2]).score / expected - 1) > 1e-4)\n"
        "print(os.waitpid(child, 0)[1])\n"
    )
    command = [sys.executable, "-c", program, str(model), str(parts.bad[0])]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "0\n"


def test_many_reads_no_further_ahead_than_it_needs(inspector, texture):
    """A camera gives images one by one: taking one verdict must not ask for all of them."""
    taken = []

    def camera():
        for i in range(100):
            taken.append(i)
            yield texture(i)

    verdicts = inspector.many(camera(), batch_size=2)
    next(verdicts)
    verdicts.close()
    assert len(taken) <= 8


def test_threads_do_not_disturb_each_other(inspector, parts):
    images = [*parts.bad, *parts.good_tests]
    fresh = dataclasses.replace(inspector)  # nothing cached yet
    expected = [inspector(path) for path in images]
    with ThreadPoolExecutor(8) as pool:
        rounds = list(pool.map(lambda _: [fresh(path) for path in images], range(8)))
    for verdicts in rounds:
        for one, other in zip(verdicts, expected):
            alike(one, other)


def test_a_loaded_inspector_is_the_saved_one_to_the_bit(inspector, model, parts, tmp_path):
    again = blemish.load(model)
    assert again.info() == inspector.info()
    stricter = dataclasses.replace(inspector, smallest_area=17).save(tmp_path / "stricter.blemish")
    assert load(stricter).smallest_area == 17
    for path in [*parts.bad[::2], *parts.good_tests[:3]]:
        alike(again(path), inspector(path))


def test_the_same_seed_writes_the_same_model_to_the_bit_but_for_the_seconds(parts, tmp_path):
    first, second = (fit(parts.root, **QUICK) for _ in range(2))
    same = dict(first.provenance) | {"seconds": {}}
    assert same == dict(second.provenance) | {"seconds": {}}
    digests = set()
    for learned in (first, second):
        path = dataclasses.replace(learned, provenance=same).save(tmp_path / "model.blemish")
        with safe_open(path, framework="pt") as file:
            digests.add(file.metadata()["sha256"])
    assert len(digests) == 1


@pytest.fixture(scope="module")
def uncalibrated(parts):
    return fit(parts.root, **QUICK, calibration="none")


def test_a_file_without_backbone_accepts_only_the_weights_it_learned_with(uncalibrated, parts, tmp_path):
    light = uncalibrated.save(tmp_path / "light.blemish", with_backbone=False)
    alike(load(light)(parts.bad[0]), uncalibrated(parts.bad[0]))
    tensors = {name.removeprefix("network."): t for name, t in uncalibrated.method.backbone.state_dict().items()}
    name = next(name for name, t in tensors.items() if t.ndim == 4)
    torch.save({name: tensors[name] * 2}, tmp_path / "other.pth")
    with pytest.raises(WeightsError):
        load(light, weights=str(tmp_path / "other.pth"))


def test_a_model_of_a_method_unknown_here_names_it(inspector, tmp_path):
    odd = dataclasses.replace(inspector, name="no-such-method").save(tmp_path / "odd.blemish")
    with pytest.raises(BlemishError, match="no-such-method"):
        load(odd)


@pytest.mark.slow
def test_from_150_parts_on_some_are_held_out_for_a_promise(texture, save, tmp_path):
    """Tiny images, so that the real threshold for a promise can be crossed."""
    images = [save(tmp_path / "good" / f"{i}.png", texture(i, (16, 16))) for i in range(PROMISE_FROM)]
    learned = fit(tmp_path, **QUICK | {"size": 32, "options": {"fraction": 0.01, "layers": [2]}})
    calibration = learned.calibration
    assert (calibration.kind, calibration.n) == ("holdout", 50)
    assert (learned.provenance["images"], learned.provenance["images_learned"]) == (150, 100)
    assert "This promise rests on 50 good parts that the model did not learn from" in calibration.sentence()
    scores = np.array([verdict.score for verdict in learned.many(images)])
    nearest = np.abs(scores - calibration.scores[:, None]).min(axis=1)  # the model itself gave each of them
    assert nearest.max() < BATCHED * scores.max()


def test_without_calibration_there_are_scores_and_maps_and_nothing_else(uncalibrated, parts):
    verdict = uncalibrated(parts.bad[0])
    assert (verdict.decision, verdict.p_value, verdict.regions) == (None, None, ())
    assert verdict.heatmap is not None
    np.testing.assert_array_equal(np.asarray(verdict.overlay()), verdict.pixels)
    assert uncalibrated.calibration.sentence().startswith("No promise")


@pytest.mark.slow
def test_copies_are_one_part_wherever_a_threshold_comes_from(texture, save, tmp_path, inspector):
    for i in range(30):
        save(tmp_path / "same" / f"{i}.png", texture(200))
        save(tmp_path / "some" / f"{i}.png", texture(200 + i % 7))
    assert fit(tmp_path / "same", **QUICK).calibration.kind == "none"  # one part is too few
    learned = fit(tmp_path / "some", **QUICK)
    assert (learned.calibration.n, learned.calibration.images, learned.provenance["groups"]) == (7, 7, 7)
    assert learned.calibration.scores.min() > 0  # no fold learned from what it was judged on
    assert inspector.calibrated(tmp_path / "some").calibration.n == 7
    with pytest.raises(CalibrationError, match=r"there are 1\. Add 4 more"):
        inspector.calibrated(tmp_path / "same")


@pytest.mark.parametrize(("light", "is_told"), [(60, True), (0, False)])
def test_a_set_that_brightness_alone_separates_is_called_so(light, is_told, texture, save, tmp_path, inspector):
    for i in range(8):
        save(tmp_path / "test" / "good" / f"{i}.png", texture(i))
        save(
            tmp_path / "test" / "lamp" / f"{i}.png",
            np.clip(texture(20 + i).astype(int) + light, 0, 255).astype(np.uint8),
        )
    told = [note for note in evaluate(inspector, tmp_path).notes if "alone tells good from bad" in note]
    assert len(told) == is_told
    assert all(note.startswith("brightness alone") and "(AUROC 1.00)" in note for note in told)


def test_a_threshold_counts_parts_that_a_manifest_names(texture, save, tmp_path, inspector):
    for i in range(20):
        save(tmp_path / "new" / f"{i:02}.png", texture(300 + i))
    rows = "\n".join(f"{i:02}.png,part{i // 2}" for i in range(18))
    (tmp_path / "new" / "manifest.csv").write_text(f"file,group\n{rows}\n")
    by_part = inspector.calibrated(tmp_path / "new").calibration
    assert (by_part.n, by_part.images) == (11, 20)  # nine parts of two photographs, and two that nobody named
    rows = "\n".join(f"new/{i:02}.png,normal,part{i // 4}" for i in range(20))
    (tmp_path / "parts.csv").write_text(f"path,label,group\n{rows}\n")
    assert inspector.calibrated(tmp_path / "parts.csv").calibration.n == 5
    elsewhere = dataclasses.replace(inspector, provenance={**inspector.provenance, "precision": "bf16"})
    computed_in = inspector.method.backbone.precision.name
    assert elsewhere.calibrated(tmp_path / "parts.csv").provenance["precision"] == computed_in == "fp32"


def test_a_part_that_stands_out_is_named_and_does_not_set_the_threshold(texture, save, tmp_path):
    for i in range(20):
        save(tmp_path / f"{i:03}.png", 255 - texture(i) if i == 13 else texture(i))
    said, progress = [], Silent()
    progress.note = said.append
    learned = fit(tmp_path, run=blemish.Run(progress=progress), **QUICK)
    assert learned.info()["stand_out"] == ["013.png"]
    assert learned.calibration.threshold < learned.calibration.scores[-1]
    (note,) = [note for note in said if "stands out" in note]
    without = dataclasses.replace(learned.calibration, scores=learned.calibration.scores[:-1]).threshold
    assert note.startswith("note: 013.png stands out: look at it; without it the threshold would be ")
    assert f"{without:,.6g} instead of {learned.calibration.threshold:,.6g}" in note


def test_a_score_that_is_no_number_is_rejected_and_still_json(inspector, parts, tmp_path):
    method = copy.deepcopy(inspector.method)
    for name, tensor in method.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("backbone"):
            tensor.fill_(float("nan"))
    broken = dataclasses.replace(inspector, method=method)
    verdict = broken(parts.bad[0])
    line = json.loads(json.dumps(verdict.as_dict(), allow_nan=False))
    assert (line["score"], line["decision"], line["regions"]) == (None, "reject", [])
    np.testing.assert_array_equal(np.asarray(verdict.overlay()), verdict.pixels)
    with pytest.raises(ModelFileError, match="numbers that are not finite"):
        load(broken.save(tmp_path / "broken.blemish"))


def test_evaluation_judges_as_single_calls_do(inspector, parts):
    found = evaluate(inspector, open_test_set(parts.root), blemish.Run())
    for image in found.judged:
        assert image.score == pytest.approx(inspector(image.sample.path).score, rel=BATCHED)
    wrong = sum(inspector(path).decision == "reject" for path in parts.good_tests)
    assert found.decisions["false_reject_count"] == wrong


def test_what_goes_to_review_without_a_region_is_ringed_at_its_peak(inspector, parts):
    verdict = inspector(parts.bad[0])
    top = float(verdict.heatmap.max())
    unmarked = dataclasses.replace(verdict, decision="review", regions=(), scale=Scale(2 * top, 3 * top))
    column, row = unmarked.peak
    assert verdict.heatmap[row, column] == top
    plain, ringed = (np.asarray(dataclasses.replace(unmarked, decision=name).overlay()) for name in ("ok", "review"))
    zoom = len(plain) // verdict.size[0]
    changed = np.argwhere((plain != ringed).any(axis=2)).mean(axis=0)
    assert changed == pytest.approx([zoom * (row + 0.5), zoom * (column + 0.5)], abs=zoom * 6)


def test_a_threshold_never_comes_from_images_that_were_learned(model, parts):
    restored = load(model)
    with pytest.raises(CalibrationError, match="has learned from 12 of these 12 images"):
        restored.calibrated(parts.good)
    assert "learned_keys" not in restored.info()
