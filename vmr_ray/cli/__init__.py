"""The command line, `vmr`: one module for each verb, named after it."""

from vmr_ray.cli.app import main, run_job

__all__ = ["main", "run_job"]
