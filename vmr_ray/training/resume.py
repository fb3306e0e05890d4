"""The checkpoint that a training resumes from."""

from __future__ import annotations

import logging
import shutil
import tempfile
from typing import Any

from pyarrow import fs

from vmr_ray.errors import VmrError, one_line
from vmr_ray.model.checkpoint import load_info
from vmr_ray.storage import filesystem, join
from vmr_ray.training.processes import gather_objects
from vmr_ray.training.trainer_state import load_state

_log = logging.getLogger(__name__)


def find_checkpoint(out: str, rank: int, world: int) -> Any:
    """The newest whole checkpoint of the run in `out` as a `ray.train.Checkpoint`; None if there is none.

    Ray Train records a checkpoint a moment after it is stored. A kill in between leaves one that Ray does not
    know; it is reported to Ray again. Damaged checkpoints are skipped with a warning.
    """
    import ray.train

    known = ray.train.get_checkpoint()
    known_name = known.path.rstrip("/").rpartition("/")[2] if known else ""
    newest = gather_objects(newest_whole(out, known_name) if rank == 0 else "", world)[0]
    if not newest or newest == known_name:
        return known if newest else None
    filesys, path = filesystem(join(out, "run", newest))
    unknown = ray.train.Checkpoint(path, filesystem=filesys)
    with unknown.as_directory() as directory, tempfile.TemporaryDirectory() as copy:
        shutil.copytree(directory, copy, dirs_exist_ok=True)
        ray.train.report(  # a barrier: every process must call it
            load_info(copy).metrics,
            checkpoint=ray.train.Checkpoint.from_directory(copy) if rank == 0 else None,
        )
    return unknown


def newest_whole(out: str, preferred: str = "") -> str:
    """The name of the checkpoint with the highest epoch among those of OUT/run that are stored entirely and
    not damaged; of two with the same epoch `preferred`, or else the later name. "" if there is none."""
    filesys, path = filesystem(join(out, "run"))
    epochs: dict[str, int] = {}
    for item in filesys.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        name = item.base_name
        if name.startswith("checkpoint_") and item.type == fs.FileType.Directory:
            try:
                epochs[name] = load_state(join(out, "run", name)).info.epoch
            except VmrError as error:
                _log.warning("the training does not resume from %s: %s", name, one_line(error))
    return max(epochs, key=lambda name: (epochs[name], name == preferred, name), default="")
