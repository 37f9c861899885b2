"""From a recipe to jobs: one method, one set, one seed. A job is known by what it computes, not by who asked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.bench.recipe import DataEntry, Recipe, Variant
from blemish.bench.sets import DEMO, Place, data_digest, demo_categories, demo_folder, locate, open_sets
from blemish.errors import ConfigError, DataError
from blemish.registry import make_config, method_class, method_entry

Configuration = dict[str, Any]
LENGTHS = frozenset({"epochs", "steps"})
"""Options of every method that is trained."""


@dataclass(frozen=True)
class Wish:
    """A cell of the recipe: what is to be computed, whether or not the images are at hand.

    Attributes:
        label: the method's name in tables.
        set_name: the set's name in tables.
        configuration: all that the figures depend on but code and images; JSON values.
    """

    label: str
    set_name: str
    configuration: Configuration

    @property
    def signature(self) -> str:
        """What rows of the ledger are matched by: the configuration and the method's version."""
        return _digest(self.configuration)


@dataclass(frozen=True)
class Job:
    """A wish with its images: what one process computes.

    Attributes:
        recipe: who asked.
        wish: what for.
        folder: where the set lies on this machine; never in the ledger.
        data_digest: of its images and masks.
        weights: ``pretrained``, ``random`` or a file on this machine; the configuration holds the file's digest.
        siblings: what else the model that this job learns is judged on.
    """

    recipe: str
    wish: Wish
    folder: Path
    data_digest: str
    weights: str
    siblings: tuple[Job, ...] = ()

    @property
    def key(self) -> str:
        """Two jobs with one key would give one row: same configuration, images and method version."""
        return _digest({**self.wish.configuration, "data_digest": self.data_digest})

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.wish.label} on {self.wish.set_name}, seed {self.wish.configuration['seed']}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "recipe": self.recipe,
            "label": self.wish.label,
            "set": self.wish.set_name,
            "configuration": self.wish.configuration,
            "folder": str(self.folder),
            "data_digest": self.data_digest,
            "weights": self.weights,
            "siblings": [one.to_dict() for one in self.siblings],
            "family": min([self.key, *(one.key for one in self.siblings)]),
        }

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> Job:
        """What ``to_dict`` gave."""
        wish = Wish(given["label"], given["set"], dict(given["configuration"]))
        siblings = tuple(Job.from_dict(one) for one in given.get("siblings", ()))
        return Job(given["recipe"], wish, Path(given["folder"]), given["data_digest"], given["weights"], siblings)


@dataclass(frozen=True)
class Absent:
    """What the recipe names and this machine or this Blemish lacks."""

    what: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The jobs of a recipe here, and what is missing."""

    jobs: tuple[Job, ...]
    absent: tuple[Absent, ...]


def wishes(recipe: Recipe) -> Iterator[Wish]:
    """Every cell of a recipe whose method is built: set by set, so that jobs on one set can share features.

    Raises:
        ConfigError: an option that a method does not have.
    """
    for entry in recipe.data:
        for category, set_name in names_of(entry):
            for seed in recipe.seeds:
                for variant in recipe.methods:
                    for overlap in recipe.protocol.overlaps if variant.is_built else ():
                        made = _configuration(recipe, variant, entry, category, seed, overlap)
                        yield Wish(variant.label, _judged_on(set_name, overlap), made)


def plan(recipe: Recipe, data: Path | None, runs: Path) -> Plan:
    """The jobs of ``recipe`` on this machine.

    Args:
        recipe: validated.
        data: the folder that sets lie in.
        runs: where the demo set may be written.

    Raises:
        ConfigError: an option that a method does not have.
    """
    missing = [Absent(v.label, f"the method {v.method} is not built yet") for v in recipe.methods if not v.is_built]
    found: dict[tuple[str, int], tuple[Path, str]] = {}
    for entry in recipe.data:
        for category, set_name in names_of(entry):
            place = _place(entry, category, data, runs)
            try:
                if isinstance(place, Place):
                    found |= _found(recipe, place, set_name)
            except (DataError, ConfigError) as error:
                place = str(error)
            if isinstance(place, str):
                missing.append(Absent(set_name, place))
    weights = {variant.label: variant.weights or recipe.weights for variant in recipe.methods}
    jobs = [
        Job(recipe.name, wish, *found[wish.set_name, wish.configuration["seed"]], weights[wish.label])
        for wish in wishes(recipe)
        if (wish.set_name, wish.configuration["seed"]) in found
    ]
    return Plan(_with_siblings(jobs), tuple(missing))


def place_of(job: Job) -> Place:
    """Where a job's images lie."""
    made = job.wish.configuration
    return Place(
        job.folder,
        made["alt_split"],
        made.get("contaminate"),
        bool(made.get("overlap")),
        made["seed"],
        made.get("reveal"),
        tuple(made.get("kinds", ())),
    )


def _judged_on(set_name: str, overlap: bool | None) -> str:
    return set_name if overlap is None else f"{set_name}, {'overlap' if overlap else 'no overlap'}"


def _found(recipe: Recipe, place: Place, set_name: str) -> dict[tuple[str, int], tuple[Path, str]]:
    """The folder and the images' digest of a set, by the name it is judged under and the seed that draws from it."""
    protocol = recipe.protocol
    if place.reveal is not None:
        drawn = {seed: dataclasses.replace(place, seed=seed) for seed in recipe.seeds}
        return {(set_name, seed): (place.folder, data_digest(*open_sets(one))) for seed, one in drawn.items()}
    if protocol.contaminate is None:
        one = (place.folder, data_digest(*open_sets(place)))
        return {(set_name, seed): one for seed in recipe.seeds}
    found = {}
    for overlap in protocol.overlap:
        for seed in recipe.seeds:
            pile = dataclasses.replace(place, contaminate=protocol.contaminate, overlap=overlap, seed=seed)
            found[_judged_on(set_name, overlap), seed] = (place.folder, data_digest(*open_sets(pile)))
    return found


def _with_siblings(jobs: list[Job]) -> tuple[Job, ...]:
    """Jobs that differ in their test set alone know each other, so that the first to run judges for the others too."""
    families: dict[str, list[Job]] = {}
    for job in jobs:
        shared = {name: value for name, value in job.wish.configuration.items() if name != "overlap"}
        # Whoever chooses an epoch on its test set has no model in common with the other.
        alone = "overlap" not in job.wish.configuration or shared["selection"] != "last"
        families.setdefault(job.key if alone else _digest(shared), []).append(job)
    siblings: dict[str, tuple[Job, ...]] = {}
    for family in families.values():
        siblings |= {job.key: tuple(one for one in family if one.key != job.key) for job in family}
    return tuple(dataclasses.replace(job, siblings=siblings[job.key]) for job in jobs)


def names_of(entry: DataEntry) -> tuple[tuple[str, str], ...]:
    """(category, name in tables) of each set that an entry stands for; all of the demo set's where it names none."""
    if entry.set == DEMO and not entry.categories:
        return tuple((category, f"{entry.label or DEMO}/{category}{entry.known}") for category in demo_categories())
    return entry.names


def judged_names(recipe: Recipe, entry: DataEntry) -> set[str]:
    """The names in tables of all test sets that an entry is judged on."""
    return {_judged_on(name, overlap) for _, name in names_of(entry) for overlap in recipe.protocol.overlaps}


def _place(entry: DataEntry, category: str, data: Path | None, runs: Path) -> Place | str:
    if entry.set != DEMO:
        found = locate(entry.set, category, entry.alt_split, data)
    else:
        try:
            found = locate(DEMO, category, entry.alt_split, demo_folder(runs).parent)
        except DataError as error:
            return str(error)
    return found if isinstance(found, str) else dataclasses.replace(found, reveal=entry.reveal, kinds=entry.kinds)


def _configuration(
    recipe: Recipe, variant: Variant, entry: DataEntry, category: str, seed: int, overlap: bool | None
) -> Configuration:
    cls = method_class(variant.method)
    known = {field.name for field in dataclasses.fields(cls.Config)}
    length = _length(recipe) if known >= LENGTHS else {}
    try:
        config = dataclasses.asdict(make_config(cls, length | variant.options))
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe.name}, method {variant.label!r}: {error}") from None
    # Nothing is selected where nothing is trained.
    trains = known >= LENGTHS
    protocol = recipe.protocol.model_dump(mode="json", exclude={"contaminate", "overlap", "follow"})
    if overlap is not None:  # absent elsewhere, so that rows from before there was such a protocol still stand
        protocol |= {"contaminate": recipe.protocol.contaminate, "overlap": overlap}
    if entry.reveal is not None:
        protocol |= {"regime": "weak", "reveal": entry.reveal, "kinds": entry.kinds}
    if recipe.protocol.follow is not None and trains:
        protocol |= {"follow": recipe.protocol.follow}
    if protocol["selection"] == "last" or not trains:
        protocol |= {"selection": "last", "select_by": []}
    configuration = {
        "method": variant.method,
        "method_version": method_entry(variant.method).version,
        "options": config,
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


def _length(recipe: Recipe) -> dict[str, int | None]:
    """The recipe's length of training as a method's options: one kind of length rules out the other."""
    if recipe.steps is not None:
        return {"steps": recipe.steps}
    return {} if recipe.epochs is None else {"epochs": recipe.epochs, "steps": None}


def _weights(given: str) -> str:
    """A file of weights stands by its content, so that its name and place do not matter."""
    if given in ("pretrained", "random"):
        return given
    path = Path(given)
    if not path.is_file():
        raise ConfigError(f"weights {given!r}: pretrained, random or an existing file is needed")
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
