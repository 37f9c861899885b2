"""The application, and what its commands share: exit codes, option groups, printing.

Results go to standard output, everything else to standard error. Nothing heavy is imported until a command needs it,
so that every ``--help`` answers at once.
"""

import errno
import json
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from blemish import __version__
from blemish.run.progress import printable

FAILED, WRONG, REJECTED = 1, 2, 3

ORDER = (
    *("demo", "fit", "inspect", "evaluate", "calibrate", "info", "audit", "export"),
    *("bench", "contaminate", "reveal", "methods", "backbones", "datasets"),
    *("serve", "token", "audit-log"),
)
"""In which ``blemish --help`` lists the commands: a newcomer's first ones first."""


class Commands(TyperGroup):
    """Turns what Blemish raises on purpose into one line and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands' names, those of ``ORDER`` first."""
        return sorted(super().list_commands(ctx), key=lambda name: (*ORDER, name).index(name))

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        from blemish.errors import BlemishError, ConfigError, needed

        try:
            return super().invoke(ctx)
        except BlemishError as error:
            say(f"blemish: {error}")
            raise typer.Exit(WRONG if isinstance(error, ConfigError) else FAILED) from None
        except ModuleNotFoundError as error:
            say(f"blemish: {needed(error)}")
        except KeyboardInterrupt:
            say("blemish: stopped; nothing half-written is left behind")
        except MemoryError as error:
            say(f"blemish: out of memory ({error}): give it fewer images or a smaller --size")
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read has gone
                raise
            what = error.filename or "standard output, or a file,"
            say(f"blemish: {what} cannot be read or written: {error.strerror or error}")
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


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blemish {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make ``function`` a command; a parameter that is a dataclass is an option group: its fields are the options."""
    parameters: list[Parameter] = []
    groups: dict[str, type] = {}
    for parameter in signature(function, eval_str=True).parameters.values():
        kind: type = parameter.annotation
        if is_dataclass(kind):
            groups[parameter.name] = kind
            parameters += signature(kind, eval_str=True).parameters.values()
        else:
            parameters.append(parameter)

    @wraps(function)
    def run(**options: Any) -> None:
        for name, group in groups.items():
            options[name] = group(**{field.name: options.pop(field.name) for field in fields(group)})
        function(**options)

    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command()(run)
    return run


def print_result(result: dict[str, Any], as_json: bool, text: str) -> None:
    """One result: a JSON object, or words."""
    typer.echo(json.dumps(result) if as_json else printable(text))


def print_table(rows: dict[str, dict[str, str]], as_json: bool) -> None:
    """A list, one line each, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(rows))
        return
    width = max(len(name) for name in rows)
    typer.echo(f"{'':{width}}  " + " | ".join(next(iter(rows.values()))))
    for name, row in rows.items():
        typer.echo(f"{name:{width}}  " + " | ".join(row.values()))


def say(text: str) -> None:
    """One line to standard error."""
    sys.stderr.write(printable(text) + "\n")
