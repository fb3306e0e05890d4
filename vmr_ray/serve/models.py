"""The settings of the service, and the bodies of its requests and answers."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, field_validator

from vmr_ray.config import SearchConfig


class ServeArgs(BaseModel):
    """The `args` of a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    index: str = Field(description="index directory or URI; a relative path starts where Ray was started")
    auth: Literal["keys", "none"] = Field(
        "keys", description="none: no API keys, and only clients on the service's own machine are answered"
    )
    key_file: str | None = Field(
        None, description="names and hashes of API keys; the keys in VMR_API_KEYS are valid too"
    )
    hosts: tuple[str, ...] = Field(
        (),
        description="with auth: none, names of this machine that clients may use besides localhost",
    )
    roots: tuple[str, ...] = Field(
        (), description="directories and URI prefixes from which videos may be added; default: none"
    )
    max_upload_mb: int = Field(2048, ge=0, description="size limit of an upload; 0: no uploads")
    timeout_s: float = Field(20.0, gt=0, description="a search that takes longer is answered with 503")
    wait_s: float = Field(
        1.5, gt=0, description="a search that would wait longer than this for others is refused with 503"
    )
    idle_s: float = Field(
        10.0,
        gt=0,
        description="a body of JSON that is not complete after this long is answered with 408, as is an "
        "upload that brings fewer than 8 KB/s for this long",
    )
    token_secret: str | None = Field(
        None, description="signs page tokens; default: a new one for each deployment of the service"
    )
    batch_size: int = Field(16, ge=1, description="limit of the searches that are sent and ranked together")
    batches_in_flight: int = Field(
        4, ge=1, description="limit of the batches that an Api replica has at the rankers; more searches wait"
    )
    split_encoder: bool = Field(
        True, description="encode queries in a deployment of their own, not in the rankers (one hop less)"
    )
    search: SearchConfig = SearchConfig()
    device: str = Field("cpu", description="where the network runs: cpu, cuda, ...")
    threads: int = Field(1, ge=1, description="torch threads of one replica")

    def with_secret(self) -> ServeArgs:
        """The same settings with a secret for page tokens, random unless there is one."""
        return self.model_copy(update={"token_secret": self.token_secret or secrets.token_hex()})


JobStatus = Literal["queued", "embedding", "indexing", "done", "failed"]
VideoId = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Key = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Text = Annotated[str, StringConstraints(max_length=1000)]
Value = Text | int | FiniteFloat | bool
MAX_VALUES = 100  # of a filter, in all its fields together


class SearchBody(BaseModel):
    """A search. The searcher checks what depends on its settings, such as the length of the query."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"query": "the person pours ingredients into a mixer", "top_k": 3}},
    )

    query: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        description="what happens in the moment, as a plain sentence"
    )
    top_k: int = Field(10, ge=1, le=100, description="results per page")
    video_ids: list[VideoId] | None = Field(
        None, min_length=1, max_length=1000, description="search only these videos"
    )
    filter: dict[Key, Value | Annotated[list[Value], Field(max_length=MAX_VALUES)]] | None = Field(
        None,
        max_length=20,
        description="search only videos whose metadata has this value, or one of these, in every field",
        examples=[{"camera": "north", "year": [2024, 2025]}],
    )
    min_score: FiniteFloat | None = Field(None, description="leave out moments that score lower")
    min_probability: float | None = Field(
        None,
        ge=0,
        le=1,
        description="leave out moments that are less probable; default: the checkpoint's own limit, at which "
        "few true moments are lost; 0 leaves none out",
    )
    group_by: Literal["moment", "video"] = Field(
        "moment", description="video: only the best moment of each video"
    )
    page_token: str | None = Field(None, max_length=200, description="next_page_token of the previous page")
    include: list[Literal["saliency", "thumbnail"]] = Field(
        [], max_length=2, description="what else to answer: saliency curves, addresses of thumbnails"
    )

    @field_validator("filter")
    @classmethod
    def _check_values(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if sum(len(v) if isinstance(v, list) else 1 for v in (value or {}).values()) > MAX_VALUES:
            raise ValueError(f"at most {MAX_VALUES} values are taken in all fields together")
        return value


class FoundMoment(BaseModel):
    """A moment; `start` and `end` are seconds on the video's own clock, `[start, end)`."""

    rank: int = Field(description="1 is the best of all pages")
    video_id: str
    start: float
    end: float
    score: float = Field(description="ranks the moments of one query across all videos; higher is better")
    probability: float | None = Field(
        None,
        description="that the moment shows what the query describes, 0 to 1; null if the checkpoint is not "
        "calibrated",
    )
    thumbnail: str | None = Field(None, description="address of the frame at its middle, if included")


class SaliencyCurve(BaseModel):
    """The probability that a frame belongs to the moment, of every frame that the search compared."""

    times: list[float] = Field(description="the middle of each frame, in seconds")
    values: list[float] = Field(description="0 to 1")


class SearchResponse(BaseModel):
    """One page of results."""

    model_config = ConfigDict(protected_namespaces=())

    results: list[FoundMoment]
    found: bool = Field(description="whether any moment is probable enough, on this page or an earlier one")
    nearest: list[FoundMoment] = Field(
        [], description="if nothing is found, the best of the moments that are too improbable"
    )
    probability: float | None = Field(
        None,
        description="that any of the searched videos shows what the query describes, 0 to 1; null if the "
        "checkpoint is not calibrated",
    )
    next_page_token: str | None = Field(None, description="page_token of the next page, if there is one")
    saliency: dict[str, SaliencyCurve] | None = Field(None, description="by video_id, if included")
    model_version: str = Field(description="checksum of the checkpoint that ranked")
    took_ms: dict[str, float] = Field(description="milliseconds by stage")


class Refusal(BaseModel):
    """An error: what is wrong, and how to fix it."""

    error: str


class BatchRequest(BaseModel):
    """Several searches."""

    model_config = ConfigDict(extra="forbid")

    searches: list[SearchBody] = Field(min_length=1, max_length=32)


class BatchResponse(BaseModel):
    """The answers to several searches."""

    responses: list[SearchResponse | Refusal] = Field(description="one for each search, in the same order")


class IndexedVideo(BaseModel):
    """A searchable video."""

    # Clients do not see the other columns of the index, above all not where the file is.
    model_config = ConfigDict(extra="ignore")

    video_id: str
    duration: float = Field(description="seconds")
    frames: int = Field(description="number of sampled frames")
    partial: bool = Field(description="the file was damaged; only its readable part is searchable")
    metadata: dict[str, Any] = Field({}, description="what `filter` compares")


class Playback(BaseModel):
    """How a player shows a video's file."""

    begins: float = Field(description="what a player's clock shows at second 0 of the video")
    duration: float = Field(description="seconds, also where the file does not declare it")
    searched_stream: bool = Field(description="players show the stream that was searched; else play clips")


class VideoList(BaseModel):
    """One page of the list of videos."""

    videos: list[IndexedVideo]
    next_page_token: str | None = Field(None, description="page_token of the next page, if there is one")


class AddRequest(BaseModel):
    """A video to add, by its path or URI."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"example": {"uri": "/archive/2024/clip.mp4", "metadata": {"camera": "north"}}},
    )

    uri: Annotated[str, StringConstraints(min_length=1, max_length=2000)] = Field(
        description="a path or object-storage URI below one of the service's roots"
    )
    video_id: VideoId | None = Field(None, description="default: the file's name")
    metadata: dict[Key, Value] = Field({}, max_length=50, description="fields that `filter` compares")


class Job(BaseModel):
    """A video that is being added to the index."""

    model_config = ConfigDict(from_attributes=True)

    job_id: str
    video_id: str
    status: JobStatus
    error: str | None = Field(None, description="why it failed")


class Health(BaseModel):
    """The service is up."""

    model_config = ConfigDict(protected_namespaces=())

    status: str
    model_version: str | None = None
