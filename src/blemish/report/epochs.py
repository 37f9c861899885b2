"""Charts of what a training told, epoch by epoch: figures, losses, energies, trusted images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import ArrayLike

from blemish.bench.ledger import Row
from blemish.bench.recipe import METRICS
from blemish.report.charts import curves

Line = tuple[ArrayLike, ArrayLike]

COUNTED = frozenset({"hc"})
"""Logged values that count images, and have no place on a chart of losses."""

ENERGY = "energy_"
"""What the names of a discriminator's energies begin with: small beside its loss, so they have a chart of their own."""


def charts_over_epochs(rows: Mapping[str, Row], metrics: tuple[str, ...], order: Sequence[str]) -> Iterator[str]:
    """The charts of one set.

    Args:
        rows: by the method's name in tables, of one seed.
        metrics: which figures to draw where a recipe followed them.
        order: all methods' names in tables, those without a row as well: it gives their colours.
    """
    for metric in metrics:
        followed = {name: _followed(row, metric) for name, row in rows.items()}
        yield from _chart(followed, METRICS[metric], "", order)
    yield from _chart({name: _logged(row, "loss") for name, row in rows.items()}, "Loss", "mean of an epoch", order)
    trusted = {name: _trusted(row) for name, row in rows.items()}
    yield from _chart(trusted, "Bad among the images taken for good", "share", order)
    for name, row in rows.items():
        shown = [value for value in _names(row) if value not in COUNTED | {"loss"}]
        energies = {value: _logged(row, value) for value in shown if value.startswith(ENERGY)}
        named = {value.removeprefix(ENERGY): line for value, line in energies.items()}
        yield from _chart(named, f"{name}: energies", "mean of an epoch")
        others = {value: _logged(row, value) for value in shown if value not in energies}
        yield from _chart(others, f"{name}: what else it tells", "mean of an epoch")


def _chart(lines: Mapping[str, Line | None], title: str, y_label: str, order: Sequence[str] = ()) -> Iterator[str]:
    drawn = {name: line for name, line in lines.items() if line is not None}
    if drawn:
        yield curves(drawn, title, "epoch", y_label, order=order)


def _followed(row: Row, metric: str) -> Line | None:
    points = [(one["epoch"], one[metric]) for one in row.get("followed", ()) if one.get(metric) is not None]
    return None if len(points) < 2 else ([x for x, _ in points], [y for _, y in points])


def _training(row: Row) -> dict[str, Any]:
    """Of the model itself, which learns after any folds."""
    found: dict[str, dict[str, Any]] = row.get("curves", {})
    return list(found.values())[-1] if found else {}


def _names(row: Row) -> list[str]:
    return list(_training(row))


def _logged(row: Row, name: str) -> Line | None:
    values = [(i + 1, value) for i, value in enumerate(_training(row).get(name, ())) if value is not None]
    return None if len(values) < 2 else ([x for x, _ in values], [y for _, y in values])


def _trusted(row: Row) -> Line | None:
    found = row.get("trusted")
    if not found:
        return None
    some = [(e, bad / n) for e, n, bad in zip(found["epoch"], found["images"], found["bad"]) if n]
    return None if len(some) < 2 else ([x for x, _ in some], [y for _, y in some])
