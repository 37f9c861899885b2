"""The station's pages: what people see. Reading works without scripts, and every state has an address."""

from fastapi import APIRouter
from starlette.responses import HTMLResponse

router = APIRouter(include_in_schema=False)


@router.get("/")
def live() -> HTMLResponse:
    """The last verdict, large."""
    return HTMLResponse("<!doctype html><title>Blemish</title><h1>Blemish</h1>")
