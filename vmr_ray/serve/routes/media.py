"""What people look at: the video file, a frame of it, a clip of it."""

from __future__ import annotations

import asyncio
import mimetypes
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from vmr_ray.serve.backend import Backend
from vmr_ray.serve.media import MediaWorkers, stream_remote
from vmr_ray.serve.models import Playback
from vmr_ray.serve.routes.common import CurrentBackend, video_row
from vmr_ray.storage import is_remote

router = APIRouter(tags=["videos"])


async def _workers(request: Request) -> MediaWorkers:
    workers: MediaWorkers = request.app.state.media
    return workers


CurrentWorkers = Annotated[MediaWorkers, Depends(_workers)]
Second = Annotated[float, Query(ge=0, le=1e6, description="seconds")]


@router.get("/v1/videos/{video_id:path}/stream", response_class=Response)
async def stream_video(video_id: str, request: Request, backend: CurrentBackend) -> Response:
    """The video file. Range requests are supported."""
    uri = await _video_uri(backend, video_id)
    media_type = mimetypes.guess_type(uri)[0] or "application/octet-stream"
    if is_remote(uri):
        return await asyncio.to_thread(stream_remote, uri, media_type, request.headers.get("range"))
    return FileResponse(_local_file(uri, video_id), media_type=media_type)


@router.get("/v1/videos/{video_id:path}/thumbnail", response_class=Response)
async def get_thumbnail(
    video_id: str,
    backend: CurrentBackend,
    workers: CurrentWorkers,
    t: Second = 0.0,
    width: Annotated[int, Query(ge=16, le=1280, description="pixels")] = 320,
) -> Response:
    """The frame at a second, as a JPEG."""
    path = _local_file(await _video_uri(backend, video_id), video_id)
    jpeg = await workers.thumbnail(path, t, width)
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/v1/videos/{video_id:path}/playback")
async def get_playback(video_id: str, backend: CurrentBackend, workers: CurrentWorkers) -> Playback:
    """What a player needs to show a second of the video."""
    row = await video_row(backend, video_id)
    found = await workers.playback(_local_file(str(row["uri"]).removeprefix("file://"), video_id))
    return Playback(
        begins=found.begins, searched_stream=found.searched_stream, duration=float(row["duration"])
    )


@router.get("/v1/videos/{video_id:path}/clip", response_class=Response)
async def get_clip(
    video_id: str, start: Second, end: Second, backend: CurrentBackend, workers: CurrentWorkers
) -> Response:
    """The span as an MP4, cut exactly."""
    path = _local_file(await _video_uri(backend, video_id), video_id)
    file = await workers.clip(path, start, end)
    return FileResponse(
        file,
        media_type="video/mp4",
        filename=f"{Path(video_id).stem}_{start:g}-{end:g}.mp4",
        background=BackgroundTask(file.unlink, missing_ok=True),
    )


async def _video_uri(backend: Backend, video_id: str) -> str:
    return str((await video_row(backend, video_id))["uri"]).removeprefix("file://")


def _local_file(uri: str, video_id: str) -> Path:
    path = Path(uri)
    if is_remote(uri) or not path.is_file():
        raise HTTPException(404, f"the file of the video {video_id[:200]!r} is not on this machine")
    return path
