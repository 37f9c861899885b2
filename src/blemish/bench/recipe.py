"""A recipe: which methods meet which data sets under which protocol; ``docs/guides/bench.md`` explains every key.

It holds no path of a machine: sets are named, and the folder they lie in is given when the recipe is run.
"""

import itertools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from blemish.backbones.catalogue import DEFAULT_BACKBONE
from blemish.data.public import DEMO_CATEGORIES
from blemish.errors import ConfigError
from blemish.registry import METHODS, nearest_name

DEMO = "demo"  # the name of the built-in set
METRICS: dict[str, str] = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max_oracle": "image F1 (oracle)",
    "accuracy_oracle": "accuracy (oracle)",
    "caught_at_5": "caught at 5 %",
    "caught_at_1": "caught at 1 %",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_fpr95": "pixel FPR at 95 % TPR",
    "aupro": "AU-PRO .30",
    "aupro_05": "AU-PRO .05",
    "aupro_per_image": "AU-PRO per image",
}
"""Every figure of merit and its name for people. An oracle chose its threshold by looking at the test labels."""
CAUGHT = ("caught_at_5", "caught_at_1")  # in every report, where rows have them: those of old do not
LOWER_IS_BETTER = frozenset({"pixel_fpr95"})


def _known(kind: str, names: Iterable[str]) -> AfterValidator:
    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"there is no {kind} {name!r}: {nearest_name(name, names)}")
        return name

    return AfterValidator(check)


Metric = Annotated[str, _known("metric", METRICS)]
Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise ValueError(f"unknown key {key!r}: {nearest_name(key, cls.model_fields)}")
        return values


class Variant(_Section):
    label: Text
    method: Annotated[str, _known("method", METHODS)]
    options: dict[str, Any] = {}
    by_category: dict[str, dict[str, Any]] = {}  # further options of a category's own, as some papers have
    # Of an option, its values: a variant for each, ``label option=value``.
    sweep: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    backbone: str | None = None
    weights: str | None = None


class DataEntry(_Section):
    set: Text  # a folder (or manifest) below the data folder, or ``demo``
    categories: tuple[str, ...] = ()  # its folders, each a set of its own; the demo set's default to all
    alt_split: str = ""  # a file in the set's folder that moves training images to the test set
    reveal: Annotated[float, Field(ge=0, lt=1)] | None = None  # known-bad share of the training set, drawn by the seed
    kinds: tuple[str, ...] = ()  # of defect that are known; an entry for each kind makes every kind in turn
    hold_out: bool = True  # False: no part of 20 labels or more is set aside to validate on
    label: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
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
        if categories:
            return {category: f"{self.label or self.set}/{category}{known}" for category in categories}
        default = f"{self.set} ({Path(self.alt_split).stem})" if self.alt_split else self.set
        return {"": self.label or f"{default}{known}"}


class Preprocessing(_Section):
    size: int | tuple[int, int] = 256
    resize: Literal["stretch", "crop", "opencv", "letterbox"] = "stretch"
    crop: int | None = None


class Protocol(_Section):
    regime: Literal["clean", "contaminated"] = "clean"
    contaminate: Annotated[float, Field(ge=0, le=1)] | None = None  # bad test images drawn for each training image
    overlap: Annotated[tuple[bool, ...], Field(min_length=1, max_length=2)] = (False,)  # judge their groups, too
    selection: Literal["last", "best_on_test"] = "last"
    select_by: tuple[Metric, ...] = ("image_auroc", "pixel_auroc", "aupro")  # the mean that best_on_test goes by
    follow: Positive | None = None  # judge after every so many epochs, to draw curves; nothing is chosen by them
    calibration: Literal["none", "auto", "holdout", "crossfit"] = "none"  # papers train on everything
    at: Literal["input", "original"] = "input"  # where pixel metrics are measured
    per_image_pro: bool = False  # also AU-PRO as the RD family computes it

    @model_validator(mode="before")
    @classmethod
    def _default_regime(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("contaminate") is not None:
            return {"regime": "contaminated", **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
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
    citation: str
    unit: Literal["percent", "fraction"] = "percent"
    sets: int | None = None  # over how many its averages go
    setting: dict[str, Any] = {}  # what it ran with, by the ledger's names (backbone, size ...): differences are marked
    differences: tuple[str, ...] = ()  # further ones in protocol, a sentence each
    figures: dict[str, dict[Metric, dict[str, float]]] = {}  # label, metric, set (or ``average``): the printed figure


def _check_name(name: str) -> str:
    if name in ("", ".", "..") or re.search(r"[/\\:\x00-\x1f]", name):
        raise ValueError(f"{name!r} names the reports' files: give a name, not a path")
    return name


class Recipe(_Section):
    name: Annotated[str, AfterValidator(_check_name)]  # the file's stem unless given; reports and rows carry it
    title: str = ""
    about: str = ""
    methods: Annotated[tuple[Variant, ...], Field(min_length=1)]
    data: Annotated[tuple[DataEntry, ...], Field(min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    backbone: str = DEFAULT_BACKBONE
    weights: str = "pretrained"  # or ``random`` (for tests only), or a file
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    epochs: Positive | None = None
    steps: Positive | None = None  # of every method that is trained; without either, each method's own
    metrics: Annotated[tuple[Metric, ...], AfterValidator(lambda names: tuple(dict.fromkeys((*names, *CAUGHT))))] = (
        *("image_auroc", "pixel_auroc", "aupro", "aupro_05", *CAUGHT),
    )
    reference: str = ""  # the label that others are compared with, pair by pair; the first unless given
    preparation: Preprocessing = Preprocessing()
    protocol: Protocol = Protocol()
    paper: Paper | None = None

    @field_validator("methods", mode="after")
    @classmethod
    def _expand(cls, methods: tuple[Variant, ...]) -> tuple[Variant, ...]:
        variants = []
        for variant in methods:
            for values in itertools.product(*variant.sweep.values()):
                chosen = dict(zip(variant.sweep, values))
                label = " ".join([variant.label, *(f"{name}={value}" for name, value in chosen.items())])
                variants.append(variant.model_copy(update={"label": label, "options": variant.options | chosen}))
        return tuple(variants)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.protocol.contaminate is not None and any(entry.kinds for entry in self.data):
            raise ValueError("reveal gives labels and protocol.contaminate takes them away: keep one")
        if self.epochs is not None and self.steps is not None:
            raise ValueError("epochs and steps are both given: a training has one length, keep one")
        labels = [variant.label for variant in self.methods]
        sets = [name for entry in self.data for name in entry.names.values()]
        for what, names in (("method label", labels), ("set", sets), ("seed", self.seeds)):
            twice = [name for name in names if list(names).count(name) > 1]
            if twice:
                raise ValueError(f"{what} {twice[0]!r} stands twice: give each its own")
        categories = {category for entry in self.data for category in entry.names}
        for category in (category for variant in self.methods for category in variant.by_category):
            if category not in categories:
                raise ValueError(f"by_category names {category!r}: {nearest_name(category, categories)}")
        chosen_by = self.protocol.select_by if self.protocol.selection == "best_on_test" else ()
        if "aupro_per_image" in (*self.metrics, *chosen_by) and not self.protocol.per_image_pro:
            raise ValueError("aupro_per_image is measured with protocol.per_image_pro = true alone: set it")
        for label in (self.compared_with, *(self.paper.figures if self.paper else ())):
            if label not in labels:
                raise ValueError(f"{label!r} is no label of a method: {nearest_name(label, labels)}")
        return self

    @property
    def compared_with(self) -> str:
        return self.reference or self.methods[0].label


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file; what does not fit is a ``ConfigError`` that names file and key."""
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        return Recipe.model_validate({"name": path.stem, **content})
    except OSError as error:
        raise ConfigError(f"the recipe {path} cannot be read: {error.strerror}; see recipes/ for some") from error
    except ValidationError as error:
        lines, wrong = [], [problem["loc"] for problem in error.errors()]
        for problem in error.errors():
            if any(loc[: len(problem["loc"])] == problem["loc"] != loc for loc in wrong):
                continue  # what holds something wrong is not whole for that alone
            parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
            key, message = "".join(parts).removeprefix("."), problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "missing":
                message = "this key is needed"
            elif problem["type"] != "value_error":
                message += f" (given: {str(problem['input'])[:60]!r})"
            lines.append(f"{key}: {message}" if key else message)
        raise ConfigError(f"{path}: {'; '.join(dict.fromkeys(lines))}") from None
    except (ValueError, RecursionError) as error:  # among them UnicodeDecodeError
        raise ConfigError(f"{path} is not TOML: {error}") from error
