"""The addresses of models: loading, thresholds, learning again, health; and reports and the audit trail."""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from blemish.errors import ModelFileError
from blemish.server import health, reports, teaching
from blemish.server.api import Admin, Here, ModelName, Operator, Viewer
from blemish.server.store import BigId, Search
from blemish.server.tables import audit

router = APIRouter(prefix="/v1")


@router.get("/models")
def list_models(here: Here, person: Viewer) -> dict[str, Any]:
    """What judges here."""
    return {"models": [here.describe(name) for name in [*here.judges]]}


@router.get("/models/{model}")
def show_model(here: Here, person: Viewer, model: ModelName) -> dict[str, Any]:
    """One model, with all that `blemish info` says under `info`."""
    return {**here.describe(model), "info": here.judge(model).model.inspector.info()}


@router.put("/models/{model}")
async def put_model(request: Request, here: Here, person: Admin, model: ModelName) -> dict[str, Any]:
    """Load the model file in the body, or swap it for the one of that name; no request is lost by it."""
    with tempfile.TemporaryDirectory(dir=here.pictures.models) as folder:
        file = Path(folder) / "uploaded.blemish"
        with file.open("wb") as stream:
            async for chunk in request.stream():
                await run_in_threadpool(stream.write, chunk)
        try:
            await run_in_threadpool(here.put_model, model, file, "uploaded", person.name)
        except ModelFileError as error:
            raise HTTPException(422, str(error).replace(str(file), "the file")) from error
    return await run_in_threadpool(here.describe, model)


@router.delete("/models/{model}", status_code=204)
def drop_model(here: Here, person: Admin, model: ModelName) -> None:
    """Unload a model; what waits for it is still judged."""
    here.drop_model(model, person.name)


class Threshold(BaseModel, extra="forbid"):
    """Shares of good parts that may be rejected, and that may go to a person besides."""

    rate: Annotated[float, Field(gt=0, lt=1)]
    review: Annotated[float | None, Field(ge=0, lt=1)] = None


@router.get("/models/{model}/threshold")
def try_threshold(
    here: Here,
    person: Viewer,
    model: ModelName,
    rate: Annotated[float | None, Query(gt=0, lt=1)] = None,
    review: Annotated[float | None, Query(ge=0, lt=1)] = None,
    bins: Annotated[int, Query(ge=5, le=200)] = 40,
) -> dict[str, Any]:
    """What another rate would do: threshold, promise, histograms, and past parts that it would reject."""
    return teaching.preview(here, model, rate, review, bins)


@router.put("/models/{model}/threshold")
def set_threshold(here: Here, person: Admin, model: ModelName, body: Threshold) -> dict[str, Any]:
    """Set it: a new calibration, as a new model file, swapped in and logged."""
    return teaching.set_threshold(here, model, body.rate, body.review, person.name)


def teacher_of(request: Request) -> teaching.Teacher:
    """What learns again, of the station behind a request."""
    return request.app.state.teacher  # type: ignore[no-any-return]


Teaching = Annotated[teaching.Teacher, Depends(teacher_of)]


@router.post("/models/{model}/relearn", status_code=202)
def relearn(person: Operator, model: ModelName, teacher: Teaching) -> dict[str, Any]:
    """Learn again, in the background, from the training images and from what people said."""
    return teacher.start(model, person.name)


@router.get("/models/{model}/relearn")
def show_relearn(person: Viewer, model: ModelName, teacher: Teaching) -> dict[str, Any]:
    """How far it is; once ready, how old and new differ."""
    return teacher.state(model)


@router.post("/models/{model}/relearn/accept")
def accept(person: Admin, model: ModelName, teacher: Teaching) -> dict[str, Any]:
    """Swap the new model in."""
    return teacher.accept(model, person.name)


@router.delete("/models/{model}/relearn", status_code=204)
def stop_relearn(person: Operator, model: ModelName, teacher: Teaching) -> None:
    """Stop it, or throw away what it made."""
    teacher.stop(model, person.name)


@router.get("/models/{model}/health")
def show_health(
    here: Here, person: Viewer, model: ModelName, points: Annotated[int, Query(ge=10, le=1000)] = 120
) -> dict[str, Any]:
    """Whether the promise holds, control charts, latency, queue and disk."""
    return health.health(here, model, points)


@router.post("/models/{model}/health/acknowledge")
def acknowledge(here: Here, person: Operator, model: ModelName) -> dict[str, Any]:
    """A person has looked: the promise holds again until a test fails."""
    return health.acknowledge(here, model, person.name)


@router.get("/report", response_model=None, responses={200: {"content": {"text/csv": {}}}})
def report(
    here: Here, person: Viewer, search: Annotated[Search, Depends()], format: Literal["json", "csv", "excel"] = "json"
) -> dict[str, Any] | Response:
    """A shift: counts in all and by hour, the strangest parts, what people said, what changed; or verdicts as CSV."""
    if format != "json":
        headers = {"Content-Disposition": 'attachment; filename="inspections.csv"'}
        return StreamingResponse(
            reports.as_csv(here, search, format == "excel"), media_type="text/csv", headers=headers
        )
    return reports.shift(here, search)


@router.get("/audit")
def show_audit(
    here: Here, person: Admin, cursor: BigId | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """The audit trail, newest first."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
    found = here.store.rows(query if cursor is None else query.where(audit.c.id < cursor))
    more = len(found) > limit
    return {"rows": [reports.audit_json(row) for row in found[:limit]], "next": found[limit - 1].id if more else None}


@router.get("/audit/verify")
def verify(here: Here, person: Admin) -> dict[str, Any]:
    """Whether the audit trail is whole, and where it is first broken."""
    return here.store.verify()
