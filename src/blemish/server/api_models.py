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
from blemish.server.api import Admin, ModelName, Operator, StationDep, Viewer
from blemish.server.store import BigId, Search
from blemish.server.tables import audit

router = APIRouter(prefix="/v1")


@router.get("/models")
def list_models(station: StationDep, person: Viewer) -> dict[str, Any]:
    """What judges here."""
    return {"models": [station.describe(name) for name in [*station.judges]]}


@router.get("/models/{model}")
def show_model(station: StationDep, person: Viewer, model: ModelName) -> dict[str, Any]:
    """One model, with all that `blemish info` says under `info`."""
    return {**station.describe(model), "info": station.judge(model).model.inspector.info()}


@router.put("/models/{model}")
async def put_model(request: Request, station: StationDep, person: Admin, model: ModelName) -> dict[str, Any]:
    """Load the model file in the body, or swap it for the one of that name; no request is lost by it."""
    with tempfile.TemporaryDirectory(dir=station.pictures.models) as folder:
        file = Path(folder) / "uploaded.blemish"
        with file.open("wb") as stream:
            async for chunk in request.stream():
                await run_in_threadpool(stream.write, chunk)
        try:
            await run_in_threadpool(station.put_model, model, file, "uploaded", person.name)
        except ModelFileError as error:
            raise HTTPException(422, str(error).replace(str(file), "the file")) from error
    return await run_in_threadpool(station.describe, model)


@router.delete("/models/{model}", status_code=204)
def drop_model(station: StationDep, person: Admin, model: ModelName) -> None:
    """Unload a model; what waits for it is still judged."""
    station.drop_model(model, person.name)


class Threshold(BaseModel, extra="forbid"):
    """Shares of good parts that may be rejected, and that may go to a person besides."""

    rate: Annotated[float, Field(gt=0, lt=1)]
    review: Annotated[float | None, Field(ge=0, lt=1)] = None


@router.get("/models/{model}/threshold")
def try_threshold(
    station: StationDep,
    person: Viewer,
    model: ModelName,
    rate: Annotated[float | None, Query(gt=0, lt=1)] = None,
    review: Annotated[float | None, Query(ge=0, lt=1)] = None,
    bins: Annotated[int, Query(ge=5, le=200)] = 40,
) -> dict[str, Any]:
    """What another rate would do: threshold, promise, histograms, and past parts that it would reject."""
    return teaching.preview(station, model, rate, review, bins)


@router.put("/models/{model}/threshold")
def set_threshold(station: StationDep, person: Admin, model: ModelName, body: Threshold) -> dict[str, Any]:
    """Set it: a new calibration, as a new model file, swapped in and logged."""
    return teaching.set_threshold(station, model, body.rate, body.review, person.name)


def relearner_of(request: Request) -> teaching.Relearner:
    """What learns again, of the station behind a request."""
    return request.app.state.relearner  # type: ignore[no-any-return]


RelearnerDep = Annotated[teaching.Relearner, Depends(relearner_of)]


@router.post("/models/{model}/relearn", status_code=202)
def relearn(person: Operator, model: ModelName, relearner: RelearnerDep) -> dict[str, Any]:
    """Learn again, in the background, from the training images and from what people said."""
    return relearner.start(model, person.name)


@router.get("/models/{model}/relearn")
def show_relearn(person: Viewer, model: ModelName, relearner: RelearnerDep) -> dict[str, Any]:
    """How far it is; once ready, how old and new differ."""
    return relearner.state(model)


@router.post("/models/{model}/relearn/accept")
def accept(person: Admin, model: ModelName, relearner: RelearnerDep) -> dict[str, Any]:
    """Swap the new model in."""
    return relearner.accept(model, person.name)


@router.delete("/models/{model}/relearn", status_code=204)
def stop_relearn(person: Operator, model: ModelName, relearner: RelearnerDep) -> None:
    """Stop it, or throw away what it made."""
    relearner.stop(model, person.name)


@router.get("/models/{model}/health")
def show_health(
    station: StationDep, person: Viewer, model: ModelName, points: Annotated[int, Query(ge=10, le=1000)] = 120
) -> dict[str, Any]:
    """Whether the promise holds, control charts, latency, queue and disk."""
    return health.health(station, model, points)


@router.post("/models/{model}/health/acknowledge")
def acknowledge(station: StationDep, person: Operator, model: ModelName) -> dict[str, Any]:
    """A person has looked: the promise holds again until a test fails."""
    return health.acknowledge(station, model, person.name)


@router.get("/report", response_model=None, responses={200: {"content": {"text/csv": {}}}})
def report(
    station: StationDep,
    person: Viewer,
    search: Annotated[Search, Depends()],
    format: Literal["json", "csv", "excel"] = "json",
) -> dict[str, Any] | Response:
    """A shift: counts in all and by hour, the strangest parts, what people said, what changed; or verdicts as CSV."""
    if format != "json":
        headers = {"Content-Disposition": 'attachment; filename="inspections.csv"'}
        return StreamingResponse(
            reports.as_csv(station, search, format == "excel"), media_type="text/csv", headers=headers
        )
    return reports.shift(station, search)


@router.get("/audit")
def show_audit(
    station: StationDep, person: Admin, cursor: BigId | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> dict[str, Any]:
    """The audit trail, newest first."""
    query = select(audit).order_by(audit.c.id.desc()).limit(limit + 1)
    found = station.store.rows(query if cursor is None else query.where(audit.c.id < cursor))
    more = len(found) > limit
    return {"rows": [reports.audit_json(row) for row in found[:limit]], "next": found[limit - 1].id if more else None}


@router.get("/audit/verify")
def verify(station: StationDep, person: Admin) -> dict[str, Any]:
    """Whether the audit trail is whole, and where it is first broken."""
    return station.store.verify()
