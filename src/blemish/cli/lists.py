"""What there is: ``info``, ``methods``, ``backbones``, ``datasets``."""

from __future__ import annotations

from typing import Any

from blemish.cli.app import app, load_model, print_result, print_table
from blemish.cli.options import (
    AsJson,
    Model,
    Precision,
    Weights,
)


@app.command()
def info(model: Model, weights: Weights = None, as_json: AsJson = False) -> None:
    """What a model is: method, data, promise, sizes, digests. Example: blemish info parts.blemish"""
    inspector = load_model(model, "cpu", None, Precision.auto, weights)
    found = inspector.info()
    print_result(found, as_json, "\n".join(f"{key:18} {_plain(value)}" for key, value in found.items()))


@app.command()
def methods(as_json: AsJson = False) -> None:
    """The methods there are, one line each. Example: blemish methods"""
    from blemish.registry import METHODS

    print_table({name: {"regime": e.regime, "idea": e.idea, "paper": e.paper} for name, e in METHODS.items()}, as_json)


@app.command()
def backbones(as_json: AsJson = False) -> None:
    """The backbones there are, one line each. Example: blemish backbones"""
    from blemish.backbones.catalogue import BACKBONES

    rows = {name: {"weights": e.origin, "licence": e.licence, "note": e.note} for name, e in BACKBONES.items()}
    print_table(rows, as_json)


@app.command()
def datasets(as_json: AsJson = False) -> None:
    """The data sets that Blemish knows, one line each. Example: blemish datasets"""
    from blemish.data.public import datasets as known

    print_table({name: {"shows": shows, "source": source} for name, shows, source in known()}, as_json)


def _plain(value: Any) -> str:
    return ", ".join(f"{k} {_plain(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)
