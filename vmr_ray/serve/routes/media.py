"""What people look at: the video file, a frame of it, a clip of it."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from vmr_ray.serve.media import KeptPictures, MediaWorkers, OpenedVideo
from vmr_ray.serve.models import Playback
from vmr_ray.serve.routes.common import CurrentBackend, CurrentSettings, video_row
from vmr_ray.serve.streams import OpenedVideos, open_indexed, stream_file
from vmr_ray.storage import is_remote

router = APIRouter(tags=["videos"])


async def _workers(request: Request) -> MediaWorkers:
    workers: MediaWorkers = request.app.state.media
    return workers


CurrentWorkers = Annotated[MediaWorkers, Depends(_workers)]
Second = Annotated[float, Query(ge=0, le=1e6, description="seconds")]


@router.head("/v1/videos/{video_id:path}/stream", include_in_schema=False)
@router.get("/v1/videos/{video_id:path}/stream", response_class=Response)
async def stream_video(video_id: str, request: Request, backend: CurrentBackend) -> Response:
    """The video file. Range requests are supported; one without an end is answered with the first 4 MB of
    it."""
    continued: OpenedVideos = request.app.state.opened_videos
    row = continued.get(video_id, request.headers.get("if-match")) or await video_row(backend, video_id)
    continued.add(row)
    media_type = mimetypes.guess_type(row["uri"])[0] or "application/octet-stream"
    opened = await asyncio.to_thread(open_indexed, row["uri"], row["version"], video_id)
    return stream_file(opened, row["version"], media_type, request.headers, request.method != "HEAD")


@router.get("/v1/videos/{video_id:path}/thumbnail", response_class=Response)
async def get_thumbnail(
    video_id: str,
    backend: CurrentBackend,
    workers: CurrentWorkers,
    settings: CurrentSettings,
    t: Second = 0.0,
    width: Annotated[int, Query(ge=16, le=1280, description="pixels")] = 320,
) -> Response:
    """The frame at a second, as a JPEG."""
    row = await video_row(backend, video_id)
    kept = None
    if not is_remote(settings.index):
        kept = KeptPictures(settings.index.removeprefix("file://"), video_id, row["version"])
    jpeg = await workers.thumbnail(await _opened(row), t, width, kept)
    return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/v1/videos/{video_id:path}/playback")
async def get_playback(video_id: str, backend: CurrentBackend, workers: CurrentWorkers) -> Playback:
    """What a player needs to show a second of the video."""
    row = await video_row(backend, video_id)
    found = await workers.playback(await _opened(row))
    return Playback(
        begins=found.begins, searched_stream=found.searched_stream, duration=float(row["duration"])
    )


@router.get("/v1/videos/{video_id:path}/clip", response_class=Response)
async def get_clip(
    video_id: str, start: Second, end: Second, backend: CurrentBackend, workers: CurrentWorkers
) -> Response:
    """The span as an MP4, cut exactly."""
    video = await _opened(await video_row(backend, video_id))
    file = await workers.clip(video, start, end)
    return FileResponse(
        file,
        media_type="video/mp4",
        filename=f"{Path(video_id).stem}_{start:g}-{end:g}.mp4",
        background=BackgroundTask(file.unlink, missing_ok=True),
    )


@router.head("/v1/videos/{video_id:path}/thumbnail", include_in_schema=False)
async def head_thumbnail(video_id: str, backend: CurrentBackend) -> Response:
    """Whether there is a file to take a frame of; nothing is decoded."""
    (await _opened(await video_row(backend, video_id))).file.close()
    return Response(media_type="image/jpeg")


@router.head("/v1/videos/{video_id:path}/clip", include_in_schema=False)
async def head_clip(video_id: str, backend: CurrentBackend) -> Response:
    """Whether there is a file to cut a clip of; nothing is decoded."""
    (await _opened(await video_row(backend, video_id))).file.close()
    return Response(media_type="video/mp4")


async def _opened(row: Mapping[str, Any]) -> OpenedVideo:
    """The open file of a video. Raises HTTPException if it is not the one that was indexed, or not on this
    machine."""
    video_id = row["video_id"]
    if is_remote(row["uri"]):
        raise HTTPException(404, f"the file of the video {video_id[:200]!r} is not on this machine")
    path = Path(row["uri"].removeprefix("file://"))
    opened = await asyncio.to_thread(open_indexed, str(path), row["version"], video_id)
    return OpenedVideo.of(path, opened.file)
