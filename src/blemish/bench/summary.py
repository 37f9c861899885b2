"""From rows of the ledger to figures and tables; figures are fractions, mean ± standard deviation over seeds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from scipy import stats

from blemish.bench.eta import is_timed
from blemish.bench.jobs import Configuration, digest, experiments
from blemish.bench.ledger import Row
from blemish.bench.recipe import LOWER_IS_BETTER, METRICS, Recipe
from blemish.errors import ConfigError

try:
    import pandas as pd
except ImportError as error:
    raise ConfigError("the bench needs pandas, which is not installed: pip install 'blemish[bench]'") from error

CHOSEN = "‡"
CUES = ("brightness", "contrast", "gradient")
TIE = 0.0005  # differences smaller than half of the last printed digit are no difference

Table = tuple[Sequence[str], list[tuple[str, ...]]]  # header and rows


class PairedComparison(NamedTuple):
    """One method against another on one metric, on the same sets and seeds.

    Settings of the same images (other splits, with and without overlap, kinds in turn) are not independent: they are
    averaged first, so that each set of images counts once.
    """

    label: str
    against: str
    metric: str
    by_set: pd.Series  # mean difference (method minus the other) over the settings and seeds that both have
    pairs: int  # how many runs of each that rests on
    mean: float  # over sets
    interval: Sequence[float]  # of 95 %, by Student's t; empty with fewer than three sets
    better: int  # on how many sets
    worse: int


@dataclass(frozen=True)
class Summary:
    """A recipe with the rows that stand for it."""

    recipe: Recipe
    labels: tuple[str, ...]  # of the methods, in order
    sets: tuple[str, ...]  # in order
    rows: tuple[Row, ...]  # the finished ones, with the recipe's names for method and set
    failed: tuple[Row, ...]  # the latest row of each experiment that has no finished one
    open: tuple[str, ...]  # titles of experiments without any row
    missing: Mapping[str, str]  # what this machine lacks, and why

    @cached_property
    def figures(self) -> pd.DataFrame:
        """A line for each row: label, set, images (that the set is a setting of), seed, and every figure."""
        names = [*METRICS, *(f"trivial_{cue}_auroc" for cue in CUES)]
        lines = []
        for row in self.rows:
            asked = row["configuration"]
            images = "/".join(asked[key] for key in ("set", "category") if asked.get(key))
            lines.append({**row["metrics"], **row, "images": images})
        frame = pd.DataFrame(lines, columns=["label", "set", "images", "seed", *names])
        return frame.astype(dict.fromkeys(names, float))

    @cached_property
    def columns(self) -> dict[str, str]:
        """Each method's name at the head of a column, marked where a row took more than figures from the test set."""
        chosen = {row["label"] for row in self.rows if _saw_test(row["configuration"])}
        return {label: f"{label} {CHOSEN}" if label in chosen else label for label in self.labels}

    def rows_of(self, label: str, set_name: str | None = None) -> list[Row]:
        """The rows of a method, on one set where it is named, seed by seed."""
        return [row for row in self.rows if row["label"] == label and set_name in (None, row["set"])]

    def values(self, label: str, set_name: str, metric: str) -> pd.Series:
        """By seed; without what the data cannot give."""
        cell = self._cells.get((label, set_name))
        return pd.Series(dtype=float) if cell is None else cell[metric].dropna()

    @cached_property
    def _cells(self) -> dict[Any, pd.DataFrame]:
        return {key: cell.set_index("seed") for key, cell in self.figures.groupby(["label", "set"])}

    def complete_sets(self, metric: str) -> list[str]:
        """The sets that every method has a figure for."""
        return [name for name in self.sets if all(len(self.values(label, name, metric)) for label in self.labels)]

    def averages(self, label: str, metric: str) -> pd.Series:
        """Over the complete sets: by seed, so that the spread is of whole tables."""
        tables = {name: self.values(label, name, metric) for name in self.complete_sets(metric)}
        return pd.DataFrame(tables).dropna().mean(axis=1)

    def trivial(self, set_name: str) -> tuple[str, float] | None:
        """The trivial cue that separates the set best, and its AUROC, at least 0.5."""
        frame = self.figures[self.figures["set"] == set_name].set_index("set").filter(regex="^trivial_")
        cues = (0.5 + (frame.dropna(how="all") - 0.5).abs()).head(1).squeeze(axis=0)
        return None if cues.empty else (str(cues.idxmax()).split("_")[1], float(cues.max()))

    def comparisons(self, metric: str) -> list[PairedComparison]:
        against, sign, comparisons = self.recipe.compared_with, -1 if metric in LOWER_IS_BETTER else 1, []
        by_label = self.figures.pivot_table(metric, ["images", "set", "seed"], "label")
        for label in self.labels if against in by_label else ():
            if label == against or label not in by_label:
                continue
            differences = (by_label[label] - by_label[against]).dropna()
            by_set = differences.groupby(["images", "set"]).mean().groupby("images").mean()
            if by_set.empty:
                continue
            ends = stats.ttest_1samp(by_set, 0).confidence_interval(0.95) if len(by_set) > 2 else ()
            interval = [float(end) for end in ends]
            better, worse = int((sign * by_set >= TIE).sum()), int((sign * by_set <= -TIE).sum())
            counts = len(differences), float(by_set.mean()), interval, better, worse
            comparisons.append(PairedComparison(label, against, metric, by_set, *counts))
        return comparisons

    @property
    def seconds(self) -> float:
        """What all jobs took; rows of one training are each counted from its beginning."""
        jobs: dict[str, float] = {}
        for row in self.rows:
            key = str(row.get("learned_by") or row["key"])
            jobs[key] = max(jobs.get(key, 0.0), row["seconds"]["total"])
        return sum(jobs.values())

    def departures(self) -> list[str]:
        """How our runs differ from the paper's, one sentence each."""
        paper = self.recipe.paper
        sentences = [*paper.differences] if paper else []
        for name, theirs in paper.setting.items() if paper else ():
            settings = (row["configuration"]["options"] | row["configuration"] for row in self.rows)
            ours = sorted({str(setting.get(name)) for setting in settings})
            if ours and ours != [str(theirs)]:
                sentences.append(f"{name}: {theirs} in the paper, {' and '.join(ours)} here")
        return sentences

    def warnings(self) -> list[str]:
        """What a reader must know: rows of different code or images side by side."""
        dirty = sum(bool(row.get("dirty")) for row in self.rows)
        sentences = [f"{dirty} of {len(self.rows)} rows were measured with changes that no commit holds"] * (dirty > 0)
        states: dict[tuple[str, str, str], set[str | None]] = {}
        for row in self.rows:
            is_drawn = {"contaminate", "reveal"} & row["configuration"].keys()  # by the seed
            images = row["set"], "are of {} different states of the images", str(row["seed"]) if is_drawn else ""
            code = row["label"], "come from {} states of the code (same method version)", ""
            states.setdefault(images, set()).add(row["data_digest"])
            states.setdefault(code, set()).add(row.get("source_digest"))
        for (name, text, _), digests in states.items():
            if len(digests) > 1:
                sentences.append(f"{name}: the rows {text.format(len(digests))}")
        return list(dict.fromkeys(sentences))


def summarise(recipe: Recipe, rows: Iterable[Row], missing: Mapping[str, str] | None = None) -> Summary:
    """The rows that stand for a recipe: of its configurations and the methods' present versions, the latest of each."""
    latest = {(digest(row.get("configuration", {})), row["status"]): row for row in rows}
    cells = list(experiments(recipe))
    stands: dict[str, list[Row]] = {"done": [], "failed": []}
    still_open = []
    for cell in cells:
        row = latest.get((cell.signature, "done")) or latest.get((cell.signature, "failed"))
        if row is None:
            still_open.append(cell.title)
        else:
            stands[row["status"]].append(row | {"label": cell.label, "set": cell.set_name})
    return Summary(
        recipe=recipe,
        labels=tuple(dict.fromkeys(cell.label for cell in cells)),
        sets=tuple(dict.fromkeys(cell.set_name for cell in cells)),
        rows=tuple(stands["done"]),
        failed=tuple(stands["failed"]),
        open=tuple(still_open),
        missing=missing or {},
    )


def shown(values: pd.Series) -> str:
    if values.empty:
        return "–"
    return f"{values.mean():.3f}" + (f" ± {values.std():.3f}" if len(values) > 1 else "")


def signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def metric_table(summary: Summary, metric: str) -> Table:
    """Sets by methods; beside an image AUROC stands the trivial one."""
    trivial = metric == "image_auroc"
    header = ("set", *(["trivial"] * trivial), *summary.columns.values())
    rows: list[tuple[str, ...]] = []
    for name in summary.sets:
        figures = [shown(summary.values(label, name, metric)) for label in summary.labels]
        if set(figures) != {"–"}:
            cue = summary.trivial(name)
            beside = "–" if cue is None else f"{cue[1]:.2f} ({cue[0]})"
            rows.append((name, *([beside] * trivial), *figures))
    counted = summary.complete_sets(metric)
    if len(counted) > 1:
        images = summary.figures.loc[summary.figures["set"].isin(counted), "images"].nunique()
        settings = f"settings of {images} {'set' if images == 1 else 'sets'}" if images < len(counted) else "sets"
        settings += " that every column has" if len(counted) < len(rows) else ""
        averages = [shown(summary.averages(label, metric)) for label in summary.labels]
        rows.append((f"mean over {len(counted)} {settings}", *([""] * trivial), *averages))
    return header, rows


def paper_table(summary: Summary) -> Table:
    """The paper's figures beside ours, as fractions; of what was not run only averages, at the end."""
    rows: list[tuple[str, ...]] = []
    paper = summary.recipe.paper
    for label, metrics in paper.figures.items() if paper else ():
        for metric, figures in metrics.items():
            for name, printed in figures.items():
                theirs, place = printed / (100 if paper and paper.unit == "percent" else 1), name
                if name == "average":
                    ours = summary.averages(label, metric)
                    sets = 0 if ours.empty else len(summary.complete_sets(metric))
                    if paper and paper.sets not in (None, sets):
                        place = f"{name} (paper: {paper.sets} sets, ours: {sets})"
                else:
                    own = next((own for own in summary.sets if name in (own, own.rpartition("/")[2])), "")
                    ours = summary.values(label, own, metric)
                    if ours.empty:
                        continue
                difference = "not run" if ours.empty else signed(ours.mean() - theirs, 3)
                named = summary.columns.get(label, label), METRICS[metric], place
                rows.append((*named, f"{theirs:.3f}", shown(ours), difference))
    rows.sort(key=lambda row: row[-1] == "not run")
    return ("method", "metric", "set", "paper", "ours", "difference"), rows


def reproduction_table(here: Summary, published: Summary) -> Table:
    """What was measured here beside what was published, over the seeds that both have, as fractions."""
    pairs = here.figures.merge(published.figures, on=["label", "set", "seed"], suffixes=("", "_published"))
    rows: list[tuple[str, ...]] = []
    for (label, set_name), cell in pairs.groupby(["label", "set"], sort=False):
        for metric in here.recipe.metrics:
            both = cell[[metric, f"{metric}_published"]].dropna()
            ours, theirs = both[metric], both[f"{metric}_published"]
            if not both.empty:
                figures = shown(ours), shown(theirs), signed(ours.mean() - theirs.mean())
                rows.append((str(label), str(set_name), METRICS[metric], *figures))
    return ("method", "set", "metric", "here", "published", "difference"), rows


def timing_table(summary: Summary) -> Table:
    """Median seconds of each stage over jobs that were done in one go, and the most memory, of each method."""
    looks = any("looks" in row["seconds"] for row in summary.rows)
    stages = ("images", "fit", *(["looks"] * looks), "judging", "metrics", "total")
    rows = []
    for label in summary.labels:
        own = summary.rows_of(label)
        if own:
            timed = pd.DataFrame([row["seconds"] for row in own if is_timed(row)], columns=stages)
            seconds = timed.median().map("{:.1f}".format).replace("nan", "–")
            peak = max(row.get("peak_memory_mib") or 0 for row in own)
            threads = ", ".join(sorted({str(row.get("threads", "–")) for row in own}))
            rows.append((label, *seconds, f"{peak:.0f}", threads))
    return ("method", *(f"{stage} (s)" for stage in stages), "peak memory (MiB)", "threads"), rows


def kind_table(summary: Summary, set_name: str, metric: str) -> Table:
    """One figure of each kind of defect against all good images; without rows where the set cannot give it."""
    header = (METRICS[metric], "images", *summary.columns.values())
    own = [row for row in summary.rows if row["set"] == set_name]
    lines = [{"label": row["label"], "kind": kind, **figures} for row in own for kind, figures in row["kinds"].items()]
    frame = pd.DataFrame(lines, columns=["label", "kind", "images", metric]).astype({metric: float}).dropna()
    rows = []
    for kind, figures in frame.groupby("kind"):
        cells = [shown(figures.loc[figures["label"] == label, metric]) for label in summary.labels]
        rows.append((str(kind), f"{figures['images'].iloc[0]:.0f}", *cells))
    return header, rows


def _saw_test(asked: Configuration) -> bool:
    return bool(asked["selection"] == "best_on_test" or asked["options"].get("normalise") == "test")


def footnotes(summary: Summary, metrics: Sequence[str]) -> list[str]:
    notes = []
    if any(CHOSEN in column for column in summary.columns.values()):
        notes.append(
            f"{CHOSEN} epoch chosen, or scores scaled, by looking at the test set, as asked: too good by that much"
        )
    if any("oracle" in metric for metric in metrics):
        notes.append("oracle: with the threshold that is best on the test labels, which is unknown in practice")
    return notes
