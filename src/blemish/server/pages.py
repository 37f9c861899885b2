"""The station's pages: what people see. Reading works without scripts, and every state has an address.

A page is one template, filled here. Its script asks for the same address again when something happens and puts what
changed into place, so that there is one way in which anything is drawn.
"""

import contextlib
import hashlib
import io
import json
from base64 import b64encode
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from PIL import Image, ImageOps
from pydantic import ValidationError
from sqlalchemy import func, select
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse

from blemish.data.images import read_image
from blemish.errors import BlemishError, ImageError
from blemish.inspection.outlook import KINDS
from blemish.inspection.overlay import data_uri
from blemish.inspection.verdict import on_screen
from blemish.server import charts, reports
from blemish.server.access import COOKIE, Person, needs
from blemish.server.api import Admin, Here, Operator, Viewer, picture, set_session
from blemish.server.api_models import Teaching
from blemish.server.health import acknowledge, promise
from blemish.server.health import health as health_of
from blemish.server.station import Station
from blemish.server.store import BigId, Search, as_json
from blemish.server.tables import inspections, labels
from blemish.server.teaching import past_verdicts, preview, recalibrated, set_threshold
from blemish.server.words import DIGEST, STATIC, address, environment, shift_around

router = APIRouter(include_in_schema=False)

STRIP, ROWS, TILES, THUMBNAIL = 12, 50, 60, 200
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
ModelField = Annotated[str, Form(max_length=64)]


def problem_page(request: Request, answer: JSONResponse) -> Response:
    """What went wrong, for a person who asked for a page; the answer itself for a program."""
    if request.url.path.startswith("/v1/") or "text/html" not in request.headers.get("accept", ""):
        return answer
    if answer.status_code == 401 and request.method == "GET":
        return RedirectResponse(f"/login?next={quote(str(request.url.replace(scheme='', netloc='')))}", 303)
    page = Page(request, request.app.state.station, None).show("error.j2", **json.loads(bytes(answer.body)))
    page.status_code = answer.status_code
    page.headers.update({name: value for name, value in answer.headers.items() if name == "retry-after"})
    return page


class Page:
    """A page that somebody asks for."""

    def __init__(
        self, request: Request, here: Here, person: Annotated[Person | None, Depends(needs("viewer"))]
    ) -> None:
        self.request, self.here, self.person = request, here, person

    def show(self, template: str, **context: Any) -> HTMLResponse:
        """The template, filled with ``context`` and what every page has."""
        here, person = self.here, self.person
        shared: dict[str, Any] = {"path": self.request.url.path, "person": person, "model": None}
        shared |= {
            "is_open": here.settings.is_open,
            "names": [*here.judges] if person else [],
            "now": datetime.now().astimezone(),
        }
        return HTMLResponse(environment().get_template(template).render(shared | context))

    def named(self, model: str | None) -> str | None:
        """The model that a page is about: the one asked for (404 if unknown), or the first; None without any."""
        if model:
            self.here.judge(model)
        return model or next(iter([*self.here.judges]), None)

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
        columns, judge = inspections.c, self.here.judges.get(shown["model"])
        is_current = judge is not None and judge.model.digest == shown["digest"]
        calibration = judge.model.inspector.calibration if judge and is_current else None
        query = select(columns.kind).where(columns.model == shown["model"], columns.kind.is_not(None))
        named = self.here.store.rows(query.group_by(columns.kind).order_by(func.count().desc()).limit(9))
        kinds = [*dict.fromkeys([*(row.kind for row in named), *KINDS])][:9]
        return {"gauge": charts.gauge(shown["score"], calibration), "kinds": kinds, "is_current": is_current}


View = Annotated[Page, Depends()]


@router.get("/")
def live(page: View, here: Here, model: str | None = None) -> Response:
    """The last verdict, large, and those before it."""
    if model:
        here.judge(model)
    shift = shift_around(datetime.now().astimezone(), here.settings.shifts)
    last = here.store.find(Search(model=model, limit=STRIP + 1))["inspections"]
    context: dict[str, Any] = {"model": model, "last": last, "shown": None, "part": None, "shift": shift}
    if last:
        context |= {"shown": (shown := last[0]), **page.of_verdict(shown)}
        context["part"] = here.store.part_verdict(shown["model"], shown["part"]) if shown["part"] else None
    context["counts"] = here.store.count(Search(model=model, since=shift[0]))
    context["withdrawn"] = [
        (name, found) for name in [*here.judges] if (found := promise(here, name))["holds"] is False
    ]
    return page.show("live.j2", cameras=[name for name in here.settings.cameras if model in (None, name)], **context)


@router.get("/history")
def history(page: View, here: Here, view: Literal["table", "sheet"] = "table") -> Response:
    """What was judged, filtered, as a table or as a contact sheet."""
    search = page.search(ROWS if view == "table" else TILES)
    fields = search.model_dump(mode="json", exclude={"cursor", "limit"})
    counts = here.store.count(search.model_copy(update={"cursor": None}))
    found = here.store.find(search)
    return page.show("history.j2", view=view, fields=fields, counts=counts, cursor=search.cursor, **found)


@router.get("/inspections/{number}")
def sheet(page: View, here: Here, number: BigId) -> Response:
    """All that is known of one verdict."""
    return _sheet(page, here, number, None)


@router.post("/inspections/{number}/replay")
def replay(page: View, here: Here, number: BigId) -> Response:
    """Judge it again, and say whether all is the same."""
    return _sheet(page, here, number, here.replay(number))


def _sheet(page: Page, here: Station, number: int, replayed: Any) -> Response:
    shown, own = as_json(here.inspection(number)), inspections.c
    newer = select(func.min(own.id)).where(own.model == shown["model"], own.id > number)
    older = select(func.max(own.id)).where(own.model == shown["model"], own.id < number)
    part = shown["part"] and here.store.find(Search(model=shown["model"], part=shown["part"]))["inspections"]
    said = here.store.rows(select(labels).where(labels.c.inspection == number).order_by(labels.c.id))
    beside = {"newer": here.store.rows(newer)[0][0], "older": here.store.rows(older)[0][0], "part": part or []}
    context = {**page.of_verdict(shown), **beside, "shown": shown, "said": said, "replayed": replayed}
    return page.show("sheet.j2", model=shown["model"], **context)


@router.get("/inspections/{number}/thumbnail")
def thumbnail(here: Here, person: Viewer, number: BigId) -> Response:
    """The photograph, small."""
    return picture(_small(here.photograph(here.inspection(number))), "jpeg", quality=82)


def _small(content: bytes) -> Image.Image:
    if content.startswith(b"\xff\xd8\xff"):  # JPEG is decoded at an eighth of its size in a tenth of the time
        with Image.open(io.BytesIO(content)) as file:
            file.draft("RGB", (THUMBNAIL, THUMBNAIL))
            picture = ImageOps.exif_transpose(file).convert("RGB")
    else:
        image = read_image(content)
        picture = Image.fromarray(on_screen(image, int(image.pixels.max()) or 1))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return picture


@router.get("/teach")
def teach(page: View, here: Here, teacher: Teaching, model: str | None = None) -> Response:
    """What people said, what could be learned from it, and what would change."""
    if (name := page.named(model)) is None:
        return page.show("teach.j2")
    own = inspections.c
    kinds = select(own.kind, func.count()).where(own.model == name, own.kind.is_not(None)).group_by(own.kind)
    context = {
        "counts": here.store.count(Search(model=name)),
        "kinds": here.store.rows(kinds.order_by(func.count().desc()).limit(20)),
        "last": here.store.find(Search(model=name, said="something", limit=STRIP))["inspections"],
        "job": teacher.state(name),
        "knows": name in here.settings.training,
    }
    return page.show("teach.j2", model=name, described=here.describe(name), **context)


@router.get("/threshold")
def threshold(page: View, here: Here, model: str | None = None, percent: float | None = None) -> Response:
    """What the rate is, and what another would have done."""
    name = page.named(model)
    now = here.judge(name).model.inspector.calibration if name else None
    if name is None or now is None or now.rate is None:
        return page.show("threshold.j2", model=name, described=name and here.describe(name), tried=None)
    refusal, rate = None, None if percent is None else percent / 100
    try:
        tried = preview(here, name, rate, None)
    except BlemishError as error:
        refusal, rate, tried = str(error), None, preview(here, name, None, None)
    past = past_verdicts(here, name, recalibrated(here, name, rate, None))
    context = {
        "past": {decision: sum(one["new"] == decision for one in past) for decision in ("reject", "review", "ok")},
        "changed": [one for one in past if one["old"] != one["new"]],
        "drawn": charts.histogram(now, past, tried),
        "percent": round(100 * tried["rate"], 4),
        "now_percent": round(100 * now.rate, 4),
    }
    return page.show("threshold.j2", model=name, tried=tried, refusal=refusal, **context)


@router.get("/health")
def health(page: View, here: Here, model: str | None = None) -> Response:
    """Whether the promise holds, and how the station does."""
    if (name := page.named(model)) is None:
        return page.show("health.j2")
    found = health_of(here, name)
    drawn = {title: charts.control_chart(own) for title, own in found["charts"].items()}
    return page.show("health.j2", model=name, health=found, drawn=drawn, described=here.describe(name))


@router.post("/health")
def restore_promise(here: Here, person: Operator, model: ModelField) -> Response:
    """A person has looked at what withdrew the promise."""
    acknowledge(here, model, person.name)
    return RedirectResponse(address("/health", model=model), 303)


@router.post("/inspections/{number}/said")
def say(
    here: Here,
    person: Operator,
    number: BigId,
    said: Annotated[str, Form(max_length=110, pattern="^(undo|good|bad(:.+)?)$")],
    kind: Annotated[str, Form(max_length=100)] = "",
    back: Annotated[str, Form(max_length=500)] = "",
) -> Response:
    """Keep what a person says of a verdict, ``bad`` with a kind after a colon, and go back to where it was said."""
    word, _, named = said.partition(":")
    kind = "".join(filter(str.isprintable, named or kind)).strip()[:100] if word == "bad" else ""
    here.say(number, None if word == "undo" else word, kind, person.name)
    return RedirectResponse(_inside(back, f"/inspections/{number}"), 303)


def _inside(target: str, otherwise: str = "/") -> str:
    """An address of this station alone."""
    is_ours = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if is_ours else otherwise


@router.post("/teach")
def change_model(
    teacher: Teaching, person: Operator, model: ModelField, do: Annotated[Literal["start", "accept", "stop"], Form()]
) -> Response:
    """Learn again, swap what was learned in, or leave it."""
    if do == "accept" and not person.may("admin"):
        raise HTTPException(403, f"a model is swapped in by an admin, and {person.name} has the role {person.role}")
    {"start": teacher.start, "accept": teacher.accept, "stop": teacher.stop}[do](model, person.name)
    return RedirectResponse(address("/teach", model=model), 303)


@router.post("/threshold")
def set_rate(here: Here, person: Admin, model: ModelField, percent: Annotated[float, Form(gt=0, lt=100)]) -> Response:
    """A new calibration with another rate."""
    set_threshold(here, model, percent / 100, None, person.name)
    return RedirectResponse(address("/threshold", model=model), 303)


@router.get("/report")
def report(page: View, here: Here) -> Response:
    """A shift, or another span, as one page that stands alone and prints well."""
    search, pictures, drawn = page.search(), {}, {}
    if search.since is None and search.day is None:
        began, ends = shift_around(datetime.now().astimezone(), here.settings.shifts)
        search = search.model_copy(update={"since": began, "until": ends})
    found = reports.shift(here, search)
    for shown in found["worst"]:
        with contextlib.suppress(HTTPException, ImageError):  # not kept any longer
            small = _small(here.photograph(here.inspection(shown["id"])))
            pictures[shown["id"]] = data_uri(small, "JPEG", quality=80)
    for name in [one["model"] for one in found["promises"]]:
        calibration, described = here.judge(name).model.inspector.calibration, here.describe(name)
        past = past_verdicts(here, name, calibration)
        drawn[name] = calibration.rate and charts.histogram(calibration, past, described)
    css = environment().get_template("report.css").render()
    hashed = b64encode(hashlib.sha256(css.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{hashed}'"
    context = {**found, "css": css, "policy": policy, "pictures": pictures, "drawn": drawn, "search": search}
    shown_page = page.show("report.j2", audit=here.store.verify(), **context)
    shown_page.headers["Content-Security-Policy"] = policy
    return shown_page


@router.get("/docs")
def addresses(page: View) -> Response:
    """What programs may ask of the station."""
    return page.show("docs.j2", described=page.request.app.openapi())


@router.get("/static/{digest}/{name}")
def static(digest: str, name: str) -> Response:
    """Styles and scripts, which browsers keep for as long as they do not change."""
    if name not in STATIC:
        raise HTTPException(404, f"there is no file {name[:64]!r}")
    kept = "public, max-age=31536000, immutable" if digest == DIGEST else "no-cache"
    return Response(STATIC[name], media_type=TYPES[Path(name).suffix], headers={"Cache-Control": kept})


def _login(request: Request, here: Station, next: str, wrong: str | None = None) -> HTMLResponse:
    return Page(request, here, None).show("login.j2", next=_inside(next), wrong=wrong)


@router.get("/login")
def ask_for_token(request: Request, here: Here, next: str = "/") -> Response:
    """The way in."""
    return _login(request, here, next)


@router.post("/login")
def log_in(
    request: Request,
    here: Here,
    token: Annotated[str, Form(max_length=200)],
    next: Annotated[str, Form(max_length=500)] = "/",
) -> Response:
    """A session, or the sentence that says why not."""
    try:
        secret, _ = here.access.log_in(request, token.strip())
    except HTTPException as error:
        page = _login(request, here, next, error.detail)
        page.status_code = error.status_code
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
