"""The videos that could not be embedded, and why: one JSON file per video."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import PurePosixPath

from vmr_ray.features.chunks import video_key
from vmr_ray.features.folder import StoreFolder
from vmr_ray.schema import Quarantined


class Quarantine:
    """The quarantine records of a store."""

    def __init__(self, folder: StoreFolder):
        self._folder = folder

    def add(self, row: Quarantined) -> None:
        """Write the record of a video; it replaces an earlier one."""
        path = f"{self._folder.path}/quarantine/{video_key(row.video_id)}.json"
        self._folder.write(path, json.dumps(asdict(row)).encode())

    def rows(self) -> list[Quarantined]:
        """All records, sorted by video_id."""
        paths = [info.path for info in self._folder.list("quarantine") if info.path.endswith(".json")]
        rows = [Quarantined(**json.loads(self._folder.read(path))) for path in paths]
        return sorted(rows, key=lambda row: row.video_id)

    def clear(self, video_ids: Iterable[str]) -> None:
        """Delete the records of videos that have been embedded since."""
        embedded = {video_key(video_id) for video_id in video_ids}
        for info in self._folder.list("quarantine"):
            if PurePosixPath(info.path).stem in embedded:
                self._folder.delete(info.path)
