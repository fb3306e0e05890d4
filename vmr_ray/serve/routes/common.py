"""What several routes need: the backend, the settings, and the row of a video."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request

from vmr_ray.serve.admission import SearchPlaces
from vmr_ray.serve.backend import Backend
from vmr_ray.serve.models import ServeArgs


# Async, because FastAPI runs plain functions in a thread.
async def _backend(request: Request) -> Backend:
    backend: Backend = request.app.state.backend
    return backend


async def _settings(request: Request) -> ServeArgs:
    settings: ServeArgs = request.app.state.settings
    return settings


async def _searches(request: Request) -> SearchPlaces:
    searches: SearchPlaces = request.app.state.searches
    return searches


CurrentSearches = Annotated[SearchPlaces, Depends(_searches)]
CurrentBackend = Annotated[Backend, Depends(_backend)]
CurrentSettings = Annotated[ServeArgs, Depends(_settings)]


async def video_row(backend: Backend, video_id: str) -> dict[str, Any]:
    """The row of an indexed video. Raises HTTPException (404) if the index does not have it."""
    rows = await backend.videos([video_id])
    if not rows:
        raise HTTPException(404, f"the video {video_id[:200]!r} is not in the index")
    return rows[0]
