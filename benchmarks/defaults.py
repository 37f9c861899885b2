"""What the defaults find: profiles on real sets, from few good images; rows, a table, the rank correlation.

    python benchmarks/defaults.py DATA --profile balanced --draws 0 1 2 [--images 30] [--sets magnetic_tile ...]
    python benchmarks/defaults.py --table       writes results/defaults.md and the README's table from the rows

DATA holds the sets as folders with a ``manifest.csv`` (file, mask, split, label, group). Of each, ``--images`` training
images are drawn by a fixed seed, 50 good and 70 bad test images are fixed. ``--profile paper`` is PatchCore with 1 % at
256 pixels on EfficientNet-Lite0, the default before there were profiles. Nothing is chosen by these test images but
what the log says. Rows are appended as they come.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

import blemish
from blemish.data.samples import Sample, TrainingSet
from blemish.data.testset import TestSet
from blemish.run import set_threads
from blemish.training.evaluate import evaluate

ROWS = Path(__file__).resolve().parent.parent / "results" / "defaults.jsonl"
SETS = ("magnetic_tile", "mvtec_screw", "deeppcb_g20085", "brain_mri", "elpv_mono", "crackforest_patches")
GOOD, BAD = 50, 70
PAPER: dict[str, Any] = {"method": "patchcore", "options": {"fraction": 0.01}}
HEAD = """# What the defaults find

Made by `benchmarks/defaults.py` from `results/defaults.jsonl`: few good images of real sets, drawn anew in each draw;
the share of bad test images above the score that 5 % of the good ones exceed (`caught_at_5`), image AUROC in brackets.
`paper` is PatchCore with a memory of 1 % at 256 pixels, the default before there were profiles; `anomalib`, where
measured, its PatchCore at its defaults, 10 % at 256 pixels, with the same backbone and layers on the same images
(`benchmarks/defaults_anomalib.py`). The screws' good test images are every sixth
training image, because the official ones were taken under another light.
"""


def draw(folder: Path, number: int, count: int) -> tuple[TrainingSet, TestSet]:
    """Training images of one draw, and the test images that all draws share."""
    with (folder / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    train = sorted(row["file"] for row in rows if row["split"] == "train")
    good = sorted(row["file"] for row in rows if row["split"] == "test" and row["label"] == "good")
    bad = sorted(row["file"] for row in rows if row["split"] == "test" and row["label"] != "good")
    if (folder / "resplit_alt.csv").is_file():
        with (folder / "resplit_alt.csv").open(encoding="utf-8") as file:
            other = {row["file"]: row["alt_split"] for row in csv.DictReader(file)}
        good = [name for name in train if other.get(name) == "test_good_alt"]
        train = [name for name in train if other.get(name) == "train"]
    shared = random.Random(0)
    shared.shuffle(good)
    shared.shuffle(bad)
    random.Random(100 + number).shuffle(train)
    by_name = {row["file"]: row for row in rows}

    def sample(name: str, label: Any, split: Any) -> Sample:
        mask = by_name[name]["mask"] if label == "anomalous" else ""
        group = by_name[name]["group"] if split == "train" else ""
        return Sample(folder / name, label, split, group=group, mask=folder / mask if mask else None)

    training = TrainingSet(folder.name, None, tuple(sample(name, "normal", "train") for name in train[:count]))
    test = [sample(name, "normal", "test") for name in good[:GOOD]]
    test += [sample(name, "anomalous", "test") for name in bad[:BAD]]
    return training, TestSet(folder.name, folder, tuple(test))


def measure(folder: Path, profile: str, number: int, count: int, timed: bool) -> dict[str, Any]:
    """One row: fit, evaluate, and what the model said it would find; times where nothing else was running."""
    training, test = draw(folder, number, count)
    began = time.perf_counter()
    settings = PAPER if profile == "paper" else {"profile": profile}
    inspector = blemish.fit(training, **settings)
    fitted = time.perf_counter() - began
    found = evaluate(inspector, test, blemish.Run()).as_dict()
    latencies = []
    for image in test.samples[: 25 if timed else 0]:
        began = time.perf_counter()
        inspector(image.path)
        latencies.append(1000 * (time.perf_counter() - began))
    state = inspector.method.state_dict().values()
    kept = ("caught_at_5", "caught_at_1", "image_auroc", "aupro", "false_reject_rate", "false_review_rate")
    return {
        "profile": profile,
        "set": folder.name,
        "draw": number,
        "images": len(training.samples),
        **{name: found.get(name) for name in kept},
        "false_reject_interval": found.get("false_reject_interval"),
        "promised": inspector.calibration.expected_false_reject,
        "rejected": 1 - found["escape_rate"] if found.get("escape_rate") is not None else None,
        "painted_rejected": inspector.would_find.get("rejected"),
        "painted_reviewed": inspector.would_find.get("reviewed"),
        "painted_counted": 2,  # without those on images that are flagged unpainted; before, these were counted as found
        "poses": inspector.provenance["poses"],
        "size": list(inspector.method.size),
        "backbone": inspector.method.backbone.name,
        "seconds": round(fitted, 1) if timed else None,
        "ms": round(float(pd.Series(latencies).median()), 1) if timed else None,
        "megabytes": round(sum(tensor.numel() * tensor.element_size() for tensor in state) / 1e6, 1),
        "precision": inspector.provenance["precision"],
    }


ALL = 1000  # good images: more than any set has
COUNTS = (5, 10, 20, 30, 50, 100)


def asked(images: int) -> int:
    """How many images were asked for: sets that have no more than they gave are counted as whole."""
    return images if images in COUNTS else ALL


def tables(rows: pd.DataFrame) -> dict[int, list[str]]:
    """By the number of good images: a table of sets and profiles, as lines of Markdown."""
    made = {}
    for images, of_images in rows.groupby(rows["images"].map(asked)):
        mean = of_images.groupby(["set", "profile"])[["caught_at_5", "image_auroc"]].mean().unstack()
        listed = ("anomalib", "paper", "fast", "balanced", "best")
        profiles = [name for name in listed if ("caught_at_5", name) in mean.columns]
        draws = of_images.groupby(["profile", "set"])["draw"].nunique().groupby("profile").agg(["min", "max"])
        spans = zip(draws.index, draws["min"], draws["max"])
        numbers = {name: str(most) if least == most else f"{least} to {most}" for name, least, most in spans}
        header = " | ".join(f"{name} ({numbers[name]} draw{'' if numbers[name] == '1' else 's'})" for name in profiles)
        lines = [f"| set | {header} |", "|---|" + "---:|" * len(profiles)]
        mean.loc["mean of those measured"] = mean.mean()
        for name, row in mean.iterrows():
            pairs = [(row["caught_at_5", profile], row["image_auroc", profile]) for profile in profiles]
            cells = ["–" if math.isnan(caught) else f"{caught:.2f} ({area:.2f})" for caught, area in pairs]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        made[int(images)] = lines
    return made


def curves(rows: pd.DataFrame) -> list[str]:
    """What more good images give: of each profile the mean over sets, beside what its models say of false rejects."""
    rows = rows[rows["promised"].notna() & (rows["set"] != "elpv_mono")]
    lines = ["| profile | good images | sets | caught_at_5 | image AUROC | stated false rejects | observed |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    named = ["caught_at_5", "image_auroc", "promised", "false_reject_rate"]
    for (name, images), part in rows.groupby(["profile", rows["images"].map(asked)]):
        found = part.groupby("set")[named].mean()
        caught, area, stated, met = found.mean()
        count = f"all ({part['images'].min()} to {part['images'].max()})" if images == ALL else str(images)
        lines.append(f"| {name} | {count} | {len(found)} | {caught:.2f} | {area:.2f} | {stated:.1%} | {met:.1%} |")
    return lines


def at_threshold(rows: pd.DataFrame, images: int = 30) -> list[str]:
    """What the threshold that ``fit`` chose rejects: of bad images, of good ones, and what was stated of these."""
    rows = rows[rows["promised"].notna() & (rows["images"].map(asked) == images)]
    named = ["rejected", "false_reject_rate", "promised"]
    mean = rows.groupby(["set", "profile"])[named].mean().unstack()
    profiles = [name for name in ("paper", "fast", "balanced", "best") if ("rejected", name) in mean.columns]
    mean.loc["mean"] = mean.mean()
    lines = [f"| set | {' | '.join(profiles)} |", "|---|" + "---:|" * len(profiles)]
    for name, row in mean.iterrows():
        found = [[row[value, profile] for value in named] for profile in profiles]
        cells = ["–" if math.isnan(bad) else f"{bad:.2f}; {good:.1%} ({stated:.1%})" for bad, good, stated in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    same = rows[rows["set"] != "elpv_mono"]
    above = sum(lowest > stated for (lowest, _), stated in zip(same["false_reject_interval"], same["promised"]))
    told = "the 95 % interval of good images rejected lies above what was stated, elpv_mono aside"
    return [*lines, f"\nIn {above} of {len(same)} models {told}."]


def page(rows: pd.DataFrame) -> str:
    """All of it as Markdown."""
    parts = [HEAD]
    for images, lines in tables(rows).items():
        parts += [f"\n## {'All' if images == ALL else images} good images\n", *lines]
    parts += ["\n## By the number of good images, without elpv_mono\n", *curves(rows)]
    parts += ["\n## At the threshold that `fit` chooses, 30 good images\n"]
    parts += ["Bad images rejected; good ones rejected (and what the model states of them). Review is not counted.\n"]
    parts += at_threshold(rows)
    costs = rows.groupby("profile")[["seconds", "ms", "megabytes"]].median()
    parts += ["\n## What it costs (medians, two cores, other work beside it)\n"]
    parts += ["| profile | fit, s | file to verdict, ms | memory and network, MB |", "|---|---:|---:|---:|"]
    cells = costs.map(lambda value: "–" if math.isnan(value) else f"{value:.0f}")
    parts += [f"| {name} | {' | '.join(row)} |" for name, row in cells.iterrows()]
    one = rows[(rows["images"] == 30) & rows["painted_rejected"].notna() & (rows["painted_counted"] == 2)]
    by_set = one.groupby(["set", "profile"])[["caught_at_5", "painted_rejected", "painted_reviewed"]].mean()
    expected = by_set["painted_rejected"] + by_set["painted_reviewed"]
    rank = spearmanr(expected, by_set["caught_at_5"])
    same = rows[rows["promised"].notna() & (rows["set"] != "elpv_mono")]
    stated, met = same["promised"].mean(), same["false_reject_rate"].mean()
    parts += [
        f"\nPainted defects rejected or reviewed, beside `caught_at_5`, over {len(by_set)} pairs of set and profile "
        f"(30 images, draws numbered {', '.join(map(str, sorted(set(one['draw']))))}): "
        f"rank correlation {rank.statistic:.2f} (p = {rank.pvalue:.2g}).",
        f"\nGood test images rejected, without elpv_mono, whose test cells come from other modules: {met:.1%} of them, "
        f"where {stated:.1%} were stated.\n",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the defaults find on real sets.")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--profile", default="balanced", choices=["paper", "fast", "balanced", "best"])
    parser.add_argument("--draws", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--untimed", action="store_true", help="something else is running: no times in the rows")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    set_threads(given.threads)
    for number in given.draws if given.data else ():
        for name in given.sets:
            row = measure(given.data / name, given.profile, number, given.images, not given.untimed)
            print(json.dumps(row), flush=True)
            with ROWS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    if given.table:
        rows = pd.read_json(ROWS, lines=True)
        job, times = ["profile", "set", "draw", "images"], ["seconds", "ms"]
        rows[times] = rows.groupby(job)[times].ffill()  # what is measured again beside other work keeps its times
        rows = rows.drop_duplicates(job, keep="last")
        ROWS.with_suffix(".md").write_text(page(rows), encoding="utf-8")
        guide = ROWS.parents[1] / "docs" / "guides" / "how-many-images.md"
        for file, name, lines in (
            (ROWS.parents[1] / "README.md", "defaults", tables(rows)[30]),
            (guide, "curves", curves(rows)),
        ):
            before, _, rest = file.read_text(encoding="utf-8").partition(f"<!-- {name}:begin -->")
            after = rest.partition(f"<!-- {name}:end -->")[2]
            parts = [f"{before}<!-- {name}:begin -->", "", *lines, "", f"<!-- {name}:end -->{after}"]
            file.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
