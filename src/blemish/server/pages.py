"""The station's pages: what people see. Reading works without scripts, and every state has an address.

A page is one template, filled here. Its script asks for the same address again when something happens and puts what
changed into place, so that there is one way in which anything is drawn.
"""

import csv
import hashlib
import io
import json
import math
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, FastAPI, Form, HTTPException, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from pydantic import ValidationError
from sqlalchemy import func, select
from starlette.responses import HTMLResponse, RedirectResponse, StreamingResponse

from blemish import __version__
from blemish.data.images import read_image
from blemish.errors import BlemishError, ImageError
from blemish.inspection.outlook import KINDS
from blemish.inspection.overlay import data_uri
from blemish.inspection.verdict import on_screen
from blemish.server import charts
from blemish.server.access import COOKIE, Person
from blemish.server.api import Admin, Here, Operator, Viewer, set_session
from blemish.server.station import Station
from blemish.server.store import BigId, Search, as_json
from blemish.server.tables import inspections, labels

router = APIRouter(include_in_schema=False)

STRIP, ROWS, TILES, GALLERY, THUMBNAIL = 12, 50, 60, 24, 200
MOST_ROWS = 100_000  # of a table for a spreadsheet
STATIC = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "static").iterdir())}
DIGEST = hashlib.sha256(b"".join(STATIC.values())).hexdigest()[:12]  # in addresses: what changed is loaded anew
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
COLUMNS = (
    *("id", "at", "model", "digest", "decision", "score", "p_value", "part", "path", "source", "said", "kind"),
    *("brightness", "sharpness", "milliseconds", "image_sha256"),
)
ModelQuery = str | None
Handler = Callable[[Request, Any], Awaitable[Response]]


def register(app: FastAPI) -> None:
    """Add the pages to ``app``, which must be complete otherwise: what its people see goes wrong in words, too."""
    app.include_router(router)
    for kind, answer in [*app.exception_handlers.items()]:
        app.add_exception_handler(kind, _for_people(answer))


def _for_people(answer: Any) -> Handler:
    async def handler(request: Request, error: Exception) -> Response:
        response: Response = await answer(request, error)
        if request.url.path.startswith("/v1/") or "text/html" not in request.headers.get("accept", ""):
            return response
        if response.status_code == 401 and request.method == "GET":
            where = request.url.path + ("?" + request.url.query if request.url.query else "")
            return RedirectResponse(f"/login?next={quote(where)}", 303)
        said = json.loads(bytes(response.body))
        page = _render("error.j2", request, None, title=said["title"], detail=said["detail"], status=said["status"])
        page.status_code = response.status_code
        page.headers.update({name: response.headers[name] for name in ("retry-after",) if name in response.headers})
        return page

    return handler


@cache
def environment() -> Environment:
    own = Environment(
        loader=PackageLoader("blemish.server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own.filters |= {"local": local, "number": number, "size": size, "address": address}
    own.globals |= {"static": f"/static/{DIGEST}", "version": __version__, "say": in_words, "place": place}
    own.globals["word"] = {"ok": "OK", "review": "Review", "reject": "Reject", None: "No decision"}
    return own


def _render(template: str, request: Request, person: Person | None, **context: Any) -> HTMLResponse:
    station: Station = request.app.state.station
    shared = {"path": request.url.path, "person": person, "is_open": station.settings.is_open}
    shared["names"] = [*station.judges] if person else []
    shared["now"] = datetime.now().astimezone()
    return HTMLResponse(environment().get_template(template).render(**{"model": None, **shared, **context}))


# Words


def moment(at: float | str | datetime) -> datetime:
    """Where the station stands: of seconds since 1970 or ISO 8601."""
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return (datetime.fromtimestamp(at) if isinstance(at, int | float) else at).astimezone()


def local(at: float | str | datetime, form: str = "") -> str:
    """A time with its zone, and with its date unless that is today."""
    here = moment(at)
    is_today = here.date() == datetime.now().astimezone().date()
    return here.strftime(form or ("%H:%M:%S %Z" if is_today else "%Y-%m-%d %H:%M:%S %Z"))


def number(value: float | None, digits: int = 4) -> str:
    """Short, with commas between thousands; a dash for what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def size(count: float) -> str:
    """Bytes, as people say them."""
    step = 0 if count < 1 else min(4, int(math.log(count, 1000)))
    return f"{count / 1000**step:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[step]}"


def address(path: str, **query: Any) -> str:
    """A path with those of ``query`` that are something."""
    kept = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(kept)}" if kept else path


def place(region: Mapping[str, Any], width: int, height: int) -> str:
    """Where in a picture, in words."""
    x, y = region["centre"][0] / width, region["centre"][1] / height
    row, column = ("top", "middle", "bottom")[min(2, int(3 * y))], ("left", "middle", "right")[min(2, int(3 * x))]
    return "in the middle" if row == column else f"{row} {column}".replace("middle ", "").replace(" middle", "")


def in_words(shown: Mapping[str, Any]) -> str:
    """What an inspection says, in a sentence or two."""
    count = len(shown["regions"])
    words = f"{count or 'No'} region{'s' * (count != 1)} stand{'s' * (count == 1)} out"
    if count:
        words += f"{', the worst' * (count > 1)} at the {place(shown['regions'][0], shown['width'], shown['height'])}"
        words = words.replace("at the in the middle", "in the middle")
    if (p := shown["p_value"]) is None:
        return words + ("." if shown["score"] is not None else ". It has no score: the model could not judge it.")
    if p > 0.2:
        return f"{words}. Many good parts look as strange as this."
    return f"{words}. About 1 good part in {number(round(1 / p))} looks as strange."


def shift_around(at: datetime, hours: tuple[int, ...]) -> tuple[datetime, datetime]:
    """When the shift of a moment begins and ends; days on which clocks change have shorter and longer ones."""
    days = (at.date() + timedelta(days=shift) for shift in (-1, 0, 1))
    edges = sorted(datetime.combine(day, time(hour)).astimezone() for day in days for hour in hours)
    return max(edge for edge in edges if edge <= at), min(edge for edge in edges if edge > at)


def named(here: Station, model: str | None) -> str | None:
    """The model that a page is about: the one asked for (an HTTPException 404 if unknown), or the first; or None."""
    if model:
        here.judge(model)
    return model or next(iter([*here.judges]), None)


def searched(request: Request, **more: Any) -> Search:
    """The conditions in an address; forms send fields that were left empty, which mean nothing."""
    given = {name: value for name, value in request.query_params.items() if value.strip() and name != "view"}
    try:
        return Search.model_validate({**given, **more})
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:5])
        raise HTTPException(422, f"this filter cannot be used. {wrong}") from error


def kinds_of(here: Station, model: str) -> list[str]:
    """Kinds of defects that people named, the usual ones first, then what any ground may have; nine, one a key."""
    query = select(inspections.c.kind).where(inspections.c.model == model, inspections.c.kind.is_not(None))
    found = here.store.rows(query.group_by(inspections.c.kind).order_by(func.count().desc()).limit(9))
    return [*dict.fromkeys([*(row.kind for row in found), *(name for name in KINDS)])][:9]


def calibration_of(here: Station, shown: Mapping[str, Any]) -> Any:
    """What judged it, if that is still at work; None otherwise."""
    judge = here.judges.get(shown["model"])
    return judge.model.inspector.calibration if judge and judge.model.digest == shown["digest"] else None


# Pages


@router.get("/")
def live(request: Request, here: Here, person: Viewer, model: ModelQuery = None) -> Response:
    """The last verdict, large, and those before it."""
    if model:
        here.judge(model)
    began, ends = shift_around(datetime.now().astimezone(), here.settings.shifts)
    last = here.store.find(Search(model=model, limit=STRIP + 1))["inspections"]
    shown = last[0] if last else None
    return _render(
        "live.j2",
        request,
        person,
        model=model,
        last=last,
        shown=shown,
        part=here.store.part_verdict(shown["model"], shown["part"]) if shown and shown["part"] else None,
        gauge=shown and charts.gauge(shown["score"], calibration_of(here, shown)),
        kinds=kinds_of(here, shown["model"]) if shown else [],
        counts=here.store.count(Search(model=model, since=began)),
        shift=(began, ends),
        withdrawn=[(name, health) for name in here.judges if not (health := here.health(name))["holds"]],
        cameras=[name for name in here.settings.cameras if model in (None, name)],
    )


@router.get("/history")
def history(
    request: Request, here: Here, person: Viewer, view: Annotated[Literal["table", "sheet"], ...] = "table"
) -> Response:
    """What was judged, filtered, as a table or as a contact sheet."""
    search = searched(request, limit=ROWS if view == "table" else TILES)
    fields = search.model_dump(mode="json", exclude={"cursor", "limit"}, exclude_none=True)
    counts = here.store.count(search.model_copy(update={"cursor": None}))
    found = here.store.find(search)
    return _render(
        "history.j2", request, person, view=view, fields=fields, counts=counts, cursor=search.cursor, **found
    )


@router.get("/inspections/{number}")
def sheet(request: Request, here: Here, person: Viewer, number: BigId) -> Response:
    """All that is known of one verdict."""
    return _sheet(request, here, person, number, None)


@router.post("/inspections/{number}/replay")
def replay(request: Request, here: Here, person: Operator, number: BigId) -> Response:
    """Judge it again, and say whether all is the same."""
    return _sheet(request, here, person, number, here.replay(number))


def _sheet(request: Request, here: Station, person: Person, number: int, replayed: Any) -> Response:
    shown = as_json(here.inspection(number))
    same_model = select(func.min(inspections.c.id)).where(inspections.c.model == shown["model"])
    newer = here.store.rows(same_model.where(inspections.c.id > number))[0][0]
    older = here.store.find(Search(model=shown["model"], cursor=number, limit=1))["inspections"]
    part = here.store.find(Search(model=shown["model"], part=shown["part"])) if shown["part"] else {"inspections": []}
    return _render(
        "sheet.j2",
        request,
        person,
        model=shown["model"],
        shown=shown,
        said=here.store.rows(select(labels).where(labels.c.inspection == number).order_by(labels.c.id)),
        gauge=charts.gauge(shown["score"], calibration_of(here, shown)),
        is_current=calibration_of(here, shown) is not None,
        kinds=kinds_of(here, shown["model"]),
        older=older[0]["id"] if older else None,
        newer=newer,
        part=part["inspections"],
        replayed=replayed,
    )


@router.post("/inspections/{number}/said")
def say(
    here: Here,
    person: Operator,
    number: BigId,
    said: Annotated[Literal["good", "bad", "undo"], Form()],
    kind: Annotated[str, Form(max_length=100)] = "",
    back: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    """Keep what a person says of a verdict, and go back to where it was said."""
    row = here.store.say(number, None if said == "undo" else said, kind.strip() if said == "bad" else "", person.name)
    if row is None:
        raise HTTPException(404, f"there is no inspection {number}")
    here.events.publish("said", as_json(row))
    return RedirectResponse(_inside(back, f"/inspections/{number}"), 303)


def _inside(target: str, otherwise: str = "/") -> str:
    """An address of this station alone."""
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_ours else otherwise


@router.get("/inspections/{number}/thumbnail")
def thumbnail(here: Here, person: Viewer, number: BigId) -> Response:
    """The photograph, small."""
    file = io.BytesIO()
    _small(here.photograph(here.inspection(number))).save(file, format="JPEG", quality=82)
    return Response(file.getvalue(), media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


def _small(content: bytes) -> Image.Image:
    image = read_image(content)
    picture = Image.fromarray(on_screen(image, int(image.pixels.max()) or 1))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


@router.get("/teach")
def teach(request: Request, here: Here, person: Viewer, model: ModelQuery = None) -> Response:
    """What people said, what could be learned from it, and what would change."""
    name = named(here, model)
    learning = name and here.learning(name)
    last = here.store.find(Search(model=name, said="something", limit=STRIP))["inspections"]
    described = name and here.describe(name)
    return _render("teach.j2", request, person, model=name, learning=learning, last=last, described=described)


@router.post("/teach")
def change_model(
    here: Here,
    person: Admin,
    model: Annotated[str, Form(max_length=64)],
    action: Annotated[Literal["learn", "swap", "discard"], Form()],
) -> Response:
    """Learn again, swap what was learned in, or leave it."""
    {"learn": here.learn, "swap": here.swap, "discard": here.discard}[action](model, person.name)
    return RedirectResponse(address("/teach", model=model), 303)


@router.get("/threshold")
def threshold(
    request: Request,
    here: Here,
    person: Viewer,
    model: ModelQuery = None,
    percent: float | None = None,
) -> Response:
    """What the rate is, and what another would have done."""
    name = named(here, model)
    if name is None:
        return _render("threshold.j2", request, person)
    calibration = here.judge(name).model.inspector.calibration
    wanted, refusal, tried = (calibration.rate if percent is None else percent / 100), None, None
    if calibration.rate is not None:
        try:
            tried = here.preview_threshold(name, wanted)
        except BlemishError as error:
            refusal, wanted = str(error), calibration.rate
            tried = here.preview_threshold(name, wanted)
    limits = {} if tried is None else {"review above": tried["review_threshold"], "reject above": tried["threshold"]}
    drawn = tried and charts.histogram(calibration, tried["scores"], limits)
    return _render(
        "threshold.j2",
        request,
        person,
        model=name,
        described=here.describe(name),
        tried=tried,
        refusal=refusal,
        drawn=drawn,
        percent=None if wanted is None else round(100 * wanted, 4),
        now_percent=None if calibration.rate is None else round(100 * calibration.rate, 4),
    )


@router.post("/threshold")
def set_threshold(
    here: Here,
    person: Admin,
    model: Annotated[str, Form(max_length=64)],
    percent: Annotated[float, Form(gt=0, lt=100)],
) -> Response:
    """A new calibration with another rate."""
    here.set_threshold(model, percent / 100, None, person.name)
    return RedirectResponse(address("/threshold", model=model), 303)


@router.get("/health")
def health(request: Request, here: Here, person: Viewer, model: ModelQuery = None) -> Response:
    """Whether the promise holds, and how the station does."""
    name = named(here, model)
    found = name and here.health(name)
    drawn = found and {
        title: charts.control_chart(own["points"], own["centre"], own["low"], own["high"])
        for title, own in found["charts"].items()
    }
    described = name and here.describe(name)
    return _render("health.j2", request, person, model=name, health=found, drawn=drawn, described=described)


# To take away


@router.get("/report")
def report(request: Request, here: Here, person: Viewer) -> Response:
    """A shift, or another span, as one page that stands alone and prints well."""
    began, ends = shift_around(datetime.now().astimezone(), here.settings.shifts)
    search = searched(request)
    if search.since is None and search.day is None:
        search = search.model_copy(update={"since": began, "until": ends})
    pictures = []
    for shown in here.store.find(search.model_copy(update={"decision": "reject", "limit": GALLERY}))["inspections"]:
        try:
            pictures.append((shown, data_uri(_small(here.photograph(here.inspection(shown["id"]))), "JPEG", quality=80)))
        except (HTTPException, ImageError):
            pictures.append((shown, None))  # not kept any longer
    names = [name for name in here.judges if search.model in (None, name)]
    models = [(here.describe(name), here.health(name)) for name in names]
    counts = [(name, here.store.count(search.model_copy(update={"model": name}))) for name in names]
    css = environment().get_template("report.css").render()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{b64encode(hashlib.sha256(css.encode()).digest()).decode()}'"
    page = _render(
        "report.j2",
        request,
        person,
        search=search,
        css=css,
        policy=policy,
        pictures=pictures,
        models=models,
        counts=counts,
        said=here.store.find(search.model_copy(update={"said": "something", "limit": 200}))["inspections"],
        audit=here.store.verify(),
    )
    page.headers["Content-Security-Policy"] = policy
    return page


@router.get("/inspections.csv")
def table(request: Request, here: Here, person: Viewer) -> Response:
    """What a filter finds, newest first, for a spreadsheet."""
    search = searched(request, limit=500)

    def lines() -> Iterator[str]:
        cursor, left = search.cursor, MOST_ROWS
        yield ",".join(COLUMNS) + "\r\n"
        while left > 0:
            found = here.store.find(search.model_copy(update={"cursor": cursor}))
            file = io.StringIO()
            csv.writer(file).writerows([_cell(shown[name]) for name in COLUMNS] for shown in found["inspections"])
            yield file.getvalue()
            cursor, left = found["next"], left - search.limit
            if cursor is None:
                return

    headers = {"Content-Disposition": "attachment; filename=inspections.csv"}
    return StreamingResponse(lines(), media_type="text/csv; charset=utf-8", headers=headers)


def _cell(value: Any) -> Any:
    """Without what a spreadsheet would take for a formula."""
    return "'" + value if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


# People


@router.get("/login")
def ask_for_token(request: Request, next: str = "/") -> Response:
    """The way in."""
    return _render("login.j2", request, None, next=_inside(next), wrong=None)


@router.post("/login")
def log_in(
    request: Request,
    here: Here,
    token: Annotated[str, Form(max_length=200)],
    next: Annotated[str, Form(max_length=500)] = "/",
) -> Response:
    """A session, or the sentence that says why not."""
    client = request.client.host if request.client else ""
    here.access.check_rate(client)
    try:
        secret, _ = here.access.log_in(token.strip())
    except HTTPException as error:
        here.access.failed(client)
        page = _render("login.j2", request, None, next=_inside(next), wrong=error.detail)
        page.status_code = 401
        return page
    response = RedirectResponse(_inside(next), 303)
    set_session(response, secret, here)
    return response


@router.post("/logout")
def log_out(request: Request, here: Here, person: Viewer) -> Response:
    """End the session."""
    here.access.log_out(request.cookies.get(COOKIE, ""))
    response = RedirectResponse("/login", 303)
    response.delete_cookie(COOKIE)
    return response


@router.get("/static/{digest}/{name}")
def static(digest: str, name: str) -> Response:
    """Styles and scripts, which browsers keep for as long as they do not change."""
    if name not in STATIC:
        raise HTTPException(404, f"there is no file {name[:64]!r}")
    kept = "public, max-age=31536000, immutable" if digest == DIGEST else "no-cache"
    return Response(STATIC[name], media_type=TYPES[Path(name).suffix], headers={"Cache-Control": kept})
