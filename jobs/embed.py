"""Videos -> feature store.

    ray job submit --working-dir . -- python jobs/embed.py s3://archive/videos --out s3://archive/features

The flags are those of `vmr embed`; the last line printed is the result as JSON.
Exit codes: 0 done, 1 the work failed, 2 a mistake in the input.
"""

from vmr_ray.cli import run_job

if __name__ == "__main__":
    run_job("embed")
