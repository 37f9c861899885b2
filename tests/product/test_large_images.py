"""Models that judge in tiles, or only in a region of interest: what they learn, find, promise, keep and refuse."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

import blemish
from blemish import load as load_any
from blemish.contract import in_batches
from blemish.data.loading import PreparedImages
from blemish.data.readers import read_globs, read_training
from blemish.deploy import export as exporting
from blemish.errors import ConfigError, DataError, ImageError
from blemish.run import Run
from blemish.training.evaluate import evaluate
from blemish.training.profiles import resolve
from blemish.training.setup import FitSettings, check_region, load_images

HEIGHT, WIDTH, TILE = 96, 120, 48
LEARNED = {"method": "patchcore", "size": 96, "options": {"fraction": 0.1}}
TILED = {**LEARNED, "tile": TILE, "tile_overlap": 12, "pixel": 0.05}
MASK = np.arange(WIDTH) < np.full((HEIGHT, 1), 60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texture, save):
    """6 good to learn from; to test on a good one, and bad ones inside and outside the mask ``roi.png``."""
    root = tmp_path_factory.mktemp("large") / "parts"
    for i in range(6):
        save(root / "train" / "good" / f"{i}.png", texture(i, (HEIGHT, WIDTH)))
    for i, (kind, left) in enumerate((("good", None), ("inside", 20), ("outside", 90))):
        pixels, mask = texture(50 + i, (HEIGHT, WIDTH)), np.zeros((HEIGHT, WIDTH), np.uint8)
        if left is not None:
            mask[40:50, left : left + 10] = 255
            pixels[mask > 0] = (20, 20, 160)
            save(root / "ground_truth" / kind / "0_mask.png", mask)
        save(root / "test" / kind / "0.png", pixels)
    save(root / "roi.png", MASK.astype(np.uint8) * 255)
    return root


@pytest.fixture(scope="module")
def tiled(folder):
    return blemish.fit(folder, **TILED)


@pytest.fixture(scope="module")
def masked(folder):
    return blemish.fit(folder, method="patchcore", size=96, options={"fraction": 0.1}, roi=folder / "roi.png")


def test_a_defect_on_the_border_of_two_tiles_is_found_once(tiled, texture):
    starts = sorted({columns.start for _, columns in tiled.preparation.windows((HEIGHT, WIDTH))})
    assert starts == [0, 36, 72]
    pixels = texture(60, (HEIGHT, WIDTH))
    pixels[40:50, 37:47] = (20, 20, 160)  # within the overlap, and across the tiles above each other
    verdict = tiled(pixels)
    assert (verdict.decision, len(verdict.regions)) == ("reject", 1)
    x, y = verdict.peak
    assert 34 <= x < 50 and 37 <= y < 53
    assert verdict.heatmap.shape == (HEIGHT, WIDTH)


def test_an_image_scores_as_its_worst_tile_judged_alone(tiled, texture):
    whole = dataclasses.replace(tiled, preparation=dataclasses.replace(tiled.preparation, tiling=None))
    pixels = texture(61, (HEIGHT, WIDTH))
    alone = [v.score for v in whole.many([pixels[window] for window in tiled.preparation.windows(pixels.shape[:2])])]
    for batch_size in (1, 5):
        (verdict,) = tiled.many([pixels], batch_size=batch_size)
        assert verdict.score == pytest.approx(max(alone), rel=1e-4)


def test_learning_takes_every_tile_and_the_part_stays_the_unit(tiled, folder):
    images = PreparedImages(read_training(folder).samples, tiled.preparation, budget=3 * 8 * 96 * 96 * 3)
    keys = [key for batch in in_batches(images.windows, 5) for key in batch.keys]
    assert len(images) == 6 and len(set(keys)) == len(images.windows) == 6 * 9
    assert (tiled.calibration.n, tiled.calibration.images, tiled.info()["images_learned"]) == (6, 6, 6)
    pixels = np.asarray(Image.open(folder / "train" / "good" / "5.png"))  # beyond the budget: cut again
    rows, columns = tiled.preparation.windows((HEIGHT, WIDTH))[7]
    tile = np.asarray(Image.fromarray(pixels[rows, columns]).resize((96, 96), Image.Resampling.BILINEAR))
    given = images.windows.batch([5 * 9 + 7]).images[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(given, tile / 255, atol=1e-6)


def test_painted_defects_are_measured_in_the_image_s_own_pixels(tiled):
    """Shares of a tile's side, 48 pixels, which the network sees as 96."""
    widths = {share: [w for _, of, w, _ in tiled.provenance["painted"] if of == share] for share in (1 / 8, 1 / 4)}
    assert 0 < max(widths[1 / 8]) <= 6 and 0 < max(widths[1 / 4]) <= 12


@pytest.mark.parametrize("name", ["tiled", "masked"])
def test_files_keep_tiles_and_regions_and_say_that_they_need_a_newer_reader(name, request, tmp_path, inspector, folder):
    model = request.getfixturevalue(name)
    image = folder / "test" / "inside" / "0.png"
    loaded = blemish.load(model.save(tmp_path / "a.blemish"))
    assert loaded.preparation == model.preparation and loaded.pixel == model.pixel
    assert loaded(image).as_dict() == model(image).as_dict()
    assert "mask" not in loaded.info()["preparation"].get("roi", {})
    for written, schema in ((tmp_path / "a.blemish", "3"), (inspector.save(tmp_path / "b.blemish"), "2")):
        with safe_open(written, framework="pt") as file:
            assert file.metadata()["schema"] == schema


def test_nothing_outside_the_region_changes_a_verdict(masked, texture):
    pixels = texture(62, (HEIGHT, WIDTH))
    other = np.where(MASK[..., None], pixels, np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8))
    first, second = masked(pixels), masked(other)
    assert first.score == second.score
    np.testing.assert_array_equal(first.heatmap, second.heatmap)
    pixels[40:50, 20:30] = (20, 20, 160)
    verdict = masked(pixels)
    assert verdict.decision == "reject"
    assert all(region.box[2] <= 60 for region in verdict.regions)
    zoomed = np.asarray(verdict.overlay())[:, ::-1]  # from the right, where nothing is judged
    np.testing.assert_array_equal(zoomed[::3, 1::3][:, :50], pixels[:, ::-1][:, :50] // 3)


def test_measuring_leaves_out_what_is_not_judged(masked, tiled, folder):
    for at in ("input", "original"):
        found = evaluate(masked, folder, at=at)
        assert found.metrics["pixel_auroc"] > 0.9
        assert np.isnan(found.kinds["outside"]["pixel_auroc"])
        assert evaluate(tiled, folder, at=at).kinds["outside"]["pixel_auroc"] > 0.9


def test_areas_in_square_millimetres_and_coco(tiled, folder, tmp_path, blemish):
    model, image = tiled.save(tmp_path / "a.blemish"), folder / "test" / "inside" / "0.png"
    done = blemish("inspect", model, image, "--csv", tmp_path / "a.csv", "--coco", tmp_path / "a.json")
    (region,) = json.loads(done.stdout)["regions"]
    assert region["area_mm2"] == pytest.approx(region["area"] * 0.05**2)
    (row,) = csv.DictReader((tmp_path / "a.csv").read_text().splitlines())
    assert float(row["area_mm2"]) == region["area_mm2"]
    (annotation,) = json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert annotation["area"] == region["area"]
    area = region["area"] * 0.1**2  # at a pixel of 0.1 mm
    for limit, count in ((f"{area * 0.99}mm2", 1), (f"{area * 1.01}mm2", 0), (f"{region['area'] + 1}px", 0)):
        done = blemish("inspect", model, image, "--pixel", "0.1mm", "--smallest-area", limit)
        assert len(json.loads(done.stdout)["regions"]) == count


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tile_overlap": 4}, ConfigError, "give --tile"),
        ({"tile": 48, "resize": "crop"}, ConfigError, "gaps between tiles"),
        ({"roi": "small.png"}, DataError, "fewer|one of its cells"),
        ({"roi": "none.png"}, DataError, "leaves nothing"),
        ({"roi": "other.png"}, DataError, "8 x 8 pixels, the images 120 x 96"),
        ({"ignore": "gone.png"}, ImageError, "gone.png cannot be opened"),
    ],
)
def test_settings_that_leave_nothing_to_learn_from_are_refused(folder, tmp_path, changes, error, said):
    small = np.zeros((HEIGHT, WIDTH), np.uint8)
    Image.fromarray(small).save(tmp_path / "none.png")
    small[:5, :5] = 255
    Image.fromarray(small).save(tmp_path / "small.png")
    Image.fromarray(small[:8, :8]).save(tmp_path / "other.png")
    changes = {key: tmp_path / value if key in ("roi", "ignore") else value for key, value in changes.items()}
    with pytest.raises(error, match=said):
        check_region(load_images(read_training(folder), FitSettings(size=96, **changes), Run())[0].preparation)


def test_known_bad_images_are_not_learned_in_tiles(folder, tmp_path, save, texture):
    for i in range(2):
        save(tmp_path / "NG" / f"{i}.png", texture(70 + i, (HEIGHT, WIDTH)))
    good, bad = (sorted(place.iterdir()) for place in (folder / "train" / "good", tmp_path / "NG"))
    training = read_globs([str(path) for path in good], [str(path) for path in bad], ())
    with pytest.raises(ConfigError, match="whose tiles are good but for a few"):
        blemish.fit(training, method="devnet", size=64, tile=48)


@pytest.mark.parametrize(
    ("defect", "size", "tile"), [(4, 64, 32), (8, 64, 64), (10, 64, 80), (20, 64, None), (8, None, None)]
)
def test_tiles_follow_from_the_smallest_defect(folder, defect, size, tile):
    """It becomes 8 pixels wide for the network; images no larger than such a tile are judged whole."""
    settings = FitSettings("patchcore", size=size, smallest_defect=defect)
    assert resolve(read_training(folder), settings, Run()).tile == tile


@pytest.mark.slow
def test_exported_files_judge_tiles_and_regions_alike(tiled, masked, monkeypatch, tmp_path, folder, blemish):
    pytest.importorskip("onnxscript", reason="needs pip install 'blemish[export]'")
    region = dataclasses.replace(tiled.preparation, tiling=None, roi=masked.preparation.roi)
    graphs, to_onnx = [], exporting.to_onnx

    def once(deployed, pixels, **given):  # neither is in the graph, which takes most of the time: one does for both
        assert deployed.prepare.preparation == dataclasses.replace(region, roi=None)
        graphs[:] = graphs or [to_onnx(deployed, pixels, **given)]
        return graphs[0]

    monkeypatch.setattr(exporting, "to_onnx", once)
    for model in (tiled, dataclasses.replace(tiled, preparation=region)):
        assert blemish("export", model.save(tmp_path / "a.blemish"), "-o", tmp_path / "a.onnx").exit_code == 0
        exported = load_any(tmp_path / "a.onnx")
        for image in sorted(folder.glob("test/*/0.png")):
            ours, theirs = model(image), exported(image)
            assert (theirs.decision, len(theirs.regions)) == (ours.decision, len(ours.regions))
            assert theirs.score == pytest.approx(ours.score, rel=1e-3)


@pytest.mark.slow
def test_an_image_of_8000_by_6000_pixels_is_judged_within_4_gigabytes(tiled, tmp_path):
    pixels = np.random.default_rng(0).integers(90, 110, (6000, 8000, 3), dtype=np.uint8)
    pixels[3000:3100, 4000:4100] = 0
    Image.fromarray(pixels).save(tmp_path / "large.bmp")
    large = dataclasses.replace(tiled.preparation, tiling=type(tiled.preparation.tiling)(512, 64))
    model = dataclasses.replace(tiled, preparation=large).save(tmp_path / "a.blemish")
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_DATA, (4 * 1024**3,) * 2)
import blemish
verdict = blemish.load(sys.argv[1])(sys.argv[2])
print(verdict.heatmap.shape, verdict.heatmap.dtype, verdict.overlay().size, *verdict.peak)
"""
    command = [sys.executable, "-c", program, str(model), str(tmp_path / "large.bmp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("(6000, 8000) float32 (8000, 6000) ")
    x, y = map(int, done.stdout.split()[-2:])
    assert 3950 < x < 4150 and 2950 < y < 3150
