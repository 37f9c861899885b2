"""From rows of the ledger to figures: spread over seeds, comparison pair by pair, a paper's figures beside ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any

from blemish.bench.estimates import is_timed
from blemish.bench.jobs import Absent, wishes
from blemish.bench.ledger import Row
from blemish.bench.recipe import LOWER_IS_BETTER, Recipe

CUES = ("brightness", "contrast", "gradient")
TIE = 0.0005
"""Differences smaller than half of the last printed digit are no difference."""


@dataclass(frozen=True)
class Spread:
    """A mean over seeds, with the standard deviation where there are two or more."""

    mean: float
    deviation: float | None
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread | None:
        """None without values."""
        if not values:
            return None
        return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Pairing:
    """One method against another on one metric, on the same sets and seeds.

    Settings of the same images (other splits, with and without overlap, kinds in turn) are not independent: they are
    averaged first, so that each set of images counts once.

    Attributes:
        label: the method.
        against: what it is compared with.
        metric: by which figure.
        by_set: mean difference (method minus the other) over the settings and seeds that both have.
        pairs: how many runs of each that rests on.
    """

    label: str
    against: str
    metric: str
    by_set: dict[str, float]
    pairs: int

    @property
    def mean(self) -> float:
        """Over sets, each counting once."""
        return fmean(self.by_set.values())

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean over sets, by Student's t; None with fewer than three sets."""
        from scipy import stats

        values = list(self.by_set.values())
        if len(values) < 3:
            return None
        reach = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return self.mean - reach, self.mean + reach

    @property
    def better_worse(self) -> tuple[int, int]:
        """On how many sets the method is better, and on how many worse."""
        sign = -1 if self.metric in LOWER_IS_BETTER else 1
        gains = [sign * value for value in self.by_set.values()]
        return sum(gain >= TIE for gain in gains), sum(gain <= -TIE for gain in gains)


@dataclass(frozen=True)
class Printed:
    """A paper's figure beside ours, as fractions.

    Attributes:
        label: the method.
        metric: which figure.
        set_name: the set as the paper calls it, or ``average``.
        paper: what it prints.
        ours: None where nothing was measured.
        sets: over how many sets our average goes; None for a single set.
    """

    label: str
    metric: str
    set_name: str
    paper: float
    ours: Spread | None
    sets: int | None = None


@dataclass(frozen=True)
class Summary:
    """A recipe with the rows that stand for it.

    Attributes:
        recipe: what was asked.
        labels: of the methods that are built, in order.
        sets: in order.
        cells: the finished rows of a method on a set, by seed.
        failed: the latest row of each job that has no finished one.
        open: titles of jobs without any row.
        absent: what this machine or this Blemish lacks.
        warnings: what a reader must know: rows of different code or images side by side.
    """

    recipe: Recipe
    labels: tuple[str, ...]
    sets: tuple[str, ...]
    cells: dict[tuple[str, str], tuple[Row, ...]]
    failed: tuple[Row, ...]
    open: tuple[str, ...]
    absent: tuple[Absent, ...]
    warnings: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """All finished rows."""
        return [row for rows in self.cells.values() for row in rows]

    def values(self, label: str, set_name: str, metric: str) -> dict[int, float]:
        """By seed; without what the data cannot give."""
        found = {row["seed"]: row["metrics"].get(metric) for row in self.cells.get((label, set_name), ())}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def spread(self, label: str, set_name: str, metric: str) -> Spread | None:
        """Of a cell."""
        return Spread.of(list(self.values(label, set_name, metric).values()))

    def complete_sets(self, metric: str) -> list[str]:
        """The sets that every method has a figure for."""
        return [name for name in self.sets if all(self.values(label, name, metric) for label in self.labels)]

    def average(self, label: str, metric: str) -> tuple[Spread, int] | None:
        """Over the complete sets, and their number: by seed first, so that the spread is of whole tables."""
        chosen = self.complete_sets(metric)
        if not chosen or label not in self.labels:
            return None
        by_seed = [self.values(label, name, metric) for name in chosen]
        seeds = set.intersection(*(set(values) for values in by_seed))
        found = Spread.of([fmean(values[seed] for values in by_seed) for seed in sorted(seeds)])
        return None if found is None else (found, len(chosen))

    def images_of(self, set_name: str) -> str:
        """The set of images that ``set_name`` is a setting of."""
        rows = (row for (_, own), found in self.cells.items() if own == set_name for row in found)
        configuration: dict[str, Any] = next((row["configuration"] for row in rows), {})
        named = [str(configuration[key]) for key in ("set", "category") if configuration.get(key)]
        return "/".join(named) or set_name

    def trivial(self, set_name: str) -> tuple[str, float] | None:
        """The trivial cue that separates the set best, and its AUROC, at least 0.5."""
        for label in self.labels:
            for row in self.cells.get((label, set_name), ()):
                found = [(cue, row["metrics"].get(f"trivial_{cue}_auroc")) for cue in CUES]
                known = [(cue, max(value, 1 - value)) for cue, value in found if value is not None]
                if known:
                    return max(known, key=lambda one: one[1])
        return None

    def pairings(self, metric: str) -> list[Pairing]:
        """Every other method against the recipe's reference."""
        against, found = self.recipe.compared_with, []
        for label in self.labels:
            settings: dict[str, list[float]] = {}
            pairs = 0
            for name in self.sets:
                mine, theirs = self.values(label, name, metric), self.values(against, name, metric)
                shared = sorted(mine.keys() & theirs.keys())
                if shared:
                    difference = fmean(mine[seed] - theirs[seed] for seed in shared)
                    settings.setdefault(self.images_of(name), []).append(difference)
                    pairs += len(shared)
            if settings and label != against:
                by_set = {images: fmean(differences) for images, differences in settings.items()}
                found.append(Pairing(label, against, metric, by_set, pairs))
        return found

    def printed(self) -> list[Printed]:
        """The paper's figures, each beside ours."""
        paper = self.recipe.paper
        if paper is None:
            return []
        unit = 100 if paper.unit == "percent" else 1
        found = []
        for label, metrics in paper.figures.items():
            for metric, figures in metrics.items():
                for name, value in figures.items():
                    ours, sets = self._beside(label, metric, name)
                    found.append(Printed(label, metric, name, value / unit, ours, sets))
        return found

    def _beside(self, label: str, metric: str, name: str) -> tuple[Spread | None, int | None]:
        if name == "average":
            averaged = self.average(label, metric)
            return averaged or (None, 0)
        own = next((one for one in self.sets if name in (one, one.rpartition("/")[2])), None)
        return (None if own is None else self.spread(label, own, metric)), None

    def seconds(self, label: str, stage: str, sets: Sequence[str] | None = None) -> float | None:
        """Median over jobs that were done in one go."""
        found = [
            row["seconds"][stage]
            for name in (sets or self.sets)
            for row in self.cells.get((label, name), ())
            if stage in row["seconds"] and is_timed(row)
        ]
        return median(found) if found else None

    def is_chosen_on_test(self, label: str) -> bool:
        """Whether the test set chose the epoch of one of the method's rows."""
        rows = (row for (own, _), rows in self.cells.items() if own == label for row in rows)
        return any(row["configuration"]["selection"] == "best_on_test" for row in rows)

    def departures(self) -> list[str]:
        """How our runs differ from the paper's, one sentence each."""
        paper = self.recipe.paper
        if paper is None:
            return []
        found = list(paper.differences)
        for name, theirs in paper.setting.items():
            ours = sorted({str(_setting(row["configuration"], name)) for row in self.rows})
            if ours and ours != [str(theirs)]:
                found.append(f"{name}: {theirs} in the paper, {' and '.join(ours)} here")
        return found


def _setting(configuration: dict[str, Any], name: str) -> Any:
    return configuration.get(name, configuration["options"].get(name))


def summarise(recipe: Recipe, rows: Iterable[Row], absent: Sequence[Absent] = ()) -> Summary:
    """The rows that stand for a recipe: of its configurations and the methods' present versions, the latest of each."""
    wanted = list(wishes(recipe))
    latest: dict[tuple[str, str], Row] = {}
    for row in rows:
        name = _signature(row)
        done = latest.get((name, "done"))
        if row["status"] == "done" or done is None:
            latest[name, row["status"]] = row
    cells: dict[tuple[str, str], list[Row]] = {}
    failed, unknown = [], []
    for wish in wanted:
        done = latest.get((wish.signature, "done"))
        if done is not None:
            cells.setdefault((wish.label, wish.set_name), []).append(done)
        elif (wish.signature, "failed") in latest:
            failed.append({**latest[wish.signature, "failed"], "label": wish.label, "set": wish.set_name})
        else:
            unknown.append(f"{wish.label} on {wish.set_name}, seed {wish.configuration['seed']}")
    unbuilt = (variant for variant in recipe.methods if not variant.is_built)
    named = [*absent, *(Absent(one.label, f"the method {one.method} is not built yet") for one in unbuilt)]
    return Summary(
        recipe=recipe,
        labels=tuple(dict.fromkeys(wish.label for wish in wanted)),
        sets=tuple(dict.fromkeys(wish.set_name for wish in wanted)),
        cells={place: tuple(found) for place, found in cells.items()},
        failed=tuple(failed),
        open=tuple(unknown),
        absent=tuple(dict.fromkeys(named)),
        warnings=tuple(_warnings(cells)),
    )


def _signature(row: Row) -> str:
    from blemish.bench.jobs import Wish

    return Wish("", "", row.get("configuration", {})).signature


def _warnings(cells: dict[tuple[str, str], list[Row]]) -> Iterable[str]:
    """Rows side by side that were not measured alike."""
    everything = [row for rows in cells.values() for row in rows]
    if any(row.get("dirty") for row in everything):
        number = sum(bool(row.get("dirty")) for row in everything)
        yield f"{number} of {len(everything)} rows were measured with changes that no commit holds"
    for name in sorted({name for _, name in cells}):
        digests = {row["data_digest"] for (_, own), rows in cells.items() if own == name for row in rows}
        if len(digests) > 1:
            yield f"{name}: the rows are of {len(digests)} different states of the images"
    for label in sorted({label for label, _ in cells}):
        sources = {row.get("source_digest") for (own, _), rows in cells.items() if own == label for row in rows}
        if len(sources) > 1:
            yield f"{label}: the rows come from {len(sources)} states of the code (same method version)"
