"""The inspection station: ``serve``, ``token``, ``audit-log``."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from blemish.cli.app import FAILED, command, print_result, say
from blemish.cli.options import AsJson, Device, PrecisionOption, Threads

StorePlace = Annotated[
    str, typer.Option("--store", help="An SQLite file, or postgresql+psycopg://USER:PASSWORD@HOST/NAME.")
]


@command
def serve(
    models: Annotated[list[str], typer.Argument(help="Model files, or NAME=FILE.", show_default=False)],
    host: Annotated[str, typer.Option(help="Where to listen; beyond 127.0.0.1 a token is needed.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    store: StorePlace = "station.db",
    images: Annotated[Path, typer.Option(help="Folder for photographs and models.")] = Path("station-images"),
    training: Annotated[list[str] | None, typer.Option(help="[NAME=]DATA it learned from, to learn again.")] = None,
    watch: Annotated[list[str] | None, typer.Option(help="[NAME=]FOLDER whose new images are judged.")] = None,
    move: Annotated[bool, typer.Option("--move", help="Watched files go to ok/, review/ or reject/.")] = False,
    cameras: Annotated[list[str] | None, typer.Option("--camera", help="[NAME=]NUMBER, address or file.")] = None,
    webhooks: Annotated[list[str] | None, typer.Option("--webhook", help="Address told of each verdict.")] = None,
    webhook_secret: Annotated[str, typer.Option(envvar="BLEMISH_WEBHOOK_SECRET", help="Signs its messages.")] = "",
    mqtt: Annotated[list[str] | None, typer.Option(help="mqtt://HOST:PORT/TOPIC.")] = None,
    opcua: Annotated[list[str] | None, typer.Option(help="opc.tcp://HOST:PORT/...")] = None,
    keep: Annotated[str | None, typer.Option(help="How long verdicts are kept, such as 30d or 12h.")] = None,
    keep_images: Annotated[
        str, typer.Option(help="all, none, or of rejected,reviewed,labelled,1%: others go after an hour.")
    ] = "all",
    max_disk: Annotated[str | None, typer.Option(help="For photographs, such as 20G: the oldest go first.")] = None,
    shifts: Annotated[str, typer.Option(help="Hours at which a shift begins.")] = "6,14,22",
    queue: Annotated[int, typer.Option(min=1, help="Images of a model that may wait.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images judged together.")] = 8,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Another host name that it answers to; clients need tokens."),
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="A TLS proxy stands in front of it; clients need tokens.")] = False,
    *,
    device: Device = "auto",
    threads: Threads = None,
    precision: PrecisionOption = "auto",
) -> None:
    """The inspection station, with its page. Example: blemish serve parts.blemish --port 8000"""
    given = {name: value for name, value in locals().items() if value is not None}  # by the names that settings have
    files = _named(models)
    only = next(iter(files)) if len(files) == 1 else None
    named = {option: _named(given.get(option), only) for option in ("training", "watch", "cameras")}
    _run(make_settings(**given | named | {"models": files, "shifts": shifts.split(",")}))


def _run(settings: Any, in_browser: bool = False) -> None:
    import webbrowser

    from blemish.server.app import serve as run_station

    def ready(address: str, station: Any) -> None:
        say(f"the station is ready: {address} (Ctrl-C ends it)")
        if not settings.is_open and not station.access.has_admin():
            token = station.access.new_token("first", "admin", "station")
            say(f"its first token, shown this once, of the role admin: {token}")
        if in_browser:
            webbrowser.open(address)

    run_station(settings, ready)


@command
def token(
    action: Annotated[Literal["new", "revoke"], typer.Argument(help="new makes one, revoke ends those of a name.")],
    name: Annotated[str, typer.Option(help="Whom or what it is for.")] = "unnamed",
    role: Annotated[Literal["viewer", "operator", "admin"], typer.Option(help="What it allows.")] = "viewer",
    store: StorePlace = "station.db",
    as_json: AsJson = False,
) -> None:
    """A token for a station. Example: blemish token new --role operator --name line-2"""
    from blemish.server.access import Access
    from blemish.server.store import Store

    access = Access(Store(store, make=action == "new"), make_settings(models={}))
    if action == "new":
        made = access.new_token(name, role)
        say(f"a token of the role {role} for {name}, of the station whose store is {store}; it is shown this once:")
        print_result({"token": made, "name": name, "role": role}, as_json, made)
    else:
        ended = access.revoke(name)
        print_result({"revoked": ended, "name": name}, as_json, f"{ended} tokens of {name} were revoked")


@command
def audit_log(
    action: Annotated[Literal["verify"], typer.Argument(help="verify looks for the first broken link.")],
    store: StorePlace = "station.db",
    as_json: AsJson = False,
) -> None:
    """Check that nobody changed a station's audit trail. Example: blemish audit-log verify --store station.db"""
    from blemish.server.store import Store

    found = Store(store, make=False).verify()
    text = f"whole: {found['rows']} rows, the last with hash {found['head']}"
    if broken := found["broken"]:
        text = f"broken at row {broken['row']}, of {broken['at']}: {broken['why']}"
    print_result(found, as_json, text)
    if not found["whole"]:
        raise typer.Exit(FAILED)


def serve_demo(output: Path, names: list[str], port: int, threads: int | None) -> None:
    """A station of the demo's models, whose test images come round, and its page in the browser."""
    data = {name: output / "data" / name for name in names}
    settings = make_settings(
        models={name: output / f"{name}.blemish" for name in names},
        training=data,
        simulated={name: folder / "test" for name, folder in data.items()},
        store=str(output / "station.db"),
        images=output / "station-images",
        port=port,
        threads=threads,
    )
    _run(settings, in_browser=True)


def make_settings(**given: Any) -> Any:
    """Settings, or a ConfigError in the words of the first thing wrong with them."""
    from pydantic import ValidationError

    from blemish.errors import ConfigError
    from blemish.server.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{first['loc'][0]}".replace("_", "-") + f" {first['input']}: " if first["loc"] else ""
        raise ConfigError(option + first["msg"].removeprefix("Value error, ")) from error


def _named(given: list[str] | None, default: str | None = None) -> dict[str, str]:
    """``NAME=PLACE`` pairs; without a name, ``default``, else that of the file."""
    from blemish.errors import ConfigError

    pairs: dict[str, str] = {}
    for text in given or ():
        name, equals, place = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            name, place = default or re.sub(r"[^\w.-]", "-", Path(text).stem), text
        if name in pairs:
            raise ConfigError(f"{text}: the name {name} has {pairs[name]} already: write NAME={place} with another")
        pairs[name] = place
    return pairs
