"""The table of image sets that Blemish knows: what is in them, where to get them, what may be done with them.

Blemish downloads none of them: the scripts in ``scripts/datasets`` check an unpacked copy and write the papers' split
of it as manifests, which every command reads.
"""

from __future__ import annotations

import importlib.resources
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PublicSet:
    """A public set.

    Attributes:
        shows: what is in the images.
        source: where to get it.
        licence: what may be done with it.
        layout: what an unpacked copy looks like.
        split: of the papers.
        script: what prepares it.
        categories: sets of their own in it; empty where it is one.
        images: the published numbers of each category (an empty name where there are none): of ``train`` and ``test``,
            of ``normal`` and ``anomalous`` images, or of naevi (``train NV``); empty where a copy is not checked.
    """

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
    """Where a category of the demo set comes from.

    Attributes:
        file: its name among scikit-image's data files.
        shows: what is on it.
        licence: as scikit-image states it.
        source: where scikit-image has it from.
        test: the end of the photograph that the test crops are cut from.
        foreign: the category whose texture serves as foreign matter here.
        spill: the colour of a dark stain in it.
        boldness: how much larger and stronger its defects are painted than those of the brick wall.
        pit: what a hole shows: the dark inside of the thing, or a light ground behind it.
    """

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
    demo = [(name, photo.shows, f"{photo.licence}: {photo.source}") for name, photo in DEMO_CATEGORIES.items()]
    public = [
        (name, row.shows, f"{row.licence}: {row.source}; scripts/datasets/{row.script}")
        for name, row in PUBLIC_SETS.items()
    ]
    return (*demo, *public)
