"""The application, and what its commands share: exit codes, printing, runs, models.

Results go to standard output, everything else to standard error. Nothing heavy is imported until a command needs it,
so that every ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer
from typer.core import TyperGroup

from blemish.cli.options import Precision

if TYPE_CHECKING:
    from blemish.inspection.inspector import Inspector
    from blemish.run import Progress, Run

FAILED, WRONG, REJECTED = 1, 2, 3

ORDER = (
    *("demo", "fit", "inspect", "evaluate", "calibrate", "info", "audit"),
    *("bench", "contaminate", "reveal", "methods", "backbones", "datasets"),
)
"""In which ``blemish --help`` lists the commands: a newcomer's first ones first."""


class Commands(TyperGroup):
    """Turns what Blemish raises on purpose into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands' names, those of ``ORDER`` first."""
        return sorted(super().list_commands(ctx), key=lambda name: (*ORDER, name).index(name))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from blemish.errors import BlemishError, ConfigError

        try:
            return super().invoke(ctx)
        except ConfigError as error:
            say(f"blemish: {error}")
            raise typer.Exit(WRONG) from None
        except BlemishError as error:
            say(f"blemish: {error}")
        except KeyboardInterrupt:
            say("blemish: stopped; nothing half-written is left behind")
        except MemoryError as error:
            say(f"blemish: out of memory ({error}): give it fewer images or a smaller --size")
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            say(f"blemish: standard output cannot be written: {error.strerror}")
        raise typer.Exit(FAILED)


app = typer.Typer(
    name="blemish",
    cls=Commands,
    help="Finds and outlines what is wrong in a picture, having learned what right looks like.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def load_model(
    model: Path,
    device: str,
    threads: int | None,
    precision: Precision,
    weights: str | None,
    smallest_area: int | None = None,
) -> Inspector:
    """The inspector in a model file, on the device asked for."""
    from blemish.inspection.inspector import load
    from blemish.run import set_threads

    set_threads(threads)
    inspector = load(model, device, precision.value, weights)
    return inspector if smallest_area is None else dataclasses.replace(inspector, smallest_area=smallest_area)


def make_run(quiet: bool, device: str = "auto", threads: int | None = None, seed: int = 0) -> Run:
    """A run on the device asked for, watched by whoever sits there."""
    from blemish.run import Run, choose_device, set_threads

    set_threads(threads)
    return Run(seed=seed, device=choose_device(device), progress=make_progress(quiet))


def make_progress(quiet: bool) -> Progress:
    """A bar for a person, lines for a log, warnings alone with ``--quiet``."""
    from blemish.run import Bar, Lines, Warnings

    if quiet:
        return Warnings()
    return Bar() if sys.stderr.isatty() else Lines()


def parse_options(pairs: list[str]) -> dict[str, Any]:
    """``key=value`` pairs; a value is read as JSON where it is JSON, a comma makes a list, else it is text."""
    from blemish.errors import ConfigError

    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write it as key=value, such as --set fraction=0.1")
        try:
            options[key] = json.loads(f"[{value}]" if "," in value and value[:1] != "[" else value)
        except json.JSONDecodeError:
            options[key] = value
    return options


def parse_epochs(given: str | None) -> int | Literal["auto"] | None:
    """A number of epochs, or ``auto``."""
    from blemish.errors import ConfigError

    if given is None or given == "auto":
        return given  # type: ignore[return-value]
    try:
        return int(given)
    except ValueError:
        raise ConfigError(f"--epochs {given}: give a whole number, or auto") from None


def print_result(found: dict[str, Any], as_json: bool, text: str) -> None:
    """One result: a JSON object, or words."""
    typer.echo(json.dumps(found) if as_json else text)


def print_table(rows: dict[str, dict[str, str]], as_json: bool) -> None:
    """A list, one line each, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    width = max(len(name) for name in rows)
    for name, row in rows.items():
        typer.echo(f"{name:{width}}  " + " | ".join(row.values()))


def say(text: str) -> None:
    """One line to standard error."""
    sys.stderr.write(text + "\n")
