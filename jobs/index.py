"""Feature store + checkpoint -> index.

    ray job submit --working-dir . -- python jobs/index.py features --checkpoint run/best --out index

The flags are those of `vmr index`; the last line printed is the result as JSON.
Exit codes: 0 done, 1 the work failed, 2 a mistake in the input.
"""

from vmr_ray.cli import run_job

if __name__ == "__main__":
    run_job("index")
