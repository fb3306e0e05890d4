"""What goes in and out over HTTP, and the settings of the service."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from vmr_ray.config import SearchConfig


class ServeArgs(BaseModel):
    """The `args` of a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(description="index directory or URI; a relative one counts from where Ray was started")
    auth: Literal["keys", "none"] = Field(
        "keys", description="none: no keys are asked for, and only the service's own machine is answered"
    )
    key_file: str | None = Field(None, description="names and hashes of API keys; also VMR_API_KEYS counts")
    roots: tuple[str, ...] = Field(
        (), description="directories and URI prefixes from which videos may be added; default: none"
    )
    max_upload_mb: int = Field(2048, ge=0, description="largest upload; 0: none are taken")
    timeout_s: float = Field(20.0, gt=0, description="a search that takes longer is given up with 503")
    idle_s: float = Field(30.0, gt=0, description="a body of which nothing comes for so long is given up")
    batch_size: int = Field(16, ge=1, description="searches that travel and are ranked together")
    batches_in_flight: int = Field(
        4, ge=1, description="batches that an Api replica has at the rankers at a time; further searches wait"
    )
    split_encoder: bool = Field(
        True, description="queries are encoded by a deployment of its own; else by the rankers, one hop less"
    )
    search: SearchConfig = SearchConfig()
    device: str = "cpu"
    threads: int = Field(1, ge=1, description="torch threads of one replica")


Value = str | int | float | bool
VideoId = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Text = Annotated[str, StringConstraints(max_length=1000)]


class SearchBody(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"query": "the person pours ingredients into a mixer", "top_k": 3}},
    )

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        description="what happens in the moment, as a plain sentence"
    )
    top_k: int = Field(10, ge=1, le=100, description="results a page")
    video_ids: list[VideoId] | None = Field(
        None, min_length=1, max_length=1000, description="search these videos only"
    )
    filter: dict[Key, Text | int | float | bool | list[Text | int | float | bool]] | None = Field(
        None,
        max_length=20,
        description="search videos only whose metadata has this value, or one of these, in each field",
        examples=[{"camera": "north", "year": [2024, 2025]}],
    )
    min_score: float | None = Field(None, description="leave out moments that score lower")
    group_by: Literal["moment", "video"] = Field(
        "moment", description="video: only the best moment of each video"
    )
    page_token: str | None = Field(None, max_length=200, description="next_page_token of the page before")
    include: list[Literal["saliency", "thumbnail"]] = Field([], max_length=2)


class FoundMoment(BaseModel):
    """`start` and `end` are seconds on the video's own clock, `[start, end)`."""

    rank: int
    video_id: str
    start: float
    end: float
    score: float = Field(description="orders the moments of one query, over all videos; higher is better")
    thumbnail: str | None = Field(None, description="address of the picture of its middle, if included")


class SaliencyCurve(BaseModel):
    """How surely the frames that search looked at belong to the moment."""

    times: list[float] = Field(description="seconds, the middles of the frames")
    values: list[float] = Field(description="0 to 1")


class SearchResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    results: list[FoundMoment]
    next_page_token: str | None = Field(None, description="asks for the next page, if there is one")
    saliency: dict[str, SaliencyCurve] | None = Field(None, description="by video_id, if included")
    model_version: str
    took_ms: dict[str, float] = Field(description="milliseconds by stage")


class Refusal(BaseModel):
    """What was wrong, and how to mend it."""

    error: str


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    searches: list[SearchBody] = Field(min_length=1, max_length=32)


class BatchResponse(BaseModel):
    responses: list[SearchResponse | Refusal] = Field(description="one for each search, in their order")


class IndexedVideo(BaseModel):
    # What else the index knows, above all where the file lies, stays inside.
    model_config = ConfigDict(extra="ignore")

    video_id: str
    duration: float = Field(description="seconds")
    frames: int = Field(description="sampled frames")
    partial: bool = Field(description="the file was damaged; only its readable part is searchable")
    metadata: dict[str, Any] = Field({}, description="what `filter` compares")


class VideoList(BaseModel):
    videos: list[IndexedVideo]
    next_page_token: str | None = None


class AddRequest(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"uri": "/archive/2024/clip.mp4", "metadata": {"camera": "north"}}},
    )

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2000)] = Field(
        description="a path or object-storage URI below one of the service's roots"
    )
    video_id: VideoId | None = Field(None, description="default: the file's name")
    metadata: dict[Key, Text | int | float | bool] = Field({}, max_length=50)


class Job(BaseModel):
    """A video on its way into the index."""

    job_id: str
    video_id: str
    status: Literal["queued", "embedding", "indexing", "done", "failed"]
    error: str | None = None


class Health(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    status: str
    model_version: str | None = None
