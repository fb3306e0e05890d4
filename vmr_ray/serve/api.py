"""The HTTP routes, around the deployments that do the work. Paths and errors are the public contract.

`make_api` is called in a replica; `Backend` says what it needs of the deployments behind it.
"""

# No `from __future__ import annotations`: FastAPI reads the types of these inner functions.
import asyncio
import base64
import hashlib
import json
import mimetypes
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Protocol
from urllib.parse import quote

from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pyarrow import fs
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.staticfiles import StaticFiles

from vmr_ray import __version__
from vmr_ray.errors import VmrError
from vmr_ray.search.result import SearchRequest, SearchResult
from vmr_ray.serve.auth import Gate, load_keys
from vmr_ray.serve.ingest import IngestJob, checked_uri, upload_name, upload_place
from vmr_ray.serve.limits import BodyLimit, StalledError
from vmr_ray.serve.models import (
    AddRequest,
    BatchRequest,
    BatchResponse,
    FoundMoment,
    Health,
    IndexedVideo,
    Job,
    Refusal,
    SaliencyCurve,
    SearchBody,
    SearchResponse,
    ServeArgs,
    VideoList,
)
from vmr_ray.storage import filesystem, is_remote
from vmr_ray.video import clips

MAX_BODY = 1 << 20
MAX_OFFSET = 1000
PAGE = Path(__file__).parent / "page"
# The page loads nothing from elsewhere and runs no inline script.
PAGE_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"
RETRY_AFTER = {"Retry-After": "1"}


class UnavailableError(Exception):
    """Too much to do, or a replica died: the same request may succeed a second later."""


class Backend(Protocol):
    """The deployments behind the routes. Every call raises UnavailableError if it may be repeated later."""

    async def search(self, ask: SearchRequest) -> SearchResult | VmrError: ...
    async def version(self) -> str: ...
    async def videos(
        self, video_ids: Sequence[str] | None = None, offset: int = 0, limit: int | None = None
    ) -> list[dict[str, Any]]: ...
    async def add(self, video_id: str, uri: str, metadata: dict[str, Any]) -> IngestJob: ...
    async def job(self, job_id: str) -> IngestJob | None: ...
    async def delete(self, video_id: str) -> None: ...
    async def metrics(self) -> str: ...


def make_api(settings: ServeArgs, backend: Backend) -> FastAPI:
    """Raises VmrError if keys are asked for and there are none."""
    api = FastAPI(
        title="vmr-ray",
        version=__version__,
        description="Search inside video with plain sentences: a query in, files and seconds out.",
        responses={
            code: {"model": Refusal, "description": text}
            for code, text in {
                400: "something in the request is wrong; the text says what",
                401: "no valid API key",
                503: "busy: try again after the seconds in Retry-After",
            }.items()
        },
    )
    api.add_middleware(BodyLimit, limit=MAX_BODY, idle_s=settings.idle_s, streamed=_is_upload)
    api.add_middleware(Gate, keys=load_keys(settings.key_file) if settings.auth == "keys" else None)
    looking = asyncio.Semaphore(2)  # decoders that make pictures and clips at one time

    @api.exception_handler(RequestValidationError)
    async def refused(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": _told(error.errors())}, status_code=422)

    @api.exception_handler(VmrError)
    async def mistake(_: Request, error: VmrError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @api.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, status_code=error.status_code, headers=error.headers)

    @api.exception_handler(UnavailableError)
    async def busy(_: Request, error: UnavailableError) -> JSONResponse:
        return JSONResponse({"error": "busy: try again in a second"}, status_code=503, headers=RETRY_AFTER)

    @api.exception_handler(StalledError)
    async def stalled(_: Request, error: StalledError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=408)

    @api.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": "an error of the service, which its log tells"}, status_code=500)

    async def answer(request: SearchBody) -> SearchResponse:
        digest = _digest(request)
        offset = _offset(request.page_token, digest)
        ask = SearchRequest(
            query=request.query,
            top_k=request.top_k,
            video_ids=request.video_ids,
            filter=request.filter,
            min_score=request.min_score,
            group_by=request.group_by,
            offset=offset,
            saliency="saliency" in request.include,
        )
        found = await backend.search(ask)
        if isinstance(found, VmrError):
            raise found
        after = offset + request.top_k
        return SearchResponse(
            results=[
                FoundMoment(
                    rank=rank,
                    video_id=m.video_id,
                    start=m.start,
                    end=m.end,
                    score=m.score,
                    thumbnail=_thumbnail(m.video_id, (m.start + m.end) / 2)
                    if "thumbnail" in request.include
                    else None,
                )
                for rank, m in enumerate(found.moments, start=offset + 1)
            ],
            next_page_token=_token(after, digest) if found.more and after <= MAX_OFFSET else None,
            saliency={v: SaliencyCurve(times=s.times, values=s.values) for v, s in found.saliency.items()}
            if "saliency" in request.include
            else None,
            model_version=found.model_version,
            took_ms=found.took_ms,
        )

    @api.post("/v1/search", tags=["search"])
    async def search(request: SearchBody) -> SearchResponse:
        """The moments that show what the query says, best first."""
        return await answer(request)

    @api.post("/v1/search:batch", tags=["search"])
    async def search_batch(request: BatchRequest) -> BatchResponse:
        """Several searches; a mistake in one is that one's answer, too much to do everyone's."""

        async def one(search: SearchBody) -> SearchResponse | Refusal:
            try:
                return await answer(search)
            except VmrError as error:
                return Refusal(error=str(error))

        tasks = [asyncio.create_task(one(search)) for search in request.searches]
        try:
            return BatchResponse(responses=list(await asyncio.gather(*tasks)))
        finally:
            for task in tasks:  # when one is refused, or the client hangs up, nobody reads the others
                task.cancel()

    @api.get("/v1/videos", tags=["videos"])
    async def videos(
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        page_token: Annotated[str | None, Query(max_length=200)] = None,
    ) -> VideoList:
        """The searchable videos, by their id."""
        offset = _offset(page_token, "videos")
        rows = await backend.videos(offset=offset, limit=limit + 1)
        return VideoList(
            videos=[IndexedVideo(**row) for row in rows[:limit]],
            next_page_token=_token(offset + limit, "videos") if len(rows) > limit else None,
        )

    @api.post(
        "/v1/videos",
        status_code=202,
        tags=["videos"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": {"$ref": "#/components/schemas/AddRequest"}},
                    "video/*": {"schema": {"type": "string", "format": "binary"}},
                },
            }
        },
    )
    async def add_video(
        request: Request,
        name: Annotated[str | None, Query(max_length=200, description="file name of an upload")] = None,
        content_length: Annotated[int | None, Header(ge=0, include_in_schema=False)] = None,
    ) -> Job:
        """Add a video: a JSON body names one below the service's roots; any other body is the file itself.

        The answer comes at once; the job tells when the video is searchable.
        """
        if _is_upload(request.scope):
            return _job(await upload(request, name, content_length))
        try:
            wanted = AddRequest.model_validate_json(await request.body())
        except ValidationError as error:
            raise HTTPException(422, _told(error.errors(), 0)) from None
        source = await asyncio.to_thread(checked_uri, wanted.uri, settings.roots)
        video_id = wanted.video_id or source.rpartition("/")[2]
        return _job(await backend.add(video_id, source, wanted.metadata))

    async def upload(request: Request, name: str | None, length: int | None) -> IngestJob:
        most = settings.max_upload_mb << 20
        if not most:
            raise HTTPException(403, "this service takes no uploads")
        if name is None:
            raise HTTPException(422, "name: say in the query what the file is called")
        video_id = upload_name(name)
        if length is not None and length > most:
            raise HTTPException(413, f"the file exceeds {settings.max_upload_mb} MB")
        if await backend.videos([video_id]):
            raise HTTPException(409, f"the video {video_id!r} is in the index already: delete it first")
        filesys, path = filesystem(upload_place(settings.index, video_id))
        part = f"{path}.{uuid.uuid4().hex}.part"

        async def still_free() -> None:
            found = await asyncio.to_thread(filesys.get_file_info, path)
            if found.type == fs.FileType.File:
                raise HTTPException(409, f"the video {video_id!r} is on its way already: ask for its job")

        await asyncio.to_thread(filesys.create_dir, path.rpartition("/")[0], recursive=True)
        await still_free()
        out = await asyncio.to_thread(filesys.open_output_stream, part)
        taken = 0
        try:
            try:
                async for block in request.stream():
                    taken += len(block)
                    if taken > most:
                        raise HTTPException(413, f"the file exceeds {settings.max_upload_mb} MB")
                    await asyncio.to_thread(out.write, block)
            finally:
                await asyncio.to_thread(out.close)
            if not taken:
                raise HTTPException(422, "the body is empty: send the file as the request's body")
            await still_free()  # another one of this name may have been faster
            await asyncio.to_thread(filesys.move, part, path)
        except BaseException:
            filesys.delete_file(part)
            raise
        place = _uri(settings, video_id) if is_remote(settings.index) else path
        try:
            return await backend.add(video_id, place, {})
        except Exception:
            filesys.delete_file(path)  # nobody will embed it; it may be sent again
            raise

    @api.get("/v1/jobs/{job_id}", tags=["videos"])
    async def job(job_id: str) -> Job:
        """How far an added video is."""
        found = await backend.job(job_id)
        if found is None:
            raise HTTPException(404, "there is no such job")
        return _job(found)

    async def row_of(video_id: str) -> dict[str, Any]:
        rows = await backend.videos([video_id])
        if not rows:
            raise HTTPException(404, f"the video {video_id[:200]!r} is not in the index")
        return rows[0]

    async def uri_of(video_id: str) -> str:
        return str((await row_of(video_id))["uri"]).removeprefix("file://")

    def on_disk(uri: str, video_id: str) -> str:
        if is_remote(uri) or not Path(uri).is_file():
            raise HTTPException(404, f"there is no file to look at for the video {video_id[:200]!r}")
        return uri

    @api.get("/v1/videos/{video_id:path}/stream", tags=["videos"], response_class=Response)
    async def stream(video_id: str, request: Request) -> Response:
        """The video file; HTTP range requests are answered."""
        uri = await uri_of(video_id)
        kind = mimetypes.guess_type(uri)[0] or "application/octet-stream"
        if is_remote(uri):
            return await asyncio.to_thread(_remote, uri, kind, request.headers.get("range"))
        return FileResponse(on_disk(uri, video_id), media_type=kind)

    async def look(work: Callable[..., Any], *args: Any) -> asyncio.Task[Any]:
        """Begin it in a thread when there is a place, which is free again when the work is done: whoever
        hangs up meanwhile ends nothing."""
        await looking.acquire()
        task = asyncio.create_task(asyncio.to_thread(work, *args))
        task.add_done_callback(lambda _: looking.release())
        return task

    # Rounded to tenths, so that a page that is opened again finds its pictures made.
    @lru_cache(256)
    def picture(path: str, size: int, changed: int, tenth: int, width: int) -> bytes:
        return clips.thumbnail(path, tenth / 10, width)

    @api.get("/v1/videos/{video_id:path}/thumbnail", tags=["videos"], response_class=Response)
    async def thumbnail(
        video_id: str,
        t: Annotated[float, Query(ge=0, le=1e6, description="seconds")] = 0.0,
        width: Annotated[int, Query(ge=16, le=1280)] = 320,
    ) -> Response:
        """The frame at a second, as a JPEG."""
        path = on_disk(await uri_of(video_id), video_id)
        stat = Path(path).stat()
        data = await asyncio.shield(
            await look(picture, path, stat.st_size, stat.st_mtime_ns, round(10 * t), width)
        )
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    @api.get("/v1/videos/{video_id:path}/clip", tags=["videos"], response_class=Response)
    async def clip(
        video_id: str,
        start: Annotated[float, Query(ge=0, le=1e6, description="seconds")],
        end: Annotated[float, Query(ge=0, le=1e6, description="seconds")],
    ) -> Response:
        """The span as an MP4, cut exactly."""
        path = on_disk(await uri_of(video_id), video_id)
        descriptor, out = tempfile.mkstemp(suffix=".mp4")
        os.close(descriptor)
        gone = BackgroundTask(Path(out).unlink, missing_ok=True)
        work = None
        try:
            work = await look(clips.clip, path, start, end, out)
            await asyncio.shield(work)
        except BaseException:
            if work is None:
                Path(out).unlink(missing_ok=True)
            else:  # who hung up left the decoder at work
                work.add_done_callback(lambda _: Path(out).unlink(missing_ok=True))
            raise
        name = f"{Path(video_id).stem}_{start:g}-{end:g}.mp4"
        return FileResponse(out, media_type="video/mp4", filename=name, background=gone)

    @api.get("/v1/videos/{video_id:path}", tags=["videos"])
    async def video(video_id: str) -> IndexedVideo:
        """One searchable video."""
        return IndexedVideo(**await row_of(video_id))

    @api.delete("/v1/videos/{video_id:path}", status_code=204, tags=["videos"])
    async def delete(video_id: str) -> Response:
        """Take a video out of the index, and out of all results from now on."""
        await row_of(video_id)
        await backend.delete(video_id)
        return Response(status_code=204)

    @api.get("/healthz", tags=["operation"])
    async def healthz() -> Health:
        """The service's own process answers."""
        return Health(status="ok")

    @api.get("/readyz", tags=["operation"])
    async def readyz() -> Health:
        """A search would be answered now."""
        try:
            return Health(status="ok", model_version=await asyncio.wait_for(backend.version(), 5))
        except TimeoutError:
            raise UnavailableError from None

    @api.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics of all nodes: the stages of search, and Ray Serve's own."""
        return Response(await backend.metrics(), media_type="text/plain; version=0.0.4")

    @api.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": PAGE_POLICY})

    api.mount("/page", StaticFiles(directory=PAGE))

    # The body of POST /v1/videos is read by hand, so FastAPI does not know its model.
    original = api.openapi

    def openapi() -> dict[str, Any]:
        schema = original()
        schema["components"]["schemas"].setdefault(
            "AddRequest", AddRequest.model_json_schema(ref_template="#/components/schemas/{model}")
        )
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
    return api


def _is_upload(scope: Any) -> bool:
    """Whether the body is a file, which may be large and is written to disk as it comes."""
    if scope["method"] != "POST" or not scope["path"].endswith("/v1/videos"):
        return False
    kind = next((v.decode("latin-1") for k, v in scope["headers"] if k == b"content-type"), "")
    return kind.partition(";")[0].strip().lower() not in ("", "application/json")


def _told(errors: Sequence[Any], skip: int = 1) -> str:
    """What is wrong, without echoing what was sent."""
    return "; ".join(f"{'.'.join(map(str, e['loc'][skip:]))[:100] or 'body'}: {e['msg']}" for e in errors)[
        :1000
    ]


def _job(job: IngestJob) -> Job:
    return Job(job_id=job.job_id, video_id=job.video_id, status=job.status, error=job.error)


def _uri(settings: ServeArgs, video_id: str) -> str:
    return upload_place(settings.index, quote(video_id))


def _thumbnail(video_id: str, second: float) -> str:
    return f"v1/videos/{quote(video_id)}/thumbnail?t={second:.1f}"


def _digest(request: SearchBody) -> str:
    """A page token fits the request that it came from, and no other."""
    asked = request.model_dump(exclude={"page_token", "include"})
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _token(offset: int, digest: str) -> str:
    return base64.urlsafe_b64encode(f"{offset}.{digest}".encode()).decode().rstrip("=")


def _offset(token: str | None, digest: str) -> int:
    if token is None:
        return 0
    try:
        number, _, mark = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode().partition(".")
        if mark == digest and number.isascii() and number.isdigit():
            return int(number)
    except ValueError:
        pass
    raise VmrError("page_token is not one of this search: send the request again without it")


def _remote(uri: str, kind: str, wanted: str | None) -> Response:
    """A file in object storage, or a range of it."""
    filesys, path = filesystem(uri)
    file = filesys.open_input_file(path)
    size = file.size()
    first, last = 0, size - 1
    if wanted and (span := _range(wanted, size)):
        first, last = span

    async def blocks() -> AsyncIterator[bytes]:
        at = first
        with file:
            file.seek(first)
            while at <= last:
                block = await asyncio.to_thread(file.read, min(1 << 20, last + 1 - at))
                if not block:
                    return
                at += len(block)
                yield block

    headers = {"Accept-Ranges": "bytes", "Content-Length": str(last + 1 - first)}
    if (first, last) == (0, size - 1):
        return StreamingResponse(blocks(), media_type=kind, headers=headers)
    headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    return StreamingResponse(blocks(), status_code=206, media_type=kind, headers=headers)


def _range(wanted: str, size: int) -> tuple[int, int] | None:
    """The first range of a Range header, None if it is not understood (the whole file is then right)."""
    unit, _, spans = wanted.partition("=")
    first, dash, last = spans.partition(",")[0].strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first + last).isdigit():
        return None
    low = int(first) if first else max(0, size - int(last))
    high = min(int(last), size - 1) if first and last else size - 1
    return (low, high) if low <= high else None
