"""`vmr`: every verb of the project at the command line."""

from vmr_ray.cli.app import main, run_job
from vmr_ray.search.result import timecode

__all__ = ["main", "run_job", "timecode"]
