"""The page's few addresses. What the page does is in static/, what it shows in ``session``."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from fastapi import FastAPI, Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.staticfiles import StaticFiles

from client.searcher.query import MAX_CHARACTERS
from client.searcher.ui.pictures import media_type
from client.searcher.ui.session import COUNTS, Asked, Key, Marks, Session, View, failure
from protocol.errors import BlindsightError, UsageError
from protocol.model.pictures import FORMATS, IMAGE_BYTES

_FORM_BYTES = 64 * 1024

F = TypeVar("F", bound=BaseModel)


class _Like(BaseModel):
    key: Key


class _Back(BaseModel):
    steps: int = Field(ge=0, le=1)


def make_app(session: Session) -> FastAPI:
    """The application for one person; nothing in it asks who that is: see ``door``."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    templates = Environment(
        loader=PackageLoader("client.searcher.ui"), autoescape=True, undefined=StrictUndefined
    )
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))

    @app.exception_handler(BlindsightError)
    def refused(request: Request, error: BlindsightError) -> Response:
        return JSONResponse(failure(error), 400)

    @app.get("/")
    def page() -> Response:
        shown = templates.get_template("page.html.j2").render(
            institutions=session.institutions,
            started=session.started,
            counts=COUNTS,
            most_characters=MAX_CHARACTERS,
            most_bytes=IMAGE_BYTES,
            formats=[f"image/{one.lower()}" for one in FORMATS],
        )
        return HTMLResponse(shown)

    @app.get("/picture/{name}")
    def picture(name: str) -> Response:
        try:
            data = session.pictures[name]
        except KeyError:
            return Response(status_code=404)
        return Response(data, media_type=media_type(data))

    @app.put("/picture")
    async def take(request: Request) -> Response:
        data = await _body(request, IMAGE_BYTES)
        return JSONResponse({"picture": await run_in_threadpool(session.take, data)})

    @app.post("/search")
    async def search(request: Request) -> Response:
        return _streamed(await run_in_threadpool(session.search, await _form(request, Asked)))

    @app.post("/refine")
    async def refine(request: Request) -> Response:
        return _streamed(await run_in_threadpool(session.refine, await _form(request, Marks)))

    @app.post("/like")
    async def like(request: Request) -> Response:
        key = (await _form(request, _Like)).key
        return _streamed(await run_in_threadpool(session.like, key))

    @app.post("/back")
    async def back(request: Request) -> Response:
        return _streamed(iter([session.back((await _form(request, _Back)).steps)]))

    return app


def _streamed(views: Iterator[View]) -> Response:
    """A line of JSON for each, as it comes."""
    lines = (json.dumps(one) + "\n" for one in views)
    return StreamingResponse(lines, media_type="application/x-ndjson")


async def _body(request: Request, most: int) -> bytes:
    """The request's bytes, their number known and checked before the first is read."""
    said = request.headers.get("content-length", "")
    if not said.isdecimal() or int(said) > most:
        raise UsageError(
            f"expected at most {most:,} bytes, got {said or 'an unknown number of them'}",
            "Scale the picture down.",
        )
    return await request.body()


async def _form(request: Request, form: type[F]) -> F:
    try:
        return form.model_validate_json(await _body(request, _FORM_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where}: {first['msg']}", "Load the page again.") from error
