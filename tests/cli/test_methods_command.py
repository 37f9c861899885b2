"""``blemish methods NAME`` and what is said where an option is wrong: both from the method's config."""

import dataclasses
import json
from typing import Annotated

import pytest
from pydantic import Field
from typer.testing import CliRunner

from blemish.cli import app
from blemish.cli.options import parse_options
from blemish.errors import ConfigError
from blemish.registry import METHODS, make_config, method_class


def typed(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, arguments)
    return done.exit_code, done.stdout, done.stderr


def test_an_unknown_method_is_a_wrong_argument() -> None:
    code, output, errors = typed("methods", "patchcor")
    assert (code, output) == (2, "")
    assert "did you mean 'patchcore'" in errors


@pytest.mark.parametrize("name", METHODS)
def test_every_option_is_listed_with_a_default_that_may_be_typed_back(name: str) -> None:
    code, output, _ = typed("methods", name, "--json")
    rows = json.loads(output)
    config = method_class(name).Config
    fields = [field.name for field in dataclasses.fields(config)]
    assert (code, list(rows)) == (0, fields)
    typed_back = parse_options([f"{option}={row['default']}" for option, row in rows.items()])
    assert make_config(method_class(name), typed_back) == config()
    code, output, errors = typed("methods", name)
    assert (code, errors, [line.split()[0] for line in output.splitlines()[1:]]) == (0, "", fields)


@dataclasses.dataclass(frozen=True)
class ExampleConfig:
    share: Annotated[float, Field(gt=0, le=1, description="of all vectors that are kept")] = 0.5
    layers: tuple[int, ...] = (1, 2)


class Example:
    Config = ExampleConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 2}, r"Example option share=2: .*less than or equal to 1 \(of all vectors that are kept\)$"),
        ({"layers": 3}, r"layers=3: .*; write it like the default, layers=1,2; one alone is written layers=\[3\]$"),
        ({"shore": 1}, "Example has no option 'shore': did you mean 'share'"),
    ],
)
def test_a_wrong_option_is_refused_with_what_it_means_and_how_it_is_written(options, message) -> None:
    assert make_config(Example, {"share": 1}) == ExampleConfig(1.0)
    with pytest.raises(ConfigError, match=message):
        make_config(Example, options)
