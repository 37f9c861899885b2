"""The addresses under ``/v1``: what programs talk to, and the page's scripts. ``docs/reference/rest.md`` lists them."""

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi import Path as InPath
from PIL import Image
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, StreamingResponse

from blemish.inspection.overlay import data_uri
from blemish.run.progress import printable
from blemish.server.access import Person, needs
from blemish.server.judging import Photograph, QueueFull
from blemish.server.problems import problem, problem_of
from blemish.server.settings import MODEL_NAME
from blemish.server.station import Station
from blemish.server.store import BigId, Search, as_json

router = APIRouter(prefix="/v1")
PATIENCE = 10  # seconds that a picture waits for its turn to be drawn

Viewer = Annotated[Person, Depends(needs("viewer"))]
Operator = Annotated[Person, Depends(needs("operator"))]
Admin = Annotated[Person, Depends(needs("admin"))]
ModelName = Annotated[str, InPath(pattern=MODEL_NAME)]
PRINTABLE = r"^[^\x00-\x1f\x7f]+$"
WORST = {"ok": 0, None: 1, "review": 2, "reject": 3}
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"BM": "image/bmp"}
"""How files begin that every browser shows; the rest is sent as PNG."""
_FILE = {"type": "string", "format": "binary"}
_FORM = {"type": "object", "properties": {"image": {"type": "array", "items": _FILE}}}
_BODIES = {"application/octet-stream": {"schema": _FILE}, "multipart/form-data": {"schema": _FORM}}
IMAGES = {"requestBody": {"required": True, "content": _BODIES}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": HTTPStatus(status).phrase, "content": {"application/problem+json": {}}}
    for status in (400, 401, 403, 404, 408, 409, 410, 413, 422, 429, 503)
}


def sends(*kinds: str) -> dict[str, Any]:
    """For a route: the kinds of content that it answers with."""
    return {"response_class": Response, "responses": {200: {"content": {kind: {} for kind in kinds}}}}


async def station_of(request: Request) -> Station:
    """The station behind a request."""
    return request.app.state.station  # type: ignore[no-any-return]


StationDep = Annotated[Station, Depends(station_of)]


@router.post("/models/{model}/inspect", openapi_extra=IMAGES)
async def inspect(
    request: Request,
    model: ModelName,
    station: StationDep,
    person: Operator,
    overlay: bool = False,
    part: Annotated[str | None, Query(max_length=200, pattern=PRINTABLE)] = None,
) -> Response:
    """Judge one image (raw bytes) or several (multipart), and remember the verdicts.

    `decision` is the worst of them. `overlay=1` adds each picture as a `data:` address. Photographs sent with the same
    `part` are of one part: `part` in the answer is its verdict so far, that of its worst photograph. What is no image
    is listed under `refused`; where none is an image, the answer is 422. 503 with `Retry-After` where too many wait.
    """
    judge = station.judge(model)
    try:
        judge.check_room(1)  # before the body is read
        photographs = [Photograph(content, name, "http", part) for name, content in await _sent(request, station)]
        judge.submit(photographs)
    except QueueFull as error:
        station.metrics.refused.labels(model).inc()
        return problem(503, str(error), {"Retry-After": str(min(60, max(1, round(judge.depth * judge.pace))))})
    answers = [*zip(photographs, await _answers(request, photographs, station.settings.seconds))]
    errors = [(sent.name, result) for sent, result in answers if isinstance(result, BaseException)]
    verdicts = [(sent, result) for sent, result in answers if isinstance(result, dict)]
    for _, why in errors:
        if (answer := problem_of(why)).status_code != 422 or not verdicts:
            return answer
    for sent, verdict in verdicts if overlay else ():
        verdict["overlay"] = await run_in_threadpool(data_uri, await run_in_threadpool(sent.verdict.overlay))
    whole = await run_in_threadpool(station.store.part_verdict, model, part) if part else None
    decision = max((verdict["decision"] for _, verdict in verdicts), key=WORST.__getitem__)
    refused = [{"path": name, "detail": str(error)} for name, error in errors]
    said = {"decision": decision, "verdicts": [verdict for _, verdict in verdicts]}
    return JSONResponse({**said, "refused": refused, "part": whole})


async def _sent(request: Request, station: Station) -> list[tuple[str, bytes]]:
    """Names and contents of the images of a request; an HTTPException 422 where there is none."""
    if not request.headers.get("content-type", "").startswith("multipart/"):
        content = await request.body()
        if not content:
            raise HTTPException(422, "the body is empty: send the bytes of an image")
        return [("", content)]
    async with request.form(max_files=station.settings.max_images, max_fields=16) as form:
        files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
        sent = [(printable(file.filename or "")[:500], await file.read()) for file in files]
    if not sent:
        raise HTTPException(422, "no file was sent: send images as files of a form, under any name")
    return sent


async def _answers(request: Request, photographs: Sequence[Photograph], seconds: float) -> list[Any]:
    """A verdict as JSON or an error of each; a ClientDisconnect, or an HTTPException 503 where it takes too long."""
    together = asyncio.gather(*(asyncio.wrap_future(p.answer) for p in photographs), return_exceptions=True)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(gone())
    try:
        both: set[asyncio.Future[Any]] = {together, watch}
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        is_begun = any(p.answer.running() or p.answer.done() for p in photographs)
        if not together.done() and not watch.done() and (is_begun or not all(p.answer.cancel() for p in photographs)):
            # What is being judged is waited for once more: sent again, it would be kept twice.
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if together.done():
            return together.result()
        if watch.done():
            raise ClientDisconnect
        raise HTTPException(503, f"not judged within {seconds:g} seconds", {"Retry-After": "5"})
    finally:
        together.cancel()  # what has not been begun is dropped
        watch.cancel()


@router.get("/inspections")
def list_inspections(station: StationDep, person: Viewer, search: Annotated[Search, Query()]) -> dict[str, Any]:
    """Verdicts, newest first; `next` is the `cursor` of the next page, or null."""
    return station.store.find(search)


@router.get("/inspections/{number}")
def show_inspection(station: StationDep, person: Viewer, number: BigId) -> dict[str, Any]:
    """One verdict."""
    return as_json(station.inspection(number))


async def drawing(station: StationDep, _: Viewer) -> AsyncIterator[None]:
    """Few requests at a time judge photographs again or draw them; others wait, and then get a 503."""
    try:
        async with asyncio.timeout(PATIENCE):
            await station.drawing.acquire()
    except TimeoutError:
        why = "too many photographs are being judged again or drawn: ask again later"
        raise HTTPException(503, why, {"Retry-After": str(PATIENCE)}) from None
    try:
        yield
    finally:
        station.drawing.release()


IN_TURN = [Depends(drawing, scope="function")]  # ended before the answer goes to somebody who may read slowly


@router.get("/inspections/{number}/image", dependencies=IN_TURN, **sends(*KINDS.values()))
def show_image(station: StationDep, person: Viewer, number: BigId) -> Response:
    """The photograph: as it was sent where browsers show such files, else as PNG."""
    row = station.inspection(number)
    content = station.photograph(row)
    kind = next((kind for start, kind in KINDS.items() if content.startswith(start)), None)
    if kind is None or (kind == "image/png" and content[24] > 8):  # of 12 bits in 16 browsers show next to nothing
        return picture(Image.fromarray(station.verdict(row).pixels))
    return Response(content, media_type=kind, headers=LASTING)


@router.get("/inspections/{number}/overlay", dependencies=IN_TURN, **sends("image/png"))
def show_overlay(station: StationDep, person: Viewer, number: BigId) -> Response:
    """The photograph with what is wrong coloured and outlined, as PNG."""
    return picture(station.verdict(station.inspection(number)).overlay())


@router.get("/inspections/{number}/map", dependencies=IN_TURN, **sends("image/png", "image/tiff"))
def show_map(station: StationDep, person: Viewer, number: BigId, format: Literal["png", "tiff"] = "png") -> Response:
    """The colours alone, transparent below the threshold, as PNG; or raw values as 32-bit TIFF. 404 without a map."""
    row = station.inspection(number)
    heatmap = station.verdict(row).heatmap
    if heatmap is None:
        raise HTTPException(404, f"inspection {number} has no map")
    if format == "tiff":
        return picture(Image.fromarray(heatmap), "tiff")
    scale = station.inspector(row.digest).scale
    return picture(Image.fromarray(np.zeros((*heatmap.shape, 4), np.uint8) if scale is None else scale.layer(heatmap)))


LASTING = {"Cache-Control": "private, max-age=3600"}  # what a number shows never changes


def picture(image: Image.Image, kind: str = "png", **options: Any) -> Response:
    """An image as an answer."""
    image.save(file := io.BytesIO(), format=kind, compress_level=1, **options)
    return Response(file.getvalue(), media_type=f"image/{kind}", headers=LASTING)


class Said(BaseModel, extra="forbid"):
    """What a person says of a verdict."""

    said: Literal["good", "bad"]
    kind: Annotated[str, Field(max_length=100, pattern=PRINTABLE.replace("+", "*"), description="of defect")] = ""


@router.put("/inspections/{number}/said")
def say(station: StationDep, person: Operator, number: BigId, body: Said) -> dict[str, Any]:
    """Keep what a person says: `good` or `bad` after all. What was said before is kept, too."""
    return station.say(number, body.said, body.kind, person.name)


@router.delete("/inspections/{number}/said")
def take_back(station: StationDep, person: Operator, number: BigId) -> dict[str, Any]:
    """Undo: what was said before the last word holds again."""
    return station.say(number, None, "", person.name)


@router.post("/inspections/{number}/replay", dependencies=IN_TURN)
def replay(station: StationDep, person: Viewer, number: BigId) -> dict[str, Any]:
    """Judge its photograph again by the model that judged it: `same` where all is equal to the last bit."""
    return station.replay(number)


@router.get("/counts")
def count(station: StationDep, person: Viewer, search: Annotated[Search, Query()]) -> dict[str, Any]:
    """How many verdicts of each decision, and what people said of them."""
    return station.store.count(search)


@router.get("/cameras/{model}", **sends("image/jpeg"))
def show_camera(station: StationDep, person: Viewer, model: ModelName) -> Response:
    """The last picture of a model's camera, as JPEG; 404 without one."""
    for feed in station.feeds:
        if feed.state["model"] == model and (picture := getattr(feed.source, "picture", b"")):
            return Response(picture, media_type="image/jpeg")
    raise HTTPException(404, f"{model} has no camera, or it sends nothing now")


class LogIn(BaseModel, extra="forbid"):
    token: Annotated[str, Field(max_length=200)]


@router.post("/login")
def log_in(request: Request, station: StationDep, body: LogIn, response: Response) -> Person:
    """A session cookie from a token; `csrf` goes into the header `X-CSRF-Token` of every change made with it."""
    return station.access.log_in(request, body.token, response)


@router.post("/logout", status_code=204)
def log_out(request: Request, station: StationDep, person: Viewer, response: Response) -> None:
    """End the session."""
    station.access.log_out(request, response)


@router.get("/me")
def show_me(person: Viewer) -> Person:
    """Who asks, and the CSRF token of the session, if it is one."""
    return person


@router.get("/events", **sends("text/event-stream"))
async def listen(station: StationDep, person: Viewer) -> StreamingResponse:
    """Server-sent events: `inspection`, `said`, `model`, `relearn`, `promise`, each with a JSON object."""
    if station.events.is_crowded:
        raise HTTPException(503, "too many listen already", {"Retry-After": "10"})
    return StreamingResponse(station.events.listen(), media_type="text/event-stream")
