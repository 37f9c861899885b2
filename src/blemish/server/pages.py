"""The station's pages: what people see. Reading works without scripts, and every state has an address.

A page is one template, filled here. Its script asks for the same address again when something happens and puts what
changed into place, so that there is one way in which anything is drawn.
"""

import contextlib
import hashlib
import io
import json
from base64 import b64encode
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import ValidationError
from sqlalchemy import func, select
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, RedirectResponse

from blemish.data.decoders import UPRIGHT
from blemish.data.images import orientation, read_image
from blemish.errors import BlemishError, ImageError
from blemish.inspection.detection import KINDS
from blemish.inspection.overlay import data_uri
from blemish.inspection.verdict import on_screen
from blemish.server import charts, health, reports, teaching
from blemish.server.access import Person, needs
from blemish.server.api import IN_TURN, Admin, Operator, StationDep, Viewer, picture
from blemish.server.api_models import RelearnerDep
from blemish.server.problems import problem_of
from blemish.server.store import BigId, Search, as_json
from blemish.server.tables import inspections, labels
from blemish.server.words import DIGEST, STATIC, address, environment, shift_around

router = APIRouter(include_in_schema=False)

STRIP, ROWS, TILES, THUMBNAIL = 12, 50, 60, (200, 200)
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ModelField = Annotated[str, Form(max_length=64)]


async def answer_problem(request: Request, error: Exception) -> Response:
    """What went wrong: a page for a person who asked for one, a problem document for a program."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    answer = problem_of(error)
    if request.url.path.startswith("/v1/") or "text/html" not in request.headers.get("accept", ""):
        return answer
    if answer.status_code == 401 and request.method == "GET":
        return RedirectResponse(f"/login?next={quote(str(request.url.replace(scheme='', netloc='')))}", 303)
    kept = {name: value for name, value in answer.headers.items() if name == "retry-after"}
    page = Page(request, request.app.state.station, None)
    return page.show("error.j2", answer.status_code, kept, **json.loads(bytes(answer.body)))


@dataclass
class Page:
    """A page that somebody asks for."""

    request: Request
    station: StationDep
    person: Annotated[Person | None, Depends(needs("viewer"))]

    def show(self, template: str, code: int = 200, headers: Any = None, /, **context: Any) -> HTMLResponse:
        """The template, filled with ``context`` and what every page has."""
        shared: dict[str, Any] = {"path": self.request.url.path, "person": self.person, "model": None}
        shared |= {"is_open": self.station.settings.is_open, "now": datetime.now().astimezone()}
        shared |= {"names": [*self.station.judges] if self.person else []}
        return HTMLResponse(environment().get_template(template).render(shared | context), code, headers)

    def named(self, model: str | None) -> str | None:
        """The model that a page is about: the one asked for (404 if unknown), or the first; None without any."""
        if model:
            self.station.judge(model)
        return model or next(iter([*self.station.judges]), None)

    def search(self, limit: int = 50) -> Search:
        """The conditions in the address; forms send fields that were left empty, which mean nothing."""
        given = {name: value for name, value in self.request.query_params.items() if value.strip() and name != "view"}
        try:
            return Search.model_validate({**given, "limit": limit})
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error

    def of_verdict(self, shown: dict[str, Any]) -> dict[str, Any]:
        """What is shown beside a verdict: its place on the model's scale, and kinds of defects, nine, one a key.

        First those that people named most, then what any ground may have.
        """
        judge = self.station.judges.get(shown["model"])
        is_current = judge is not None and judge.model.digest == shown["digest"]
        calibration = judge.model.inspector.calibration if judge and is_current else None
        kinds = [*dict.fromkeys([*dict(self.kinds(shown["model"])), *KINDS])][:9]
        return {"gauge": charts.gauge(shown["score"], calibration), "kinds": kinds, "is_current": is_current}

    def kinds(self, model: str) -> list[tuple[str, int]]:
        """Of defects that people named, and how often, most often first."""
        own = inspections.c
        spoken = own.id.in_(select(labels.c.inspection))  # few: not all verdicts are read
        query = select(own.kind, func.count().label("n")).where(spoken, own.model == model, own.kind.is_not(None))
        found = self.station.store.rows(query.group_by(own.kind).order_by(func.count().desc()).limit(20))
        return [(row.kind, row.n) for row in found]


View = Annotated[Page, Depends()]


@router.get("/")
def live(page: View, station: StationDep, model: str | None = None) -> Response:
    if model:
        station.judge(model)
    shift = shift_around(datetime.now().astimezone(), station.settings.shifts)
    last = station.store.find(Search(model=model, limit=STRIP + 1))["inspections"]
    context: dict[str, Any] = {"model": model, "last": last, "shown": None, "part": None, "shift": shift}
    if last:
        context |= {"shown": (shown := last[0]), **page.of_verdict(shown)}
        context["part"] = station.store.part_verdict(shown["model"], shown["part"]) if shown["part"] else None
    context["counts"] = station.store.count(Search(model=model, since=shift[0]))
    promises = {name: health.promise(station, name) for name in [*station.judges]}
    context["withdrawn"] = [(name, found) for name, found in promises.items() if found["holds"] is False]
    context["feeds"] = [(feed.state, feed.source) for feed in station.feeds if model in (None, feed.state["model"])]
    return page.show("live.j2", **context)


@router.get("/history")
def history(page: View, station: StationDep, view: Literal["table", "sheet"] = "table") -> Response:
    search = page.search(ROWS if view == "table" else TILES)
    fields = search.model_dump(mode="json", exclude={"cursor", "limit"})
    counts = station.store.count(search.model_copy(update={"cursor": None}))
    found = station.store.find(search)
    return page.show("history.j2", view=view, fields=fields, counts=counts, cursor=search.cursor, **found)


@router.get("/inspections/{number}")
@router.get("/inspections/{number}/replay")
@router.post("/inspections/{number}/replay", dependencies=IN_TURN)
def sheet(page: View, station: StationDep, number: BigId) -> Response:
    """All that is known of one verdict; where it was posted, it is judged again, and compared."""
    shown, own = as_json(station.inspection(number)), inspections.c
    replayed = station.replay(number) if page.request.method == "POST" else None
    newer = select(func.min(own.id)).where(own.model == shown["model"], own.id > number).scalar_subquery()
    older = select(func.max(own.id)).where(own.model == shown["model"], own.id < number).scalar_subquery()
    beside = station.store.rows(select(newer.label("newer"), older.label("older")))[0]._asdict()
    part = station.store.find(Search(model=shown["model"], part=shown["part"]))["inspections"] if shown["part"] else []
    said = station.store.rows(select(labels).where(labels.c.inspection == number).order_by(labels.c.id))
    context = {**page.of_verdict(shown), **beside, "part": part, "shown": shown, "said": said, "replayed": replayed}
    return page.show("sheet.j2", model=shown["model"], **context)


@router.get("/inspections/{number}/thumbnail", dependencies=IN_TURN)
def thumbnail(station: StationDep, person: Viewer, number: BigId) -> Response:
    return picture(_small(station.photograph(station.inspection(number))), "jpeg", quality=82)


def _small(content: bytes) -> Image.Image:
    if content.startswith(b"\xff\xd8\xff"):  # JPEG is decoded at a part of its size in a tenth of the time
        with Image.open(io.BytesIO(content)) as file:
            file.thumbnail(THUMBNAIL)
            turn = UPRIGHT.get(orientation(file), np.asarray)
            return Image.fromarray(np.ascontiguousarray(turn(np.asarray(file.convert("RGB")))))
    image = read_image(content)
    picture = Image.fromarray(on_screen(image, int(image.pixels.max()) or 1))
    picture.thumbnail(THUMBNAIL)
    return picture


@router.get("/teach")
def teach(page: View, station: StationDep, relearner: RelearnerDep, model: str | None = None) -> Response:
    if (name := page.named(model)) is None:
        return page.show("teach.j2")
    context = {
        "counts": station.store.count(Search(model=name)),
        "kinds": page.kinds(name),
        "last": station.store.find(Search(model=name, said="something", limit=STRIP))["inspections"],
        "job": relearner.state(name),
        "knows": name in station.settings.training,
    }
    return page.show("teach.j2", model=name, described=station.describe(name), **context)


@router.get("/threshold")
def threshold(page: View, station: StationDep, model: str | None = None, percent: float | None = None) -> Response:
    name = page.named(model)
    now = station.judge(name).model.inspector.calibration if name else None
    if name is None or now is None or now.rate is None:
        return page.show("threshold.j2", model=name, described=name and station.describe(name), tried=None)
    refusal, rate = None, None if percent is None else percent / 100
    try:
        tried = teaching.preview(station, name, rate, None)
    except BlemishError as error:
        refusal, rate, tried = str(error), None, teaching.preview(station, name, None, None)
    past = teaching.past_verdicts(station, name, teaching.recalibrated(station, name, rate, None))
    context = {
        "past": {decision: sum(one["new"] == decision for one in past) for decision in ("reject", "review", "ok")},
        "changed": [one for one in past if one["old"] != one["new"]],
        "drawn": charts.histogram(now, past, tried),
        "percent": round(100 * tried["rate"], 4),
        "now_percent": round(100 * now.rate, 4),
        "fixed": teaching.why_fixed(station, name),
    }
    return page.show("threshold.j2", model=name, tried=tried, refusal=refusal, **context)


@router.get("/health")
def show_health(page: View, station: StationDep, model: str | None = None) -> Response:
    if (name := page.named(model)) is None:
        return page.show("health.j2")
    found = health.health(station, name)
    drawn = {title: charts.control_chart(own) for title, own in found["charts"].items()}
    return page.show("health.j2", model=name, health=found, drawn=drawn, described=station.describe(name))


@router.post("/health")
def restore_promise(station: StationDep, person: Operator, model: ModelField) -> Response:
    health.acknowledge(station, model, person.name)
    return RedirectResponse(address("/health", model=model), 303)


@router.post("/inspections/{number}/said")
def say(
    station: StationDep,
    person: Operator,
    number: BigId,
    said: Annotated[str, Form(max_length=110, pattern="^(undo|good|bad(:.+)?)$")],
    kind: Annotated[str, Form(max_length=100)] = "",
    back: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    """Keep what a person says of a verdict, ``bad`` with a kind after a colon, and go back to where it was said."""
    word, _, named = said.partition(":")
    kind = "".join(filter(str.isprintable, named or kind)).strip()[:100] if word == "bad" else ""
    station.say(number, None if word == "undo" else word, kind, person.name)
    return RedirectResponse(_inside(back, f"/inspections/{number}"), 303)


def _inside(target: str, otherwise: str = "/") -> str:
    """An address of this station alone."""
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_ours else otherwise


@router.post("/teach")
def change_model(
    relearner: RelearnerDep,
    person: Operator,
    model: ModelField,
    do: Annotated[Literal["start", "accept", "stop"], Form()],
) -> Response:
    if do == "accept" and not person.may("admin"):
        raise HTTPException(403, f"a model is swapped in by an admin, and {person.name} has the role {person.role}")
    {"start": relearner.start, "accept": relearner.accept, "stop": relearner.stop}[do](model, person.name)
    return RedirectResponse(address("/teach", model=model), 303)


@router.post("/threshold")
def set_rate(
    station: StationDep, person: Admin, model: ModelField, percent: Annotated[float, Form(gt=0, lt=100)]
) -> Response:
    teaching.set_threshold(station, model, percent / 100, None, person.name)
    return RedirectResponse(address("/threshold", model=model), 303)


@router.get("/report", dependencies=IN_TURN)
def report(page: View, station: StationDep) -> Response:
    """A shift, or another span, as one page that stands alone and prints well."""
    search, pictures, drawn = page.search(), {}, {}
    if (search.since, search.until, search.day) == (None, None, None):
        began, ends = shift_around(datetime.now().astimezone(), station.settings.shifts)
        search = search.model_copy(update={"since": began, "until": ends})
    found = reports.shift(station, search)
    for shown in found["worst"]:
        with contextlib.suppress(HTTPException, ImageError):  # not kept any longer
            small = _small(station.photograph(station.inspection(shown["id"])))
            pictures[shown["id"]] = data_uri(small, "JPEG", quality=80)
    for name in [one["model"] for one in found["promises"]]:
        calibration, described = station.judge(name).model.inspector.calibration, station.describe(name)
        past = teaching.past_verdicts(station, name, calibration)
        drawn[name] = calibration.rate and charts.histogram(calibration, past, described)
    css = environment().get_template("report.css").render()
    hashed = b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{hashed}'"
    context = {**found, "css": css, "policy": policy, "pictures": pictures, "drawn": drawn, "search": search}
    return page.show("report.j2", 200, {"Content-Security-Policy": policy}, audit=station.audited(), **context)


@router.get("/docs")
def addresses(page: View) -> Response:
    return page.show("docs.j2", described=page.request.app.openapi())


@router.get("/static/{digest}/{name}")
def static(digest: str, name: str) -> Response:
    """Styles and scripts, which browsers keep for as long as they do not change."""
    if name not in STATIC:
        raise HTTPException(404, f"there is no file {name[:64]!r}")
    kept = "public, max-age=31536000, immutable" if digest == DIGEST else "no-cache"
    return Response(STATIC[name], media_type=TYPES[Path(name).suffix], headers={"Cache-Control": kept})


@router.get("/login")
def ask_for_token(request: Request, station: StationDep, next: str = "/") -> Response:
    return Page(request, station, None).show("login.j2", next=_inside(next), wrong=None)


@router.post("/login")
def log_in(
    request: Request,
    station: StationDep,
    token: Annotated[str, Form(max_length=200)],
    next: Annotated[str, Form(max_length=500)] = "/",
) -> Response:
    response = RedirectResponse(_inside(next), 303)
    try:
        station.access.log_in(request, token.strip(), response)
    except HTTPException as error:
        page = Page(request, station, None)
        return page.show("login.j2", error.status_code, next=_inside(next), wrong=error.detail)
    return response


@router.post("/logout")
def log_out(request: Request, station: StationDep, person: Viewer) -> Response:
    response = RedirectResponse("/login", 303)
    station.access.log_out(request, response)
    return response
