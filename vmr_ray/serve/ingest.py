"""Videos into a live index: a queue of jobs, each embed -> index, that a restart takes up again.

INDEX/ingest/jobs/       one JSON file a job
INDEX/ingest/uploads/    uploaded files
INDEX/ingest/features/   feature store of what was added
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from queue import SimpleQueue

from pyarrow import fs

from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info
from vmr_ray.search.build import build_index
from vmr_ray.search.metadata import Metadata
from vmr_ray.search.tables import IndexTables
from vmr_ray.storage import filesystem, is_below, is_remote, is_uri, write_json
from vmr_ray.video.sources import VIDEO_SUFFIXES

_OLD_PART = 24 * 3600 * 10**9  # nanoseconds
_UNFINISHED = ("queued", "embedding", "indexing")


@dataclass(frozen=True)
class IngestJob:
    """A video on its way into the index; `status`: queued, embedding, indexing, done or failed."""

    job_id: str
    video_id: str
    uri: str
    metadata: Metadata = field(default_factory=dict)
    status: str = "queued"
    error: str | None = None
    created: float = 0.0


class IngestQueue:
    """Works one job at a time in a thread; the pipelines behind it run on the whole cluster."""

    def __init__(self, index: str):
        self.index = index
        self.files, self.path = filesystem(f"{index}/ingest/jobs")
        self.files.create_dir(self.path, recursive=True)
        self._jobs: dict[str, IngestJob] = {}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._adding = threading.Lock()
        for info in self.files.get_file_info(fs.FileSelector(self.path)):
            if info.extension == "json":
                with self.files.open_input_stream(info.path) as stream:
                    job = IngestJob(**json.loads(stream.read()))
                self._jobs[job.job_id] = job
        for job in sorted(self._jobs.values(), key=lambda job: job.created):
            if job.status in _UNFINISHED:
                self._queue.put(job.job_id)
        _clear_parts(index)
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, video_id: str, uri: str, metadata: Metadata) -> IngestJob:
        """Raises VmrError if the video is in the index, or on its way, already."""
        with self._adding:  # two requests for one video must not both find it missing
            known = [job for job in list(self._jobs.values()) if job.video_id == video_id]
            waiting = any(job.status in _UNFINISHED for job in known)
            if waiting or IndexTables.open(self.index).has_video(video_id):
                raise VmrError(
                    f"the video {video_id!r} is in the index already: "
                    "delete it first, or choose another video_id"
                )
            job = IngestJob(uuid.uuid4().hex, video_id, uri, dict(metadata), created=time.time())
            self._keep(job)
            self._queue.put(job.job_id)
            return job

    def job(self, job_id: str) -> IngestJob | None:
        return self._jobs.get(job_id)

    def delete(self, video_id: str) -> None:
        """Out of the index, with what adding it has left. Raises VmrError if it is not indexed."""
        IndexTables.open(self.index).delete_videos([video_id])
        remove_upload(self.index, video_id)
        with suppress(VmrError):  # nothing was ever added here
            FeatureStore.open(f"{self.index}/ingest/features").delete(video_id)

    def _work(self) -> None:
        while True:
            job = self._jobs[self._queue.get()]
            try:
                self._ingest(job)
                self._keep(replace(job, status="done"))
            except Exception as error:  # whatever it is, it is this video's; the next one comes
                told = str(error) if isinstance(error, VmrError) else f"{type(error).__name__}"
                failed = replace(job, status="failed", error=hide_paths(told, job))
                self._jobs[job.job_id] = failed
                with suppress(OSError):  # the storage may be what fails: the next start tries this job again
                    self._keep(failed)
                    if job.uri.endswith(f"/ingest/uploads/{job.video_id}"):
                        remove_upload(self.index, job.video_id)  # it may be sent again

    def _ingest(self, job: IngestJob) -> None:
        from vmr_ray.embedding.embed import embed

        self._keep(replace(job, status="embedding"))
        info = load_info(f"{self.index}/checkpoint")
        config = EmbedConfig(
            encoder=info.frame_encoder,
            decode=DecodeConfig(sampling=info.sampling),
            storage_roots=(job.uri,) if is_remote(job.uri) else (),
            max_failed=1.0,
        )
        features = f"{self.index}/ingest/features"
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder) / "add.jsonl"
            manifest.write_text(json.dumps({"video_id": job.video_id, "uri": job.uri}) + "\n")
            summary = embed([manifest], features, config)
        if summary.quarantined:
            raise VmrError(summary.quarantined[0].error)
        self._keep(replace(job, status="indexing"))
        build_index(
            features,
            f"{self.index}/checkpoint",
            self.index,
            only=[job.video_id],
            metadata={job.video_id: job.metadata},
        )

    def _keep(self, job: IngestJob) -> None:
        self._jobs[job.job_id] = job
        write_json(f"{self.index}/ingest/jobs/{job.job_id}.json", asdict(job))


def hide_paths(text: str, job: IngestJob) -> str:
    """What went wrong with a job, naming the video and not where it lies."""
    return re.sub(r"(?<![\w.])(?:\w+://|/)[^\s:;,'\"]+", job.video_id, text.replace(job.uri, job.video_id))


def checked_uri(uri: str, roots: Sequence[str]) -> str:
    """The URI as it may be read: below one of the roots, links followed.

    Raises:
        VmrError: it is not below any root, or no video by its name.
    """
    refusal = VmrError("this uri is not below any of the roots that the service was given")
    if "\0" in uri:
        raise refusal
    if is_uri(uri):
        if not is_below(uri, roots):
            raise refusal
        source = uri
    else:
        path = Path(os.path.realpath(uri))
        if not Path(uri).is_absolute() or not any(
            not is_uri(root) and path.is_relative_to(os.path.realpath(Path(root).expanduser()))
            for root in roots
        ):
            raise refusal
        source = str(path)
    if PurePosixPath(source).suffix.lower() not in VIDEO_SUFFIXES:
        raise VmrError(f"this uri is no video by its name: give one of {', '.join(sorted(VIDEO_SUFFIXES))}")
    filesys, inner = filesystem(source)
    if filesys.get_file_info(inner).type != fs.FileType.File:
        raise VmrError("there is no file at this uri")
    return source


def upload_name(name: str) -> str:
    """The file name of an upload. Raises VmrError if it is not a plain name of a video file."""
    plain = re.fullmatch(r"\w[\w .()+-]{0,199}", name)
    if not plain or PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES:
        raise VmrError(
            "name must be a plain file name of letters, digits and .()+-_ that ends like a video, "
            f"such as {', '.join(sorted(VIDEO_SUFFIXES)[:4])}"
        )
    return name


def upload_place(index: str, name: str) -> str:
    return f"{index}/ingest/uploads/{name}"


def _clear_parts(index: str) -> None:
    """Delete what uploads have left whose replica died; none that still grows is so old."""
    filesys, path = filesystem(upload_place(index, ""))
    for info in filesys.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if info.extension == "part" and info.mtime_ns < time.time_ns() - _OLD_PART:
            filesys.delete_file(info.path)


def remove_upload(index: str, video_id: str) -> None:
    """Delete the uploaded file of a video, if it was uploaded."""
    try:
        filesys, path = filesystem(upload_place(index, upload_name(video_id)))
    except VmrError:
        return
    if filesys.get_file_info(path).type == fs.FileType.File:
        filesys.delete_file(path)
