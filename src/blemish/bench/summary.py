"""From rows of the ledger to figures: spread over seeds, comparison pair by pair, a paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from scipy import stats

from blemish.bench.eta import is_timed
from blemish.bench.jobs import Experiment, experiments
from blemish.bench.ledger import Row
from blemish.bench.recipe import LOWER_IS_BETTER, METRICS, Recipe
from blemish.errors import ConfigError

try:
    import pandas as pd
except ImportError as error:
    raise ConfigError("the bench needs pandas, which is not installed: pip install 'blemish[bench]'") from error

CUES = ("brightness", "contrast", "gradient")
TIE = 0.0005
"""Differences smaller than half of the last printed digit are no difference."""


class MeanStd(NamedTuple):
    """A mean over seeds, with the standard deviation where there are two or more."""

    mean: float
    std: float | None

    @staticmethod
    def of(values: Iterable[float]) -> MeanStd | None:
        """None without values."""
        series = pd.Series(list(values), dtype=float)
        return MeanStd(series.mean(), series.std() if len(series) > 1 else None) if len(series) else None


class PairedComparison(NamedTuple):
    """One method against another on one metric, on the same sets and seeds.

    Settings of the same images (other splits, with and without overlap, kinds in turn) are not independent: they are
    averaged first, so that each set of images counts once.
    """

    label: str
    against: str
    metric: str
    by_set: dict[str, float]  # mean difference (method minus the other) over the settings and seeds that both have
    pairs: int  # how many runs of each that rests on
    mean: float  # over sets
    interval: tuple[float, float] | None  # of 95 %, by Student's t; None with fewer than three sets
    better: int  # on how many sets
    worse: int


class PaperFigure(NamedTuple):
    """A paper's figure beside ours, as fractions; ``sets`` is over how many our average goes, None for one set."""

    label: str
    metric: str
    set_name: str
    paper: float
    ours: MeanStd | None
    sets: int | None


@dataclass(frozen=True)
class Summary:
    """A recipe with the rows that stand for it."""

    recipe: Recipe
    labels: tuple[str, ...]  # of the methods that are built, in order
    sets: tuple[str, ...]  # in order
    rows: tuple[Row, ...]  # the finished ones, with the recipe's names for method and set
    failed: tuple[Row, ...]  # the latest row of each experiment that has no finished one
    open: tuple[str, ...]  # titles of experiments without any row
    missing: dict[str, str]  # what this machine or this Blemish lacks, and why

    @cached_property
    def figures(self) -> pd.DataFrame:
        """A line for each row: label, set, images (that the set is a setting of), seed, and every figure."""
        names = [*METRICS, *(f"trivial_{cue}_auroc" for cue in CUES)]
        lines = []
        for row in self.rows:
            asked = row["configuration"]
            images = "/".join(str(asked[key]) for key in ("set", "category") if asked.get(key))
            lines.append([row["label"], row["set"], images, row["seed"], *map(row["metrics"].get, names)])
        frame = pd.DataFrame(lines, columns=["label", "set", "images", "seed", *names])
        return frame.astype(dict.fromkeys(names, float))

    def rows_of(self, label: str, set_name: str | None = None) -> list[Row]:
        """The rows of a method, on one set where it is named, by seed."""
        rows = (row for row in self.rows if row["label"] == label and set_name in (None, row["set"]))
        return sorted(rows, key=lambda row: int(row["seed"]))

    def values(self, label: str, set_name: str, metric: str) -> pd.Series[float]:
        """By seed; without what the data cannot give."""
        frame = self.figures
        cell = frame[(frame["label"] == label) & (frame["set"] == set_name)]
        return cell.set_index("seed")[metric].dropna()

    def mean_std(self, label: str, set_name: str, metric: str) -> MeanStd | None:
        """Over seeds."""
        return MeanStd.of(self.values(label, set_name, metric))

    def complete_sets(self, metric: str) -> list[str]:
        """The sets that every method has a figure for."""
        return [name for name in self.sets if all(len(self.values(label, name, metric)) for label in self.labels)]

    def average(self, label: str, metric: str) -> MeanStd | None:
        """Over the complete sets: by seed first, so that the spread is of whole tables."""
        names = self.complete_sets(metric)
        tables = pd.DataFrame({name: self.values(label, name, metric) for name in names}).dropna()
        return MeanStd.of(tables.mean(axis=1))

    def images_of(self, set_names: Sequence[str]) -> int:
        """How many sets of images some test sets are settings of."""
        return int(self.figures.loc[self.figures["set"].isin(set_names), "images"].nunique())

    def trivial(self, set_name: str) -> tuple[str, float] | None:
        """The trivial cue that separates the set best, and its AUROC, at least 0.5."""
        cues = self.figures.loc[self.figures["set"] == set_name, [f"trivial_{cue}_auroc" for cue in CUES]].dropna(
            how="all"
        )
        if cues.empty:
            return None
        values = cues.set_axis(CUES, axis=1).iloc[0].map(lambda value: max(value, 1 - value))
        return str(values.idxmax()), float(values.max())

    def comparisons(self, metric: str) -> list[PairedComparison]:
        """Every other method against the recipe's reference."""
        against, found = self.recipe.compared_with, []
        images = dict(zip(self.figures["set"], self.figures["images"]))
        sign = -1 if metric in LOWER_IS_BETTER else 1
        for label in self.labels:
            settings = []
            for name in self.sets if label != against else ():
                difference = (self.values(label, name, metric) - self.values(against, name, metric)).dropna()
                if len(difference):
                    settings.append((images[name], difference.mean(), len(difference)))
            if settings:
                frame = pd.DataFrame(settings, columns=["images", "difference", "pairs"])
                by_set = frame.groupby("images", sort=False)["difference"].mean()
                mean, count = float(by_set.mean()), len(by_set)
                reach = float(stats.t.ppf(0.975, count - 1) * by_set.sem()) if count > 2 else None
                interval = None if reach is None else (mean - reach, mean + reach)
                better, worse = int((sign * by_set >= TIE).sum()), int((sign * by_set <= -TIE).sum())
                pairs = int(frame["pairs"].sum())
                names = label, against, metric
                found.append(PairedComparison(*names, by_set.to_dict(), pairs, mean, interval, better, worse))
        return found

    def paper_figures(self) -> Iterator[PaperFigure]:
        """The paper's figures, each beside ours."""
        paper = self.recipe.paper
        unit = 100 if paper and paper.unit == "percent" else 1
        for label, metrics in paper.figures.items() if paper else ():
            for metric, figures in metrics.items():
                for name, value in figures.items():
                    if name == "average":
                        ours, sets = self.average(label, metric), len(self.complete_sets(metric))
                        yield PaperFigure(label, metric, name, value / unit, ours, sets if ours else 0)
                        continue
                    own = next((own for own in self.sets if name in (own, own.rpartition("/")[2])), "")
                    yield PaperFigure(label, metric, name, value / unit, self.mean_std(label, own, metric), None)

    def seconds(self, label: str, stage: str) -> float | None:
        """Median over jobs that were done in one go."""
        rows = [row["seconds"][stage] for row in self.rows_of(label) if stage in row["seconds"] and is_timed(row)]
        return float(pd.Series(rows).median()) if rows else None

    def is_chosen_on_test(self, label: str) -> bool:
        """Whether the test set chose the epoch of one of the method's rows."""
        return any(row["configuration"]["selection"] == "best_on_test" for row in self.rows_of(label))

    def departures(self) -> list[str]:
        """How our runs differ from the paper's, one sentence each."""
        paper = self.recipe.paper
        if paper is None:
            return []
        found = list(paper.differences)
        for name, theirs in paper.setting.items():
            settings = (row["configuration"]["options"] | row["configuration"] for row in self.rows)
            ours = sorted({str(setting.get(name)) for setting in settings})
            if ours and ours != [str(theirs)]:
                found.append(f"{name}: {theirs} in the paper, {' and '.join(ours)} here")
        return found

    def warnings(self) -> list[str]:
        """What a reader must know: rows of different code or images side by side."""
        found = []
        dirty = sum(bool(row.get("dirty")) for row in self.rows)
        if dirty:
            found.append(f"{dirty} of {len(self.rows)} rows were measured with changes that no commit holds")
        states: dict[tuple[str, ...], set[str | None]] = {}
        for row in self.rows:
            is_drawn = {"contaminate", "reveal"} & row["configuration"].keys()  # by the seed
            images = ("are of {} different states of the images", row["set"], str(row["seed"]) if is_drawn else "")
            code = ("come from {} states of the code (same method version)", row["label"])
            states.setdefault(images, set()).add(row["data_digest"])
            states.setdefault(code, set()).add(row.get("source_digest"))
        differing = [(name, text, len(digests)) for (text, name, *_), digests in states.items() if len(digests) > 1]
        return found + list(dict.fromkeys(f"{name}: the rows {text.format(count)}" for name, text, count in differing))


def summarise(recipe: Recipe, rows: Iterable[Row], missing: Mapping[str, str] | None = None) -> Summary:
    """The rows that stand for a recipe: of its configurations and the methods' present versions, the latest of each."""
    latest: dict[tuple[str, str], Row] = {}
    for row in rows:
        signature = Experiment("", "", row.get("configuration", {})).signature
        latest[signature, row["status"]] = row
    cells = list(experiments(recipe))
    done, failed, still_open = [], [], []
    for cell in cells:
        names = {"label": cell.label, "set": cell.set_name}
        if (cell.signature, "done") in latest:
            done.append(latest[cell.signature, "done"] | names)
        elif (cell.signature, "failed") in latest:
            failed.append(latest[cell.signature, "failed"] | names)
        else:
            still_open.append(cell.title)
    return Summary(
        recipe=recipe,
        labels=tuple(dict.fromkeys(cell.label for cell in cells)),
        sets=tuple(dict.fromkeys(cell.set_name for cell in cells)),
        rows=tuple(done),
        failed=tuple(failed),
        open=tuple(still_open),
        missing={**(missing or {}), **recipe.unbuilt},
    )
