"""Adding videos to a live index: a queue of jobs, each embed -> index, which continues after a restart.

INDEX/ingest/jobs/       one JSON file for each job
INDEX/ingest/uploads/    uploaded files
INDEX/ingest/features/   feature store of the added videos

A job is on the disk before a client hears of it. What a killed service has left (rows, features and uploads
of videos that are half added or half deleted) is cleaned up when the next one starts.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue

from pyarrow import fs
from pydantic import TypeAdapter, ValidationError

from vmr_ray.config import DecodeConfig, EmbedConfig
from vmr_ray.errors import VmrError, one_line
from vmr_ray.features import FeatureStore
from vmr_ray.model.checkpoint import load_info
from vmr_ray.search.build import build_index
from vmr_ray.search.metadata import Metadata
from vmr_ray.search.tables import IndexTables
from vmr_ray.serve.errors import storage_error
from vmr_ray.serve.models import JobStatus
from vmr_ray.serve.uploads import Uploads
from vmr_ray.storage import exists, filesystem, is_below, is_remote, is_uri, join, read_json, write_json
from vmr_ray.video.sources import VIDEO_SUFFIXES

_UNFINISHED = ("queued", "embedding", "indexing")
_KEPT_JOBS = 1000  # finished ones
_ORPHANS_INTERVAL_S = 3600
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
        self._folder = join(index, "ingest/jobs")
        self._unread: set[str] = set()  # ids of the jobs whose files could not be read
        self._jobs = {job.job_id: job for job in self._stored_jobs()}
        self._queue: SimpleQueue[str] = SimpleQueue()
        self._adding = threading.Lock()
        for job in self._sorted_jobs():
            if job.status in _UNFINISHED:
                self._queue.put(job.job_id)
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, video_id: str, uri: str, metadata: Metadata) -> IngestJob:
        """Queue a video. If it is refused and its file was uploaded, the file is deleted.

        Raises:
            VmrError: the video is in the index, or another job is adding it.
            StorageError: the job cannot be stored.
        """
        with self._adding:  # two requests for one video must not both find it missing
            try:
                self._check_free(video_id)
                upload_id = self.uploads.job_id(uri)
                job_id = uuid.uuid4().hex if upload_id is None or upload_id in self._jobs else upload_id
                job = IngestJob(job_id, video_id, uri, dict(metadata), created=time.time())
                self._save(job)
            except (VmrError, OSError) as error:
                with suppress(VmrError, OSError):
                    self._release(uri)
                if isinstance(error, OSError):
                    raise storage_error(error) from None
                raise
            self._queue.put(job.job_id)
            return job

    def job(self, job_id: str) -> IngestJob | None:
        """The job in its present state, None if there is none of this id."""
        return self._jobs.get(job_id)

    def delete(self, video_id: str) -> None:
        """Delete a video from the index, with its upload and the features that adding it wrote.

        Raises:
            VmrError: it is not indexed and never was.
        """
        tables = IndexTables.open(self.index)
        rows = tables.read_videos([video_id], ["uri"])
        tables.delete_videos([video_id])
        with suppress(VmrError):  # there is no feature store before the first video is added
            FeatureStore.open(self._features).delete(video_id)
        for row in rows:
            self._release(row["uri"])

    @property
    def _features(self) -> str:
        return join(self.index, "ingest/features")

    def _check_free(self, video_id: str) -> None:
        for job in self._unfinished():
            if job.video_id == video_id:
                raise VmrError(f"the video {video_id!r} is being added already: ask for the job {job.job_id}")
        if IndexTables.open(self.index).has_video(video_id):
            raise VmrError(
                f"the video {video_id!r} is in the index already: delete it first, or choose another video_id"
            )

    def _sorted_jobs(self) -> list[IngestJob]:
        return sorted(self._jobs.copy().values(), key=lambda job: job.created)

    def _unfinished(self) -> list[IngestJob]:
        return [job for job in self._sorted_jobs() if job.status in _UNFINISHED]

    def _stored_jobs(self) -> Iterator[IngestJob]:
        """The jobs on disk. A file that is damaged, or of a newer version, is skipped: it must not keep the
        service from starting."""
        filesys, folder = filesystem(self._folder)
        for info in filesys.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
            if info.extension != "json":
                continue
            job_id = info.base_name.removesuffix(".json")
            try:
                content = read_json(join(self._folder, info.base_name), "its video may be added again")
                # The file's name is the id, whatever the file says.
                yield replace(TypeAdapter(IngestJob).validate_python(content), job_id=job_id)
            except (VmrError, ValidationError, OSError) as error:
                self._unread.add(job_id)
                _log.warning("skipped the job file %s: %s", info.base_name, one_line(error))

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        self._attempt(self._sweep)
        due = time.monotonic()
        while True:
            self._attempt(self._remove_old_jobs)
            if time.monotonic() >= due:
                self._attempt(self._remove_orphans)
                due = time.monotonic() + _ORPHANS_INTERVAL_S
            try:
                job = self._jobs[self._queue.get(timeout=_ORPHANS_INTERVAL_S)]
            except Empty:
                continue
            try:
                self._ingest(job)
                self._save(replace(job, status="done"))
            except Exception as error:  # it concerns this video only; the next one is added all the same
                self._fail(job, error)

    def _attempt(self, work: Callable[[], None]) -> None:
        """Run `work`, which may fail: the next time does what is left."""
        try:
            work()
        except Exception as error:
            _log.warning("cleaning up %s failed: %s", self.index, one_line(error))

    def _sweep(self) -> None:
        """Complete what the service's end has interrupted."""
        tables = IndexTables.find(self.index)
        if tables is None:
            return
        tables.sweep()
        if exists(join(self._features, "store.json")):
            store = FeatureStore.open(self._features)
            deleted = tables.deleted_ids() - {job.video_id for job in self._unfinished()}
            for video_id in deleted.intersection(store.video_ids()):
                store.delete(video_id)

    def _remove_old_jobs(self) -> None:
        """Delete the oldest finished jobs."""
        finished = [job for job in self._sorted_jobs() if job.status not in _UNFINISHED]
        filesys, folder = filesystem(self._folder)
        for job in finished[:-_KEPT_JOBS]:
            with suppress(FileNotFoundError):
                filesys.delete_file(f"{folder}/{job.job_id}.json")
            del self._jobs[job.job_id]

    def _remove_orphans(self) -> None:
        """Delete the uploads that belong to no video and to no job."""
        if tables := IndexTables.find(self.index):
            uris = [row["uri"] for row in tables.read_videos(columns=["uri"])]
            uris += [job.uri for job in self._unfinished()]
            self.uploads.remove_orphans(uris, self._unread)

    def _release(self, uri: str) -> None:
        """Delete an uploaded file that no video and no unfinished job has."""
        if self.uploads.job_id(uri) is None or any(job.uri == uri for job in self._unfinished()):
            return
        tables = IndexTables.find(self.index)
        if tables is None or not tables.has_uri(uri):
            self.uploads.remove(uri)

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
        with tempfile.TemporaryDirectory() as folder:
            manifest = Path(folder) / "add.jsonl"
            manifest.write_text(json.dumps({"video_id": job.video_id, "uri": job.uri}) + "\n")
            summary = embed([manifest], self._features, config)
        if summary.quarantined:
            raise VmrError(summary.quarantined[0].error)
        self._save(replace(job, status="indexing"))
        build_index(
            self._features,
            join(self.index, "checkpoint"),
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
        with suppress(Exception):  # if the storage is what fails, the next start tries this job again
            self._save(failed)
            self._release(job.uri)  # so that it may be sent again

    def _save(self, job: IngestJob) -> None:
        write_json(join(self._folder, f"{job.job_id}.json"), asdict(job), durable=True)
        self._jobs[job.job_id] = job


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
