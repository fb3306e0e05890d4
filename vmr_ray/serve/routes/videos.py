"""The videos of the index: list them, add one, follow its job, delete one."""

from __future__ import annotations

import asyncio
import uuid
from typing import Annotated

from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from pydantic import ValidationError

from vmr_ray.errors import VmrError
from vmr_ray.serve.backend import Backend
from vmr_ray.serve.errors import StorageError, validation_message
from vmr_ray.serve.ingest import IngestJob, checked_uri
from vmr_ray.serve.models import AddRequest, IndexedVideo, Job, ServeArgs, VideoList
from vmr_ray.serve.page_tokens import decode_token, encode_token
from vmr_ray.serve.routes.common import CurrentBackend, CurrentSettings, video_row
from vmr_ray.serve.uploads import (
    Uploads,
    check_media_type,
    check_size,
    has_control,
    is_upload,
    upload_name,
)

router = APIRouter(tags=["videos"])

# The route reads the body itself, so FastAPI does not know what it may be.
_ADD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/AddRequest"}},
            "video/*": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.get("/v1/videos")
async def list_videos(
    backend: CurrentBackend,
    settings: CurrentSettings,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    page_token: Annotated[str | None, Query(max_length=200)] = None,
) -> VideoList:
    """The searchable videos, sorted by id."""
    secret = settings.token_secret or ""
    offset = decode_token(page_token, "videos", secret)
    rows = await backend.videos(offset=offset, limit=limit + 1)
    return VideoList(
        videos=[IndexedVideo(**row) for row in rows[:limit]],
        next_page_token=encode_token(offset + limit, "videos", secret) if len(rows) > limit else None,
    )


@router.post("/v1/videos", status_code=202, openapi_extra=_ADD_BODY)
async def add_video(
    request: Request,
    backend: CurrentBackend,
    settings: CurrentSettings,
    name: Annotated[str | None, Query(max_length=255, description="file name of an upload")] = None,
    content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
) -> Job:
    """Add a video. A JSON body names a file below one of the service's roots; a body of type video/* or
    application/octet-stream is the file itself.

    The answer comes at once; the job says when the video is searchable.
    """
    check_media_type(request.headers.get("content-type", ""))
    if is_upload(request.scope):
        return Job.model_validate(await _upload(request, name, content_length, settings, backend))
    try:
        video = AddRequest.model_validate_json(await request.body())
    except ValidationError as error:
        raise HTTPException(422, validation_message(error.errors())) from None
    uri = await asyncio.to_thread(checked_uri, video.uri, settings.roots)
    video_id = video.video_id or uri.rpartition("/")[2]
    if has_control(video_id):
        # No address could name it, and so no request could delete it.
        raise HTTPException(422, "video_id: it must not have a line break or another control character")
    job = await backend.add(video_id, uri, video.metadata)
    return Job.model_validate(job)


async def _upload(
    request: Request, name: str | None, length: int | None, settings: ServeArgs, backend: Backend
) -> IngestJob:
    max_bytes = settings.max_upload_mb << 20
    if not max_bytes:
        raise HTTPException(403, "this service accepts no uploads")
    if name is None:
        raise HTTPException(422, "name: give the file's name in the query string")
    video_id = upload_name(name)
    check_size(length or 0, max_bytes)
    if await backend.videos([video_id]):
        raise HTTPException(409, f"the video {video_id!r} is in the index already: delete it first")
    uploads = await asyncio.to_thread(Uploads, settings.index)
    uri = await uploads.receive(request.stream(), uuid.uuid4().hex, video_id, max_bytes)
    # From here on the file is the queue's, which deletes it if there is no job for it in the end. If `add`
    # takes too long, or the client goes away, only the queue knows.
    try:
        return await backend.add(video_id, uri, {})
    except StorageError:
        raise
    except VmrError as error:
        raise HTTPException(409, str(error)) from None


@router.get("/v1/jobs/{job_id}")
async def get_job(job_id: str, backend: CurrentBackend) -> Job:
    """How far an added video is."""
    job = await backend.job(job_id)
    if job is None:
        raise HTTPException(404, "there is no such job")
    return Job.model_validate(job)


@router.get("/v1/videos/{video_id:path}")
async def get_video(video_id: str, backend: CurrentBackend) -> IndexedVideo:
    """One searchable video."""
    return IndexedVideo(**await video_row(backend, video_id))


@router.delete("/v1/videos/{video_id:path}", status_code=204)
async def delete_video(video_id: str, backend: CurrentBackend) -> Response:
    """Delete a video from the index, and so from all later results."""
    await video_row(backend, video_id)
    await backend.delete(video_id)
    return Response(status_code=204)
