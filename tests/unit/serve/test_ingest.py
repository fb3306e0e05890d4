"""The queue of jobs, and which files may be added."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from vmr_ray.errors import VmrError
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
    uris = {"sent": Uploads(index).uri(name), "named": str(tmp_path / "kept.mp4")}
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
