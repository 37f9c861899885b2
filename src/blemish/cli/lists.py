"""What there is: ``info``, ``methods``, ``backbones``, ``datasets``."""

import json
from typing import Annotated, Any

import typer

from blemish.cli.app import command, print_result, print_table
from blemish.cli.options import AsJson, Engine, Machine, ModelFile, Weights


@command
def info(model: ModelFile, weights: Weights = None, engine: Engine = "auto", as_json: AsJson = False) -> None:
    """What a model is: method, data, promise, sizes, digests. Example: blemish info parts.blemish"""
    facts = Machine(device="cpu").load(model, weights, engine).info()
    told = {key: value for key, value in facts["would_find"].items() if key not in ("of_bad", "sentence")}
    told = facts | {"would_find": told, "backbone": facts["backbone"].get("name")}  # the promise says the rest
    told |= {"known_bad_found": facts["known_bad_found"].get("sentence", "")}
    lines = [f"{key:18} {_plain(value)}" for key, value in told.items() if value not in (None, "", [], {})]
    print_result(facts, as_json, "\n".join(lines))


@command
def methods(
    name: Annotated[str | None, typer.Argument(help="A method, whose options for --set are listed instead.")] = None,
    detail: Annotated[str | None, typer.Option("--detail", help="A method, as after `blemish methods`.")] = None,
    as_json: AsJson = False,
) -> None:
    """The methods there are, one line each. Example: blemish methods"""
    from blemish.registry import METHODS, method_class, option_table

    named, words = ("family", "regime", "map", "learns in", "exports", "idea", "paper"), ("no", "yes")
    rows = {}
    for key, e in METHODS.items():
        told = e.family, e.regime, words[e.has_map], e.cost, words[e.exports], e.idea, e.paper
        rows[key] = dict(zip(named, told))
    name = name or detail
    print_table(rows if name is None else option_table(method_class(name)), as_json)


@command
def backbones(as_json: AsJson = False) -> None:
    """The backbones there are, one line each. Example: blemish backbones"""
    from blemish.backbones.catalogue import BACKBONES

    rows = {name: {"weights": e.origin, "licence": e.licence, "note": e.note} for name, e in BACKBONES.items()}
    print_table(rows, as_json)


@command
def datasets(as_json: AsJson = False) -> None:
    """The data sets that Blemish knows, one line each. Example: blemish datasets"""
    from blemish.data.public import datasets as known

    print_table({name: {"shows": shows, "source": source} for name, shows, source in known()}, as_json)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items() if v is not None)
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
