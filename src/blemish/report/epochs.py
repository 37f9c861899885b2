"""Charts of what a training told, epoch by epoch: figures, losses, energies, trusted images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from blemish.bench.ledger import Row
from blemish.bench.recipe import METRICS
from blemish.report.charts import curves

COUNTED = frozenset({"hc"})
"""Logged values that count images, and have no place on a chart of losses."""
ENERGY = "energy_"
"""What the names of a discriminator's energies begin with: small beside its loss, so they have a chart of their own."""


def charts_over_epochs(rows: Mapping[str, Row], metrics: Sequence[str], order: Sequence[str]) -> Iterator[Figure]:
    """The charts of one set, from a row for each method's name; ``order`` has all names, for their colours."""

    def chart(
        lines: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], title: str, y_label: str, order: Sequence[str] = ()
    ) -> Iterator[Figure]:
        points = {name: [(x, y) for x, y in zip(*line) if y is not None] for name, line in lines.items()}
        drawn = {name: tuple(zip(*line)) for name, line in points.items() if len(line) > 1}
        if drawn:
            yield curves({name: (x, y) for name, (x, y) in drawn.items()}, title, "epoch", y_label, order=order)

    logged = {name: _logged(row) for name, row in rows.items()}
    for metric in metrics:
        followed = {name: row.get("followed", ()) for name, row in rows.items()}
        lines = {name: ([p["epoch"] for p in some], [p.get(metric) for p in some]) for name, some in followed.items()}
        yield from chart(lines, METRICS[metric], "", order)
    losses = {name: values["loss"] for name, values in logged.items() if "loss" in values}
    yield from chart(losses, "Loss", "mean of an epoch", order)
    trusted = {name: row["trusted"] for name, row in rows.items() if row.get("trusted")}
    shares = {
        name: (t["epoch"], [bad / images if images else None for images, bad in zip(t["images"], t["bad"])])
        for name, t in trusted.items()
    }
    yield from chart(shares, "Bad among the images taken for good", "share", order)
    for name, values in logged.items():
        shown = {value: line for value, line in values.items() if value not in COUNTED | {"loss"}}
        energies = {value: line for value, line in shown.items() if value.startswith(ENERGY)}
        named = {value.removeprefix(ENERGY): line for value, line in energies.items()}
        yield from chart(named, f"{name}: energies", "mean of an epoch")
        others = {value: line for value, line in shown.items() if value not in energies}
        yield from chart(others, f"{name}: what else it tells", "mean of an epoch")


def _logged(row: Row) -> dict[str, tuple[Sequence[int], Sequence[float | None]]]:
    """The logged values of the model itself, which learns after any folds, with their epochs."""
    trainings: list[dict[str, list[float | None]]] = [*row.get("curves", {}).values()]
    return {name: (range(1, len(v) + 1), v) for name, v in trainings[-1].items()} if trainings else {}
