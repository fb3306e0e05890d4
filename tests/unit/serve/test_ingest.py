from __future__ import annotations

import os
import time
from pathlib import Path

from vmr_ray.serve.ingest import IngestQueue


def test_parts_of_uploads_that_nobody_sends_any_more_are_cleared(tmp_path: Path):
    uploads = tmp_path / "ingest" / "uploads"
    uploads.mkdir(parents=True)
    names = ("old.mp4.1f.part", "young.mp4.2e.part", "old.mp4")
    for name in names:
        (uploads / name).write_bytes(b"data")
        if name.startswith("old"):
            os.utime(uploads / name, (time.time() - 2 * 86400,) * 2)
    IngestQueue(str(tmp_path))
    assert {path.name for path in uploads.iterdir()} == {"young.mp4.2e.part", "old.mp4"}
