"""The FastAPI application, put together from its routes, limits and error answers.

Paths, JSON keys and status codes are the public contract. `make_api` is called in each replica of `Api`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse
from fastapi.routing import APIRoute
from starlette.staticfiles import StaticFiles

from vmr_ray import __version__
from vmr_ray.serve.admission import Places, SearchPlaces
from vmr_ray.serve.auth import Gate, load_keys
from vmr_ray.serve.backend import Backend
from vmr_ray.serve.docs_page import docs_page
from vmr_ray.serve.errors import ERROR_HANDLERS
from vmr_ray.serve.limits import BodyLimit, NoSniff
from vmr_ray.serve.media import MediaWorkers
from vmr_ray.serve.models import Refusal, ServeArgs
from vmr_ray.serve.openapi import complete_openapi
from vmr_ray.serve.routes import media, operation, search, videos
from vmr_ray.serve.streams import OpenedVideos
from vmr_ray.serve.uploads import is_upload

_PAGE = Path(__file__).parent / "page"
# The page loads nothing from other hosts and runs no inline script.
_PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
_DOCS_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "something in the request is wrong; `error` says what"},
    401: {"model": Refusal, "description": "no valid API key"},
    503: {"model": Refusal, "description": "busy: try again after the seconds in Retry-After"},
}


def make_api(settings: ServeArgs, backend: Backend) -> FastAPI:
    """The application in front of `backend`.

    Raises:
        VmrError: `settings` ask for API keys and there are none.
    """
    api = FastAPI(
        title="vmr-ray",
        version=__version__,
        description="Search inside video with plain sentences: a query in, files and seconds out.",
        responses=_ERRORS,
        exception_handlers=ERROR_HANDLERS,
        generate_unique_id_function=_operation_id,
        docs_url=None,  # FastAPI's pages load scripts from another host
        redoc_url=None,
    )
    api.state.settings, api.state.backend, api.state.media = settings.with_secret(), backend, MediaWorkers()
    api.state.opened_videos = OpenedVideos()
    api.state.searches = SearchPlaces(settings.wait_s)
    with_keys = settings.auth == "keys"
    # The last one is the outermost.
    api.add_middleware(Places)
    api.add_middleware(BodyLimit, is_streamed=is_upload, idle_s=settings.idle_s)
    api.add_middleware(Gate, keys=load_keys(settings.key_file) if with_keys else None, hosts=settings.hosts)
    api.add_middleware(NoSniff)
    # Media before videos: an id may contain slashes, so /v1/videos/{video_id} would match their paths too.
    for theme in (search, media, videos, operation):
        api.include_router(theme.router)
    api.add_api_route("/", _page, include_in_schema=False)
    api.add_api_route("/docs", _docs, include_in_schema=False)
    api.mount("/page", StaticFiles(directory=_PAGE))
    _extend_openapi(api, with_keys)
    return api


async def _page() -> FileResponse:
    return FileResponse(_PAGE / "index.html", headers={"Content-Security-Policy": _PAGE_POLICY})


async def _docs(request: Request) -> HTMLResponse:
    return HTMLResponse(docs_page(request.app.openapi()), headers={"Content-Security-Policy": _DOCS_POLICY})


def _operation_id(route: APIRoute) -> str:
    """The name of the route's function, which generated clients take for their method."""
    return route.name


def _extend_openapi(api: FastAPI, with_keys: bool) -> None:
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        complete_openapi(schema, with_keys)
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
