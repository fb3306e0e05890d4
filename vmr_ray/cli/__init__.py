"""`vmr`: every verb of the project at the command line."""

from vmr_ray.cli.main import main, run_job
from vmr_ray.cli.show import metrics_table
from vmr_ray.notebook import timecode

__all__ = ["main", "metrics_table", "run_job", "timecode"]
