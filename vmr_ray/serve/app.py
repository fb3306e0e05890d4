"""The Serve application: HTTP in, `Searcher` behind it, nothing else.

serve run serve_configs/local.yaml        # import_path: vmr_ray.serve.app:build
"""

# No `from __future__ import annotations` here: FastAPI must see the types themselves, also in a replica.
import mimetypes
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from ray import serve

from vmr_ray import __version__
from vmr_ray.config import SearchConfig
from vmr_ray.errors import VmrError
from vmr_ray.serve.limits import BodyLimit

MAX_BODY = 1 << 20
PAGE = Path(__file__).parent / "page"


class ServeArgs(BaseModel):
    """The `args` of a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(description="index directory or URI; a relative one counts from where Ray was started")
    search: SearchConfig = SearchConfig()
    device: str = "cpu"
    threads: int = Field(1, ge=1, description="torch threads of one replica")


class SearchRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"query": "the person pours ingredients into a mixer", "top_k": 3}},
    )

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        description="what happens in the moment, as a plain sentence"
    )
    top_k: int = Field(10, ge=1, le=100)
    video_ids: list[str] | None = Field(
        None, min_length=1, max_length=1000, description="search these videos only"
    )


class FoundMoment(BaseModel):
    """`start` and `end` are seconds on the video's own clock, `[start, end)`."""

    rank: int
    video_id: str
    start: float
    end: float
    score: float = Field(description="orders the moments of one query; higher is better")


class SearchResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    results: list[FoundMoment]
    model_version: str
    took_ms: dict[str, float] = Field(description="milliseconds by stage")


class IndexedVideo(BaseModel):
    # What else the index knows, above all where the file lies, stays inside.
    model_config = ConfigDict(extra="ignore")

    video_id: str
    duration: float = Field(description="seconds")
    frames: int = Field(description="sampled frames")
    partial: bool = Field(description="the file was damaged; only its readable part is searchable")


class VideoList(BaseModel):
    videos: list[IndexedVideo]


class Health(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    status: str
    model_version: str


api = FastAPI(
    title="vmr-ray",
    version=__version__,
    description="Search inside video with plain sentences: a query in, files and seconds out.",
)
api.add_middleware(BodyLimit, limit=MAX_BODY)


@api.exception_handler(RequestValidationError)
async def _refused(_: Request, error: RequestValidationError) -> JSONResponse:
    """What is wrong, without echoing what was sent."""
    said = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors())
    return JSONResponse({"error": said}, status_code=422)


@api.exception_handler(VmrError)
async def _mistake(_: Request, error: VmrError) -> JSONResponse:
    return JSONResponse({"error": str(error)}, status_code=400)


@api.exception_handler(HTTPException)
async def _http(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": error.detail}, status_code=error.status_code)


# `serve.ingress` pickles the class as it stands here: what its methods use must be defined above.
@serve.deployment
@serve.ingress(api)
class MomentSearch:
    """One replica: the index opened, the network and the text encoder in memory."""

    def __init__(self, args: dict[str, Any]):
        import torch

        from vmr_ray.search import Searcher

        settings = ServeArgs.model_validate(args)
        torch.set_num_threads(settings.threads)
        self.searcher = Searcher(settings.index, settings.search, settings.device)
        # The first query pays for lazy set-up; let it be ours.
        self.searcher.search("warm up", 1)

    # Plain functions: FastAPI runs them in threads, so that health checks answer during a search.
    @api.post("/v1/search", tags=["search"])
    def search(self, request: SearchRequest) -> SearchResponse:
        """The moments that show what the query says, best first."""
        found = self.searcher.search(request.query, request.top_k, request.video_ids)
        return SearchResponse(
            results=[
                FoundMoment(rank=rank, video_id=m.video_id, start=m.start, end=m.end, score=m.score)
                for rank, m in enumerate(found.moments, start=1)
            ],
            model_version=self.searcher.version,
            took_ms=found.took_ms,
        )

    @api.get("/v1/videos", tags=["videos"])
    def videos(self) -> VideoList:
        """Every searchable video."""
        return VideoList(videos=[IndexedVideo(**row) for row in self.searcher.videos()])

    @api.get("/v1/videos/{video_id:path}/stream", tags=["videos"], response_class=FileResponse)
    def stream(self, video_id: str) -> FileResponse:
        """The video file; HTTP range requests are answered."""
        uri = next((row["uri"] for row in self.searcher.videos() if row["video_id"] == video_id), None)
        if uri is None or "://" in uri or not Path(uri).is_file():
            raise HTTPException(404, f"no playable file for the video {video_id!r}")
        return FileResponse(uri, media_type=mimetypes.guess_type(uri)[0] or "application/octet-stream")

    @api.get("/healthz", tags=["operation"])
    def healthz(self) -> Health:
        """Alive and able to search."""
        return Health(status="ok", model_version=self.searcher.version)

    @api.get("/", include_in_schema=False)
    def page(self) -> FileResponse:
        return FileResponse(PAGE / "index.html")


def build(args: dict[str, Any]) -> serve.Application:
    """What a Serve config's `import_path` names.

    Raises:
        VmrError: an argument is unknown or malformed.
    """
    from vmr_ray.config import validated

    settings = validated(ServeArgs, args, "args")
    return MomentSearch.bind(settings.model_dump())  # type: ignore[attr-defined]
