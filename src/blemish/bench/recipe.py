"""A recipe: which methods meet which data sets, under which protocol, in one TOML file that says all of it.

A recipe holds no path of a machine: sets are named, and the folder they lie in is given when the recipe is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.errors import ConfigError
from blemish.registry import METHODS, nearest_name

PLANNED = ("recontrast", "urd", "stfpm", "padim", "cfa")
"""Methods that a recipe may name before they are built: their jobs are listed as absent."""

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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Section):
    """One column of the tables: a method with its options.

    Attributes:
        label: its name in tables; each label once.
        method: a name of ``blemish methods``, or of a method still to come.
        options: the method's own.
        backbone: in place of the recipe's.
        weights: in place of the recipe's.
    """

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
    """One data set.

    Attributes:
        set: a folder (or manifest) below the data folder, or ``demo`` for the built-in set.
        categories: its folders, each a set of its own; empty where the set is one. The demo set's default to all.
        alt_split: a file in the set's folder that moves training images to the test set, in place of its good ones.
        reveal: share of the training set that becomes known-bad: bad images of ``kinds``, drawn by group and by the
            job's seed, the same for all methods, leave the test set with their groups; None for none.
        kinds: of defect that are known; an entry for each kind makes every kind in turn.
        label: the set's name in tables, for an entry without categories.
        note: one line for readers.
    """

    set: str = Field(min_length=1)
    categories: tuple[str, ...] = ()
    alt_split: str = ""
    reveal: Annotated[float, Field(gt=0, lt=1)] | None = None
    kinds: tuple[str, ...] = ()
    label: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> DataEntry:
        for part in (self.set, *self.categories, self.alt_split):
            if Path(part).is_absolute() or ".." in Path(part).parts:
                raise ValueError(f"{part!r} must be a name below the data folder, not a path of this machine")
        if (self.reveal is None) != (not self.kinds):
            raise ValueError(f"{self.set}: reveal and kinds belong together, such as reveal = 0.05, kinds = ['crack']")
        return self

    @property
    def known(self) -> str:
        """What the names in tables say of revealed kinds; empty where none are."""
        return f", {' + '.join(self.kinds)} known" if self.kinds else ""

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(category, name in tables) of each set that the entry stands for."""
        if not self.categories:
            default = f"{self.set} ({Path(self.alt_split).stem})" if self.alt_split else self.set
            return (("", self.label or f"{default}{self.known}"),)
        return tuple((category, f"{self.label or self.set}/{category}{self.known}") for category in self.categories)


class Preprocessing(_Section):
    """How images come to the network's size."""

    size: int | tuple[int, int] = 256
    resize: Literal["stretch", "crop", "opencv", "letterbox"] = "stretch"
    crop: int | None = None


class Protocol(_Section):
    """What training and testing may see.

    ``blemish.bench.sets.open_sets`` is where those that draw from the test set take effect.

    Attributes:
        regime: ``clean``: good training images only; ``contaminated``: a pile with bad ones in it.
        contaminate: so many bad test images for each training image join the pile, drawn by group and by the job's
            seed, the same for all methods; None for none.
        overlap: False judges without the drawn groups, True with them; with both, one model is judged twice.
        selection: ``last``: the model as training left it; ``best_on_test``: the best epoch by a look at the test set,
            as some papers do, to show what that adds: the best mean of ``select_by``, marked in every table.
        follow: judge after every so many epochs, too, to draw curves; nothing is chosen by them. None: at the end only.
        calibration: recipes of papers train on everything, so ``none``.
        at: where pixel metrics are measured.
        per_image_pro: also AU-PRO as the RD family computes it.
    """

    regime: Literal["clean", "contaminated"] = "clean"
    contaminate: Annotated[float, Field(gt=0, le=1)] | None = None
    overlap: Annotated[tuple[bool, ...], Field(min_length=1, max_length=2)] = (False,)
    selection: Literal["last", "best_on_test"] = "last"
    select_by: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro")
    follow: Annotated[int, Field(ge=1)] | None = None
    calibration: Literal["none", "auto", "holdout", "crossfit"] = "none"
    at: Literal["input", "original"] = "input"
    per_image_pro: bool = False

    @model_validator(mode="before")
    @classmethod
    def _contaminated(cls, given: Any) -> Any:
        """What is contaminated needs no second word for it."""
        if isinstance(given, dict) and given.get("contaminate") is not None:
            return {"regime": "contaminated", **given}
        return given

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

    @property
    def overlaps(self) -> tuple[bool | None, ...]:
        """The test sets that a model is judged on; one None where nothing is drawn."""
        return (None,) if self.contaminate is None else self.overlap


class Paper(_Section):
    """What a paper prints, to stand beside what we measure.

    Attributes:
        citation: which paper, which table.
        unit: of the figures below.
        sets: over how many sets its averages go.
        setting: what the paper ran with, by the ledger's names (backbone, size, resize ...): differences are marked.
        differences: further differences in protocol, one sentence each.
        figures: label of a method, metric, set (or ``average``): the printed figure.
    """

    citation: str
    unit: Literal["percent", "fraction"] = "percent"
    sets: int | None = None
    setting: dict[str, Any] = {}
    differences: tuple[str, ...] = ()
    figures: dict[str, dict[Metric, dict[str, float]]] = {}


class Recipe(_Section):
    """Methods x data sets x seeds under one protocol.

    Attributes:
        name: the file's stem unless given; reports and ledger rows carry it.
        title: for people.
        about: what the recipe is to show.
        methods: the columns of the tables.
        data: the rows of the tables.
        seeds: each a job of its own.
        backbone, weights: a name of ``blemish backbones``; ``pretrained``, ``random`` (for tests only), or a file.
        precision: ``auto``, ``fp32`` or ``bf16``.
        epochs: length of training for every method that counts in epochs; None for each method's own.
        steps: the same for methods that count in steps.
        metrics: which figures the tables show; the ledger keeps all.
        reference: the label that others are compared with, pair by pair; the first unless given.
        preparation: how images come to the network's size.
        protocol: what training and testing may see.
        paper: printed figures, where the recipe reproduces a table.
    """

    name: str = ""
    title: str = ""
    about: str = ""
    methods: Annotated[tuple[Variant, ...], Field(min_length=1)]
    data: Annotated[tuple[DataEntry, ...], Field(min_length=1)]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    backbone: str = DEFAULT_BACKBONE
    weights: str = "pretrained"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    epochs: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)] | None = None
    metrics: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro", "aupro_05")
    reference: str = ""
    preparation: Preprocessing = Preprocessing()
    protocol: Protocol = Protocol()
    paper: Paper | None = None

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.protocol.contaminate is not None and any(entry.kinds for entry in self.data):
            raise ValueError("reveal gives labels and protocol.contaminate takes them away: keep one")
        labels = [variant.label for variant in self.methods]
        sets = [name for entry in self.data for _, name in entry.names]
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
    "": Recipe,
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
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}; see recipes/ for some") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return Recipe.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explained(error)}") from None


def _explained(error: ValidationError) -> str:
    """What is wrong, each key once, for people."""
    lines = []
    for found in error.errors():
        where = _key(found["loc"])
        if found["type"] == "extra_forbidden":
            section = next((str(part) for part in reversed(found["loc"][:-1]) if isinstance(part, str)), "")
            known = _SECTIONS.get(section, Recipe).model_fields
            lines.append(f"unknown key {where!r}: {nearest_name(str(found['loc'][-1]), known)}")
        elif found["type"] == "missing":
            lines.append(f"the key {where!r} is needed")
        else:
            message = found["msg"].removeprefix("Value error, ")
            shown = "" if found["type"] == "value_error" else f" (given: {str(found['input'])[:60]!r})"
            lines.append(f"{where}: {message}{shown}" if where else message)
    return "; ".join(dict.fromkeys(lines))


def _key(location: Sequence[int | str]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text
