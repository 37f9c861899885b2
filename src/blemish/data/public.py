"""The image sets that Blemish knows. It downloads none: ``scripts/datasets`` writes manifests of unpacked copies."""

import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PublicSet:
    """A public set; ``sets.toml`` explains the fields."""

    shows: str
    source: str
    licence: str
    layout: str
    split: str
    script: str
    categories: tuple[str, ...] = ()
    images: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Photograph:
    """Where a category of the demo set comes from; ``sets.toml`` explains the fields."""

    file: str
    shows: str
    licence: str
    source: str
    test: Literal["top", "bottom"]
    foreign: str
    spill: tuple[float, float, float]
    boldness: float
    pit: Literal["dark", "light"]


_TABLE = tomllib.loads(importlib.resources.files(__package__).joinpath("sets.toml").read_text(encoding="utf-8"))
DEMO_CATEGORIES = {name: Photograph(**row) for name, row in _TABLE["demo"].items()}
PUBLIC_SETS = {name: PublicSet(**row) for name, row in _TABLE["public"].items()}


def datasets() -> tuple[tuple[str, str, str], ...]:
    """Name, content, and licence with origin of every set that Blemish knows, the demo's first."""
    rows = [(name, photo.shows, f"{photo.licence}: {photo.source}") for name, photo in DEMO_CATEGORIES.items()]
    for name, row in PUBLIC_SETS.items():
        rows.append((name, row.shows, f"{row.licence}: {row.source}; scripts/datasets/{row.script}"))
    return tuple(rows)
