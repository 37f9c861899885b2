"""A recipe: which methods meet which data sets, under which protocol, in one TOML file that says all of it.

A recipe holds no path of a machine: sets are named, and the folder they lie in is given when the recipe is run.
``docs/guides/bench.md`` shows one with every key.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.data.public import DEMO_CATEGORIES
from blemish.errors import ConfigError
from blemish.registry import METHODS, nearest_name

DEMO = "demo"
"""The name of the built-in set."""
PLANNED = ("recontrast", "urd", "stfpm", "padim", "cfa")
"""Methods that a recipe may name before they are built: they are listed as absent."""

METRICS: dict[str, str] = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max_oracle": "image F1 (oracle)",
    "accuracy_oracle": "accuracy (oracle)",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_fpr95": "pixel FPR at 95 % TPR",
    "aupro": "AU-PRO .30",
    "aupro_05": "AU-PRO .05",
    "aupro_per_image": "AU-PRO per image",
}
"""Every figure of merit and its name for people. An oracle chose its threshold by looking at the test labels."""
LOWER_IS_BETTER = frozenset({"pixel_fpr95"})


def _known_metric(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}: {nearest_name(name, METRICS)}")
    return name


def _known_method(name: str) -> str:
    if name not in METHODS and name not in PLANNED:
        raise ValueError(f"there is no method {name!r}: {nearest_name(name, {*METHODS, *PLANNED})}")
    return name


Metric = Annotated[str, AfterValidator(_known_metric)]
Positive = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Section):
    """One column of the tables: a method with its options, and its own backbone or weights where they are given."""

    label: str = Field(min_length=1)
    method: Annotated[str, AfterValidator(_known_method)]
    options: dict[str, Any] = {}
    backbone: str | None = None
    weights: str | None = None

    @property
    def is_built(self) -> bool:
        """Whether this Blemish has the method."""
        return self.method in METHODS


class DataEntry(_Section):
    """One data set: a row of the tables, or one for each of its categories.

    Attributes:
        reveal: share of the training set that becomes known-bad: bad images of ``kinds``, drawn by group and by the
            job's seed, the same for all methods, leave the test set with their groups; None for none.
        kinds: of defect that are known; an entry for each kind makes every kind in turn.
    """

    set: str = Field(min_length=1)  # a folder (or manifest) below the data folder, or ``demo``
    categories: tuple[str, ...] = ()  # its folders, each a set of its own; the demo set's default to all
    alt_split: str = ""  # a file in the set's folder that moves training images to the test set
    reveal: Annotated[float, Field(gt=0, lt=1)] | None = None
    kinds: tuple[str, ...] = ()
    label: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> DataEntry:
        for name in (self.set, *self.categories, self.alt_split):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"{name!r} must be a name below the data folder, not a path of this machine")
        if (self.reveal is None) != (not self.kinds):
            raise ValueError(f"{self.set}: reveal and kinds belong together, such as reveal = 0.05, kinds = ['crack']")
        return self

    @property
    def names(self) -> dict[str, str]:
        """The name in tables of each category; of the set itself, under an empty name, where it has none."""
        known = f", {' + '.join(self.kinds)} known" if self.kinds else ""
        categories = self.categories or (tuple(DEMO_CATEGORIES) if self.set == DEMO else ())
        if not categories:
            default = f"{self.set} ({Path(self.alt_split).stem})" if self.alt_split else self.set
            return {"": self.label or f"{default}{known}"}
        return {category: f"{self.label or self.set}/{category}{known}" for category in categories}


class Preprocessing(_Section):
    """How images come to the network's size."""

    size: int | tuple[int, int] = 256
    resize: Literal["stretch", "crop", "opencv", "letterbox"] = "stretch"
    crop: int | None = None


class Protocol(_Section):
    """What training and testing may see.

    Attributes:
        regime: ``clean``: good training images only; ``contaminated``: a pile with bad ones in it.
        contaminate: so many bad test images for each training image join the pile, drawn by group and by the job's
            seed, the same for all methods; None for none.
        overlap: False judges without the drawn groups, True with them; with both, one model is judged twice.
        selection: ``last``: the model as training left it; ``best_on_test``: the best epoch by a look at the test set,
            as some papers do, to show what that adds: the best mean of ``select_by``, marked in every table.
        follow: judge after every so many epochs, too, to draw curves; nothing is chosen by them.
        calibration: recipes of papers train on everything, so ``none``.
        at: where pixel metrics are measured.
        per_image_pro: also AU-PRO as the RD family computes it.
    """

    regime: Literal["clean", "contaminated"] = "clean"
    contaminate: Annotated[float, Field(gt=0, le=1)] | None = None
    overlap: Annotated[tuple[bool, ...], Field(min_length=1, max_length=2)] = (False,)
    selection: Literal["last", "best_on_test"] = "last"
    select_by: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro")
    follow: Positive | None = None
    calibration: Literal["none", "auto", "holdout", "crossfit"] = "none"
    at: Literal["input", "original"] = "input"
    per_image_pro: bool = False

    @model_validator(mode="before")
    @classmethod
    def _contaminated(cls, values: Any) -> Any:
        """What is contaminated needs no second word for it."""
        if isinstance(values, dict) and values.get("contaminate") is not None:
            return {"regime": "contaminated", **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Protocol:
        if self.contaminate is not None and self.regime != "contaminated":
            raise ValueError(f"contaminate = {self.contaminate} makes no {self.regime} set: leave regime out")
        if self.contaminate is None and self.overlap != (False,):
            raise ValueError("overlap is about drawn images: give contaminate as well, such as 0.1")
        if self.follow is not None and self.selection != "last":
            raise ValueError("best_on_test looks after every epoch already: leave follow out")
        if len(set(self.overlap)) != len(self.overlap):
            raise ValueError("overlap names one test set twice: [false], [true] or [false, true]")
        return self

    def test_sets(self, name: str) -> dict[str, bool | None]:
        """The test sets that a model is judged on: their names in tables, and whether they overlap with the pile."""
        if self.contaminate is None:
            return {name: None}
        return {f"{name}, {'overlap' if overlap else 'no overlap'}": overlap for overlap in self.overlap}


class Paper(_Section):
    """What a paper prints, to stand beside what we measure."""

    citation: str
    unit: Literal["percent", "fraction"] = "percent"
    sets: int | None = None  # over how many its averages go
    setting: dict[str, Any] = {}  # what it ran with, by the ledger's names (backbone, size ...): differences are marked
    differences: tuple[str, ...] = ()  # further ones in protocol, a sentence each
    figures: dict[str, dict[Metric, dict[str, float]]] = {}  # label, metric, set (or ``average``): the printed figure


class Recipe(_Section):
    """Methods x data sets x seeds under one protocol."""

    name: str = ""  # the file's stem unless given; reports and rows carry it
    title: str = ""
    about: str = ""
    methods: Annotated[tuple[Variant, ...], Field(min_length=1)]
    data: Annotated[tuple[DataEntry, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    backbone: str = DEFAULT_BACKBONE
    weights: str = "pretrained"  # or ``random`` (for tests only), or a file
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    epochs: Positive | None = None
    steps: Positive | None = None  # of every method that is trained; without either, each method's own
    metrics: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro", "aupro_05")
    reference: str = ""  # the label that others are compared with, pair by pair; the first unless given
    preparation: Preprocessing = Preprocessing()
    protocol: Protocol = Protocol()
    paper: Paper | None = None

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.protocol.contaminate is not None and any(entry.kinds for entry in self.data):
            raise ValueError("reveal gives labels and protocol.contaminate takes them away: keep one")
        labels = [variant.label for variant in self.methods]
        sets = [name for entry in self.data for name in entry.names.values()]
        for what, names in (("method label", labels), ("set", sets), ("seed", self.seeds)):
            twice = {name for name in names if list(names).count(name) > 1}
            if twice:
                raise ValueError(f"{what} {sorted(twice)[0]!r} stands twice: give each its own")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given: a training has one length, keep one")
        named = {self.reference} - {""} | set(self.paper.figures if self.paper else ())
        for label in sorted(named):
            if label not in labels:
                raise ValueError(f"{label!r} is no label of a method: {nearest_name(label, labels)}")
        return self

    @property
    def compared_with(self) -> str:
        """The label that others are compared with."""
        return self.reference or self.methods[0].label


_SECTIONS: dict[str, type[BaseModel]] = {
    "methods": Variant,
    "data": DataEntry,
    "preparation": Preprocessing,
    "protocol": Protocol,
    "paper": Paper,
}


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file.

    Raises:
        ConfigError: no such file, not TOML, an unknown key (the nearest valid one is named) or a value that does not
            fit; the message names file and key.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return Recipe.model_validate({"name": path.stem, **content})
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}; see recipes/ for some") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def _explained(error: ValidationError) -> str:
    """What is wrong, each key once, for people."""
    lines = []
    for problem in error.errors():
        location, message = problem["loc"], problem["msg"].removeprefix("Value error, ")
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
        if problem["type"] == "extra_forbidden":
            section = next((part for part in reversed(location[:-1]) if isinstance(part, str)), "")
            known = _SECTIONS.get(section, Recipe).model_fields
            lines.append(f"unknown key {key!r}: {nearest_name(str(location[-1]), known)}")
        elif problem["type"] == "missing":
            lines.append(f"the key {key!r} is needed")
        else:
            shown = "" if problem["type"] == "value_error" else f" (given: {str(problem['input'])[:60]!r})"
            lines.append(f"{key}: {message}{shown}" if key else message)
    return "; ".join(dict.fromkeys(lines))
