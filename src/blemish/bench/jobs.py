"""From a recipe to jobs. What is measured is known by what it depends on, not by who asked for it."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from blemish.bench.recipe import DataEntry, Recipe, Variant
from blemish.bench.sets import Configuration, data_digest, data_folder, locate, open_sets
from blemish.errors import ConfigError, DataError, OutputError
from blemish.registry import make_config, method_class, method_entry

LENGTHS = frozenset({"epochs", "steps"})
"""Options of every method that is trained."""
DRAWS = ("alt_split", "contaminate", "overlap", "reveal", "kinds")
"""What of a configuration, with the seed, says which images are learned from and judged."""
JOB_FILE = "job.json"


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
        """For people."""
        return f"{self.label} on {self.set_name}, seed {self.configuration['seed']}"


@dataclass(frozen=True)
class Job:
    """One training and the test sets it is judged on: what one process does. Stored as one JSON file."""

    recipe: str
    images: Path  # on this machine; never in the ledger
    weights: str  # ``pretrained``, ``random`` or a file on this machine, whose digest the configuration holds
    experiments: tuple[Experiment, ...]  # they differ in their test set alone
    device: str = "auto"
    threads: int = 1
    afresh: bool = False

    @property
    def key(self) -> str:
        """Of the job's folder."""
        return min(experiment.key for experiment in self.experiments)

    def write(self, results: Path) -> Path:
        """Write the job into its folder, which ``python -m blemish.bench.job FOLDER`` takes; the folder."""
        folder = job_folder(results, self.key)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{JOB_FILE}.{os.getpid()}"
        unfinished.write_bytes(TypeAdapter(Job).dump_json(self))
        return unfinished.replace(folder / JOB_FILE).parent  # whole, for whoever reads it now

    @staticmethod
    def read(folder: Path) -> Job:
        """What ``write`` wrote."""
        return TypeAdapter(Job).validate_json((folder / JOB_FILE).read_bytes())


@dataclass(frozen=True)
class Missing:
    """What the recipe names and this machine or this Blemish lacks."""

    what: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The jobs of a recipe on this machine, and what is missing."""

    jobs: tuple[Job, ...]
    missing: tuple[Missing, ...]


def job_folder(results: Path, key: str) -> Path:
    """Where a job keeps its log and checkpoints, and each row's pictures lie; git ignores it."""
    return results / "runs" / key


def digest(value: Any) -> str:
    """32 hexadecimal digits of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def experiments(recipe: Recipe) -> Iterator[Experiment]:
    """Every cell of a recipe whose method is built: set by set, so that jobs on one set can share features."""
    for entry in recipe.data:
        for category in entry.names:
            yield from _experiments_on(recipe, entry, category)


def unbuilt(recipe: Recipe) -> list[Missing]:
    """The recipe's methods that are still to come."""
    variants = (variant for variant in recipe.methods if not variant.is_built)
    return [Missing(variant.label, f"the method {variant.method} is not built yet") for variant in variants]


def plan(recipe: Recipe, results: Path, data: Path | None = None, only: Sequence[str] = ()) -> Plan:
    """The jobs of ``recipe`` on this machine.

    Args:
        recipe: validated.
        results: the folder of the ledger; the demo set may be written below it.
        data: the folder that sets lie in; None for the one that BLEMISH_DATA names.
        only: patterns of titles (``*screw*``); a pattern without a star matches anywhere in a title.

    Raises:
        ConfigError: an option that a method does not have, or a pattern that matches no job.
        OutputError: the folder of the ledger cannot be made.
    """
    runs, data = results / "runs", data_folder(data)
    try:
        runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{results} cannot be written ({error.strerror}): name another folder, --results") from error
    jobs: list[Job] = []
    missing = unbuilt(recipe)
    for entry in recipe.data:
        for category, name in entry.names.items():
            cells = list(_experiments_on(recipe, entry, category))
            try:
                jobs += _jobs(recipe, locate(entry.set, category, entry.alt_split, data, runs), cells)
            except (DataError, ConfigError) as error:
                missing.append(Missing(name, str(error)))
    patterns = [pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*" for pattern in only]
    chosen = [job for job in jobs if not patterns or _matches(job, patterns)]
    if patterns and not chosen:
        raise ConfigError(f"--only {' '.join(only)} matches no job: blemish bench with --dry-run lists them")
    return Plan(tuple(chosen), tuple(missing))


def _matches(job: Job, patterns: Sequence[str]) -> bool:
    titles = [experiment.title.casefold() for experiment in job.experiments]
    return any(fnmatch.fnmatchcase(title, pattern.casefold()) for title in titles for pattern in patterns)


def _jobs(recipe: Recipe, folder: Path, cells: Sequence[Experiment]) -> Iterator[Job]:
    """Experiments that differ in their test set alone are one job."""
    digests: dict[str, str] = {}
    groups: dict[str, list[Experiment]] = {}
    for cell in cells:
        made = cell.configuration
        draw = {name: made.get(name) for name in DRAWS}
        is_drawn = made.get("contaminate") is not None or made.get("reveal") is not None
        images = digest({**draw, "seed": made["seed"] if is_drawn else None})
        if images not in digests:
            digests[images] = data_digest(*open_sets(folder, made))
        # Whoever chooses an epoch on its test set has no model in common with the other.
        shared = {name: value for name, value in made.items() if name != "overlap" or made["selection"] != "last"}
        experiment = dataclasses.replace(cell, data_digest=digests[images])
        groups.setdefault(digest({**shared, "label": cell.label}), []).append(experiment)
    weights = {variant.label: variant.weights or recipe.weights for variant in recipe.methods}
    for group in groups.values():
        yield Job(recipe.name, folder, weights[group[0].label], tuple(group))


def _experiments_on(recipe: Recipe, entry: DataEntry, category: str) -> Iterator[Experiment]:
    tests = recipe.protocol.test_sets(entry.names[category])
    for seed in recipe.seeds:
        for variant in recipe.methods:
            for name, overlap in tests.items() if variant.is_built else ():
                made = _configuration(recipe, variant, entry, category, seed, overlap)
                yield Experiment(variant.label, name, made)


def _configuration(
    recipe: Recipe, variant: Variant, entry: DataEntry, category: str, seed: int, overlap: bool | None
) -> Configuration:
    cls = method_class(variant.method)
    is_trained = {field.name for field in dataclasses.fields(cls.Config)} >= LENGTHS
    length: dict[str, int | None] = {}
    if is_trained and (recipe.epochs or recipe.steps):  # one kind of length rules out the other
        length = {"steps": recipe.steps} if recipe.steps else {"epochs": recipe.epochs, "steps": None}
    try:
        options = dataclasses.asdict(make_config(cls, length | variant.options))
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe.name}, method {variant.label!r}: {error}") from None
    protocol = recipe.protocol.model_dump(mode="json", exclude={"contaminate", "overlap", "follow"})
    if overlap is not None:  # absent elsewhere, so that rows from before there was such a protocol still stand
        protocol |= {"contaminate": recipe.protocol.contaminate, "overlap": overlap}
    if entry.reveal is not None:
        protocol |= {"regime": "weak", "reveal": entry.reveal, "kinds": entry.kinds}
    if recipe.protocol.follow is not None and is_trained:
        protocol |= {"follow": recipe.protocol.follow}
    if protocol["selection"] == "last" or not is_trained:  # nothing is selected where nothing is trained
        protocol |= {"selection": "last", "select_by": []}
    configuration = {
        "method": variant.method,
        "method_version": method_entry(variant.method).version,
        "options": options,
        "backbone": variant.backbone or recipe.backbone,
        "weights": _weights(variant.weights or recipe.weights),
        "precision": recipe.precision,
        **recipe.preparation.model_dump(mode="json"),
        **protocol,
        "set": entry.set,
        "category": category,
        "alt_split": entry.alt_split,
        "seed": seed,
    }
    normal: Configuration = json.loads(json.dumps(configuration))  # tuples become lists, as they come back from files
    return normal


def _weights(weights: str) -> str:
    """A file of weights stands by its content, so that its name and place do not matter."""
    if weights in ("pretrained", "random"):
        return weights
    path = Path(weights)
    if not path.is_file():
        raise ConfigError(f"weights {weights!r}: pretrained, random or an existing file is needed")
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
