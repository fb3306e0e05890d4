"""Adding videos to a live index: a queue of jobs, each embed -> index, which continues after a restart.

INDEX/ingest/jobs/       one JSON file for each job
INDEX/ingest/uploads/    uploaded files
INDEX/ingest/features/   feature store of the added videos
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from queue import SimpleQueue

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.errors import VmrError, one_line
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info
from vmr_ray.search.build import build_index
from vmr_ray.search.metadata import Metadata
from vmr_ray.search.tables import IndexTables
from vmr_ray.serve.models import JobStatus
from vmr_ray.serve.uploads import Uploads
from vmr_ray.storage import exists, filesystem, is_below, is_remote, is_uri, join, read_json, write_json
from vmr_ray.video.sources import VIDEO_SUFFIXES

_UNFINISHED = ("queued", "embedding", "indexing")
_log = logging.getLogger("ray.serve")  # the one that Serve writes to the replica's log file


@dataclass(frozen=True)
class IngestJob:
    """A video that is being added to the index.

    Attributes:
        uri: the path or URI of its file.
        metadata: what `filter` compares.
        error: why it failed.
        created: seconds since 1970.
    """

    job_id: str
    video_id: str
    uri: str
    metadata: Metadata = field(default_factory=dict)
    status: JobStatus = "queued"
    error: str | None = None
    created: float = 0.0


class IngestQueue:
    """The queue of one index. A thread works on one job at a time; the pipelines that the job starts use the
    whole cluster."""

    def __init__(self, index: str):
        self.index = index
        self.uploads = Uploads(index)
        self._folder = f"{index}/ingest/jobs"
        self._jobs = {job.job_id: job for job in self._stored_jobs()}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._adding = threading.Lock()
        for job in sorted(self._jobs.values(), key=lambda job: job.created):
            if job.status in _UNFINISHED:
                self._queue.put(job.job_id)
        self.uploads.remove_stale()
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, video_id: str, uri: str, metadata: Metadata) -> IngestJob:
        """Queue a video.

        Raises:
            VmrError: the video is in the index, or another job is adding it.
        """
        with self._adding:  # two requests for one video must not both find it missing
            waiting = any(
                job.video_id == video_id and job.status in _UNFINISHED for job in list(self._jobs.values())
            )
            if waiting or IndexTables.open(self.index).has_video(video_id):
                raise VmrError(
                    f"the video {video_id!r} is in the index already: "
                    "delete it first, or choose another video_id"
                )
            job = IngestJob(uuid.uuid4().hex, video_id, uri, dict(metadata), created=time.time())
            self._save(job)
            self._queue.put(job.job_id)
            return job

    def job(self, job_id: str) -> IngestJob | None:
        """The job in its present state, None if there is none of this id."""
        return self._jobs.get(job_id)

    def delete(self, video_id: str) -> None:
        """Delete a video from the index, with its upload and the features that adding it wrote.

        Raises:
            VmrError: it is not indexed.
        """
        IndexTables.open(self.index).delete_videos([video_id])
        self.uploads.remove(video_id)
        with suppress(VmrError):  # there is no feature store before the first video is added
            FeatureStore.open(f"{self.index}/ingest/features").delete(video_id)

    def _stored_jobs(self) -> Iterator[IngestJob]:
        """The jobs on disk. A damaged file is skipped: it must not keep the service from starting."""
        filesys, folder = filesystem(self._folder)
        for info in filesys.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
            if info.extension != "json":
                continue
            try:
                content = read_json(join(self._folder, info.base_name), "its video may be added again")
                yield TypeAdapter(IngestJob).validate_python(content)
            except (VmrError, ValidationError) as error:
                _log.warning("skipped the job file %s: %s", info.base_name, one_line(error))

    def _work(self) -> None:
        while True:
            job = self._jobs[self._queue.get()]
            try:
                self._ingest(job)
                self._save(replace(job, status="done"))
            except Exception as error:  # it concerns this video only; the next one is added all the same
                self._fail(job, error)

    def _ingest(self, job: IngestJob) -> None:
        from vmr_ray.embedding.embed import embed

        self._save(replace(job, status="embedding"))
        info = load_info(join(self.index, "checkpoint"))
        config = EmbedConfig(
            encoder=info.frame_encoder,
            fit=info.fit,
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
        self._save(replace(job, status="indexing"))
        build_index(
            features,
            f"{self.index}/checkpoint",
            self.index,
            only=[job.video_id],
            metadata={job.video_id: job.metadata},
        )

    def _fail(self, job: IngestJob, error: Exception) -> None:
        if isinstance(error, VmrError):
            message = hide_paths(str(error), job)
        else:
            _log.error("job %s failed", job.job_id, exc_info=error)
            message = f"internal error ({type(error).__name__}): see the service's log"
        failed = replace(job, status="failed", error=message)
        self._jobs[job.job_id] = failed
        with suppress(OSError):  # if the storage is what fails, the next start tries this job again
            self._save(failed)
            if job.uri == self.uploads.uri(job.video_id):
                self.uploads.remove(job.video_id)  # so that it may be sent again

    def _save(self, job: IngestJob) -> None:
        self._jobs[job.job_id] = job
        write_json(join(self._folder, f"{job.job_id}.json"), asdict(job))


def hide_paths(text: str, job: IngestJob) -> str:
    """An error's text with every path and URI replaced by the video's id, because clients see it."""
    return re.sub(r"(?<![\w.])(?:\w+://|/)[^\s:;,'\"]+", job.video_id, text.replace(job.uri, job.video_id))


def checked_uri(uri: str, roots: Sequence[str]) -> str:
    """The path (links followed) or URI of a file that may be added.

    Raises:
        VmrError: it is not below any of `roots`, has no suffix of a video, or does not exist.
    """
    refusal = VmrError("this uri is not below any of the service's roots")
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
        raise VmrError(f"this uri has no suffix of a video: give one of {', '.join(sorted(VIDEO_SUFFIXES))}")
    if not exists(source):
        raise VmrError("there is no file at this uri")
    return source
