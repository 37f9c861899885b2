"""What is answered where something is wrong: one sentence as a problem document (RFC 9457)."""

import logging
from asyncio import CancelledError
from collections.abc import Mapping
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from blemish.errors import BlemishError, ModelFileError, OutputError, StoreError
from blemish.server.judging import QueueClosed, QueueFull

log = logging.getLogger("blemish.server")


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A problem document."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, dict(headers or {}), media_type="application/problem+json")


def problem_of(error: BaseException) -> JSONResponse:
    """What an error is answered with: 503 for what may go better later, 422 for what was asked for."""
    if isinstance(error, RequestValidationError):
        said = []
        for wrong in error.errors()[:5]:
            is_short = isinstance(given := wrong.get("input"), str | int | float)
            said.append(f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" + f" (given: {given!r:.60})" * is_short)
        return problem(422, "; ".join(said))
    if isinstance(error, HTTPException):
        return problem(error.status_code, str(error.detail), error.headers)
    if isinstance(error, CancelledError):
        return problem(503, "not judged in time", {"Retry-After": "5"})
    if isinstance(error, QueueFull | QueueClosed | StoreError | OutputError | MemoryError | ModelFileError | OSError):
        return problem(503, str(error) or "out of memory", {"Retry-After": "5"})
    if isinstance(error, BlemishError):
        return problem(422, str(error))
    log.error("an error that was not foreseen", exc_info=error)
    return problem(500, "an error that was not foreseen: the station's log has it")
