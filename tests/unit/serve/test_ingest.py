"""The queue of jobs, and which files may be added."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from tests.builders import SPEC, VIDEOS, write_features
from vmr_ray.errors import VmrError
from vmr_ray.features import FeatureStore
from vmr_ray.search.tables import VIDEO_SCHEMA, IndexTables
from vmr_ray.serve.errors import StorageError
from vmr_ray.serve.ingest import IngestJob, IngestQueue, checked_uri, hide_paths
from vmr_ray.serve.uploads import Uploads


def test_a_damaged_job_file_does_not_keep_the_service_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    jobs = tmp_path / "ingest" / "jobs"
    jobs.mkdir(parents=True)
    good = IngestJob("good", "a.mp4", "/videos/a.mp4", {"camera": "north"}, "done", created=1.5)
    text = json.dumps(asdict(good))
    damaged = {
        "empty": "",
        "cut": text[:40],
        "a_list": "[1, 2]",
        "no_uri": json.dumps({"job_id": "no_uri", "video_id": "a.mp4"}),
        "no_status": text.replace("good", "no_status").replace("done", "sleeping"),
        "no_text": "\0\xff",
    }
    (jobs / "good.json").write_text(text)
    for name, content in damaged.items():
        (jobs / f"{name}.json").write_text(content, encoding="latin-1")
    queue = IngestQueue(str(tmp_path))
    assert queue.job("good") == good
    for name in damaged:
        assert queue.job(name) is None
        assert f"{name}.json" in caplog.text


def test_jobs_of_earlier_versions_are_read(tmp_path: Path):
    jobs = tmp_path / "ingest" / "jobs"
    jobs.mkdir(parents=True)
    (jobs / "old.json").write_text(
        '{"job_id": "old", "video_id": "a.mp4", "uri": "/a.mp4", "metadata": {"year": 2024, "night": true}, '
        '"status": "failed", "error": "a.mp4 is damaged", "created": 1700000000.25}'
    )
    assert IngestQueue(str(tmp_path)).job("old") == IngestJob(
        *(
            "old",
            "a.mp4",
            "/a.mp4",
            {"year": 2024, "night": True},
            "failed",
            "a.mp4 is damaged",
            1700000000.25,
        )
    )


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_job_continues_after_a_restart_and_a_failed_upload_is_deleted(tmp_path: Path, scheme: str):
    index = f"{scheme}{tmp_path}"
    name = "a (2).mp4"
    upload = tmp_path / "ingest" / "uploads" / name
    upload.parent.mkdir(parents=True)
    upload.write_bytes(b"data")
    (tmp_path / "kept.mp4").write_bytes(b"data")
    jobs = tmp_path / "ingest" / "jobs"
    jobs.mkdir()
    # Earlier versions named the file after the video.
    uris = {"sent": str(upload), "named": str(tmp_path / "kept.mp4")}
    for job_id, uri in uris.items():
        job = IngestJob(job_id, name, uri, status="embedding")
        (jobs / f"{job_id}.json").write_text(json.dumps(asdict(job)))
    queue = IngestQueue(index)  # there is no checkpoint, so the jobs fail
    deadline = time.monotonic() + 60
    for job_id in uris:
        while json.loads((jobs / f"{job_id}.json").read_text())["status"] != "failed":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job = queue.job(job_id)
        assert job and job.error and "checkpoint" in job.error and str(tmp_path) not in job.error
    while upload.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (tmp_path / "kept.mp4").exists()


class SlowQueue(IngestQueue):
    """Its jobs take until `go_on` is set, and then fail."""

    def __init__(self, index: str):
        self.go_on = threading.Event()
        super().__init__(index)

    def _ingest(self, job: IngestJob) -> None:
        self.go_on.wait(60)
        super()._ingest(job)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def video_row(video_id: str, uri: str) -> pa.Table:
    return pa.Table.from_pylist([{"video_id": video_id, "uri": uri, "version": "1"}], VIDEO_SCHEMA)


def send(index: Path, job_id: str) -> str:
    """Store an upload of a job, as a route does."""
    path = Path(Uploads(str(index)).uri(job_id, "a.mp4"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(job_id.encode())
    return str(path)


def test_of_two_uploads_of_one_name_each_has_its_own_file(tmp_path: Path):
    IndexTables.create(str(tmp_path), 4)
    queue = SlowQueue(str(tmp_path))
    first, second = send(tmp_path, "1f"), send(tmp_path, "2e")
    job = queue.add("a.mp4", first, {})
    assert job.job_id == "1f" and queue.job("1f") == job
    assert json.loads((tmp_path / "ingest" / "jobs" / "1f.json").read_text())["uri"] == first
    with pytest.raises(VmrError, match="'a.mp4' is being added already: ask for the job 1f"):
        queue.add("a.mp4", second, {})
    # The file of the job that is refused goes, the other job's stays; also if it is named once more.
    assert (Path(first).exists(), Path(second).exists()) == (True, False)
    with pytest.raises(VmrError, match="being added already"):
        queue.add("a.mp4", first, {})
    assert Path(first).exists() and queue.add("b.mp4", first, {}).job_id != "1f"
    queue.go_on.set()
    until(lambda: not Path(first).exists())  # both jobs have failed
    until(lambda: all(job.status == "failed" for job in queue._jobs.values()))
    assert queue.add("a.mp4", send(tmp_path, "3d"), {}).job_id == "3d"


def test_an_upload_of_an_indexed_name_is_refused_and_deleted(tmp_path: Path):
    indexed = send(tmp_path, "1f")
    IndexTables.create(str(tmp_path), 4).videos.add(video_row("a.mp4", indexed))
    queue = IngestQueue(str(tmp_path))
    for uri, stays in ((send(tmp_path, "2e"), False), (indexed, True), (str(tmp_path / "c.mp4"), False)):
        with pytest.raises(VmrError, match="in the index already"):
            queue.add("a.mp4", uri, {})
        assert Path(uri).exists() == stays
    queue.delete("a.mp4")
    assert not Path(indexed).exists() and not IndexTables.open(str(tmp_path)).has_video("a.mp4")
    queue.delete("a.mp4")  # again
    with pytest.raises(VmrError, match="not in the index"):
        queue.delete("b.mp4")


def test_a_job_that_cannot_be_stored_leaves_nothing(tmp_path: Path):
    IndexTables.create(str(tmp_path), 4)
    queue = IngestQueue(str(tmp_path))
    sent = send(tmp_path, "1f")
    (tmp_path / "ingest" / "jobs").write_bytes(b"")  # so that no file can be made there
    with pytest.raises(StorageError, match="cannot store this"):
        queue.add("a.mp4", sent, {})
    assert queue.job("1f") is None and not Path(sent).exists()


def test_what_a_killed_service_left_is_cleaned_up_at_the_start(tmp_path: Path):
    """Killed in a delete, after the video's row was gone; and in an upload."""
    index = tmp_path / "index"
    tables = IndexTables.create(str(index), 4)
    tables.windows.add(pa.table({"window_id": ["0:1:v/a.mp4"], "video_id": ["v/a.mp4"]}))
    tables.deleted.add(pa.table({"video_id": ["v/a.mp4", "v/b.mp4"]}))
    store = FeatureStore.create(str(index / "ingest" / "features"), SPEC)
    for video in VIDEOS:
        write_features(store, video, [3])
    left = [send(index, job_id) for job_id in ("1f", "2e", "3d")]
    for path in left:
        os.utime(path, (0, 0))
    tables.videos.add(video_row("v/c.mp4", left[2]))
    again = IngestJob("4c", "v/b.mp4", left[1])  # b is being added again
    (index / "ingest" / "jobs").mkdir()
    (index / "ingest" / "jobs" / "4c.json").write_text(json.dumps(asdict(again)))
    queue = SlowQueue(str(index))
    until(lambda: not Path(left[0]).exists())
    assert Path(left[1]).exists() and Path(left[2]).exists()
    assert store.video_ids() == ["v/b.mp4", "v/c.mp4"] and tables.windows.count_rows() == 0
    queue.go_on.set()


def test_the_upload_of_a_job_of_a_newer_version_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    IndexTables.create(str(tmp_path), 4)
    kept, orphan = send(tmp_path, "1f"), send(tmp_path, "2e")
    for path in (kept, orphan):
        os.utime(path, (0, 0))
    newer = asdict(IngestJob("1f", "a.mp4", kept)) | {"status": "waiting for a place", "more": {"a": 1}}
    (tmp_path / "ingest" / "jobs").mkdir()
    file = tmp_path / "ingest" / "jobs" / "1f.json"
    file.write_text(json.dumps(newer))
    queue = IngestQueue(str(tmp_path))
    assert queue.job("1f") is None and "1f.json" in caplog.text
    until(lambda: not Path(orphan).exists())
    assert Path(kept).exists() and json.loads(file.read_text()) == newer


def test_old_finished_jobs_are_removed(tmp_path: Path):
    jobs = tmp_path / "ingest" / "jobs"
    jobs.mkdir(parents=True)
    for number in range(1010):
        job = IngestJob(f"{number}", "a.mp4", "/a.mp4", status="done", created=float(number))
        (jobs / f"{number}.json").write_text(json.dumps(asdict(job)))
    queue = IngestQueue(str(tmp_path))
    until(lambda: queue.job("9") is None)
    assert queue.job("10") and queue.job("1009")
    until(lambda: {file.stem for file in jobs.iterdir()} == {f"{number}" for number in range(10, 1010)})


def test_an_error_shows_no_path():
    job = IngestJob("1f", "a.mp4", "s3://bucket/secret/a (2).mp4")
    text = "cannot read s3://bucket/secret/a (2).mp4: /home/me/x.so failed, see file:///tmp/y; 1/2 frames"
    assert hide_paths(text, job) == "cannot read a.mp4: a.mp4 failed, see a.mp4; 1/2 frames"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    (root / "in.mp4").write_bytes(b"x")
    (tmp_path / "out.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to(tmp_path / "out.mp4")
    (root / "inner.mp4").symlink_to(root / "in.mp4")
    (root / "notes.txt").write_bytes(b"x")
    (tmp_path / "archive2").mkdir()
    (tmp_path / "archive2" / "in.mp4").write_bytes(b"x")
    return root


def test_a_file_below_a_root_is_accepted(archive: Path):
    assert checked_uri(f"{archive}/in.mp4", [str(archive)]) == str(archive / "in.mp4")
    assert checked_uri(f"{archive}/inner.mp4", [str(archive)]) == str(archive / "in.mp4")


@pytest.mark.parametrize(
    "uri",
    [
        "{root}/../out.mp4",
        "{root}/link.mp4",
        "{root}2/in.mp4",
        "../../etc/passwd",
        "/etc/passwd",
        "in.mp4",
        "file://{root}/in.mp4",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data/a.mp4",
        "s3://other/in.mp4",
        "s3://bucket/videos/../secret/in.mp4",
        "s3://bucket/videos/%2e%2e/secret/in.mp4",
        "s3://bucket/videos/%252e%252e/secret/in.mp4",
        "s3://bucket/videos-2/in.mp4",
        "s3://me:secret@bucket/videos/in.mp4",
        "s3://bucket/videos/in.mp4?endpoint_override=http://169.254.169.254",
        "{root}/in.mp4\0.txt",
    ],
)
def test_a_file_elsewhere_is_refused_and_its_path_not_shown(archive: Path, uri: str):
    with pytest.raises(VmrError, match="not below any of the service's roots") as refusal:
        checked_uri(uri.format(root=archive), [str(archive), "s3://bucket/videos"])
    assert str(archive) not in str(refusal.value)


def test_without_roots_no_file_is_accepted(archive: Path):
    with pytest.raises(VmrError, match="roots"):
        checked_uri(f"{archive}/in.mp4", [])


def test_a_file_that_is_no_video_or_missing_is_refused(archive: Path):
    with pytest.raises(VmrError, match="no suffix of a video"):
        checked_uri(f"{archive}/notes.txt", [str(archive)])
    with pytest.raises(VmrError, match="no file"):
        checked_uri(f"{archive}/none.mp4", [str(archive)])
