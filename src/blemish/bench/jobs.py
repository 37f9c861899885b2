"""From a recipe to jobs. What is measured is known by what it depends on, not by who asked for it."""

import dataclasses
import datetime
import fnmatch
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self, get_type_hints

from filelock import FileLock
from pydantic import TypeAdapter

from blemish.bench.ledger import Row
from blemish.bench.recipe import DEMO, DataEntry, Recipe, Variant
from blemish.data.demo import write_demo
from blemish.data.protocols import alternative_split, contaminate, label_anomalies
from blemish.data.readers import read_training
from blemish.data.samples import TrainingSet
from blemish.data.testset import TestSet, mask_files, open_test_set
from blemish.errors import ConfigError, DataError, OutputError
from blemish.registry import make_config, method_class, method_entry
from blemish.run import file_digest, written_atomically

VARIABLE = "BLEMISH_DATA"
DRAW = ("contaminate", "overlap", "reveal", "kinds", "hold_out")  # in a configuration: who is learned from
EVIDENCE, LOCK, CURVES, CHECKPOINTS, LOG = "evidence.npz", "lock", "curves.json", "checkpoints", "log.txt"
"""In a job's folder; scores and pictures in that of each row."""

Configuration = dict[str, Any]  # all that a figure depends on but code and images, as the ledger holds it: JSON values
_file_digest = cache(file_digest)  # the same images stand in the draws of all seeds


@dataclass(frozen=True)
class Experiment:
    """A cell of the recipe, with the names of method and test set in tables; it becomes a row of the ledger."""

    label: str
    set_name: str
    configuration: Configuration
    data_digest: str = ""  # of images and masks; empty where they are not at hand

    @property
    def signature(self) -> str:
        """What rows of the ledger are matched by: the configuration and the method's version."""
        return digest(self.configuration)

    @property
    def key(self) -> str:
        """Of the row: same configuration, images and method version, same figures."""
        return digest({**self.configuration, "data_digest": self.data_digest})

    @property
    def title(self) -> str:
        return f"{self.label} on {self.set_name}, seed {self.configuration['seed']}"


@dataclass(frozen=True)
class Job:
    """One training and the test sets it is judged on: what one process does."""

    recipe: str
    images: Path  # on this machine; never in the ledger
    weights: str  # ``pretrained``, ``random`` or a file on this machine, whose digest the configuration holds
    experiments: tuple[Experiment, ...]  # they differ in their test set alone
    device: str = "auto"
    threads: int = 1
    afresh: bool = False

    @property
    def key(self) -> str:
        return min(experiment.key for experiment in self.experiments)

    def write(self, results: Path) -> Path:
        """The folder that ``python -m blemish.bench.job FOLDER`` takes."""
        folder = job_folder(results, self.key)
        with written_atomically(folder / "job.json") as temporary:
            temporary.write_bytes(TypeAdapter(Job).dump_json(self))
        return folder

    @classmethod
    def read(cls, folder: Path) -> Self:
        return TypeAdapter(cls).validate_json((folder / "job.json").read_bytes())


def job_folder(results: Path, key: str) -> Path:
    """Where a job keeps its log and checkpoints, and each row's pictures lie; git ignores it."""
    return results / "runs" / key


def digest(value: Any) -> str:
    """32 hexadecimal digits of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def plan(
    recipe: Recipe, results: Path, data: Path | None = None, only: Sequence[str] = ()
) -> tuple[list[Job], dict[str, str]]:
    """The jobs of ``recipe`` on this machine, and what it names that is missing here, with the reason.

    Sets lie in ``data`` or the folder that BLEMISH_DATA names; the demo set is written below ``results``. ``only`` has
    patterns of titles (``*screw*``); one without a star matches anywhere in a title.
    """
    _file_digest.cache_clear()
    runs, source = results / "runs", "--data" if data else VARIABLE
    data = data or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if data is not None and not data.is_dir():
        raise ConfigError(f"{source} {data} is no folder: name the folder that the sets lie in")
    jobs: list[Job] = []
    missing: dict[str, str] = {}
    for entry, category, cells in _cells(recipe):
        try:
            jobs += _jobs(recipe, _locate(entry, category, data, runs), cells)
        except (DataError, ConfigError) as error:
            missing[entry.names[category]] = str(error)
    if only:
        patterns = [pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*" for pattern in only]
        matching = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns), re.IGNORECASE)
        jobs = [job for job in jobs if any(matching.match(experiment.title) for experiment in job.experiments)]
        if not jobs:
            raise ConfigError(f"--only {' '.join(only)} matches no job: blemish bench with --dry-run lists them")
    return jobs, missing


def experiments(recipe: Recipe) -> list[Experiment]:
    """Every cell of a recipe: set by set, so that jobs on one set can share features."""
    return [experiment for *_, cells in _cells(recipe) for experiment in cells]


def open_sets(folder: Path, configuration: Configuration) -> tuple[TrainingSet, TestSet, frozenset[Path]]:
    """The images to learn from and those to judge, as the protocol splits them.

    Third come the training images that are bad though no method is told: those that ``contaminate`` drew.
    """
    training = read_training(folder, unlabelled=configuration["regime"] == "contaminated")
    test, planted = open_test_set(folder), frozenset[Path]()
    if configuration["alt_split"]:
        training, test = alternative_split(training, test, folder / configuration["alt_split"])
    if configuration.get("contaminate") is not None:
        dealt = contaminate(training, test, configuration["contaminate"], configuration["seed"])
        training, test = dealt.training, dealt.overlap if configuration["overlap"] and dealt.overlap else dealt.test
        planted = frozenset(sample.path for sample in dealt.drawn)
    elif configuration.get("reveal") is not None:
        share, kinds = configuration["reveal"], configuration["kinds"]
        hold_out, seed = configuration.get("hold_out", True), configuration["seed"]
        dealt = label_anomalies(training, test, share, kinds, seed, validate=hold_out)
        training, test = dealt.training, dealt.test
    return training, test, planted


def data_digest(training: TrainingSet, test: TestSet) -> str:
    """64 hexadecimal digits of every image and mask, what is said of each, and on which side it stands."""
    lines = [f"train {_file_digest(s.path)} {s.label} {s.group} {s.kind}" for s in training.samples]
    for s in test.samples:
        mask = "+".join(map(_file_digest, mask_files(s))) or "-"
        lines.append(f"test {_file_digest(s.path)} {s.anomalous} {s.group} {s.kind} {mask}")
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _locate(entry: DataEntry, category: str, data: Path | None, runs: Path) -> Path:
    """The folder of a set: in the data folder, a category's also directly in it; the demo set's in ``runs``."""
    if entry.set == DEMO:
        data = runs
        try:
            runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            needed = "name another folder, --results"
            raise OutputError(f"{runs.parent} cannot be written ({error.strerror}): {needed}") from error
        with FileLock(runs / "demo.lock"), tempfile.TemporaryDirectory(dir=runs, prefix=".demo.") as unfinished:
            if not (runs / DEMO).is_dir():
                write_demo(Path(unfinished, DEMO))
                Path(unfinished, DEMO).replace(runs / DEMO)
    if data is None:
        raise DataError(f"no data folder: give --data DIR, or set {VARIABLE}")
    folder = data / entry.set / category
    if category and not folder.exists():
        folder = data / category
    if not folder.exists():
        raise DataError(f"the data folder holds no {f'{entry.set}/{category}' if category else entry.set}")
    if entry.alt_split and not (folder / entry.alt_split).is_file():
        raise DataError(f"{folder.name} holds no file {entry.alt_split}")
    return folder


def _jobs(recipe: Recipe, folder: Path, cells: Sequence[Experiment]) -> list[Job]:
    """Experiments that differ in their test set alone are one job."""
    digests: dict[str, str] = {}
    groups: dict[str, list[Experiment]] = {}
    for cell in cells:
        asked = cell.configuration
        draw = {name: asked[name] for name in DRAW if name in asked}
        images = digest({**draw, "seed": asked["seed"] if draw else None})
        if images not in digests:
            digests[images] = data_digest(*open_sets(folder, asked)[:2])
        # Whoever chooses an epoch on its test set has no model in common with the other.
        apart = asked.get("overlap") if asked["selection"] != "last" else None
        experiment = dataclasses.replace(cell, data_digest=digests[images])
        groups.setdefault(f"{cell.label}, seed {asked['seed']}, {apart}", []).append(experiment)
    weights = {variant.label: variant.weights or recipe.weights for variant in recipe.methods}
    return [Job(recipe.name, folder, weights[group[0].label], tuple(group)) for group in groups.values()]


def _cells(recipe: Recipe) -> Iterator[tuple[DataEntry, str, list[Experiment]]]:
    for entry in recipe.data:
        for category, set_name in entry.names.items():
            cells = []
            for seed, variant in itertools.product(recipe.seeds, recipe.methods):
                for name, overlap in recipe.protocol.test_sets(set_name).items():
                    configuration = _configuration(recipe, variant, entry, overlap, category)
                    configuration |= {"category": category, "seed": seed}
                    cells.append(Experiment(variant.label, name, configuration))
            yield entry, category, cells


def _configuration(
    recipe: Recipe, variant: Variant, entry: DataEntry, overlap: bool | None, category: str
) -> Configuration:
    cls, weights = method_class(variant.method), variant.weights or recipe.weights
    is_trained = {"epochs", "steps"} <= {field.name for field in dataclasses.fields(cls.Config)}
    length: dict[str, int | None] = {}
    if is_trained and (recipe.epochs or recipe.steps):  # one kind of length rules out the other
        length = {"steps": recipe.steps} if recipe.steps else {"epochs": recipe.epochs, "steps": None}
    try:
        config = make_config(cls, length | variant.options | variant.by_category.get(category, {}))
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe.name}, method {variant.label!r}: {error}") from None
    if weights not in ("pretrained", "random"):  # a file stands by its content: its name and place do not matter
        if not Path(weights).is_file():
            raise ConfigError(f"weights {weights!r}: pretrained, random or an existing file is needed")
        weights = f"sha256:{_file_digest(Path(weights))}"
    from blemish.ops.config import LATER  # imports torch, which whoever only starts jobs does without

    hints, options = get_type_hints(cls.Config, include_extras=True), dataclasses.asdict(config)
    for option in dataclasses.fields(config):
        if LATER in getattr(hints[option.name], "__metadata__", ()) and options[option.name] == option.default:
            del options[option.name]  # rows from before there was such an option still stand
    protocol = recipe.protocol.model_dump(exclude={"contaminate", "overlap", "follow"})
    # What a protocol does not use is absent, so that rows from before there was such a protocol still stand.
    if overlap is not None:
        protocol |= {"contaminate": recipe.protocol.contaminate, "overlap": overlap}
    if entry.reveal is not None:
        protocol |= {"regime": "weak" if entry.reveal else recipe.protocol.regime}
        protocol |= {"reveal": entry.reveal, "kinds": entry.kinds} | ({} if entry.hold_out else {"hold_out": False})
    if recipe.protocol.follow is not None and is_trained:
        protocol |= {"follow": recipe.protocol.follow}
    if protocol["selection"] == "last" or not is_trained:  # nothing is selected where nothing is trained
        protocol |= {"selection": "last", "select_by": []}
    configuration = {
        "method": variant.method,
        "method_version": method_entry(variant.method).version,
        "options": options,
        "backbone": variant.backbone or (None if cls.on_pixels else recipe.backbone),
        "weights": weights,
        "precision": recipe.precision,
        **recipe.preparation.model_dump(),
        **protocol,
        "set": entry.set,
        "alt_split": entry.alt_split,
    }
    normal: Configuration = json.loads(json.dumps(configuration))  # tuples become lists, as they come back from files
    return normal


def row_of(job: Job, experiment: Experiment, status: str) -> Row:
    row = {"key": experiment.key, "status": status, "recipe": job.recipe, **dataclasses.asdict(experiment)}
    row["set"] = row.pop("set_name")
    return row


def failed_row(job: Job, experiment: Experiment, reason: str, seconds: float) -> Row:
    """What the ledger says of an experiment that did not end well; the next bench tries it again."""
    row = row_of(job, experiment, "failed") | {"reason": without_paths(reason)[:500]}
    return row | {"seconds": {"total": round(seconds, 3)}, "finished": now()}


def without_paths(text: str) -> str:
    """``text`` with every absolute path cut down to its last name: the ledger names no place of a machine."""
    return re.sub(r"(?<![\w.:/])(?:/|[A-Za-z]:\\)[^\s'\"():;,]*[/\\]([^\s'\"():;,/\\]+)", r"\1", text)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
