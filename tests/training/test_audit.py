"""Finding the bad images of a folder that is supposed to be good, on made-up parts."""

from __future__ import annotations

import json
from collections import Counter
from unittest.mock import Mock

import numpy as np
import pytest
from scipy.stats import norm
from typer.testing import CliRunner

from blemish.cli import app
from blemish.data.manifest import read_manifest
from blemish.data.readers import read_training
from blemish.data.splits import folds_by_group
from blemish.errors import DataError, OutputError
from blemish.inspection.inspector import Inspector
from blemish.run import Run, Silent
from blemish.training.audit import audit, suggested_cut, write_clean
from blemish.training.fit import fit
from blemish.training.learner import Learner
from blemish.training.setup import FitSettings

SIDE = 64
QUICK = FitSettings("patchcore", size=SIDE, options={"fraction": 0.2})


@pytest.fixture(scope="module")
def folder(save_part, tmp_path_factory):
    """30 images of 15 parts, two of them with a blot on both of their photographs."""
    root = tmp_path_factory.mktemp("audit") / "parts"
    lines = ["file,group"]
    for i in range(30):
        part = i // 2
        name = f"train/good/{i:02}.png"
        save_part(root / name, i, square={4: (10, 40, 20), 11: (40, 12, 20)}.get(part))
        lines.append(f"{name},part{part}")
    (root / "manifest.csv").write_text("\n".join(lines))
    return root


BAD = {"08.png", "09.png", "22.png", "23.png"}


@pytest.fixture(scope="module")
def found(folder):
    return audit(folder, QUICK)


def test_a_bad_image_that_was_saved_three_times_is_no_less_strange(save_part, tmp_path):
    for i in range(12):
        save_part(tmp_path / f"{i:02}.png", i)
    for i in range(3):
        save_part(tmp_path / f"bad{i}.png", 99, square=(20, 24, 255))
    judged = audit(tmp_path, QUICK).judged
    assert {image.sample.path.name for image in judged[:3]} == {"bad0.png", "bad1.png", "bad2.png"}
    assert judged[2].score > 2 * judged[3].score


def test_the_bad_images_come_first_and_are_suspect(found):
    assert {image.sample.path.name for image in found.judged[:4]} == BAD
    assert {image.sample.path.name for image in found.suspects} >= BAD and len(found.suspects) <= 7
    scores = [image.score for image in found.judged]
    assert scores == sorted(scores, reverse=True)
    assert [image.rank for image in found.judged] == list(range(1, 31))
    assert all(image.suspect == (image.score > found.cut) for image in found.judged)


def test_no_image_is_judged_by_a_model_that_saw_its_part(folder, monkeypatch):
    learned, judged = [], []
    learn, stream = Learner.learn, Inspector.stream

    def watched_learn(self, indices, run, on_epoch=None):
        learned.append({self.groups[i] for i in indices})
        return learn(self, indices, run, on_epoch)

    def watched_stream(self, indices, read):
        judged.append([f"part{i // 2}" for i in indices])
        return stream(self, indices, read)

    monkeypatch.setattr(Learner, "learn", watched_learn)
    monkeypatch.setattr(Inspector, "stream", watched_stream)
    audit(folder, QUICK)
    assert len(learned) == len(judged) == 5
    for seen, parts in zip(learned, judged):
        assert not seen & set(parts)
        assert len(seen | set(parts)) == 15
    assert Counter(part for parts in judged for part in parts) == {f"part{i}": 2 for i in range(15)}


def test_scores_and_maps_are_those_of_a_model_fitted_without_the_fold(folder, found):
    training = read_training(folder)
    groups = [sample.group for sample in training.samples]
    fold = folds_by_group(groups, 5, 0)[2]
    rest = type(training)("rest", None, tuple(s for i, s in enumerate(training.samples) if i not in fold))
    inspector = fit(rest, QUICK, Run(), calibration="none")
    by_path = {one.sample.path: one for one in found.judged}
    for i in fold:
        one, verdict = by_path[training.samples[i].path], inspector(training.samples[i].path)
        assert one.score == pytest.approx(verdict.score, rel=1e-3)
        np.testing.assert_allclose(one.heat, verdict.heatmap, rtol=1e-2, atol=1e-2 * verdict.heatmap.max())


def test_softpatch_finds_them_too_labels_do_not_matter_and_few_maps_are_kept(folder, found):
    again = audit(read_training(folder, unlabelled=True), QUICK, shown=3)
    assert [(o.sample.path, o.score) for o in again.judged] == [(o.sample.path, o.score) for o in found.judged]
    assert [image.heat is not None for image in again.judged] == [True] * 3 + [False] * 27
    soft = audit(folder, FitSettings(method="softpatch", size=SIDE))
    assert {image.sample.path.name for image in soft.judged[:4]} == BAD


def test_the_cut_is_robust_and_moves_with_the_scores():
    rng = np.random.default_rng(0)
    good, bad = rng.normal(10, 2, 900), rng.normal(500, 90, 90)
    scores = np.concatenate([good, bad])
    cut, rule = suggested_cut(scores)
    assert (good > cut).mean() < 0.005 and (bad > cut).all()
    deviation = np.median(np.abs(scores - np.median(scores))) / norm.ppf(0.75)
    assert cut == pytest.approx(np.median(scores) + 3 * deviation, rel=1e-4)
    assert 16 < cut < 18
    assert "3 robust standard deviations" in rule
    assert suggested_cut(7 * scores - 300)[0] == pytest.approx(7 * cut - 300)
    assert suggested_cut(np.ones(5))[0] == 1.0


def test_the_cleaned_manifest_lists_what_is_not_suspect_as_good(folder, found):
    path = write_clean(found, folder / "clean.csv")
    rows = read_manifest(path)
    suspects = {one.sample.path.name for one in found.suspects}
    assert {row.path.name for row in rows} == {f"{i:02}.png" for i in range(30)} - suspects
    assert {(row.label, row.split) for row in rows} == {("normal", "train")}
    assert {row.group for row in rows} <= {f"part{i}" for i in range(15)}
    assert read_training(path).regime == "clean"
    before = (folder / "manifest.csv").read_text()
    with pytest.raises(OutputError, match="what this set is read by and would be replaced"):
        write_clean(found, folder / "manifest.csv")
    assert (folder / "manifest.csv").read_text() == before


def test_a_profile_is_taken_where_one_is_named(folder):
    notes = Mock(wraps=Silent())
    found = audit(folder, FitSettings(profile="fast", size=SIDE, poses="none"), Run(progress=notes))
    assert any("profile: fast" in said.args[0] for said in notes.note.call_args_list)
    assert {judged.sample.path.name for judged in found.judged[:4]} == BAD


def test_too_few_parts(save_part, tmp_path):
    for i in range(3):
        save_part(tmp_path / f"{i}.png", i)
    (tmp_path / "one.csv").write_text("path,label,group\n" + "".join(f"{i}.png,normal,a\n" for i in range(3)))
    with pytest.raises(DataError, match="at least 2"):
        audit(tmp_path / "one.csv", QUICK)


def test_the_command(folder, tmp_path):
    def blemish(*arguments):
        quick = ("--size", SIDE, "--threads", 1, "--set", "fraction=0.2")
        return CliRunner().invoke(app, [str(a) for a in ("audit", folder, *arguments, *quick)])

    before = sorted(folder.rglob("*.png"))
    clean = folder / "left.csv"
    done = blemish("--json", "-q", "-o", tmp_path / "a.html", "--clean", clean)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 30
    assert {line["path"].rsplit("/")[-1] for line in lines[:4]} == BAD
    assert set(lines[0]) == {"path", "score", "rank", "suspect", "group"}
    assert sum(line["suspect"] for line in lines) == 30 - len(read_manifest(clean))
    assert sorted(folder.rglob("*.png")) == before
    page = (tmp_path / "a.html").read_text()
    assert all(name in page for name in BAD) and "src='http" not in page and "Nothing was deleted" in page
    words = blemish("-o", tmp_path / "b.html")
    assert words.exit_code == 0
    assert "images are suspect" in words.stdout and "Look before" in words.stdout
